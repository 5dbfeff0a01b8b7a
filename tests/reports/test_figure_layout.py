"""Do figures look alike, and do they fit into the column of a paper?"""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.common.numbers import number
from experiments.reports import (
    aggregation,
    figures,
    layout,
    looks,
    studies_figures,
    training_figures,
    writer,
)
from experiments.training.diagnostics import OF_GROUP, OF_STEP
from tests.reports.artificial import GRID, STOPS, drawings, halved, sweep, sweep_of_several


def of_many(n: int, **options: Any):
    """Make runs and curves of n optimizers over lr, each a bit worse than the one before."""
    runs, curves = sweep(2, lr=GRID["lr"], points=6, **options)
    names = [f"optimizer-{place}" for place in range(n - 2)]
    all_runs, all_curves = [], []
    for place, name in enumerate(["adam", "sgd", *names]):
        worse = {"eval_loss": runs["eval_loss"] * 1.1**place, "run_id": runs["run_id"] + place * len(runs)}
        all_runs.append(runs.assign(optimizer=name, **worse))
        all_curves.append(curves.assign(run_id=curves["run_id"] + place * len(runs)))
    return pd.concat(all_runs, ignore_index=True), pd.concat(all_curves, ignore_index=True)


CASES = {
    "one optimizer": (sweep(3, lr=GRID["lr"], beta1=GRID["beta1"]), {}),
    "three optimizers": (sweep_of_several(), {}),
    "a sample": (sweep_of_several(), {"sweep": {"sample": "sobol:15"}}),
    "nine optimizers": (of_many(9), {}),
    "halved": (halved(*sweep_of_several(), STOPS.get), {}),
    "a function": (sweep(2, "regression", lr=GRID["lr"]), {"loss_name": "value above the minimum"}),
}
FIGURES = {
    "one optimizer": ["target", "convergence", "wall_clock", "sensitivity_beta1", "heatmap_lr_beta1", "diagnostics"],
    "three optimizers": ["optimizers", "budget", "target", "diagnostics", "sensitivity_lr"],
    "a sample": ["optimizers", "target", "sensitivity_beta1", "pair_lr_beta1"],
    "halved": ["optimizers", "target", "heatmap_lr_beta1"],
    "nine optimizers": ["optimizers", "lr_panels", "budget", "target", "wall_clock"],
    "a function": ["convergence", "sensitivity_lr"],
}


def texts_of(figure: Figure) -> list[tuple[str, Any]]:
    """Return all texts that are shown, with their extents: the title, legends, and labels and ticks of panels."""
    found = [figure._suptitle, *(text for legend in figure.legends for text in legend.get_texts())]  # type: ignore[attr-defined]
    for ax in figure.axes:
        found += [ax.xaxis.label, ax.yaxis.label, ax._left_title, *ax.texts]  # type: ignore[attr-defined]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    shown = [text for text in found if text is not None and text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text) for text in shown]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("case", "name"), [(case, name) for case, names in FIGURES.items() for name in names])
def test_no_text_is_cut_or_overlaps_another_at_the_width_of_a_column(case, name):
    (runs, curves), known = CASES[case]
    if name == "diagnostics":
        curves = diagnosed(curves)
    check_texts(drawings(runs, curves, known)[name].draw(figsize=(3.4, None)))


@pytest.mark.filterwarnings("error")
def test_figures_of_several_studies_fit_into_a_column():
    (runs, _), _ = CASES["one optimizer"]
    both = pd.concat([runs.assign(optimizer=f"adam ({name})") for name in ("first", "another study")])
    order = aggregation.ranked(both)
    check_texts(studies_figures.sensitivity(both, "beta1", "a loss", False, order, figsize=(3.4, None)))
    names = list(both["optimizer"].unique())
    check_texts(studies_figures.heatmaps(both, "lr", "beta1", "a loss", order, names, figsize=(3.4, None)))


def diagnosed(curves):
    """Return curves with columns as `--diagnostics` records them."""
    names = [*OF_STEP, *(f"{OF_GROUP}{number}" for number in (1, 2, 3, 4, 5))]
    return curves.assign(**{name: 10 ** -np.random.default_rng(0).uniform(0, 6, len(curves)) for name in names})


def check_texts(figure: Figure) -> None:
    """Fail if a text leaves the figure, or overlaps another."""
    assert figure.get_figwidth() == 3.4
    found = [(text, of.get_window_extent(), of.get_rotation()) for text, of in texts_of(figure)]
    box = figure.bbox
    for text, extent, _ in found:
        inside = extent.x0 >= -1 and extent.y0 >= -1 and extent.x1 <= box.x1 + 1 and extent.y1 <= box.y1 + 1
        assert inside, f"{text!r} leaves the figure"
    # Slanted labels overlap as boxes, and not as text.
    upright = [(text, extent) for text, extent, angle in found if angle % 90 == 0]
    for (one, first), (other, second) in itertools.combinations(upright, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        along = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(across, along) < 2, f"{one!r} overlaps {other!r}"


def test_a_figure_takes_width_and_height():
    (runs, curves), _ = CASES["one optimizer"]
    figure = training_figures.convergence(runs, curves, "loss", figsize=(6.0, 4.0))
    assert tuple(figure.get_size_inches()) == (6.0, 4.0)


def test_an_optimizer_has_one_colour_and_one_marker_in_all_figures():
    (runs, curves), known = CASES["nine optimizers"]
    runs = runs.loc[runs["optimizer"].isin(["adam", "sgd", "optimizer-0"])]
    marks: dict[str, set] = {}
    found = drawings(runs, curves, known)
    for figure in (found[name].draw() for name in ("optimizers", "budget", "target", "wall_clock")):
        for line in (line for ax in figure.axes for line in ax.get_lines()):
            if (name := str(line.get_label()).partition(":")[0]) in set(runs["optimizer"]):
                marks.setdefault(name, set()).add((to_hex(line.get_color()), line.get_marker()))
    assert all(len(looks_) == 1 for looks_ in marks.values())
    assert len({next(iter(looks_)) for looks_ in marks.values()}) == len(marks) == 3
    # Other optimizers of the sweep change nothing.
    assert looks.of_optimizers(["sgd", "lion", "adam"])["adam"] == looks.of_optimizers(["adam"])["adam"]


def test_twelve_optimizers_differ_in_colour_and_marker_and_from_configurations():
    styles = looks.of_optimizers([*map(str, range(12)), "adam"][::-1][:12]).values()
    assert len({look.colour for look in styles}) == len({look.marker for look in styles}) == 12
    others = {looks.of_configuration(place).colour.lower() for place in range(5)}
    assert not others & {look.colour.lower() for look in styles}


def test_of_many_optimizers_the_best_have_colours_and_each_has_a_panel():
    (runs, curves), known = CASES["nine optimizers"]
    found = drawings(runs, curves, known)
    ranking, training, _ = found["optimizers"].draw().axes
    assert [label.get_text().split()[0] for label in ranking.get_yticklabels()][:2] == ["adam", "sgd"]
    assert sum(line.get_label() in set(runs["optimizer"]) for line in training.get_lines()) == looks.MOST
    panels = found["lr_panels"].draw().axes
    assert [ax.get_title(loc="left").split(". ")[1] for ax in panels] == list(runs["optimizer"].unique())
    assert len({(ax.get_ylim(), ax.get_xlim()) for ax in panels}) == 1


def test_captions_say_what_was_drawn():
    captions = []
    for runs, curves in (sweep(1, lr=GRID["lr"], diverged=lambda row: False), CASES["one optimizer"][0]):
        figure = writer.of_one(runs, aggregation.ranked(runs), {})
        drawn = [of.draw() for of in (figure.against("lr"), figure.over("lr", "beta1"))]
        drawn.append(training_figures.convergence(runs, curves, "loss"))
        captions.append(" ".join(map(layout.caption_of, drawn)))
    for words in ("diverged", "median over seeds", "hatched"):
        assert [words in caption for caption in captions] == [False, True], words


def test_losses_that_float32_does_not_resolve_are_equal():
    runs, _ = sweep(2, "regression", lr=[1e-3, 1e-2, 1e-1], diverged=lambda row: False)
    runs["eval_loss"] = np.where(runs["lr"] == 1e-2, 1e-43, runs["eval_loss"])
    figure = drawings(runs, sweep(2, "regression", lr=[1e-3, 1e-2, 1e-1])[1], {})["sensitivity_lr"].draw()
    floor = aggregation.resolution(8.0)
    assert figure.axes[0].get_ylim()[0] > floor / 10
    assert f"≤ {number(floor, 2)}" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "below which it does not resolve a minimum" in layout.caption_of(figure)


def test_runs_that_end_far_above_the_start_have_a_place_that_is_not_that_of_diverged_ones():
    runs, _ = sweep(2, lr=GRID["lr"])
    runs.loc[(runs["lr"] == 1e-4), "eval_loss"] = 1e9
    ax = writer.of_one(runs, aggregation.ranked(runs), {}).against("lr").draw().axes[0]
    rows = [label.get_text() for label in ax.get_yticklabels()][-2:]
    assert rows[0].startswith("above ")
    assert rows[1] == "diverged"
    above = next(line for line in ax.get_lines() if line.get_marker() == "^")
    assert (np.asarray(above.get_xdata()) == -4).all()
    assert (np.asarray(above.get_ydata()) < 1).all()


@pytest.mark.parametrize("errors", [(0.11, 0.9), (0.018, 0.9), (0.0012, 0.02), (0.105, 0.13)])
def test_there_is_a_tick_where_the_best_are(errors):
    ticks = figures.log_ticks(*errors)
    assert 2 < len(ticks) < 10
    assert np.log(ticks.min() / errors[0]) <= 0.15 * np.log(errors[1] / errors[0])


@pytest.mark.parametrize(("seconds", "drawn"), [({"compile": 0.03, "train": 0.01}, False), ({"total": 9.0}, True)])
def test_a_wall_clock_of_compilation_is_not_drawn(seconds, drawn):
    runs, curves = sweep(1, lr=[1e-3, 1e-2])
    found = writer.drawings(runs, curves, {"seconds": seconds}, None, None)
    assert ("wall_clock" in found) == drawn
    assert ("0.03 s were compilation" in writer.without_clock({"seconds": seconds})) != drawn


def test_functions_have_steps_and_no_epochs():
    runs, curves = sweep(1, lr=[1e-3, 1e-2])
    longer = pd.concat([runs.assign(steps=10), runs.assign(steps=20)])
    assert training_figures.time_of(longer, curves) == "epoch"
    assert training_figures.time_of(longer, curves.assign(epoch=curves["step"])) == "step"

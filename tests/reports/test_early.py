"""Does every figure tell what was stopped early from what was trained to the end, and from what diverged?"""

import json
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from experiments.reports import (
    aggregation,
    comparison,
    early,
    html,
    interactive,
    layout,
    looks,
    steps_to_target,
    studies_figures,
    training_figures,
    writer,
)
from tests.browser import CHROME, shown
from tests.reports.artificial import GRID, STOPS, drawings, halved, named, sweep, sweep_of_several

WORDS = early.WORDS["stopped"]


def stopped(runs, curves):
    """Return a sweep as halving leaves it. At lr 0.1 the loss is lower when stopped than any final one."""
    runs, curves = halved(runs, curves, STOPS.get)
    return runs.assign(eval_loss=runs["eval_loss"].mask(runs["lr"] == 1e-1, 0.01 * runs["eval_loss"])), curves


def renamed(runs, curves, n=7):
    """Return a sweep of n optimizers that are all alike."""
    every = [(f"optimizer-{i}", i * len(runs)) for i in range(n)]
    return (
        pd.concat(
            [runs.assign(optimizer=name, run_id=runs["run_id"] + first) for name, first in every], ignore_index=True
        ),
        pd.concat([curves.assign(run_id=curves["run_id"] + first) for _, first in every], ignore_index=True),
    )


ONE = sweep(3, lr=GRID["lr"], beta1=GRID["beta1"])
SWEEPS = {"one": ONE, "several": sweep_of_several(), "many": renamed(*sweep(1, lr=GRID["lr"]))}
FIGURES = {
    "sensitivity_lr": ("one", "grid"),
    "heatmap_lr_beta1": ("one", "grid"),
    "convergence": ("one", "grid"),
    "sensitivity_beta1": ("one", "sample"),
    "pair_lr_beta1": ("one", "sample"),
    "optimizers": ("several", "grid"),
    "budget": ("several", "sample"),
    "target": ("several", "grid"),
}
HALVED = {name: stopped(*of) for name, of in SWEEPS.items()}
ORDER = aggregation.ranked(HALVED["one"][0])


@cache
def drawn(name, is_halved):
    """Return a figure at the width of a column, drawn once for all tests."""
    which, kind = FIGURES[name]
    provenance = {"sweep": {"sample": "sobol:16"}} if kind == "sample" else {}
    runs, curves = (HALVED if is_halved else SWEEPS)[which]
    return drawings(runs, curves, provenance)[name].draw(figsize=(3.4, None))


def hollow(figure):
    """Return how many hollow marks a figure has. Those on a line are the squares of a grid, which are always open."""
    lines = [line for ax in figure.axes for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
    rings = [of for ax in figure.axes for of in ax.collections if of.get_label() == WORDS]
    counts = [np.size(line.get_xdata()) for line in lines if line.get_linestyle() == "None"]
    return sum(counts) + sum(len(of.get_offsets()) for of in rings)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_figures_say_what_was_stopped_and_only_then(name):
    captions = []
    for is_halved in (True, False):
        figure = drawn(name, is_halved)
        legend = [text.get_text().replace("\n", " ") for of in figure.legends for text in of.get_texts()]
        captions.append(layout.caption_of(figure))
        assert (WORDS in captions[-1]) == is_halved
        assert (WORDS in legend) == (is_halved and name != "budget")
    assert hollow(figure) == 0
    assert captions[0] != captions[1]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # Every stopped run, and the medians that change lr alone.
        ("sensitivity_lr", lambda runs, order: (runs["status"] == "stopped").sum() + len(STOPS)),
        ("sensitivity_beta1", lambda runs, order: early.is_early(order).sum()),
        ("pair_lr_beta1", lambda runs, order: early.is_early(order).sum()),
        ("optimizers", lambda runs, order: early.is_early(order.groupby(["optimizer", "lr"]).head(1)).sum()),
    ],
)
def test_as_many_marks_are_hollow_as_configurations_were_stopped(name, wanted):
    runs, _ = HALVED[FIGURES[name][0]]
    figure = drawn(name, True)
    assert hollow(figure) == wanted(runs, aggregation.ranked(runs)) > 0
    ax, best = figure.axes[0], np.log10(1e-2)
    if name == "pair_lr_beta1":
        star = next(of for of in ax.collections if of.get_label() == "the best")
        assert np.asarray(star.get_offsets())[0, 0] == pytest.approx(best)
    if name == "optimizers":
        stars = [np.asarray(line.get_xdata()) for line in ax.get_lines() if line.get_marker() == "*"]
        assert np.concatenate(stars).tolist() == [best] * 3
    if name == "sensitivity_lr":
        # Nothing but lr 1e-2 was trained to the end without diverging.
        for line in (named(ax, "with the best"), named(ax, "best over")):
            assert np.isfinite(line.get_ydata()).tolist() == [value == 1e-2 for value in GRID["lr"]]


def cores(ax):
    return [of for of in ax.patches if isinstance(of, Rectangle) and of.get_width() == looks.CORE]


def framed(ax):
    return [of for of in ax.patches if isinstance(of, Rectangle) and str(of.get_label()).startswith("best")]


def test_a_ranking_has_hollow_marks_and_heatmaps_cells_that_are_white_inside():
    runs, curves = HALVED["many"]
    assert hollow(comparison.figure(runs, curves, "loss")) == 7 * len(STOPS)
    ax = drawn("heatmap_lr_beta1", True).axes[0]
    places = {(of.get_center()[0], of.get_center()[1]) for of in cores(ax)}
    assert places == {(i, j) for i in (0, 1, 3) for j in range(len(GRID["beta1"]))}
    assert [of.get_center()[0] for of in framed(ax)] == pytest.approx([2])
    runs, _ = HALVED["one"]
    wide = writer.of_one(runs, aggregation.ranked(runs), {}).over("lr", "beta1").draw().axes[0]
    assert sum("to step 600" in text.get_text() for text in wide.texts) == 2 * len(GRID["beta1"])
    tables = [of["one"][0].assign(optimizer=name) for name, of in (("a", HALVED), ("b", SWEEPS))]
    both = pd.concat(tables, ignore_index=True)
    order = aggregation.ranked(both)
    left, right, *_ = studies_figures.heatmaps(both, "lr", "beta1", "loss", order, ["a", "b"]).axes
    assert (len(cores(left)), len(cores(right))) == (3 * len(STOPS), 0)
    assert [of.get_center()[0] for ax in (left, right) for of in framed(ax)] == pytest.approx([2, 2])


def test_curves_end_at_a_stroke_and_medians_with_the_first_seed_that_does():
    runs, _ = HALVED["one"]
    losses = drawn("convergence", True).axes[0]
    strokes = [line for line in losses.get_lines() if line.get_marker() == looks.END and np.size(line.get_xdata())]
    assert {x for line in strokes for x in np.ravel(line.get_xdata())} == {*STOPS.values()}
    drawn_alone = next(line for line in strokes if np.size(line.get_xdata()) > 1)
    lines = training_figures.highlighted(runs)
    others = runs[~runs["run_id"].isin([run_id for line in lines for run_id in line.ids])]
    assert np.size(drawn_alone.get_xdata()) == (others["status"] == "stopped").sum()
    assert [line.name.rpartition(", ")[2] for line in lines[3:5]] == ["to step 1200", "to step 1200"]
    # A sweep at work, two of whose seeds are further than the third.
    runs, curves = halved(*sweep(3, lr=[1e-2]), lambda _: 2000, "unfinished")
    runs, curves = (
        runs.assign(stopped_step=[2000, 1200, 2000]),
        curves[(curves["run_id"] != 1) | (curves["step"] <= 1200)],
    )
    line = named(training_figures.convergence(runs, curves, "loss").axes[0], "1. ")
    assert line.get_xdata()[-1] == 1200
    assert early.words(runs) == "not yet at the end"


def test_the_target_is_one_that_final_losses_reach_and_what_was_stopped_did_not_miss_it():
    runs, _ = HALVED["one"]
    target: Any = steps_to_target.choose(runs)
    assert ORDER["eval_loss_median"].iloc[2] <= target.value < runs.loc[runs["lr"] == 1e-3, "eval_loss"].min()
    ax = drawn("target", True).axes[1]
    lines = ax.get_lines()
    missed = [x for line in lines if line.get_marker() == "x" for x in np.asarray(line.get_xdata())]
    stops = [x for line in lines if line.get_markerfacecolor() == "none" for x in np.asarray(line.get_xdata())]
    # Momentum diverged at 0.1, and what was trained to the end with lr 1 missed it.
    assert sorted(missed) == [-1, 0, 0, 0]
    assert sorted(stops) == [-4, -4, -4, -3, -3, -3, -1, -1]


def content(runs, curves):
    return json.loads(json.dumps(interactive.content(runs, curves, aggregation.summarise(runs), "loss")))


def test_a_page_knows_which_runs_were_stopped():
    assert content(*SWEEPS["one"])["early"] is None
    runs, curves = HALVED["one"]
    found = content(runs, curves)["early"]
    assert found["words"] == WORDS
    assert [step is not None for step in found["steps"]] == early.is_early(ORDER).tolist()
    assert sum(found["runs"]) == (runs["status"] == "stopped").sum()


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chromium or Chrome")
def test_a_page_shows_what_was_stopped(tmp_path):
    runs, curves = HALVED["one"]
    path = tmp_path / "report.html"
    part = interactive.part(runs, curves, aggregation.summarise(runs), "loss")
    path.write_text(html.render("# A sweep\n\n## Figures\n", {}, part), encoding="utf-8")
    with shown(path, 1280) as (page, said, _, _):
        page.wait_for_selector("#explore[data-drawn]")
        assert WORDS in page.inner_text("#early")
        lines, ends, cells = page.evaluate(
            "['parallel', 'curves', 'over'].map((id) => document.getElementById(id).data)"
            ".map((data, i) => i === 0 ? data.map((of) => [of.line.dash, new Set(of.customdata).size])"
            " : i === 1 ? data.filter((of) => of.mode === 'markers').flatMap((of) => of.x) : data[0].text.flat())"
        )
        n = early.is_early(ORDER).sum()
        assert sum(size for dash, size in lines if dash == "dot") == n
        assert sum(size for _, size in lines) == len(ORDER)
        assert sorted(ends) == sorted(runs["stopped_step"].dropna())
        assert (cells.count("○"), cells.count("✕"), cells.count("")) == (n, 3, 3)
        ranks = page.locator("#configurations tbody button").all_inner_texts()
        assert ranks == [str(i + 1) for i in range(len(ORDER))]
        assert said == []

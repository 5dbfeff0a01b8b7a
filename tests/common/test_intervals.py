"""Does an interval hold the median as often as what is printed says? Simulated, in every place that prints one."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from scipy.stats import quantile_test

from experiments import explorer
from experiments.bench import step_time, timing
from experiments.common import intervals, tables
from experiments.reports import aggregation, html, markdown, statistics, steps_to_target, writer
from experiments.reports.looks import Look
from experiments.sweeps.results import Sweep
from experiments.training.axes import AXES
from tests.reports.artificial import sweep


def runs_of(losses, first=0):
    """Runs of as many configurations, an lr each, as `losses` has rows, on as many seeds as it has columns."""
    n, seeds = losses.shape
    runs = pd.DataFrame({"eval_loss": losses.ravel(), "seed": np.tile(np.arange(seeds), n)})
    runs = runs.assign(lr=1.0 + first + np.repeat(np.arange(n), seeds), train_loss=1.0, eval_accuracy=np.nan)
    runs = runs.assign(**{axis: np.nan for axis in AXES if axis != "lr"}, data="made up", task="mnist", model="mlp")
    runs = runs.assign(optimizer="adam", status="ok", initial_eval_loss=9.0, run_id=range(first, first + n * seeds))
    runs = runs.assign(diverged_step=pd.array([None] * len(runs), dtype="Int64"))
    # The order of runs.parquet: axes stand between optimizer and seed.
    front = ["data", "task", "model", "optimizer", *AXES, "seed"]
    return runs.reindex(columns=[*front, *(name for name in runs if name not in front)])


def printed(cells, name):
    """The ends of intervals, [rows, 2], and the level, a fraction, that the name of their column promises."""
    level = float(re.findall(r"([\d.]+) %", name)[0]) / 100
    return np.array([[float(end) for end in cell.split(" to ")] for cell in cells]), level


def check(ends, level, n, median=1.0):
    """The level promised is the exact one, or 95 % where that is more, and the truth is held as often."""
    exact = intervals.attained(n)
    assert level == pytest.approx(min(exact, 0.95))
    held = np.mean((ends[:, 0] <= median) & (median <= ends[:, 1]))
    assert held == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / len(ends)))


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10])
def test_the_table_of_configurations_holds_medians_as_often_as_it_says(n):
    losses = np.random.default_rng(n).lognormal(0, 1, (1500, n))
    summary = aggregation.summarise(runs_of(losses))
    table = aggregation.best_configurations(summary, len(summary))
    (name,) = [name for name in table if "%" in name]
    assert name == {2: "50 % range", 3: "75 % range", 5: "93.75 % range"}.get(n, "95 % interval")
    check(*printed(table[name], name), n)
    assert (summary["eval_loss_level"] == intervals.attained(n)).all()


@pytest.mark.parametrize("n", [3, 6])
def test_the_paired_comparison_holds_the_difference_as_often_as_it_says(n):
    rng, found = np.random.default_rng(n), []
    ours = runs_of(np.ones((1, n)))
    for _ in range(200):
        theirs = ours.assign(eval_loss=ours["eval_loss"] + rng.normal(1, 1, n))
        found.append(statistics.paired(ours, theirs))
    ends = pd.DataFrame(found)
    column = intervals.column(ends["low"], ends["high"], ends["n"], "{:+.3g}")
    ((name, cells),) = column.items()
    check(*printed(cells, name), n)
    assert set(ends["level"]) == {intervals.attained(n)}


@pytest.mark.parametrize("rounds", [2, 3, 5, 6, 20])
def test_timings_hold_the_median_as_often_as_their_cells_say(rounds):
    rng, ends, levels = np.random.default_rng(rounds), [], set()
    for _ in range(500):
        row = timing.with_interval("x", pd.Series(rng.lognormal(7, 0.2, rounds)))
        found = re.fullmatch(r"\d+ \[(\d+), (\d+)\](?: \((.+) %\))?", tables.cell(row, "x"))
        assert found
        low, high, said = found.groups()
        # Rounded to whole numbers.
        ends.append((float(low) - 0.5, float(high) + 0.5))
        levels.add(float(said) / 100 if said else 0.95)
    (level,) = levels
    held = np.mean([low <= np.exp(7) <= high for low, high in ends])
    assert level == pytest.approx(min(intervals.attained(rounds), 0.95))
    assert held >= level - 4 * np.sqrt(level * (1 - level) / 500)


@given(arrays(float, st.integers(1, 60), elements=st.floats(-9, 9).map(lambda x: round(x, 1))))
@settings(max_examples=60, deadline=None)
def test_the_interval_is_scipys_with_and_without_ties(sample):
    expected = quantile_test(sample, p=0.5).confidence_interval(0.95)
    low, high = intervals.interval(sample)
    np.testing.assert_array_equal([low, high], [expected.low, expected.high])
    low, high = intervals.interval_or_range(sample)
    if 1 < len(sample) < 6:
        assert (low, high) == (sample.min(), sample.max())
        assert intervals.attained(len(sample)) == 1 - 2.0 ** (1 - len(sample))
    elif len(sample) > 5:
        assert (low, high) == (expected.low, expected.high)
        assert intervals.attained(len(sample)) >= 0.95
    else:
        assert all(np.isnan(value) for value in (low, high, intervals.attained(1)))


def test_the_next_narrower_interval_has_less_than_the_level():
    for n in range(6, 400):
        k = intervals.rank(n)
        assert intervals.coverage(n, k) >= 0.95 > intervals.coverage(n, k + 1)


def test_infinite_values_are_ordered_and_missing_ones_leave_no_interval():
    samples = np.array([[1, np.inf, 3, -np.inf, 2, 0], [1, 2, 3, 4, 5, np.nan]])
    low, high = intervals.interval(samples)
    np.testing.assert_array_equal([low, high], [[-np.inf, np.nan], [np.inf, np.nan]])
    np.testing.assert_array_equal(intervals.interval(samples.T, axis=0), [low, high])
    assert np.isnan(intervals.interval(np.array([]))).all()


def test_rows_of_different_numbers_of_seeds_say_their_level_each():
    rng = np.random.default_rng(0)
    runs = pd.concat([runs_of(1 + rng.random((2, n)), first=10 * i) for i, n in enumerate((1, 3, 10))])
    runs.loc[(runs["lr"] > 20) & (runs["seed"] > 0), "status"] = "diverged"
    summary = aggregation.summarise(runs)
    table = aggregation.best_configurations(summary).set_index(summary["n_seeds"])
    assert not any("%" in name for name in table)
    assert set(table.loc[1, "interval"]) == {"-"}
    assert all(cell.endswith(" (75 % range)") for cell in table.loc[3, "interval"])
    assert all(cell.endswith(" to inf (95 % interval)") for cell in table.loc[10, "interval"])
    text = markdown.page(runs, summary, {}, {}, None)
    assert "median over 1 to 10 seeds" in text
    assert "75 % range: from the lowest to the highest of 3 seeds" in text
    assert "95 % interval: from number 2 to number 9 of 10 seeds (97.9 % exactly)" in text


@pytest.mark.parametrize(("seeds", "name"), [(1, None), (3, "75 % range"), (6, "95 % interval")])
def test_pages_and_figures_call_an_interval_what_it_is(seeds, name):
    runs, curves = sweep(seeds, lr=[1e-3, 1e-2])
    drawn = writer.drawings(runs, curves, {}, None, None)
    pictures = {name: of.draw() for name, of in drawn.items()}
    captions = {name: of.caption(pictures[name]) for name, of in drawn.items()}
    text = markdown.page(runs, aggregation.summarise(runs), {}, captions, None)
    shown = [text, html.render(text, dict.fromkeys(drawn, b"")), markdown.paired_table(runs).to_string()]
    for text in (*shown, aggregation.console_table(aggregation.summarise(runs))):
        assert ("75 % range" in text, "95 % interval" in text) == (name == "75 % range", name == "95 % interval")
    # What a band is stands on the page and in each legend, unless there is none.
    assert ("from quartile to quartile" in shown[0]) == (seeds > 1)
    assert "95 %" not in str(captions)
    ax = pictures["sensitivity_lr"].axes[0]
    assert (f"band: quartiles of {seeds} seeds" in ax.get_legend_handles_labels()[1]) == (seeds > 1)


@pytest.mark.slow
def test_the_explorer_calls_a_range_of_three_seeds_what_it_is():
    view = explorer.view(Sweep(*sweep(3, lr=[1e-3, 1e-2]), {}))
    assert "75 % range" in view.best
    assert "95 %" not in explorer.html_of(view)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_confirmed_winners_have_the_interval_of_their_seeds(n):
    runs, _ = sweep(3, lr=[1e-3, 1e-2])
    again, _ = sweep(n, lr=[1e-2])
    confirmed = {"seeds": list(range(n)), "runs": again.to_dict("records")}
    text = "\n".join(markdown.confirmation(runs, {"confirmed": confirmed}))
    assert ("| quartiles |" in text) == (n > 1)
    assert ("lie halfway" in text) == (n in (2, 3))
    assert ("95 % interval |" in text) == (n == 10)
    assert (f"| {50 if n == 2 else 75} % range |" in text) == (n in (2, 3))


@pytest.mark.parametrize("n", [3, 6, 24])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_band_of_a_target_holds_the_share_of_runs_that_reach_it(n, share):
    held = 0
    for k, times in zip(*np.unique(np.random.default_rng(n).binomial(n, share, 400), return_counts=True), strict=True):
        ax = Figure().subplots()
        steps_to_target.share(ax, np.where(np.arange(n) < k, 100.0, np.inf), 200, Look("C0", "o"), "adam")
        (band,) = ax.collections
        at_150 = np.asarray(band.get_paths()[0].vertices)
        ends = at_150[(at_150[:, 0] >= 100) & (at_150[:, 0] <= 200)][:, 1] if k else at_150[:, 1]
        held += times * (ends.min() <= share <= ends.max())
    assert held / 400 >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / 400)


def test_no_verdict_is_formed_from_less_than_a_95_percent_interval():
    found = {n: step_time.ratio("x", pd.Series(np.full(n, 2.0)))["x, verdict"] for n in (1, 2, 5, 6, 60)}
    assert found == {1: "ambiguous", 2: "ambiguous", 5: "ambiguous", 6: "faster", 60: "faster"}
    assert tables.cell(timing.with_interval("x", pd.Series([2.0])), "x") == "2.00"

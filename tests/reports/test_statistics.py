"""Do budgets, paired differences and steps to a target agree with values computed with pandas or by hand?"""

import itertools
from typing import Any

import numpy as np
import pytest

from experiments.common.errors import OptionError
from experiments.reports import aggregation, comparison, statistics, steps_to_target, training_figures
from experiments.training import targets
from experiments.training.targets import Target
from tests.reports.artificial import GRID, named
from tests.reports.artificial import sweep as of_one
from tests.reports.artificial import sweep_of_several as of_several


@pytest.mark.parametrize("losses", [[3.0], [2.0, 1.0], [5.0, 1.0, 1.0, 2.0, 9.0, 4.0]])
def test_expected_best_is_the_mean_over_every_choice(losses):
    found = statistics.expected_best(np.array(losses), range(1, len(losses) + 1))
    for n in range(1, len(losses) + 1):
        row = found.loc[n]
        bests = [min(choice) for choice in itertools.combinations(losses, n)]
        assert row["mean"] == pytest.approx(np.mean(bests))
        for q in (0.25, 0.75):
            assert row[f"q{100 * q:.0f}"] == np.quantile(bests, q, method="inverted_cdf")


def test_budgets_reach_from_one_to_all():
    assert list(statistics.budgets(5)) == [1, 2, 3, 4, 5]
    many = statistics.budgets(3000)
    assert (many[0], many[-1], len(many) <= 60) == (1, 3000, True)
    found = statistics.expected_best(np.linspace(1, 2, 3000), many)
    assert found["mean"].iloc[[0, -1]].tolist() == pytest.approx([1.5, 1.0])


def test_budget_figure_and_table_compare_at_the_same_number_of_configurations():
    runs, _ = of_several()
    table = comparison.table(runs, aggregation.summarise(runs)).set_index("optimizer")
    ax = comparison.budget(runs, "a loss").axes[0]
    scored = runs["eval_loss"].where(runs["status"] == "ok", np.inf)
    medians = scored.groupby([runs["optimizer"], runs["lr"], runs["beta1"].fillna(-1)]).median().clip(upper=2.31)
    for name in ("adam", "sgd", "momentum"):
        losses, line = np.sort(medians[name]), named(ax, f"{name}: ")
        assert line.get_ydata()[[0, -1]] == pytest.approx([losses.mean(), losses[0]])
        assert line.get_xdata()[-1] == len(losses) == int(table.loc[name, "configurations"])
        bests = [min(choice) for choice in itertools.combinations(losses, 5)]
        assert line.get_ydata()[4] == pytest.approx(np.mean(bests))
        assert table.loc[name, "expected best of 5"] == f"{np.mean(bests):.4g}"
    assert named(ax, "equal budget").get_xdata() == [5, 5]
    same = runs.loc[(runs["optimizer"] != "adam") | (runs["beta1"] == 0.9)]
    assert not any("expected" in name for name in comparison.table(same, aggregation.summarise(same)))


def two(losses, others, diverged=()):
    """Make runs of two configurations on equally many seeds; `diverged` lists (configuration, seed)."""
    runs, _ = of_one(len(losses), lr=[1e-3, 1e-2], diverged=lambda row: False)
    runs = runs.sort_values(["lr", "seed"], ignore_index=True).assign(eval_loss=[*losses, *others])
    for which, seed in diverged:
        runs.loc[which * len(losses) + seed, "status"] = "diverged"
    return runs[runs["lr"] == 1e-3], runs[runs["lr"] == 1e-2]


def test_paired_differences_are_taken_seed_by_seed():
    ours, theirs = two([1.0, 5.0, 9.0], [1.5, 5.25, 10.0])
    found = statistics.paired(ours, theirs.sample(frac=1, random_state=0))
    assert found == {"n": 3, "ahead": 3, "median": 0.5, "low": 0.25, "high": 1.0, "level": 0.75}
    # Without pairing, the spread over seeds would hide the difference.
    assert np.median(theirs["eval_loss"]) - np.median(ours["eval_loss"]) == 0.25
    alone = statistics.paired(*two([1.0], [2.0]))
    assert all(np.isnan(alone[name]) for name in ("low", "high", "level"))


def test_paired_differences_of_diverged_runs_are_infinite_or_a_tie():
    found = statistics.paired(*two([1.0] * 3, [2.0] * 3, [(1, 0), (1, 1)]))
    assert (found["median"], found["ahead"]) == (np.inf, 3)
    found = statistics.paired(*two([1.0] * 3, [2.0] * 3, [(0, 0), (0, 1), (1, 0)]))
    assert (found["median"], found["low"], found["high"], found["ahead"]) == (0.0, -np.inf, 1.0, 1)


def test_rivals_are_the_best_of_each_optimizer_or_the_two_best():
    runs, _ = of_several()
    assert (
        list(statistics.paired_rivals(runs)["optimizer"])
        == list(aggregation.best_of_each(aggregation.ranked(runs))["optimizer"])[1:]
    )
    adam = runs.loc[runs["optimizer"] == "adam"]
    row = statistics.paired_rivals(adam).iloc[0]
    order = aggregation.summarise(adam)
    assert (row["lr"], row["beta1"]) == (order.loc[1, "lr"], order.loc[1, "beta1"])
    losses = [
        adam.merge(order.loc[[place], aggregation.configuration(order)]).set_index("seed")["eval_loss"]
        for place in (0, 1)
    ]
    assert row["median"] == pytest.approx((losses[1] - losses[0]).median())


@pytest.mark.parametrize("target", [Target("eval_loss", 0.3), Target("eval_accuracy", 0.97)])
def test_steps_to_target_agree_with_a_loop(target):
    runs, curves = of_several()
    reached = steps_to_target.reach(runs, curves, target).set_index("run_id")
    assert 0 < np.isinf(reached["steps_to_target"]).sum() < len(runs)
    lanes = runs.groupby("optimizer").size()
    for run in runs.to_dict("records"):
        curve = curves.loc[curves["run_id"] == run["run_id"]]
        met = curve["eval_loss"] <= target.value if target.column == "eval_loss" else curve["eval_accuracy"] >= 0.97
        if run["status"] == "diverged":
            met &= curve["step"] < run["diverged_step"]
        first = curve.loc[met].head(1)
        expected = first["step"].item() if len(first) else np.inf
        assert reached.loc[run["run_id"], "steps_to_target"] == expected
        seconds = first["seconds"].item() / lanes[run["optimizer"]] if len(first) else np.inf
        assert reached.loc[run["run_id"], "seconds_to_target"] == pytest.approx(seconds)


def test_a_missed_target_is_infinite_in_a_median():
    runs, curves = of_one(3, lr=[1e-3, 1e-2], diverged=lambda row: False, points=4)
    curves["eval_loss"] = 1.0
    # Two of three seeds of one configuration reach it, and one seed of the other.
    for run_id, step in ((0, 2000), (2, 1000), (3, 3000)):
        curves.loc[(curves["run_id"] == run_id) & (curves["step"] >= step), "eval_loss"] = 0.1
    medians = steps_to_target.medians(steps_to_target.reach(runs, curves, Target("eval_loss", 0.2))).set_index("lr")
    assert medians["steps_to_target_median"].to_dict() == {1e-3: 2000, 1e-2: np.inf}
    assert medians["n_reached"].to_dict() == {1e-3: 2, 1e-2: 1}


def test_target_figure_draws_shares_and_medians():
    runs, curves = of_several()
    reached = steps_to_target.reach(runs, curves, Target("eval_loss", 0.3))
    left, right = steps_to_target.figure(reached, Target("eval_loss", 0.3), 3000).axes
    for name, group in reached.groupby("optimizer"):
        line = named(left, f"{name}: {np.isfinite(group['steps_to_target']).sum()} of {len(group)} runs")
        for step, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert share == pytest.approx((group["steps_to_target"] <= step).mean())
        medians = steps_to_target.medians(group).groupby("lr").agg({"steps_to_target_median": "min"})
        medians = medians.loc[:, "steps_to_target_median"]
        drawn: list[Any] = [other for other in right.get_lines() if other.get_color() == line.get_color()]
        finite = np.isfinite(medians.to_numpy())
        np.testing.assert_allclose(drawn[0].get_ydata()[finite], medians[finite])
        np.testing.assert_allclose(drawn[1].get_xdata(), np.log10(medians.index[~finite]))


def test_the_chosen_target_is_one_that_a_quarter_of_each_optimizers_configurations_reaches():
    runs, curves = of_several()
    target = steps_to_target.choose(runs)
    assert target is not None
    medians = steps_to_target.medians(steps_to_target.reach(runs, curves, target))
    met = medians.assign(met=np.isfinite(medians["steps_to_target_median"]))
    shares = met.groupby("optimizer")[["met"]].agg("mean").loc[:, "met"]
    assert target.column == "eval_loss"
    assert f"{target.value:.2g}" == f"{target.value:g}"
    assert (shares >= 0.2).all()
    assert (shares < 0.5).any()
    assert steps_to_target.choose(runs.assign(status="diverged")) is None


@pytest.mark.parametrize(
    ("text", "classifies", "expected"),
    [
        ("0.2", False, Target("eval_loss", 0.2)),
        ("95%", True, Target("eval_accuracy", 0.95)),
        ("1e-3", True, Target("eval_loss", 1e-3)),
    ],
)
def test_targets_are_losses_or_accuracies(text, classifies, expected):
    assert targets.parse(text, classifies) == expected


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf", "101%", "%", "95%"])
def test_bad_targets_are_refused_in_one_sentence(text):
    with pytest.raises(OptionError, match=r"^--target accepts a loss"):
        targets.parse(text, classifies=False)


def test_wall_clock_is_a_runs_share_of_its_population():
    runs, curves = of_one(2, lr=GRID["lr"], diverged=lambda row: False)
    # The first half was trained together, then the second, at half the speed.
    slow = curves["run_id"] >= 5
    curves["seconds"] = curves["seconds"] * np.where(slow, 2.0, 1.0)
    curves["run_seconds"] = aggregation.run_seconds(runs, curves)
    np.testing.assert_allclose(curves["run_seconds"], curves["seconds"] / 5)
    ax = training_figures.wall_clock(runs, curves, "loss").axes[0]
    best = aggregation.ranked(runs).iloc[0]
    its = curves[curves["run_id"].isin(aggregation.runs_of(runs, best)["run_id"])].groupby("step")
    np.testing.assert_allclose(named(ax, "1. ").get_xdata(), its["run_seconds"].median())
    np.testing.assert_allclose(named(ax, "1. ").get_ydata(), its["eval_loss"].median())

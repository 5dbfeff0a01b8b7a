"""Does the comparison of optimizers agree with the runs?"""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.reports import aggregation, comparison, markdown, writer
from tests.reports.artificial import WITHOUT, named
from tests.reports.artificial import sweep as of_one
from tests.reports.artificial import sweep_of_several as sweep


def test_summaries_keep_configurations_that_lack_an_axis():
    runs, _ = sweep()
    summary = aggregation.summarise(runs)
    assert summary["optimizer"].value_counts().to_dict() == {"adam": 15, "sgd": 5, "momentum": 5}
    assert (summary["n_seeds"] == 3).all()
    assert summary["eval_loss_low"].notna().all()
    alone = aggregation.summarise(runs.loc[runs["optimizer"] == "sgd"])
    among = summary.loc[summary["optimizer"] == "sgd"]
    pd.testing.assert_frame_equal(alone, among.reset_index(drop=True))
    assert aggregation.varied_axes(runs) == ["lr", "beta1"]


def test_table_has_a_row_for_every_optimizer():
    runs, _ = sweep()
    table = comparison.table(runs, aggregation.summarise(runs)).set_index("optimizer")
    assert list(table["#"]) == ["1", "2", "3"]
    assert table.index[0] == "adam"
    assert table.loc["adam", ["lr", "β1", "momentum"]].tolist() == ["1e-2", "0.9", "-"]
    assert table.loc["momentum", ["lr", "β1", "momentum"]].tolist() == ["1e-2", "-", "0.9"]
    assert table.loc["momentum", ["diverged", "diverged, all runs"]].tolist() == ["0 of 3", "4 of 15"]
    for name, rows in runs.groupby("optimizer"):
        assert table.loc[name, "lr sensitivity"] == f"{aggregation.lr_sensitivity(rows):.3g}"


def test_lr_sensitivity_of_an_optimizer_without_betas_by_hand():
    runs, _ = of_one(lr=[1e-3, 1e-2, 1e-1], diverged=lambda row: False)
    runs = runs.assign(optimizer="sgd", **dict.fromkeys(WITHOUT, np.nan), initial_eval_loss=2.0)
    runs["eval_loss"] = runs["lr"].map({1e-3: 0.5, 1e-2: 0.1, 1e-1: 7.0})
    assert aggregation.lr_sensitivity(runs) == pytest.approx((0.4 + 0.0 + 1.9) / 3)


@pytest.mark.parametrize("task", ["mnist", "regression"])
def test_figure_draws_the_best_of_every_optimizer(task):
    runs, curves = sweep(task=task)
    figure = comparison.figure(runs, curves, "a loss")
    assert len(figure.axes) == (3 if task == "mnist" else 2)
    summary, (left, training) = aggregation.summarise(runs), figure.axes[:2]
    styles = comparison.looks_of(summary)
    for _, best in aggregation.best_of_each(summary).iterrows():
        name = str(best.at["optimizer"])
        line = named(left, f"{name}: ")
        assert (line.get_color(), line.get_marker()) == styles[name][:2]
        lowest = summary.loc[summary["optimizer"] == name].groupby("lr")[["eval_loss_median"]].agg("min")
        lowest = lowest.loc[:, "eval_loss_median"]
        np.testing.assert_allclose(line.get_xdata(), np.log10(lowest.index))
        # What diverged is in the strip, and not on the line.
        np.testing.assert_allclose(line.get_ydata(), lowest.replace(np.inf, np.nan))
        stars: list[Any] = [
            star for star in left.get_lines() if star.get_marker() == "*" and star.get_color() == styles[name].colour
        ]
        assert [tuple(star.get_xydata()[0]) for star in stars] == [(np.log10(best["lr"]), best["eval_loss_median"])]
        same = runs.merge(
            best.loc[aggregation.configuration(runs)].to_frame().T.astype(runs[aggregation.configuration(runs)].dtypes)
        )
        expected = curves[curves["run_id"].isin(same["run_id"])].groupby("step")["eval_loss"].median()
        assert (named(training, name).get_color(), named(training, name).get_marker()) == styles[name][:2]
        np.testing.assert_allclose(named(training, name).get_ydata(), expected)
    # Adam has 15 configurations, of which 3 diverge at lr 1, once on 2 seeds; momentum one at 0.1, and a run at 1e-4.
    gone = runs.loc[runs["status"] != "ok"].groupby(["optimizer", "lr"], as_index=False)["run_id"].count()
    counts = sorted((round(10 ** text.get_position()[0], 8), int(text.get_text())) for text in left.texts)
    assert counts == sorted(zip(gone["lr"], gone["run_id"], strict=True))


def test_edge_warnings_name_the_optimizer():
    runs, _ = sweep()
    assert markdown.edge_warnings(runs) == []
    runs = runs.loc[(runs["lr"] <= 1e-2) | (runs["optimizer"] == "adam")]
    assert [text.split(",")[0] for text in markdown.edge_warnings(runs)] == [
        "The best lr of sgd",
        "The best lr of momentum",
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "case",
    [
        "fine",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("every run diverged", "one seed", "one lr each")),
    ],
)
def test_reports_of_several_optimizers_are_written_without_warnings(case, tmp_path):
    options: dict[str, Any] = {"diverged": lambda row: True} if case == "every run diverged" else {}
    runs, curves = sweep(1 if case == "one seed" else 3, **options)
    if case == "one lr each":
        runs = runs.loc[runs["lr"] == runs["optimizer"].map({"adam": 1e-3, "sgd": 1e-2, "momentum": 1e-2})]
        curves = curves.loc[curves["run_id"].isin(runs["run_id"])]
    names = {path.name for path in writer.write(tmp_path, runs, curves, {})}
    assert {"optimizers.png", "convergence.png", "report.md"} <= names
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {name} |" in text for name in ("adam", "sgd", "momentum"))
    best = aggregation.ranked(runs).loc[0, "optimizer"]
    assert f"Of {best} alone, the best optimizer." in text
    assert "nan" not in text

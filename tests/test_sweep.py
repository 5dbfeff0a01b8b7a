"""Do sweeps, run as users run them, write what can be read back, and say what they keep when interrupted?"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import report, sweep
from experiments.common import devices
from experiments.reports import writer
from experiments.sweeps import memory
from experiments.tasks import problems
from experiments.training.axes import AXES
from tests.tables import without_seconds

MODULE = [sys.executable, "-m", "experiments.sweep"]
GRID = ["--lr", "1e-3..1e-1:3", "--beta1", "0", "0.9", "--steps", "12", "--batch-size", "64", "--evaluations", "3"]
FIGURES = ("target", "convergence", "wall_clock", "sensitivity_lr", "sensitivity_beta1", "heatmap_lr_beta1")
FILES = {"runs.parquet", "curves.parquet", "provenance.json", "summary.csv", "report.md", "report.html"}
FILES |= {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*MODULE, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **env}, timeout=120
    )


@pytest.mark.slow
def test_command_line_sweeps_and_writes_everything(mnist_folder, tmp_path):
    out = tmp_path / "results" / "first"
    done = run("mnist", *GRID, "--seeds", 2, "--hidden", 8, "--data-dir", mnist_folder, "--out", out, "--compare-alone")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == FILES | {"parts"}
    assert "one after the other: about" in done.stdout
    for name in FILES:
        assert str(out / name) in done.stdout

    runs, curves = pd.read_parquet(out / "runs.parquet"), pd.read_parquet(out / "curves.parquet")
    assert len(runs) == 3 * 2 * 2
    assert runs.run_id.tolist() == list(range(12))
    assert set(runs.model) == {"mlp 784-8-8-10"}
    assert set(runs.data) == {"MNIST-format data from idx"}
    assert not runs.duplicated(["lr", "beta1", "beta2", "eps", "weight_decay", "seed"]).any()
    assert set(curves.step) == {0, 4, 8, 12}
    assert len(curves) == 12 * 4
    final = curves[curves.step == 12].set_index("run_id").loc[runs.run_id]
    np.testing.assert_array_equal(final.eval_loss, runs.eval_loss)
    best = curves.groupby("run_id").eval_accuracy.max()
    np.testing.assert_array_equal(best.loc[runs.run_id], runs.best_eval_accuracy)

    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["sweep"]["optimizers"]["adam"]["lr"] == [0.001, 0.01, 0.1]
    assert provenance["command"].startswith("python -m experiments.sweep mnist --lr 1e-3..1e-1:3")
    # The version of the package may lack the suffix of torch's, such as +cu130.
    assert torch.__version__.startswith(provenance["versions"]["torch"])
    summary = pd.read_csv(out / "summary.csv")
    assert len(summary) == 6
    assert (summary.n_seeds == 2).all()

    # The same sweep may be run again; another one is refused and changes nothing.
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    other = run("mnist", *GRID, "--data-dir", mnist_folder, "--out", out)
    assert other.returncode == 2
    assert "--out accepts a new or empty folder, or one of the same sweep" in other.stderr
    assert "model" in other.stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


MINE = """
import triton.language as tl
from optim import from_rule

def coefficients(hyper, step):
    lr, eps = hyper
    return lr, eps

def update(p, grad, state, coefficients):
    lr, eps = coefficients
    return p - lr * grad / (tl.abs(grad) + eps), state

Mine = from_rule(update, coefficients, defaults={"lr": 5e-3, "eps": 1e-6}, name="Mine")
"""


@pytest.mark.slow
def test_command_line_compares_several_optimizers_and_one_of_the_users(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    out, names = tmp_path / "out", ["adam", "nesterov", "mine:Mine"]
    words = ["regression", "--optimizer", *names, "--lr", "1e-3..1e-1:3", "--eps", "1e-8", "1e-2", "--seeds", 3]
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = run(*words, "--steps", 8, "--evaluations", 2, "--out", out, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "optimizers.png" in done.stdout
    runs, curves = pd.read_parquet(out / "runs.parquet"), pd.read_parquet(out / "curves.parquet")
    assert runs.run_id.tolist() == list(range(45))
    assert len(curves) == 45 * 3
    assert runs.groupby("optimizer", sort=False).size().to_dict() == dict(zip(names, (18, 9, 18), strict=True))
    has = runs.groupby("optimizer")[["beta1", "eps", "momentum"]].count() > 0
    assert has.loc[names].to_numpy().tolist() == [[True, True, False], [False, False, True], [False, True, False]]
    assert set(runs.momentum.dropna()) == {0.9}
    # The same seed has the same initial weights under every optimizer.
    assert runs.groupby("seed").initial_eval_loss.nunique().tolist() == [1, 1, 1]
    assert len(pd.read_csv(out / "summary.csv")) == 15
    grids = json.loads((out / "provenance.json").read_text())["sweep"]["optimizers"]
    assert grids["nesterov"] == {"lr": [0.001, 0.01, 0.1], "weight_decay": [0.0], "momentum": [0.9]}
    text = (out / "report.md").read_text()
    assert all(f"| {name} |" in text for name in names)
    before = (out / "report.md").read_bytes()
    # Neither drawing nor loading the folder again needs the user's module.
    assert report.main([str(out)]) == 0
    assert (out / "report.md").read_bytes() == before


def test_optimizers_keep_their_defaults_where_no_value_is_given():
    result = sweep.sweep("regression", optimizer=["adam", "adamw", "sgd", "adamw"], steps=2, progress=False)
    assert result.runs.optimizer.tolist() == ["adam", "adamw", "sgd"]
    assert result.runs.weight_decay.tolist() == [0.0, 0.01, 0.0]
    assert result.runs.lr.tolist() == [1e-3, 1e-3, 1e-3]
    alone = sweep.sweep("regression", optimizer="adamw", steps=2, progress=False)
    assert alone.runs.eval_loss[0] == pytest.approx(result.runs.eval_loss[1], rel=1e-6)


def test_sweep_from_python_returns_frames_and_does_not_depend_on_chunks(monkeypatch):
    axes = {"lr": [1e-3, 1e-2], "beta2": [0.9, 0.99, 0.999], "seeds": 2, "steps": 15, "batch_size": 64}
    whole = sweep.sweep("regression", **axes, progress=False)
    needed = memory.measure(problems.make("regression"), 64, 1, 2, {"adam": pd.DataFrame([AXES])})
    monkeypatch.setattr(devices, "memory_budget", lambda device: needed.of(4) + 1)
    chunked = sweep.sweep("regression", **axes, progress=False)
    assert (whole.provenance["chunks"], chunked.provenance["chunks"]) == (1, 3)
    keys = ["lr", "beta2", "seed"]
    a, b = (result.runs.set_index(keys).sort_index() for result in (whole, chunked))
    np.testing.assert_allclose(a.eval_loss, b.eval_loss, rtol=1e-4)
    assert sorted(chunked.runs.run_id) == list(range(12))
    merged = chunked.curves.merge(chunked.runs[["run_id", *keys]], on="run_id")
    assert len(merged) == len(chunked.curves) == len(whole.curves)


def test_the_same_sweep_twice_gives_the_same_bits(mnist_folder):
    options = {"lr": [1e-3, 1e-2], "seeds": 2, "steps": 20, "data_dir": mnist_folder, "progress": False}
    first, second = (sweep.sweep("mnist", **options) for _ in range(2))
    pd.testing.assert_frame_equal(first.runs, second.runs, check_exact=True)
    pd.testing.assert_frame_equal(without_seconds(first.curves), without_seconds(second.curves), check_exact=True)


@pytest.mark.parametrize("model", ["mlp", "linear"])
def test_every_regression_model_trains(model):
    result = sweep.sweep("regression", model=model, lr=0.01, epochs=2, progress=False)
    assert result.runs.status.tolist() == ["ok"]
    assert result.runs.eval_loss[0] < 0.5 * result.runs.initial_eval_loss[0]
    assert result.provenance["loss_name"].startswith("excess" if model == "linear" else "evaluation loss")


@pytest.mark.parametrize("model", ["cnn", "gru"])
def test_larger_models_train_with_every_option(model, mnist_folder):
    options = {"lr": [1e-3, 1e-2], "steps": 6, "batch_size": 16, "accumulate": 2, "schedule": "cosine", "warmup": 2}
    result = sweep.sweep("mnist", model=model, **options, data_dir=mnist_folder, progress=False)
    assert (result.runs.status == "ok").all()
    assert (result.runs.train_loss < 3).all()
    assert {key: result.provenance["sweep"][key] for key in ("accumulate", "schedule", "warmup")} == {
        "accumulate": 2,
        "schedule": "cosine",
        "warmup": 2,
    }


def test_logistic_regression_trains(mnist_folder):
    result = sweep.sweep("mnist", model="logistic", lr=[1e-3, 1e-2], steps=30, data_dir=mnist_folder, progress=False)
    assert (result.runs.train_loss < 2.3).all()
    assert set(result.runs.model) == {"logistic 784-10"}


@pytest.mark.slow
def test_dry_run_prints_the_plan_and_writes_nothing(mnist_folder, tmp_path):
    out = tmp_path / "out"
    done = run("mnist", *GRID, "--seeds", 3, "--data-dir", mnist_folder, "--out", out, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "18 (6 configurations x 3 seeds), 12 steps each" in done.stdout
    assert "18 at once, in 1 chunk" in done.stdout
    assert "MiB a chunk on" in done.stdout
    assert "estimated time" in done.stdout
    assert not out.exists()


def test_dry_run_of_several_optimizers_prints_the_grid_of_each(capsys):
    words = ["--optimizer", "adam", "sgd", "--lr", "1e-2", "0.1", "--beta1", "0", "0.9", "--steps", "3", "--dry-run"]
    assert sweep.main(["regression", *words]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^adam +--lr 0.01 0.1  --beta1 0 0.9  --beta2 0.999 ", printed, re.MULTILINE)
    assert re.search(r"^sgd +--lr 0.01 0.1  --weight-decay 0$", printed, re.MULTILINE)
    assert "6 (6 configurations x 1 seeds), 3 steps each" in printed
    assert "4 at once, in 2 chunks" in printed


def test_bad_input_through_the_shell_has_no_traceback(tmp_path):
    done = run("regression", "--lr", "fast", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == "python -m experiments.sweep: --lr accepts positive numbers, not 'fast'\n"


@pytest.mark.slow
def test_interrupting_says_what_is_kept_and_how_to_go_on(tmp_path):
    out = tmp_path / "out"
    command = [*MODULE, "regression", "--steps", "1000000", "--checkpoint-every", "0", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("parts/[!.]*.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"interrupted: 0 of 1 runs are finished and kept in {out}, the same command goes on\n" in rest
    assert re.search(r"\nwhat was at work goes on from step \d+ of 1000000\n", rest)
    assert len(list(out.glob("parts/*.pt"))) == 1
    assert not re.search("Traceback|\r|\x1b", rest)
    assert {path.name for path in out.iterdir()} == {"parts", "provenance.json"}


def test_interrupting_the_drawing_says_that_the_runs_are_kept(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write", interrupted)
    assert sweep.main(["regression", "--steps", "3", "--out", str(out)]) == 130
    assert f"the runs are complete, python -m experiments.report {out} draws them" in capsys.readouterr().err
    monkeypatch.undo()
    assert report.main([str(out)]) == 0
    assert (out / "report.md").exists()

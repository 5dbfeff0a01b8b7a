"""A problem of a user's own, through the command line and from Python."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments import Problem
from experiments.common.errors import OptionError
from experiments.sweep import main, sweep
from experiments.tasks import own
from tests.tasks.own_problems import own as problem_of

MODULE = """
import torch
from torch import nn
from experiments import Problem

def digits():
    x = torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3] + x[:, 3:6]).argmax(-1)
    return Problem(
        name="digits",
        model=lambda: nn.Sequential(nn.Linear(20, 6), nn.GELU(), nn.Dropout(0.2), nn.Linear(6, 3)),
        train=(x[:100].numpy(), y[:100].numpy()),
        evaluate=(x[100:], y[100:]),
        loss=nn.functional.cross_entropy,
        metrics={
            "accuracy": lambda output, target: (output.argmax(-1) == target).float().mean(),
            "margin": lambda output, target: output.max(-1).values.mean(),
        },
        batch_size=16,
    )

def empty():
    return 3

def needs(x):
    return x

def fails():
    raise KeyError("x")
"""


def command(folder: Path, *words: str, module: str = MODULE) -> subprocess.CompletedProcess:
    (folder / "mine.py").write_text(module, encoding="utf-8")
    root = Path(__file__).parents[2]
    line = [sys.executable, "-m", "experiments.sweep", *words]
    return subprocess.run(line, cwd=folder, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_trains_it_resumes_it_and_knows_its_code(tmp_path):
    words = "mine:digits", "--lr", "1e-3", "1e-2", "--seeds", "2", "--steps", "12", "--target", "50%", "--out", "out"
    first = command(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert "digits: 4 runs" in first.stderr
    runs, curves = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("runs", "curves"))
    assert runs["task"].unique().tolist() == ["mine:digits"]
    assert {"eval_accuracy", "eval_margin"} <= {*runs} & {*curves}
    assert np.isfinite(runs["eval_margin"]).all()
    assert "digits" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    again = command(tmp_path, *words[:2], "1e-3", "1e-2", "1e-1", *words[4:])
    assert "4 from before" in again.stderr
    grown = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    both = grown.loc[grown["lr"] < 0.05].drop(columns="run_id").reset_index(drop=True)
    pd.testing.assert_frame_equal(both, runs.drop(columns="run_id"), check_exact=True)
    # Other code is another problem: nothing that was trained with it is taken over.
    changed = command(tmp_path, *words, module=MODULE.replace("0.2", "0.3"))
    assert changed.returncode == 0, changed.stderr
    assert "from before" not in changed.stderr
    other = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    assert (other["eval_loss"].to_numpy() != runs["eval_loss"].to_numpy()).all()


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("mine:nothing", "mine has no function 'nothing'"),
        ("nowhere:digits", "nowhere cannot be (ModuleNotFoundError"),
        ("mine:empty", "must return an experiments.Problem, not 3"),
        ("mine:needs", "must be a function that works without arguments (TypeError"),
        ("mine:fails", "(KeyError: 'x')"),
        ("mine:digits --hidden 5", "--hidden goes with mnist"),
        ("mine:digits --batch-size 101", "--batch-size accepts at most the 100 training examples of digits"),
    ],
)
def test_a_task_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch, capsys, task, told):
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert main([*task.split(), "--lr", "1e-3", "--out", "out"]) == 2
    stderr = capsys.readouterr().err
    assert told in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": ""}, "the name of a Problem must be a word"),
        ({"model": 3}, "the model of mlp must be a function, not 3"),
        ({"loss": None}, "the loss of mlp must be a function"),
        ({"metrics": {"f": 3}}, "the metrics of mlp must be functions by their names"),
        ({"metrics": {"loss": F.mse_loss}}, "names other than loss"),
        ({"batch_size": 0}, "the batch_size of mlp must be a whole number from 1, not 0"),
        ({"steps": 2.5}, "the steps of mlp must be a whole number from 1, not 2.5"),
        ({"train": torch.zeros(3)}, "train of mlp must be two arrays"),
        ({"train": (torch.zeros(3, 20), torch.zeros(4))}, "as many inputs as targets, not 3 and 4"),
        ({"evaluate": (torch.zeros(0, 20), torch.zeros(0))}, "with at least one example"),
        ({"evaluate": (["a"], [1])}, "the inputs in evaluate of mlp must be a tensor or an array of numbers"),
        ({"evaluate": (torch.zeros(3, 21), torch.zeros(3, dtype=torch.int64))}, "the same shape and dtype"),
        ({"model": lambda: 3}, "the model of mlp must be an nn.Module to be trained, not 3"),
        ({"model": lambda: nn.Linear(3, 3)}, "the model of mlp does not work on its training data (RuntimeError"),
        ({"model": lambda: nn.Tanh()}, "must be an nn.Module to be trained"),
        ({"loss": lambda output, target: output.sum(1)}, "must be a floating-point tensor without dimensions"),
        ({"loss": lambda output, target: output.sum().item()}, "must be a floating-point tensor without dimensions"),
        ({"loss": lambda output, target: torch.tensor(1.0)}, "must depend on the parameters"),
        ({"loss": lambda output, target: -output.square().mean()}, "must start above 0, not at -"),
        ({"metrics": {"f": lambda output, target: output}}, "the f of mlp must be a floating-point tensor"),
    ],
)
def test_a_problem_that_cannot_be_trained_is_one_sentence(changes, told):
    task = own.name_of(lambda: problem_of("mlp", **changes))
    with pytest.raises(OptionError) as error:
        own.make(task)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_is_given_as_it_is():
    def local() -> Problem:
        return problem_of("cnn")

    runs, curves, provenance = sweep(local, lr=[1e-3, 1e-2], steps=5, progress=False, device="cpu")
    assert provenance["sweep"]["task"].endswith(":test_a_function_is_given_as_it_is.<locals>.local")
    assert runs["eval_accuracy"].between(0, 1).all()
    assert curves["step"].max() == 5


def test_lanes_that_vmap_cannot_take_are_said(capsys):
    sweep(lambda: problem_of("branching"), lr=[1e-3, 1e-2], steps=3, progress=False, device="cpu")
    assert "WARNING: lanes of branching are computed one after the other" in capsys.readouterr().err


def test_functions_that_see_more_than_their_text_are_never_taken_for_each_other(tmp_path):
    def made(width):
        def network() -> Problem:
            return problem_of("mlp", model=lambda: nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 3)))

        return network

    options = {"lr": 1e-2, "steps": 3, "out": tmp_path / "out", "progress": False, "device": "cpu"}
    narrow, wide = (sweep(made(width), **options).runs["eval_loss"][0] for width in (2, 30))
    assert narrow != wide


def test_a_module_that_cannot_be_made_on_the_meta_device_is_trained():
    def stochastic_depth() -> nn.Module:
        rates = [rate.item() for rate in torch.linspace(0.1, 0.2, 2)]
        return nn.Sequential(nn.Linear(20, 6), nn.Dropout(rates[0]), nn.Linear(6, 3))

    runs, _, _ = sweep(
        lambda: problem_of("mlp", model=stochastic_depth), lr=1e-2, steps=3, progress=False, device="cpu"
    )
    assert np.isfinite(runs["eval_loss"][0])


@pytest.mark.slow
def test_workers_of_a_ray_cluster_get_the_function_with_its_file(tmp_path):
    """They cannot import it: it lies in no package, and need not lie on their disks."""
    pytest.importorskip("ray")
    words = ["mine:digits", "--lr", "1e-3", "1e-2", "--seeds", "2", "--steps", "12", "--axis", "batch_size", "16", "32"]
    words += ["--axis", "init_scale", "1", "2", "--axis", "amsgrad", "true", "false"]
    for engine in ("ray", "local"):
        done = command(tmp_path, *words, "--engine", engine, "--device", "cpu", "--out", engine)
        assert done.returncode == 0, done.stderr
    ray, local = (pd.read_parquet(tmp_path / engine / "runs.parquet") for engine in ("ray", "local"))
    keys = ["run_id", "lr", "amsgrad", "batch_size", "init_scale", "model", "status"]
    assert ray[keys].equals(local[keys])
    np.testing.assert_allclose(ray["eval_loss"], local["eval_loss"], rtol=1e-5)

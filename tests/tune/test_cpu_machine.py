"""The CPU is tuned as a GPU is: the whole way from a race to a step, measured for real."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch

from experiments import autotune
from experiments.tune import buffers
from experiments.tune.race import LaunchCase, Skipped
from kernels import registry
from kernels.config import CpuConfig, cpu_candidates, device_facts
from tests.tune.careless import careless

pytest.importorskip("numba", reason="what is tuned is compiled by Numba")
cpu_machine = pytest.importorskip("experiments.tune.cpu_machine")

CASE = LaunchCase("adam", "float32", "medium", 14)
TUNE = ["tune", "--device", "cpu", "--rule", "adam", "--dtype", "float32", "--rows", "medium", "--sizes", "16"]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "experiments.autotune", *words], capture_output=True, text=True)


@pytest.mark.slow
def test_what_is_tuned_is_shown_explained_and_verified(tmp_path, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "tuned"))
    done = run(*TUNE, "--budget", "8", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "tuned").glob("*.json")
    content = json.loads(file.read_text())
    assert content["device"]["arch"] == "cpu"
    ((key, entry),) = content["entries"].items()
    assert key == "adam/float32/float32/float32/nearest/aligned/medium/16"
    assert {*entry["config"]} == {"chunk_size", "piles", "threads"}
    low, high = entry["default_over_this"][1:]
    # Whatever else the machine did meanwhile: another configuration is recorded only where it is faster.
    assert entry["config"] == vars(CpuConfig()) or (low > 1 / 1.01 and high > 1)
    table = pd.read_csv(tmp_path / "out" / "search.csv")
    assert len(table) == len(cpu_candidates(torch.get_num_threads()))
    assert table["default"].sum() == 1
    assert {"search.png", "search.md"} <= {path.name for path in (tmp_path / "out").iterdir()}

    shown = run("show")
    assert device_facts("cpu").name in shown.stdout
    assert key in shown.stdout
    verified = run("verify", "--device", "cpu", "--budget", "4")
    assert verified.returncode == 0 or "slower" in verified.stdout
    assert key in verified.stdout

    again = run(*TUNE, "--budget", "8", "--out", str(tmp_path / "out"))
    assert again.returncode == 0, again.stderr
    if "unprepared" not in entry:
        assert json.loads(file.read_text())["entries"] == {key: entry}


def test_every_candidate_is_checked_and_timed():
    n_elements, sample = cpu_machine.sampler(CASE)
    assert n_elements >= 2**14
    kept, dropped = cpu_machine.candidates("adam", "float32")
    assert not dropped
    assert {*kept} == {*cpu_candidates(torch.get_num_threads())}
    assert len({*kept.values()}) == 1
    assert all(0 < sample(config) < 60 for config in kept)


def test_a_candidate_whose_update_is_wrong_is_skipped(monkeypatch):
    monkeypatch.setattr(cpu_machine.cpu, "launcher", careless(cpu_machine.cpu.launcher))
    _, sample = cpu_machine.sampler(CASE)
    with pytest.raises(Skipped, match="its updates are wrong"):
        sample(CpuConfig())


def test_what_does_not_fit_into_memory_is_said(monkeypatch):
    monkeypatch.setattr(cpu_machine, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(buffers, "allocate", None)
    with pytest.raises(MemoryError, match=r"7\.5 GB do not fit into the memory that is free"):
        cpu_machine.sampler(LaunchCase("adam", "float32", "long", 28))
    with pytest.raises(MemoryError, match=r"7\.5 GB do not fit"):
        cpu_machine.copy_seconds(28 * 2**28)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tune", "--device", "tpu"], "--device accepts cuda, cpu, not 'tpu'"),
        (["verify", "--device", "tpu"], "--device accepts cuda, cpu, not 'tpu'"),
        (["tune", "--device", "cpu", "--dry-run"], "does not go with --device cpu"),
        (["tune", "--device", "cpu", "--target", "sm_90"], "--target goes with --dry-run"),
        (["tune", "--device", "cpu", "--sizes", "40"], "--sizes accepts whole numbers from 10 to 31"),
    ],
)
def test_options_that_do_not_fit_are_named(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert autotune.main(words) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not [*tmp_path.iterdir()]

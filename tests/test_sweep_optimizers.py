"""Do sweeps train the optimizers that torch lacks, by name and with arguments of their own as axes?"""

import math

import pandas as pd

from experiments import sweep
from experiments.reports import writer
from optim import backends

WORDS = ["regression", "--model", "linear", "--lr", "1e-3", "1e-2", "--steps", "12", "--batch-size", "16"]
AXES = {
    **{"clip": ("true", "false"), "T_alpha_beta3": ("0", "8")},
    **{"warmup_steps": ("0", "4"), "bias_correction": ("true", "false")},
    "adjust_lr_fn": ("original", "match_rms_adamw"),
}
RUNS = {"signum": 2, "laprop": 2, "adopt": 4, "adan": 2, "ademamix": 4, "schedule-free": 4, "adamw": 4}
RUNS["muon"] = 4
SUMS = ["lamb", "lars", "stable-adamw", "adam-mini", "cautious-adamw", "cautious-lion", "prodigy"]


def test_the_command_line_sweeps_each_with_its_own_axes(tmp_path, monkeypatch):
    # Numba would compile each of them, and figures take longer than the runs.
    monkeypatch.setattr(backends, "has_numba", lambda: False)
    monkeypatch.setattr(writer, "write", lambda *_: [])
    axes = [word for name, values in AXES.items() for word in ("--axis", name, *values)]
    assert sweep.main([*WORDS, "--optimizer", *RUNS, *axes, "--out", str(tmp_path / "out")]) == 0
    runs = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    assert runs.groupby("optimizer").size().to_dict() == RUNS
    assert (runs["status"] == "ok").all()
    assert runs["eval_loss"].nunique() == len(runs)
    assert (runs["eval_loss"] < runs["initial_eval_loss"]).mean() > 0.9
    for optimizer, axis, values in (
        ("adopt", "clip", {"true", "false"}),
        ("ademamix", "T_alpha_beta3", {0, 8}),
        ("schedule-free", "warmup_steps", {0, 4}),
        ("adamw", "bias_correction", {"true", "false"}),
        ("muon", "adjust_lr_fn", {"original", "match_rms_adamw"}),
    ):
        assert set(runs.loc[runs["optimizer"] == optimizer, axis]) == values


def test_the_command_line_sweeps_optimizers_with_sums(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "has_numba", lambda: False)
    monkeypatch.setattr(writer, "write", lambda *_: [])
    own = ["--lr", "1e-3", "1e-2", "lars=3", "10", "prodigy=0.5", "1"]
    axes = ["--axis", "growth_rate", "1.5", "inf", "--axis", "trust_coefficient", "1e-3", "1e-2"]
    words = [*WORDS, *own, "--optimizer", *SUMS, *axes, "--seeds", "2", "--out", str(tmp_path / "out")]
    assert sweep.main(words) == 0
    runs = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    assert runs.groupby("optimizer").size().to_dict() == {
        name: 8 if name in ("lars", "prodigy") else 4 for name in SUMS
    }
    assert (runs["status"] == "ok").all()
    assert runs["eval_loss"].nunique() == len(runs)
    assert (runs["eval_loss"] < runs["initial_eval_loss"]).mean() > 0.9
    for name, axis, values in (
        ("lars", "trust_coefficient", {1e-3, 1e-2}),
        ("prodigy", "growth_rate", {1.5, math.inf}),
    ):
        assert set(runs.loc[runs["optimizer"] == name, axis]) == values


def test_a_value_that_an_optimizer_refuses_is_named(capsys):
    assert sweep.main([*WORDS, "--optimizer", "schedule-free", "--beta1", "0", "--dry-run"]) == 2
    assert "--optimizer schedule-free does not accept these values" in capsys.readouterr().err

"""Are options of a run axes: does each value train the runs that the option itself trains, once, and resume?"""

import math
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from experiments import explorer, sweep
from experiments.common.errors import OptionError
from experiments.sweeps import cost, memory, plan, reading, run_keys
from experiments.sweeps.config import SweepConfig
from experiments.training import variants
from experiments.training.axes import RUN
from tests.conftest import spy_on_training
from tests.sweeps.small import assert_same, interrupting
from tests.tasks.own_problems import SHARED, own

pytestmark = pytest.mark.usefixtures("no_figures")

OPTIONS = {"task": "regression", "lr": [1e-3, 1e-2], "steps": 6, "evaluations": 2, "device": "cpu", "progress": False}
VALUES = {
    "batch_size": (32, 64),
    "accumulate": (1, 2),
    "n_train": (200, 1000),
    "epochs": (0.05, 0.1),
    "steps": (4, 6),
    "schedule": ("constant", "cosine"),
    "warmup": (0, 3),
    "hidden": (4, 8),
    "dropout": (0.0, 0.5),
    "init_scale": (1.0, 2.0),
}


def without_length(name: str) -> dict:
    return {"steps": None} if name in ("steps", "epochs") else {}


def planned(**options) -> plan.Plan:
    return plan.make_plan(SweepConfig(**{**OPTIONS, **options}))


def train(out=None, **options):
    return sweep.sweep(**{**OPTIONS, **options}, out=out)


def test_every_option_of_a_run_is_tried_here():
    assert VALUES.keys() == RUN.keys()


@pytest.mark.parametrize("name", VALUES)
def test_a_value_of_an_axis_is_the_option_itself(name):
    """Compare run keys, and results to the last bit, with as many lanes as in a sweep of one value."""
    swept = planned(**without_length(name), axes={name: VALUES[name]})
    keys, bits = run_keys.keys(swept), train(**without_length(name), axes={name: VALUES[name]})
    assert len(set(keys)) == 4
    for i, value in enumerate(VALUES[name]):
        rows = bits.runs[bits.runs[name] == value]
        assert keys[i::2] == run_keys.keys(planned(**{**without_length(name), name: value}))
        alone = train(**{**without_length(name), name: value})
        columns = [column for column in alone.runs if column != "run_id"]
        pd.testing.assert_frame_equal(
            rows.reset_index(drop=True).loc[:, columns], alone.runs.loc[:, columns], check_exact=True, check_dtype=False
        )


@pytest.mark.parametrize("name", VALUES)
def test_what_one_value_has_trained_is_not_trained_again(name, tmp_path, trained):
    options = without_length(name)
    first = train(tmp_path, **options, axes={name: VALUES[name][:1]})
    assert trained == [2]
    both = train(tmp_path, **options, axes={name: VALUES[name]})
    assert trained == [2, 2]
    kept = both.runs.loc[both.runs[name] == VALUES[name][0]].drop(columns="run_id").reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first.runs.drop(columns="run_id"), check_exact=True)
    assert_same(reading.load(tmp_path), both)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_in_its_second_setting_to_the_same_bits(tmp_path, monkeypatch):
    options = {"axes": {"batch_size": [32, 64], "amsgrad": ["true"]}, "checkpoint_every": 0.0}
    whole = train(**options)
    interrupting(monkeypatch, 9, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"2 of 4 runs are finished and kept .*\n.*goes on from step 3 of 6"):
        train(tmp_path, **options)
    monkeypatch.undo()
    so_far = reading.load(tmp_path)
    assert so_far.provenance["unfinished"] == {"finished": 2, "of": 4, "begun": 2}
    finished = so_far.runs[so_far.runs["status"] != "unfinished"]
    assert finished["batch_size"].tolist() == [32, 32]
    explorer.view(so_far)
    # The checkpoint stays while the other setting alone is asked for.
    sizes = spy_on_training(monkeypatch)
    train(tmp_path, axes={"batch_size": [32], "amsgrad": ["true"]})
    assert sizes == []
    assert len([*(tmp_path / "parts").glob("*.pt")]) == 1
    steps, original = [], torch.optim.Optimizer.zero_grad
    monkeypatch.setattr(
        torch.optim.Optimizer, "zero_grad", lambda self, *a, **k: (steps.append(1), original(self, *a, **k))[1]
    )
    assert_same(train(tmp_path, **options), whole)
    assert sizes == [2]
    assert len(steps) == 3


@pytest.mark.slow
def test_settings_have_chunks_of_their_own(tmp_path, monkeypatch, trained):
    axes = {"hidden": [4, 8], "schedule": ["constant", "cosine"], "amsgrad": [True, False]}
    runs = train(axes=axes, seeds=2).runs
    assert trained == [4] * 8
    assert (runs.groupby(["hidden", "schedule", "seed", "lr"])["eval_loss"].nunique() <= 2).all()
    assert runs.groupby("amsgrad")["eval_loss"].nunique().tolist() == [16, 16]
    monkeypatch.setattr(cost, "lanes_at_once", lambda model, *_: 1 if "8-8" in model.name else 4)
    trained.clear()
    small = train(axes={"hidden": [4, 8]}, seeds=2).runs
    assert sorted(trained) == [1] * 4 + [4]
    assert small["model"].nunique() == 2


def test_optimizers_may_have_run_options_of_their_own():
    runs = train(optimizer=["adam", "sgd", "lion"], lr=0.01, axes={"batch_size": {"adam": [32], "sgd": "64 128"}}).runs
    assert runs["batch_size"].tolist()[:3] == [32, 64, 128]
    assert math.isnan(runs.loc[3, "batch_size"])
    assert train(optimizer="lion", lr=0.01).runs["eval_loss"][0] == runs["eval_loss"][3]


@pytest.mark.slow
def test_samples_winners_dry_runs_and_times_alone_know_run_axes_and_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["regression", "--sample", "sobol:4", "--lr", "1e-3..1e-1", "--optimizer", "adam", "sgd", "--steps", "4"]
    words += ["--axis", "amsgrad", "true", "false", "--axis", "batch_size", "16..64:3", "--axis", "schedule", "cosine"]
    words += ["--tie", "warmup=accumulate", "--axis", "accumulate", "1", "2"]
    assert sweep.main([*words, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "--axis schedule cosine" in told.out
    assert "--axis warmup = accumulate" in " ".join(told.out.split())
    assert "measuring 8 steps of 1 lanes of sgd, mlp 10-20-30-1, batch " in told.err
    out = tmp_path / "out"
    assert sweep.main([*words, "--confirm", "2", "--compare-alone", "--target", "0.9", "--out", str(out)]) == 0
    runs, _, provenance = reading.load(out)
    assert len(runs) == 8
    assert set(runs["batch_size"]) <= {16, 32, 64}
    assert (runs["warmup"] == runs["accumulate"]).all()
    assert runs.loc[runs["optimizer"] == "adam", "amsgrad"].isin(["true", "false"]).all()
    shared = ["lr", "batch_size", "schedule", "warmup"]
    best = runs.sort_values("eval_loss").groupby("optimizer").first().loc[:, shared]
    again = pd.DataFrame(provenance["confirmed"]["runs"]).groupby("optimizer").first().loc[:, shared]
    pd.testing.assert_frame_equal(best, again, check_dtype=False)
    assert "adam runs" in provenance["one_after_the_other"]["text"]


TIES = [
    ({"tie": "beta1=beta2", "beta1": "0.5 0.9"}, [(0.5, 0.5), (0.9, 0.9)]),
    ({"tie": "beta1=beta2", "beta2": "0.5..0.9:2"}, [(0.5, 0.5), (0.9, 0.9)]),
    ({"tie": "beta1=beta2=eps", "eps": 0.1}, [(0.1, 0.1)]),
    ({"tie": ["beta1=beta2"], "beta1": "0.5 lion=0.6", "optimizer": ["adam", "lion"]}, [(0.5, 0.5), (0.6, 0.6)]),
    ({"tie": "beta1=beta2", "beta1": {"lion": 0.5}, "optimizer": ["adam", "lion"]}, [(0.9, 0.9), (0.5, 0.5)]),
    ({"tie": "beta1=beta2", "beta1": 0.5, "optimizer": ["lion", "sgd"]}, [(0.5, 0.5), (math.nan, math.nan)]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "pairs"), TIES)
def test_tied_axes_have_the_same_values(options, pairs):
    runs = planned(lr=0.1, **options).runs
    np.testing.assert_equal(runs[["beta1", "beta2"]].to_numpy(), np.array(pairs))


def test_ties_are_sampled_and_take_options_of_runs():
    runs = planned(sample="sobol:8", lr=1e-3, beta1="0.5..0.9", tie="beta1=beta2").runs
    assert runs["beta1"].nunique() == 8
    assert (runs["beta1"] == runs["beta2"]).all()
    runs = planned(
        lr=1e-3,
        axes={"hidden": {"adam": [16, 32]}},
        optimizer=["adam", "sgd"],
        tie="batch-size = hidden".replace(" ", ""),
    ).runs
    np.testing.assert_equal(runs[["hidden", "batch_size"]].to_numpy(), [[16, 16], [32, 32], [math.nan, math.nan]])
    (made,) = {
        setting.training["batch_size"]
        for setting in planned(lr=1, axes={"hidden": 16}, tie="hidden=batch_size").settings
    }
    assert made == 16


REFUSED = [
    ({"tie": "beta1=beta2"}, "--tie beta1=beta2 needs values of one of these axes"),
    ({"tie": "beta1=beta2", "beta1": 0.5, "beta2": 0.5}, "--tie beta1=beta2 needs values of one of these axes"),
    ({"tie": "beta1=beta2 beta2=eps", "beta1": 0.5}, "--tie beta2=eps needs values of one of these axes, and each in"),
    ({"tie": "beta1"}, "--tie accepts names of axes that take the same values, such as beta1=beta2, not 'beta1'"),
    ({"tie": "beta1=beta1", "beta1": 0.5}, "--tie accepts names of axes"),
    ({"tie": "lr=momentum", "lr": 0.5}, "--tie lr=momentum goes with none of the optimizers chosen: adam accepts"),
    ({"tie": "lr=beta1", "lr": 2}, r"--beta1 accepts numbers in \[0, 1\), not 2"),
    ({"tie": "lr=amsgrad", "lr": 2}, "--axis amsgrad accepts true or false, not 2"),
    ({"tie": "lr=amsgrad", "lr": "1..2", "sample": "sobol:2"}, "--axis amsgrad accepts true or false, also"),
    ({"tie": "lr=batch_size", "lr": "1..2", "sample": "sobol:2"}, "--axis batch_size accepts values or START"),
    ({"tie": "lr=batch_size", "lr": [2, 2.5]}, "--axis batch_size accepts whole numbers from 1, not 2.5"),
    ({"tie": "hidden=batch_size", "axes": {"hidden": 16}, "batch_size": 32}, "--batch-size and --axis"),
    ({"axes": {"batch_size": 32}, "batch_size": 32}, "--batch-size and --axis batch_size exclude each other"),
    ({"axes": {"epochs": 1}}, "--steps and --epochs exclude each other"),
    ({"axes": {"epochs": [1e-3, 2e-3]}, "steps": None}, "--axis epochs accepts numbers that differ in steps"),
    ({"axes": {"batch_size": [32, 10**5]}}, "--batch-size accepts at most the 8192 training examples"),
    ({"axes": {"n_train": [32, 10**5]}, "batch_size": 8}, "--n-train accepts at most the 8192 of the"),
    ({"axes": {"n_train": [32, 10**3]}}, "--batch-size accepts at most the 32 training examples of teacher regression"),
    ({"axes": {"warmup": [0, 6]}}, "--warmup accepts whole numbers from 0 to below the 6 steps of a run, not 6"),
    ({"axes": {"hidden": [8, 4.5]}}, "--axis hidden accepts a width of at least 1, not 4.5"),
    ({"axes": {"hidden": [8, 10**9]}}, "--hidden and --batch-size accept what fits into the memory of"),
    ({"hidden": 10**9, "init_scale": 2}, "--hidden and --batch-size accept what fits into the memory of"),
    ({"axes": {"hidden": [8]}, "model": "linear"}, "--hidden accepts a width of at least 1 and goes with --model"),
    ({"axes": {"dropout": [0, 0.5]}, "model": "linear"}, r"--dropout accepts numbers in \[0, 1\) and goes with"),
    ({"axes": {"dropout": [0, 1]}}, r"--dropout accepts numbers in \[0, 1\)"),
    ({"axes": {"schedule": "step"}}, "--axis schedule accepts constant, rsqrt, cosine, not 'step'"),
    ({"axes": {"steps": [1, "1e400"]}, "steps": None}, "--axis steps accepts whole numbers from 1, not inf"),
    ({"axes": {"init_scale": [0, 1]}}, "--axis init_scale accepts numbers above 0, at most 1000, not 0"),
    ({"init_scale": 1e4}, "--init-scale accepts numbers above 0, at most 1000, not 10000"),
    ({"axes": {"init_scale": [1, 2]}, "task": "function"}, "--init-scale goes with models that have weights"),
    ({"axes": {"n_train": [1]}, "task": "function", "model": "counter-example"}, "--n-train accepts none of the"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(options, message):
    with pytest.raises(OptionError, match=message) as error:
        planned(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["init_scale", "dropout"])
def test_close_values_of_model_options_are_different_runs(name):
    close = [0.12345671, 0.12345672]
    keys = run_keys.keys(planned(lr=1e-3, axes={name: close}))
    assert keys == [run_keys.keys(planned(lr=1e-3, **{name: value}))[0] for value in close]
    assert len(set(keys)) == 2


@pytest.mark.slow
def test_problems_of_ones_own_have_run_axes_but_no_width():
    def mine():
        return own("cnn")

    axes = {"batch_size": [8, 16], "n_train": [40, 100], "init_scale": [1, 3]}
    runs = train(task=mine, lr=1e-2, axes=axes).runs
    assert len(runs) == 8
    assert runs["eval_loss"].nunique() == 8
    for _, run in runs.iterrows():
        options = {name: run[name] for name in axes}
        assert train(task=mine, lr=1e-2, **options).runs["eval_loss"][0] == run["eval_loss"]
    for name in ("hidden", "dropout"):
        with pytest.raises(
            OptionError, match=f"--{name} goes with mnist, regression, heavy-tailed, function, not with"
        ):
            train(task=mine, axes={name: [0.5 if name == "dropout" else 8]})


def test_initial_weights_are_scaled_once_though_a_function_returns_the_same_module():
    before = SHARED.weight.detach().clone()
    problem = planned(task=lambda: own("shared"), axes={"init_scale": [3.0]}).settings[0].problem
    first, second = (dict(problem.model.build().named_parameters()) for _ in range(2))
    assert torch.equal(SHARED.weight, before)
    assert torch.equal(first["0.weight"], 3 * before)
    assert torch.equal(second["0.weight"], 3 * before)
    assert torch.equal(first["0.bias"], SHARED.bias)
    assert torch.equal(next(variants.scaled(nn.LayerNorm(3), 5.0).parameters()), torch.ones(3))


def test_a_plan_with_scaled_weights_draws_nothing_from_torchs_generator():
    state = torch.get_rng_state()
    planned(axes={"init_scale": [1, 2], "hidden": [4, 8]})
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_counted_once_for_settings_that_need_the_same(monkeypatch):
    counted, measure = [], memory.measure
    monkeypatch.setattr(memory, "measure", lambda *given: counted.append(given) or measure(*given))
    axes = {"schedule": ["constant", "cosine"], "epochs": [0.1, 0.2], "batch_size": [32, 64]}
    made = plan.make_plan(SweepConfig(task="regression", axes=axes, device="cpu"))
    assert len(made.settings) == 8
    assert len(counted) == 2
    assert len({setting.memory for setting in made.settings}) == 2

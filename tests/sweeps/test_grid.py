"""Are axes and optimizers parsed as typed, and is bad input refused in a sentence?"""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.errors import OptionError
from experiments.sweeps import space
from experiments.sweeps.axis_values import Range, by_owner, parse
from experiments.training import axes, optimizers


def parsed(name, words, sampled=False):
    """Return the values of an axis from words, by optimizer if some are for one alone."""
    found = {owner: parse(axes.NAMED[name], own, sampled) for owner, own in by_owner(name, words).items()}
    return found[""] if found.keys() == {""} else found


def named(grid):
    return {axis.name: values for axis, values in grid.items()}


@pytest.mark.parametrize(
    ("axis", "tokens", "values"),
    [
        ("lr", ["1e-4", "3e-4", "1e-3"], [1e-4, 3e-4, 1e-3]),
        ("lr", ["1e-4..1e-1:4"], [1e-4, 1e-3, 1e-2, 1e-1]),
        ("lr", ["1e-4..1e-2:3", "0.5"], [1e-4, 1e-3, 1e-2, 0.5]),
        ("lr", [".1..10:3"], [0.1, 1.0, 10.0]),
        ("beta2", ["0.9..0.999:3"], [0.9, 0.99, 0.999]),
        ("beta1", ["0..0.99:3"], [0.0, 0.9, 0.99]),
        ("momentum", ["0..0.99:3"], [0.0, 0.9, 0.99]),
        ("beta1", ["0.9", "0", "0.9"], [0.0, 0.9]),
        ("eps", ["0", "1e-8"], [0.0, 1e-8]),
        ("lr", ["1e-3..1e-3:1"], [1e-3]),
    ],
)
def test_axis_values_and_ranges_are_understood(axis, tokens, values):
    assert parsed(axis, tokens) == values


@pytest.mark.parametrize(
    ("axis", "tokens", "message"),
    [
        ("lr", [], "--lr needs at least one value"),
        ("lr", ["0"], "--lr accepts positive numbers, not 0"),
        ("lr", ["-1e-3"], "--lr accepts positive numbers, not -0.001"),
        ("lr", ["nan"], "--lr accepts positive numbers, not nan"),
        ("lr", ["inf"], "--lr accepts positive numbers, not inf"),
        ("lr", ["fast"], "--lr accepts positive numbers, not 'fast'"),
        ("beta1", ["1"], r"--beta1 accepts numbers in \[0, 1\), not 1"),
        ("beta2", ["-0.1"], r"--beta2 accepts numbers in \[0, 1\)"),
        ("eps", ["-1e-8"], "--eps accepts numbers >= 0, not -1e-08"),
        ("weight_decay", ["-1"], "--weight-decay accepts numbers >= 0"),
        ("lr", ["1e-1..1e-4:4"], "--lr: a range needs 0 < START <= STOP"),
        ("lr", ["0..1:3"], "--lr: a range needs 0 < START"),
        ("lr", ["1e-4..1e-1"], "--lr: a range is START..STOP:COUNT"),
        ("lr", ["1e-4..1e-1:0"], "COUNT of at least 2"),
        ("lr", ["1e-4..1e-1:1"], "COUNT of at least 2"),
        ("beta2", ["0.9..1:3"], "--beta2: a range needs 0 <= START <= STOP < 1"),
    ],
)
def test_bad_axes_are_refused_in_one_sentence_that_names_the_option(axis, tokens, message):
    with pytest.raises(OptionError, match=message) as error:
        parsed(axis, tokens)
    assert "\n" not in str(error.value)


@given(axis=st.sampled_from(list(axes.AXES)), tokens=st.lists(st.text(max_size=12), max_size=3))
def test_any_text_is_understood_or_refused(axis, tokens):
    try:
        values = parsed(axis, tokens)
    except OptionError:
        return
    for own in values.values() if isinstance(values, dict) else [values]:
        assert isinstance(own, list)
        assert own == sorted(set(own))


@given(start=st.floats(1e-12, 1e3), ratio=st.floats(1.001, 1e6), count=st.integers(2, 50))
def test_ranges_have_equal_ratios_and_both_ends(start, ratio, count):
    values = parsed("lr", [f"{start!r}..{start * ratio!r}:{count}"])
    assert isinstance(values, list)
    assert len(values) == count
    assert values[0] == pytest.approx(start, rel=1e-11)
    assert values[-1] == pytest.approx(start * ratio, rel=1e-11)
    for a, b in itertools.pairwise(values):
        assert b / a == pytest.approx(ratio ** (1 / (count - 1)), rel=1e-9)


def test_configurations_are_all_combinations():
    given = {"lr": [1.0, 2.0], "beta1": [0.0], "beta2": [0.5, 0.9, 0.99], "weight_decay": [0.1]}
    table = space.grid_configurations({axes.NAMED[name]: values for name, values in given.items()})
    assert list(table.columns) == list(given)
    assert len(table) == 6
    assert not table.duplicated().any()
    assert set(table.dtypes) == {np.dtype(float)}


ALL = {"lr", "weight_decay", "maximize"}
BETAS = {"beta1", "beta2"}
DECOUPLED = ALL | BETAS | {"eps", "decoupled_weight_decay"}
OURS = {"bias_correction": "true", "cautious_weight_decay": "false"}
HAS = {
    "adam": DECOUPLED | {"amsgrad", *OURS},
    "adamw": ALL | BETAS | {"eps", "amsgrad", *OURS},
    "amsgrad": DECOUPLED | {*OURS},
    "nadam": DECOUPLED | {"momentum_decay"},
    "radam": DECOUPLED,
    "sgd": ALL,
    "momentum": ALL | {"momentum", "dampening", "nesterov"},
    "nesterov": ALL | {"momentum"},
    "adagrad": ALL | {"eps", "lr_decay", "initial_accumulator_value"},
    "rmsprop": ALL | {"eps", "alpha", "momentum", "centered"},
    "adadelta": ALL | {"eps", "rho"},
    "lion": ALL | BETAS,
    "signum": ALL | {"momentum"},
    "laprop": ALL | BETAS | {"eps"},
    "adopt": DECOUPLED | {"clip"},
    "adan": ALL | BETAS | {"beta3", "eps"},
    "ademamix": ALL | BETAS | {"beta3", "eps", "alpha", "T_alpha_beta3"},
    "schedule-free": ALL | BETAS | {"eps", "warmup_steps", "r", "weight_lr_power"},
    "muon": ALL | {"momentum", "nesterov", "adjust_lr_fn"},
    "lamb": ALL | BETAS | {"eps", "bias_correction"},
    "lars": ALL | {"momentum", "trust_coefficient", "eps"},
    "stable-adamw": ALL | BETAS | {"eps"},
    "adam-mini": ALL | BETAS | {"eps"},
    "cautious-adamw": ALL | BETAS | {"eps"},
    "cautious-lion": ALL | BETAS,
    "prodigy": ALL
    | BETAS
    | {"eps", "decouple", "use_bias_correction", "safeguard_warmup", "d0", "d_coef", "growth_rate"},
}
PAPERS = {
    "lion": {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99},
    "signum": {"lr": 1e-4, "momentum": 0.9},
    "laprop": {"lr": 4e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-15},
    "adopt": {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.9999,
        "eps": 1e-6,
        "decoupled_weight_decay": "false",
        "clip": "true",
    },
    "adan": {"lr": 1e-3, "beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "eps": 1e-8},
    "ademamix": {
        **{"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "beta3": 0.9999},
        **{"eps": 1e-8, "alpha": 5.0, "T_alpha_beta3": 0.0},
    },
    "schedule-free": {
        **{"lr": 2.5e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        **{"warmup_steps": 0.0, "r": 0.0, "weight_lr_power": 2.0},
    },
    "muon": {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.95, "nesterov": "true", "adjust_lr_fn": "original"},
    "lamb": {
        **{"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01, "bias_correction": "true"},
    },
    "lars": {"lr": 1.0, "momentum": 0.9, "trust_coefficient": 1e-3, "eps": 1e-8},
    "stable-adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.01},
    "adam-mini": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "cautious-adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "cautious-lion": {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99},
    "prodigy": {
        **{"lr": 1.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "d0": 1e-6, "d_coef": 1.0, "growth_rate": math.inf},
        **{"decouple": "true", "use_bias_correction": "false", "safeguard_warmup": "false"},
    },
}
"""Defaults of papers and of their authors' code, beside a weight decay of 0; those of Muon are torch's."""


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_has_its_axes_and_torchs_defaults(name):
    """Compare our defaults with those of torch's constructors, or of papers."""
    choice = optimizers.OPTIMIZERS[name]
    found = {axis.name: axis.default for axis in optimizers.axes(choice).values()}
    assert found.pop("max_grad_norm") == math.inf
    assert set(found) == HAS[name]
    if choice.alone:
        theirs = {key: parameter.default for key, parameter in inspect.signature(choice.alone).parameters.items()}
        theirs["beta1"], theirs["beta2"] = theirs.get("betas", (None, None))
        theirs |= {**choice.defaults, **OURS}
        words = {False: "false", True: "true"}
        assert found == {axis: words[theirs[axis]] if type(theirs[axis]) is bool else theirs[axis] for axis in found}
    else:
        assert found == {"weight_decay": 0.0, "maximize": "false", **PAPERS[name]}


def test_axes_do_not_multiply_the_optimizers_without_them():
    given = {"lr": {"": [0.1, 0.2]}, "beta1": {"": [0.0, 0.5, 0.9]}}
    grids = space.grids(["adam", "sgd", "nesterov", "adam"], given)
    assert list(grids) == ["adam", "sgd", "nesterov"]
    assert [len(space.grid_configurations(axes)) for axes in grids.values()] == [6, 2, 2]
    assert named(grids["nesterov"]) == {"lr": [0.1, 0.2], "weight_decay": [0.0], "momentum": [0.9]}
    with pytest.raises(OptionError, match="--beta2 goes with none of the optimizers chosen: sgd accepts lr, "):
        space.grids(["sgd", "nesterov"], {"beta2": {"": [0.9]}})


def test_an_optimizer_may_have_values_of_its_own():
    lr = parsed("lr", ["1e-3", "sgd=1e-2..1:3", "2", "a.b:C=7", "nadam=", "0.5"])
    assert lr == {"": [1e-3], "sgd": [0.01, 0.1, 1.0, 2.0], "a.b:C": [7.0], "nadam": [0.5]}
    lr = parsed("lr", ["adam=1e-3..1", "sgd=0.1"], sampled=True)
    assert lr == {"adam": Range(1e-3, 1.0), "sgd": [0.1]}
    grids = space.grids(["adam", "sgd", "lion"], {"lr": {"": [1.0], "sgd": [0.1, 0.2]}, "beta1": {"lion": [0.5]}})
    assert [named(grid)["lr"] for grid in grids.values()] == [[1.0], [0.1, 0.2], [1.0]]
    assert [named(grid).get("beta1") for grid in grids.values()] == [[0.9], None, [0.5]]


CLASSES = """
import optim

class Pair(optim.Adam):
    def __init__(self, params, lr, betas=(0.5, 0.6)):
        super().__init__(params, lr, betas)

class Single(optim.Adam):
    def __init__(self, params, lr=0.2, beta1=0.3):
        super().__init__(params, lr, (beta1, 0.9))
"""


def test_a_users_class_gets_the_arguments_that_its_constructor_names(tmp_path, monkeypatch):
    (tmp_path / "users_classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    axes = {name: optimizers.axes(optimizers.resolve(f"users_classes:{name}")) for name in ("Pair", "Single")}
    found = {name: {axis.name: axis.default for axis in of.values()} for name, of in axes.items()}
    assert found == {"Pair": {"lr": 1e-3, "beta1": 0.5, "beta2": 0.6}, "Single": {"lr": 0.2, "beta1": 0.3}}
    for name, betas in (("Pair", (0.1, 0.2)), ("Single", (0.1, 0.9))):
        values = {"lr": 0.01, "beta1": 0.1, "beta2": 0.2, "momentum": 0.7}
        group = optimizers.make(f"users_classes:{name}", [torch.zeros(1, requires_grad=True)], values).param_groups[0]
        assert (group["lr"], group["betas"]) == (0.01, betas)


def test_a_module_that_fails_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "users_mistake.py").write_text("raise RuntimeError('first line\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match=r"users_mistake cannot be \(RuntimeError: first line\)$"):
        optimizers.resolve("users_mistake:Mine")

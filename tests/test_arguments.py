"""Does `sweep` take every argument with its obvious meaning, or refuse it in one sentence before it trains?"""

import dataclasses
import itertools
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optim
from experiments import sweep
from experiments.common import values
from experiments.common.errors import DataError, OptionError
from experiments.sweeps import axis_values, plan
from experiments.sweeps.axis_values import Range
from experiments.sweeps.config import SweepConfig
from experiments.training import axes, evaluation, targets


def planned(**options) -> plan.Plan:
    """Return the plan of a sweep of one small run, checked as `sweep` checks it."""
    made = plan.make_plan(SweepConfig(**{"task": "regression", "steps": 5, "device": "cpu", **options}))
    sweep.check_plan(made)
    return made


TAKEN = {
    "seeds": (2, ["2", 2.0, np.int64(2), np.array(2), torch.tensor(2), Fraction(2), Decimal(2), "2e0"]),
    "steps": (5, ["5", 5.0, np.uint8(5), torch.tensor(5.0)]),
    "checkpoint_every": (0.5, ["0.5", np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)]),
    "device": ("cpu", [torch.device("cpu"), "cpu"]),
    "fresh": (True, [1, np.True_, torch.tensor(True)]),
    "target": ("0.2", [0.2, "0.2", np.float64(0.2)]),
    "out": (Path("a/b"), ["a/b", b"a/b", Path("a/b"), np.str_("a/b")]),
    "optimizer": (["adam", "sgd"], [("adam", "sgd"), iter(["adam", "sgd"]), np.array(["adam", "sgd"])]),
}
REFUSED = {
    "seeds": [[1], (1,), 1.5, "two", True, None, math.nan, math.inf, -1, b"1", Path("1"), {}, 10**400, 10**12, "1e12"],
    "steps": ["many", 0, -3, 10**15, "9" * 5000, np.array([5]), torch.zeros(2), torch.zeros((), device="meta"), 1j],
    "epochs": ["", 0, math.nan, 10**400, [1], True],
    "fresh": ["no", 2, None, [True]],
    "out": ["", 3, "a\0b", ["a"], "~nobody-has-this-name/a"],
    "data_dir": [3, "", "a\0b"],
    "task": [None, 3, ["mnist"], b"mnist"],
    "model": [3, ["mlp"], np.array(["mlp"])],
    "schedule": [None, {}, []],
    "device": [0, None, "cpu:1", "cuda:", "cuda:-1", "meta", ["cpu"]],
    "sample": [8, "", "sobol:1000000000000", ["sobol:8"]],
    "optimizer": [None, [], 3, {"adam": 1}, [3], lambda: 0, b"adam", itertools.repeat("adam"), "sgd adam", "a\0:b"],
    "target": [True, "", [0.2], math.nan, b"0.2", -1, "95%"],
    "confirm": [0, 10**9, "x"],
    "hidden": [10**9, 0, "wide", -1],
    "condition_number": [0, math.inf, "bad"],
    "batch_size": [10**12, 10**9, 0],
    "evaluations": [10**12, 0],
    "warmup": [-1, 10**9, 5],
}


@pytest.mark.parametrize("name", TAKEN)
def test_values_of_a_near_type_are_taken(name):
    meant, given = TAKEN[name]
    for one in given:
        found = getattr(SweepConfig(**{name: one}), name)
        assert found == meant, one
        assert type(found) is type(meant), one


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_none_of_them_is_refused_in_a_sentence_that_names_the_option(name):
    for one in REFUSED[name]:
        with pytest.raises(OptionError) as error:
            planned(**{name: one})
        text = str(error.value)
        assert name.replace("_", "-") in text, one
        assert len(text) < 500, one
        assert "\n" not in text, one


@pytest.mark.parametrize(
    "lr",
    ["1e-3", "1e-3 1e-2", ["1e-3", 1e-2], "1e-3..1e-2:2", torch.tensor(1e-3), np.array([1e-3, 1e-2]), (1e-3,)]
    + [pd.Series([1e-3, 1e-2]), (10.0**-i for i in (2, 3)), {"adam": "1e-3..1e-2:2"}, "adam=1e-3", Fraction(1, 1000)],
    ids=lambda value: type(value).__name__,
)
def test_an_axis_takes_in_python_what_it_takes_on_the_command_line(lr):
    found = planned(lr=lr).identity["optimizers"]["adam"]["lr"]
    assert found == pytest.approx([1e-3, 1e-2][: len(found)])


@pytest.mark.parametrize(
    "lr",
    ["", [], {}, [None], True, [True], b"1", Path("1"), 1j, math.nan, itertools.repeat(1e-3), {"lyon": 1}]
    + [{3: 1}, {"adam": {"adam": 1}}, {"adam": "sgd=1"}, "1e-3..1:1000000000000", "1..2:" + "9" * 5000, 10**400]
    + [np.ones((2, 2)), "1e-3..1", Range(1e-3, 1), ["1e-3 1e-2"], pd.DataFrame({"lr": [1e-3]})]
    + [Range("a", None)],  # pyright: ignore[reportArgumentType]
    ids=lambda value: str(type(value).__name__),
)
def test_an_axis_refuses_the_rest(lr):
    with pytest.raises(OptionError, match=r"^--lr[^\n]*$"):
        planned(lr=lr)


def test_grids_without_end_are_refused_before_they_are_made():
    for options in ({"seeds": 10**9}, {"lr": "1e-4..1:40000", "eps": "1e-9..1:40000"}):
        with pytest.raises(OptionError, match="as many runs as there is room for"):
            planned(**options)
    with pytest.raises(OptionError, match="--epochs accepts as many as make at most"):
        planned(steps=None, epochs=1e300)
    assert planned(steps=None, epochs=1e-300).runs["steps"].tolist() == [1]


def test_more_evaluations_than_steps_are_one_after_each_step():
    assert planned(evaluations=10**5).identity["evaluations"] == 10**5
    assert evaluation.evaluation_steps(3, 10**9) == [0, 1, 2, 3]


NEAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3),
    st.sampled_from(["1e-3", "1e-3..1:3", "95%", "adam", "mlp", "cpu", "sobol:4", "cosine", "ray", "2", "inf"]),
    st.sampled_from([10**12, 10**400, 1e-300, -0.0, 1, 2, 3.0, 0.5, optim.Adam, optim, print, 1j, Path("x"), object()]),
    st.builds(np.array, st.floats() | st.integers(-5, 5)), st.builds(torch.tensor, st.floats() | st.integers(-5, 5)),
    st.builds(pd.Series, st.lists(st.floats(), max_size=2), dtype=st.just(float)),
)  # fmt: skip
ARGUMENTS = sorted(field.name for field in dataclasses.fields(SweepConfig))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(ARGUMENTS),
    value=NEAR | st.lists(NEAR, max_size=2) | st.dictionaries(st.sampled_from(["", "adam", "sgd"]), NEAR, max_size=2),
)
def test_any_value_of_any_argument_is_taken_or_refused(name, value):
    said = ""
    try:
        planned(**{name: value})
    except (OptionError, DataError) as error:
        said = str(error)
    assert "\n" not in said


def test_targets_that_are_meant_in_percent_are_told_apart_from_losses():
    for text, meant in (("95", "95%"), (95, "95%"), ("98.5", "98.5%"), (1e6, "95%")):
        with pytest.raises(OptionError, match=rf"--target accepts a loss \(0.2\) or an accuracy \(95%\).* {meant}$"):
            targets.parse(text, classifies=True)
    assert targets.parse(95, classifies=False) == targets.Target("eval_loss", 95)
    assert targets.parse(0.2, classifies=True) == targets.parse("0.2", classifies=True)


def test_python_and_the_command_line_say_the_same(capsys, tmp_path):
    for option, word in (("--steps", "many"), ("--seeds", "1.5"), ("--lr", "fast"), ("--dropout", "x")):
        name = option.removeprefix("--")
        with pytest.raises(OptionError) as error:
            sweep.sweep("regression", **{name: word})
        assert sweep.main(["regression", option, word, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err == f"python -m experiments.sweep: {error.value}\n"
    assert not (tmp_path / "out").exists()


def test_what_is_shown_of_a_value_is_short_and_on_one_line():
    class Mute:
        def __repr__(self):
            raise RuntimeError

    for value in ("x" * 10**6, 10**5000, np.zeros(10**4), Mute(), "a\nb", "\udcff", [[1] * 10**4]):
        text = values.shown(value)
        assert len(text) < 100
        assert text.isprintable()
    assert axis_values.parse(axes.NAMED["lr"], ["1e-4..1"], sampled=True) == Range(1e-4, 1)

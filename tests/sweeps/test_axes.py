"""Is every argument of an optimizer an axis, with lanes that do what torch does, or refused in one sentence?"""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import optim
from experiments import sweep
from experiments.common.errors import OptionError
from experiments.sweeps import reading
from experiments.training import optimizers, population, reference
from kernels.rule import tl
from tests.sweeps.small import train
from tests.training.small_problems import linear

pytestmark = pytest.mark.usefixtures("no_figures")

SHORT = ["--steps", "3", "--batch-size", "32", "--evaluations", "1", "--device", "cpu"]
VALUES = {
    "lr": (0.01, 0.1),
    "beta1": (0.5, 0.95),
    "beta2": (0.9, 0.99),
    "eps": (1e-6, 1e-3),
    "weight_decay": (0.0, 0.1),
    "momentum": (0.5, 0.9),
    "momentum_decay": (1e-3, 1e-2),
    "dampening": (0.0, 0.5),
    "lr_decay": (0.0, 0.1),
    "initial_accumulator_value": (0.0, 1.0),
    "alpha": (0.9, 0.95),
    "rho": (0.8, 0.95),
    "beta3": (0.9, 0.99),
    "T_alpha_beta3": (0.0, 10.0),
    "warmup_steps": (0.0, 5.0),
    "r": (0.0, 1.0),
    "weight_lr_power": (1.0, 2.0),
    "trust_coefficient": (1e-3, 1e-2),
    "d0": (1e-6, 1e-3),
    "d_coef": (0.5, 1.0),
    "growth_rate": (1.5, math.inf),
    "max_grad_norm": (0.1, math.inf),
    "adjust_lr_fn": ("match_rms_adamw", "original"),
}
"""Two values for each axis; the others are true or false."""


def swept(out, optimizer: str, name: str) -> list:
    """Sweep two values of an axis through the command; return those that its table has."""
    words = [*map(str, VALUES.get(name, ("true", "false")))]
    if name == "cautious_weight_decay" and optimizer in ("adam", "amsgrad"):
        words += ["--axis", "decoupled_weight_decay", "true"]
    assert sweep.main(["regression", "--optimizer", optimizer, "--axis", name, *words, *SHORT, "--out", str(out)]) == 0
    runs = reading.load(out).runs
    assert runs["eval_loss"].notna().all()
    return sorted(runs[name])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_every_axis_of_every_optimizer_is_swept_by_the_command(optimizer, tmp_path):
    for name in optimizers.axes(optimizers.OPTIMIZERS[optimizer]):
        assert swept(tmp_path / name, optimizer, name) == sorted(VALUES.get(name, ("false", "true"))), name


CHANGED = [
    ("nadam", {"momentum_decay": 0.05, "decoupled_weight_decay": "true", "weight_decay": 0.1}),
    ("adam", {"amsgrad": "true", "maximize": "true"}),
    ("adadelta", {"rho": 0.7}),
    ("rmsprop", {"alpha": 0.9, "centered": "true", "momentum": 0.5}),
    ("momentum", {"dampening": 0.5}),
    ("momentum", {"nesterov": "true"}),
    ("adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
]


@pytest.mark.parametrize(
    ("optimizer", "values"),
    # Numba compiles each of them in float64.
    [pytest.param(*case, marks=() if i in (0, 4, 5) else pytest.mark.slow) for i, case in enumerate(CHANGED)],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_lanes_with_an_argument_follow_torch_with_it_in_float64(optimizer, values):
    problem, options = linear(), {"steps": 12, "batch_size": 32, "dtype": torch.float64, "optimizer": optimizer}
    configs = pd.DataFrame([{"lr": lr, **values} for lr in (0.003, 0.01)])
    runs, curves = population.train(problem, configs, [0, 5], evaluations=2, **options)
    for _, run in runs.iterrows():
        _, losses = reference.train(problem, run.loc[list(configs)].to_dict(), int(run.seed), **options)
        lane = curves[curves.lane == run.lane]
        np.testing.assert_allclose(lane.train_loss[1:], [losses[:6].mean(), losses[6:].mean()], rtol=1e-9)
    plain, _ = population.train(problem, configs.loc[:, ["lr"]], [0, 5], evaluations=2, **options)
    assert (plain.eval_loss != runs.eval_loss).all()


def test_axes_of_the_second_optimizer_alone_are_columns(tmp_path):
    axes = {"rho": [0.8, 0.9], "momentum_decay": [1e-3, 1e-2], "amsgrad": [True]}
    chosen = {"optimizer": ["adadelta", "nadam", "adam"], "lr": 0.01, "beta1": None, "seeds": 1}
    runs = train(tmp_path, **chosen, axes=axes).runs
    given = [(0.8, None, None), (0.9, None, None), (None, 1e-3, None), (None, 1e-2, None), (None, None, "true")]
    assert [tuple(v if v == v else None for v in row) for row in runs[[*axes]].itertuples(index=False)] == given
    assert reading.load(tmp_path).runs[[*axes]].equals(runs[[*axes]])


def coefficients(hyper, step):
    lr, beta1, beta2, beta3 = hyper
    return lr, 1 - beta1, 1 - beta2, 1 - beta3


def update(p, grad, state, coefficients):
    first, second = state
    lr, a, b, c = coefficients
    first = first + a * (grad - first)
    second = second + b * (first - second)
    return p - lr * (second + c * tl.maximum(grad, -1.0)), (first, second)


Three = optim.from_rule(
    update, coefficients, states=("a", "b"), defaults={"lr": 0.1, "betas": (0.9, 0.8, 0.3)}, name="Three"
)


def test_the_third_beta_of_a_users_rule_is_an_axis():
    runs = train(None, optimizer=Three, lr=0.1, beta1=None, axes={"beta3": [0.2, 0.3]}, seeds=1).runs
    assert runs["beta3"].tolist() == [0.2, 0.3]
    assert runs["eval_loss"].nunique() == 2
    plain = train(None, optimizer=Three, lr=0.1, beta1=[0.9, 0.5], seeds=1).runs
    assert plain["eval_loss"][1] == pytest.approx(runs["eval_loss"][1], rel=1e-5)
    grown = train(None, optimizer=Three, lr=0.1, beta1=None, axes={"beta3": "0..0.9:2"}, seeds=1).runs
    assert grown["beta3"].tolist() == [0.0, 0.9]
    with pytest.raises(OptionError, match=r"--axis beta3 accepts numbers in \[0, 1\), not 1$"):
        train(None, optimizer=Three, beta1=None, axes={"beta3": 1})


class Powered(torch.optim.Optimizer):
    """A class with arguments of every kind; some have names that tables use."""

    def __init__(
        self, weights, lr, power, mode="plain", flip=False, half=0.5, weight_decay=None, seed=0, epoch=1, pair=(1, 2)
    ):
        if mode not in ("plain", "sign") or not isinstance(flip, bool):
            raise ValueError(f"mode {mode}, flip {flip}")
        given = {"lr": lr, "power": power, "mode": mode, "flip": flip, "half": half}
        super().__init__(weights, given)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                lr, power = (group[name].view(-1, *[1] * (p.ndim - 1)).float() for name in ("lr", "power"))
                moved = p.grad.sign() if group["mode"] == "sign" else p.grad
                p.sub_((-lr if group["flip"] else lr) * moved.sign() * moved.abs() ** power)


def test_required_arguments_words_and_bools_of_a_users_class_are_axes():
    axes = {"power": [1, 2], "mode": ["plain", "sign"], "flip": [True, False], "half": [0.5, 2]}
    runs = train(None, optimizer=Powered, lr=0.01, beta1=None, axes=axes, seeds=1).runs
    assert len(runs) == 16
    assert sorted(runs["flip"].unique()) == ["false", "true"]
    of = runs.set_index(["power", "mode", "flip", "half"])["eval_loss"]
    assert of[1, "plain", "false", 0.5] == of[1, "plain", "false", 2]
    assert of[1, "sign", "false", 0.5] == pytest.approx(of[2, "sign", "false", 0.5])
    assert (
        len({round(float(of.at[1, mode, flip, 2]), 6) for mode in ("plain", "sign") for flip in ("true", "false")}) == 4
    )
    (alone,) = train(None, optimizer=Powered, lr=0.01, beta1=None, axes={"power": 1}, seeds=1).runs["eval_loss"]
    assert alone == pytest.approx(of[1, "plain", "false", 2], rel=1e-5)


class Wordy(Powered):
    """A class whose `half` is a word."""

    def __init__(self, params, lr=0.1, half="no"):
        super().__init__(params, lr, torch.ones(1))


REFUSED = [
    ({}, "--axis power needs values, because .*:Powered has no default for it"),
    ({"power": 1, "mode": "fast"}, r"does not accept these values over lanes \(mode fast, flip False\)"),
    ({"power": 1, "flip": "yes"}, "--axis flip accepts true or false, not 'yes'"),
    ({"power": "big"}, "--axis power accepts numbers, not 'big'"),
    ({"power": [1, math.nan]}, "--axis power accepts numbers, not nan"),
    ({"power": 1, "rho": 0.9}, "--axis rho goes with none of .*:Powered accepts lr, weight_decay, power, mode, flip,"),
    ({"power": 1, "seed": [0, 1]}, "--axis seed goes with none"),
    ({"power": 1, "epoch": [0, 1]}, "--axis epoch goes with none"),
    ({"power": 1, "pair": 1}, "--axis pair goes with none"),
    ({"power": 1, "weights": 1}, "--axis weights goes with none"),
    ({"power": []}, "--axis power needs at least one value"),
    ({"power": 1, "lr": 2}, "--lr and --axis lr exclude each other"),
    ({"power": 1, "batch_size": 32}, "--batch-size and --axis batch_size exclude each other"),
    ({"power": {"adam": 1}}, "--axis power accepts values for .*:Powered, not for 'adam'"),
]


@pytest.mark.parametrize(("axes", "message"), REFUSED)
def test_axes_that_a_users_class_does_not_have_are_refused_in_one_sentence(axes, message):
    with pytest.raises(OptionError, match=message) as error:
        train(None, optimizer=Powered, lr=0.1, beta1=None, axes=axes)
    assert "\n" not in str(error.value)


def test_an_axis_is_numbers_or_words_in_one_sweep():
    names = optimizers.names_of([Powered, Wordy])
    words = dict(zip(names, ([0.5, 1], ["no", "yes"]), strict=True))
    with pytest.raises(OptionError, match=r"--axis half accepts numbers for .*Powered and words for others"):
        train(None, optimizer=[Powered, Wordy], lr=0.1, beta1=None, axes={"power": 1, "half": words})


WORDS = [
    (
        ["--axis", "rho", "0.9"],
        "--axis rho goes with none of the optimizers chosen: adam accepts lr, beta1, beta2, eps,",
    ),
    (["--axis", "amsgrad"], "--axis amsgrad needs at least one value"),
    (["--axis", "rho", "0.9", "--axis", "rho", "0.8"], "--axis accepts each name of an axis once"),
    (["--axis", "", "0.9"], "--axis accepts each name"),
    (["--axis", "amsgrad", "1"], "--axis amsgrad accepts true or false, not 1"),
    (["--axis", "beta-1", "0.9"], "--axis beta_1 goes with none"),
    (["--axis", "foreach", "true"], "--axis foreach goes with none"),
    (["--optimizer", "sgd", "--axis", "nesterov", "true"], "--axis nesterov goes with none"),
    (["--axis", "amsgrad", "true", "--optimizer", "amsgrad"], "--axis amsgrad goes with none"),
]


@pytest.mark.parametrize(("words", "message"), WORDS, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_a_wrong_axis_is_one_sentence_and_exit_code_2(words, message, tmp_path, capsys):
    assert sweep.main(["regression", *words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()

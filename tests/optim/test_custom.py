"""Optimizers from rules of the user's own."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl

import optim
from optim.adabelief import AdaBelief
from tests.conftest import device_of
from tests.oracle import make_params, train


def adabelief_in_float64(params, steps, lr, beta1, beta2, eps):
    """Zhuang et al. 2020, Algorithm 2, with eps added to both the average and the root."""
    params = [p.detach().double().cpu().numpy() for p in params]
    m, s = ([np.zeros_like(p) for p in params] for _ in range(2))
    for step in range(1, steps + 1):
        generator = torch.Generator().manual_seed(step - 1)
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=generator).double().numpy()
            m[i] = beta1 * m[i] + (1 - beta1) * g
            s[i] = beta2 * s[i] + (1 - beta2) * (g - m[i]) ** 2 + eps
            p -= lr * (m[i] / (1 - beta1**step)) / (np.sqrt(s[i] / (1 - beta2**step)) + eps)
    return [torch.from_numpy(np.asarray(p)) for p in params]


def test_the_example_does_what_its_paper_says(backend):
    params = make_params(((3,), (2000,), ()), device=device_of(backend))
    start = [p.detach().double().cpu() for p in params]
    expected = adabelief_in_float64(params, 5, 0.01, 0.9, 0.99, 1e-12)
    train(AdaBelief(params, 0.01, betas=(0.9, 0.99), eps=1e-12, backend=backend), params, 5)
    for p, q, p0 in zip(params, expected, start, strict=True):
        torch.testing.assert_close(p.detach().double().cpu() - p0, q - p0, rtol=1e-3, atol=1e-6)


def test_it_has_lanes_groups_state_dict_pickle_and_maximize():
    lr = torch.tensor([0.01, 0.1], dtype=torch.float64)
    lanes = make_params(((2, 30),), torch.float64)
    alone = [lanes[0].detach()[k].clone().requires_grad_() for k in range(2)]
    stacked = AdaBelief([{"params": lanes, "betas": (0.5, 0.9)}], lr=lr, maximize=True)
    solo = [
        AdaBelief([p], lr=value.item(), betas=(0.5, 0.9), maximize=True) for p, value in zip(alone, lr, strict=True)
    ]
    for step in range(6):
        lanes[0].grad = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        stacked.step()
        for k in range(2):
            alone[k].grad = lanes[0].grad[k].clone()
            solo[k].step()
        if step == 2:
            saved = copy.deepcopy(stacked.state_dict())
            stacked = AdaBelief(lanes, lr=torch.ones(2))
            stacked.load_state_dict(saved)
        if step == 4:
            (lanes, stacked) = pickle.loads(pickle.dumps((lanes, stacked)))
    assert torch.equal(lanes[0].detach(), torch.stack([p.detach() for p in alone]))
    assert set(stacked.state[lanes[0]]) == {"step", "exp_avg", "exp_avg_var"}


def coefficients(hyper, step):
    lr, power = hyper
    return lr, tl.where(step == 1.0, 0.0, 1.0), power


def update(p, grad, state, coefficients):
    (previous,) = state
    lr, later, power = coefficients
    # Constants of Python's: they must not make float64 of a float32 rule.
    return p - lr * (grad + 0.5 * later * tl.maximum(previous, -0.25)) * power, (grad,)


def test_states_start_from_values_and_constants_and_steps_count(backend):
    made = optim.from_rule(update, coefficients, states={"previous": 3.0}, defaults={"lr": 0.1, "power": 1.0})
    p = torch.zeros(5, device=device_of(backend), requires_grad=True)
    optimizer = made([p], backend=backend)
    for value in (1.0, -2.0, 4.0):
        p.grad = torch.full_like(p, value)
        optimizer.step()
    # 0.1 * (1 + 0) + 0.1 * (-2 + 0.5 * 1) + 0.1 * (4 + 0.5 * -0.25)
    torch.testing.assert_close(p.detach().cpu(), torch.full((5,), -(0.1 - 0.15 + 0.3875)))
    assert made.__name__ == "update"
    with pytest.raises(ValueError, match="Invalid power value: -1"):
        made([p], power=-1.0)
    with pytest.raises(TypeError, match="update takes lr, power"):
        made([p], 0.1, 1.0, 2.0)
    with pytest.raises(TypeError, match="momentum"):
        made([p], momentum=0.1)


def test_functions_that_do_not_fit_are_refused_when_the_class_is_made():
    with pytest.raises(ValueError, match="coefficients of bad must return a tuple, not float64"):
        optim.from_rule(update, lambda hyper, step: hyper[0], states=("a",), defaults={"lr": 0.1}, name="bad")
    with pytest.raises(ValueError, match=r"update of bad must return \(p, state\), state being a tuple of a, b"):
        optim.from_rule(
            lambda p, grad, state, c: (p, (grad,)), lambda hyper, step: hyper,
            states=("a", "b"), defaults={"lr": 0.1}, name="bad",
        )  # fmt: skip


def gpu_only(p, grad, state, coefficients):
    return p - coefficients[0] * tl.erf(tl.sigmoid(grad)), state


def test_operations_that_the_cpu_lacks_are_named_and_nothing_moves():
    def rate(hyper, step):
        return hyper

    made = optim.from_rule(gpu_only, rate, defaults={"lr": 0.1}, name="gpu_only")
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    for backend in ("cpu", "eager"):
        with pytest.raises(
            NotImplementedError,
            match=r"Rule 'gpu_only' calls tl.erf, tl.sigmoid, which the CPU backends lack; they have",
        ):
            made([p], backend=backend).step()
    assert p.tolist() == [0.0] * 3


def test_its_page_shows_the_example_as_it_is():
    folder = Path(optim.__file__).parent
    source = (folder / "adabelief.py").read_text()
    assert source[source.index("def coefficients") :].strip() in (folder / "README.md").read_text()

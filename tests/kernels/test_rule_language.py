# pyright: reportGeneralTypeIssues=false
# Triton and Numba compile the rules below: `tl.static_range` is a loop there.
"""All that rules may use does the same on every backend, and compiles; names and values that no class could have."""

import math
import os
import subprocess
import sys
from types import FunctionType

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import optim
from kernels import elementwise
from kernels.rule import NUMPY
from tests.conftest import device_of


@pytest.mark.parametrize("defaults", [
    {}, {"eps": 1.0}, {"lr": math.nan}, {"lr": math.inf}, {"lr": -1}, {"lr": True}, {"lr": "0.1"}, {"lr": (0.1, 0.2)},
    {"lr": torch.tensor([0.1, 0.2])}, {"lr": 0.1, "params": 1.0}, {"lr": 0.1, "max_lr": 1.0}, {"lr": 0.1, "seed": 1},
    {"lr": 0.1, "two words": 1.0}, {"lr": 0.1, "lambda": 1.0}, {"lr": 0.1, 3: 1.0}, {"lr": 0.1, "betas": 0.9},
    {"lr": 0.1, "betas": ()}, {"lr": 0.1, "betas": (0.9, 1.0)}, {"lr": 0.1, "beta1": 0.9, "betas": (0.9,)},
])  # fmt: skip
def test_defaults_that_cannot_be_hyperparameters_are_refused(defaults):
    with pytest.raises(ValueError, match=r"of bad|Invalid"):
        optim.from_rule(allowed_update, allowed_coefficients, states=("m", "v"), defaults=defaults, name="bad")


@pytest.mark.parametrize(
    "states", ["m", ("m", "m"), ("m", "step"), ("two words",), ("class",), (3,), {"m": math.nan}, {"m": "0"}]
)
def test_states_that_cannot_be_kept_are_refused(states):
    with pytest.raises(ValueError, match="of bad"):
        optim.from_rule(allowed_update, allowed_coefficients, states=states, defaults={"lr": 0.1}, name="bad")


def descend(p, grad, state, c):
    return p - c[0] * grad, state


@pytest.mark.parametrize("why", ["not elementwise", "float32 alone", "one or more values", "may not call tl.erf"])
def test_coefficients_are_of_one_tensor_in_float64(why):
    def summing(hyper, step):
        return (tl.sum(hyper[0], 0),)

    def rounded(hyper, step):
        return (tl.sqrt_rn(hyper[0]),)

    def fixed(hyper, step):
        return hyper[0], 0.5

    def gpu_only(hyper, step):
        return (tl.erf(hyper[0]),)

    names = {"not elementwise": summing, "float32 alone": rounded, "one or more": fixed, "may not call": gpu_only}
    with pytest.raises(ValueError, match=f"coefficients of bad .*{why}"):
        optim.from_rule(
            descend, next(f for key, f in names.items() if why.startswith(key)), defaults={"lr": 0.1}, name="bad"
        )


def test_tuples_keep_their_width_and_their_lanes():
    def last(hyper, step):
        return hyper[0], hyper[2]

    def scaled(p, grad, state, c):
        return p - c[0] * c[1] * grad, state

    made = optim.from_rule(scaled, last, defaults={"lr": 1.0, "nus": (0.5, 0.25)})
    p = torch.zeros(2, 3, requires_grad=True)
    p.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"Invalid nus value: \(0.5,\)"):
        made([p], nus=(0.5,))
    made([p], nus=(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])), backend="eager").step()
    assert p[:, 0].tolist() == [-3.0, -4.0]
    betas = optim.from_rule(scaled, last, defaults={"lr": 1.0, "betas": (0.5, 0.25)})
    with pytest.raises(ValueError, match=r"Invalid betas value: \(0.5,\)"):
        betas([p], betas=(0.5,))


@triton.jit
def moved(x, y):
    x += y
    return x


def allowed_coefficients(hyper, step):
    lr, a = hyper[0], hyper[1]
    x = tl.exp(a) + tl.exp2(a) + tl.log(a) + tl.log2(a) + tl.sqrt(a) + tl.rsqrt(a) + tl.sin(a) + tl.cos(a)
    x = x + tl.floor(a) + tl.ceil(a) + tl.abs(a) + tl.minimum(a, 0.5) + tl.maximum(a, step) + tl.where(a > 1, a, 0.5)
    for i in tl.static_range(2):
        x += hyper[i]
    lr *= 0.5
    return lr, x, tl.where(a > 0.5, 1.0, 0.0)


def allowed_update(p, grad, state, coefficients):
    m, v = state
    lr, x, f = coefficients
    a = tl.abs(grad) + 0.1
    x = x + tl.exp(a) + tl.exp2(a) + tl.log(a) + tl.log2(a) + tl.sqrt(a) + tl.rsqrt(a) + tl.sin(a) + tl.cos(a)
    x = x + tl.floor(a) + tl.ceil(a) + tl.abs(a) + tl.minimum(a, 0.5) + tl.maximum(0.25, m) + tl.where(a > 1, a, 0.5)
    x = x + tl.sqrt_rn(a) + tl.div_rn(1.0, a) + tl.where(a > 0.5, x, 0.0) + tl.where(a > 1, 2.0, 0)
    for i in tl.static_range(len(state)):
        x -= state[i] if i == 0 else 2 * state[i]
    if len(state) == 2:
        x = moved(x, y=-a)
    before = m
    m += f * grad  # before stays as it is
    flips = ((a > 0.5) & (m <= before)) | (v != 0.0) ^ (lr >= x)
    p -= lr * tl.where(flips, m + before, 0.01 * x)
    return p, (m, tl.minimum(v + lr, 3.0))


@pytest.mark.parametrize("backend", ["triton", "eager", pytest.param("cpu", marks=pytest.mark.slow)])
def test_all_that_rules_may_use_does_the_same_everywhere(backend):
    made = optim.from_rule(
        allowed_update, allowed_coefficients, states=("m", "v"), defaults={"lr": 0.1, "betas": (0.7,)}, name="Allowed"
    )
    device = device_of(backend)
    p = torch.linspace(-2, 2, 7, device=device).requires_grad_()
    expected, m, v = p.detach().double().cpu().numpy(), np.zeros(7), np.zeros(7)
    optimizer = made([p], backend=backend)
    namespace = {**globals(), "tl": NUMPY, "moved": lambda x, y: x + y}
    coefficients, update = (FunctionType(f.__code__, namespace) for f in (allowed_coefficients, allowed_update))
    for step in (1, 2, 3):
        grad = step * torch.linspace(2, -1, 7)
        p.grad = grad.to(device)
        optimizer.step()
        values = coefficients((0.1, 0.7), step)
        # Element by element: numbers are not changed in place.
        rows = [
            update(*row[:2], tuple(row[2:]), values) for row in zip(expected, grad.double().numpy(), m, v, strict=True)
        ]
        expected, m, v = (np.array(column) for column in zip(*((q, *state) for q, state in rows), strict=True))
    torch.testing.assert_close(p.detach().double().cpu(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(optimizer.state[p]["m"].double().cpu(), torch.from_numpy(m), rtol=1e-5, atol=1e-5)


def chosen_coefficients(hyper, step):
    # In float32, 1 - 0.9999 is 1.7e-4 of itself off.
    b = tl.where(step > 0, 0.9999, 0.9)
    return hyper[0] * (1 - b), tl.where(step > 0, 0.1, -0.3)


def chosen_update(p, grad, state, coefficients):
    before, total = p, 0
    for x in tl.static_range(2):
        total += (0.3, 0.7)[x] * grad
    return p - coefficients[0] * 2 * total - tl.where(grad > 0, 0.1, -0.3) * coefficients[1], (before, 2 * grad)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float32))],
    ids=str,
)
def test_constants_are_of_the_rules_dtypes_and_inputs_may_be_returned(backend, dtype):
    made = optim.from_rule(chosen_update, chosen_coefficients, states=("before", "twice"), defaults={"lr": 1.0})
    start, grad = torch.linspace(-2, 2, 7).to(dtype), torch.linspace(2, -1, 7).to(dtype)
    expected = start.double() - 2e-4 * grad.double() - torch.where(grad > 0, 0.1, -0.3).double() * 0.1
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            p = start.to(device_of(backend), copy=True).requires_grad_()
            optimizer = made([p], backend=backend, state_dtype=torch.bfloat16)
            p.grad = grad.to(p.device)
            optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
        bound = torch.finfo(dtype).eps * expected.abs() + 1e-7
        assert ((p.detach().double().cpu() - expected).abs() <= bound).all()
        state = {name: value.double().cpu() for name, value in optimizer.state[p].items()}
        torch.testing.assert_close(state["before"], start.double(), rtol=2**-8, atol=0)
        torch.testing.assert_close(state["twice"], 2 * grad.double(), rtol=2**-8, atol=0)


COMPILES = """
import sys
from dataclasses import replace
from kernels import codegen, elementwise, multi_tensor
from kernels.rule import Rule, triton
from tests.kernels.test_rule_language import allowed_coefficients, allowed_update, gpu_coefficients, gpu_update
pointers = ("rows_ptr", "hyper_ptr", "coefficients_ptr", "keys_ptr", "grad_scale_ptr", "found_inf_ptr")
kinds = dict(zip(pointers, ("*i64", "*fp64", "*fp32", "*i32", "*fp32", "*fp32")), n_rows="i32", seed="i32")
for coefficients, update in ((allowed_coefficients, allowed_update), (gpu_coefficients, gpu_update)):
    rule = Rule("all", triton.jit(coefficients), triton.jit(update), ("lr", "a"), ("m", "v"))
    elementwise.check(rule)
    vars(rule)["n_coefficients"] = 3
    codegen.compiled(rule, "sm_90", "bfloat16-states")
    constants = {"coefficients": rule.coefficients, "N_COLUMNS": 7, "N_STATES": 2, "N_SCALARS": 0, "N_HYPER": 2}
    constants |= {"N_COEFFICIENTS": 3, "BLOCK_SIZE": 128, "CLIPS": 0}
    codegen.compile_kernel(multi_tensor.prologue_kernel, "sm_90", kinds, constants)
    print("compiled")
"""


def gpu_coefficients(hyper, step):
    lr, a = hyper
    return lr, tl.erf(a) + tl.sigmoid(a) + tl.fdiv(a, step) + tl.fma(a, a, step) + tl.clamp(a, 0.0, 1.0), a > 0.5


def gpu_update(p, grad, state, coefficients):
    lr, x, f = coefficients
    a = tl.erf(grad) + tl.sigmoid(grad) + tl.fdiv(grad, x) + tl.fma(grad, grad, 2.0) + tl.clamp(grad, 0.0, 1)
    return p - lr * f * a.to(tl.bfloat16).to(tl.float32), state


@pytest.mark.slow
def test_all_that_rules_may_use_compiles_for_a_gpu():
    clean = dict(os.environ) | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], capture_output=True, text=True, env=clean | {"PYTHONPATH": "."}
    )
    assert done.stdout == "compiled\ncompiled\n", done.stderr
    used = elementwise.OPERATIONS.keys()
    text = "".join(str(f.__code__.co_names) for f in (allowed_coefficients, allowed_update, gpu_update))
    assert all(f"'{name}'" in text for name in used)

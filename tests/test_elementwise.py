"""What rules may do, and what is refused by name when a class is made: whatever is not elementwise on every backend."""

import functools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as lang  # noqa: F401, as the next two: rules below use them
import triton.language as tl
from triton.language import sigmoid  # noqa: F401
from triton.language import sum as total  # noqa: F401

import optim
from kernels import elementwise, rules
from kernels.rule import NUMPY
from tests.conftest import device_of

HALF, A_CONSTEXPR, summed = 0.5, tl.constexpr(0.5), tl.sum


def rate(hyper, step):
    return hyper


def python_helper(x):
    return 2 * x


@triton.jit
def summing_helper(x):
    return x + tl.sum(x)


@triton.jit
def nested_helper(x):
    return summing_helper(x)


@triton.jit
def endless(x):
    return endless(x)


def line(expression: str):
    """A rule whose gradient goes through an expression, in a file of its own and this module's names."""

    def made(folder):
        path = folder / f"rule_{abs(hash(expression))}.py"
        path.write_text(f"def update(p, grad, state, c):\n    return p - c[0] * ({expression}), state\n")
        namespace = dict(globals())
        exec(compile(path.read_text(), str(path), "exec"), namespace)
        return namespace["update"]

    return made


REFUSED = {
    **{f"tl.{name}(grad, 0)": f"tl.{name}, which is not elementwise" for name in (
        "sum", "max", "min", "argmax", "argmin", "reduce", "xor_sum", "cumsum", "cumprod", "associative_scan", "sort",
        "flip", "gather", "histogram", "dot", "reshape", "trans", "permute", "expand_dims", "broadcast_to", "cat",
        "join", "split", "load", "store", "atomic_add", "program_id", "num_programs", "arange", "rand", "randn",
        "device_print", "inline_asm_elementwise", "debug_barrier", "softmax", "full", "zeros", "range", "constexpr",
    )},
    **{f"grad.{name}(0)": f".{name} of a value" for name in ("sum", "max", "reshape", "exp", "cumsum", "item")},
    "grad.T": ".T of a value",
    "tl.math.exp(grad)": "tl.math",
    "tl.extra.cuda.libdevice.exp(grad)": "tl.extra",
    "tl.standard.sum(grad)": "tl.standard",
    "tl.expp(grad)": "tl.expp, which is no function of Triton",
    "grad[0]": r"\[\.\.\.\] of a value",
    "grad[None, :]": "has a Slice",
    "summing_helper(grad)": "tl.sum",
    "nested_helper(grad)": "tl.sum",
    "endless(grad)": "endless, which calls itself",
    "python_helper(grad)": "python_helper, which lacks @triton.jit",
    "lang.exp(grad)": "the module lang",
    "summed(grad)": "Triton's sum other than by tl",
    "total(grad)": "Triton's sum other than by tl",
    "sigmoid(grad)": "Triton's sigmoid other than by tl",
    "getattr(tl, 'sum')(grad)": "Python's getattr",
    "sum(grad)": "Python's sum",
    "max(grad, p)": "Python's max",
    "abs(grad)": "Python's abs",
    "float(grad)": "Python's float",
    "np.sum(grad)": "the module np",
    "math.sqrt(grad)": "the module math",
    "torch.sqrt(grad)": "the module torch",
    "HALF * grad": "the global variable HALF",
    "A_CONSTEXPR * grad": "A_CONSTEXPR",
    "undefined * grad": "undefined, which is not defined",
    "grad**2": r"\*\* \(a product is x \* x\)",
    "grad // 2": "//",
    "grad % 2": "%",
    "grad if grad > 0 else p": "tl.where",
    "tl.where(0 < grad < 1, grad, 0.0)": "tl.where",
    "tl.where(grad > 0 and p > 0, grad, 0.0)": "tl.where",
    "tl.where(~(grad > 0), grad, 0.0)": "uses ~",
    "tl.where(grad, grad, 0.0)": "tl.where with what is no condition",
    "(grad > 0) - 1": "- with a condition",
    "tl.exp(2.0)": "constants alone",
    "tl.exp(grad, p)": "2 arguments instead of 1",
    "[x for x in (grad,)][0]": "ListComp",
    "(lambda x: x)(grad)": "Lambda",
    "grad.__add__(p)": "__add__",
}  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_what_is_not_elementwise_is_named(expression, tmp_path):
    with pytest.raises(ValueError, match=REFUSED[expression]) as error:
        optim.from_rule(line(expression)(tmp_path), rate, defaults={"lr": 0.1}, name="bad")
    assert str(error.value).startswith("update of bad ")
    assert "tl.where" in str(error.value)


def around(k):
    def update(p, grad, state, c):
        return p - k * grad, state

    return update


def descend(p, grad, state, c):
    return p - c[0] * grad, state


def looping(p, grad, state, c):
    for x in c:
        p = p - x * grad
    return p, state


def branching(p, grad, state, c):
    if grad > 0:
        p = p - c[0] * grad
    return p, state


def trying(p, grad, state, c):
    try:
        return p - c[0] * tl.sum(grad), state
    except Exception:
        return p - c[0] * grad, state


def changing(p, grad, state, c):
    global HALF
    HALF = 1.0
    return p - c[0] * grad, state


def yielding(p, grad, state, c):
    yield p, state


async def awaited(p, grad, state, c):
    return p, state


def with_default(p, grad, state, c, k=2):
    return p - k * grad, state


def with_rest(p, grad, state, *c):
    return p, state


def constant(p, grad, state, c):
    return 0.0, state


def condition(p, grad, state, c):
    return p > 0, state


class Callable:
    def __call__(self, p, grad, state, c):
        return p, state

    def update(self, p, grad, state, c):
        return p, state


@functools.wraps(constant)
def wrapper(p, grad, state, c):
    return p - grad, state


FUNCTIONS = {
    "uses k of the function around it": around(2.0),
    "loops over c": looping,
    "tl.where": branching,
    "has a Try": trying,
    "has a Global": changing,
    "awaits or yields": yielding,
    "awaits or yields ": awaited,
    "must take 4 arguments, not 5": with_default,
    "must take 4 arguments, not 3": with_rest,
    "must return values that it computes": constant,
    "must return values that it computes ": condition,
    "not Callable": Callable(),
    "not method": Callable().update,
    "not partial": functools.partial(constant, 1.0),
    "not builtin_function_or_method": math.sqrt,
    "not int": 3,
    "a decorator has wrapped": wrapper,
    "source of <lambda> cannot be read": lambda p, grad, state, c: (p - c[0] * grad, state),
}


@pytest.mark.parametrize("why", FUNCTIONS)
def test_a_function_that_some_backend_could_not_run_is_one_sentence(why):
    with pytest.raises(ValueError, match=why.strip()):
        optim.from_rule(FUNCTIONS[why], rate, defaults={"lr": 0.1}, name="bad")


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


def test_a_rule_whose_source_cannot_be_read_is_refused_for_triton_could_not_compile_it():
    namespace = {"tl": tl}
    exec("def update(p, grad, state, c): return p - c[0] * grad, state", namespace)
    with pytest.raises(ValueError, match=r"the source of update cannot be read.*in a file or a notebook"):
        optim.from_rule(namespace["update"], rate, defaults={"lr": 0.1})


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


@pytest.mark.parametrize("name", rules.RULES)
def test_our_own_rules_are_elementwise(name):
    elementwise.check(rules.RULES[name])


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
    return lr, x, 1.0 * (a > 0.5)


def allowed_update(p, grad, state, coefficients):
    m, v = state
    lr, x, f = coefficients
    a = tl.abs(grad) + 0.1
    x = x + tl.exp(a) + tl.exp2(a) + tl.log(a) + tl.log2(a) + tl.sqrt(a) + tl.rsqrt(a) + tl.sin(a) + tl.cos(a)
    x = x + tl.floor(a) + tl.ceil(a) + tl.abs(a) + tl.minimum(a, 0.5) + tl.maximum(0.25, m) + tl.where(a > 1, a, 0.5)
    x = x + tl.sqrt_rn(a) + tl.div_rn(1.0, a) + (a > 0.5) * x + (a > 1) * 2
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
    coefficients, update = (type(f)(f.__code__, namespace) for f in (allowed_coefficients, allowed_update))
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


COMPILES = """
import sys
from dataclasses import replace
from kernels import codegen, elementwise, multi_tensor
from kernels.rule import Rule, triton
from tests.test_elementwise import allowed_coefficients, allowed_update, gpu_coefficients, gpu_update
pointers = ("rows_ptr", "hyper_ptr", "coefficients_ptr", "keys_ptr", "grad_scale_ptr", "found_inf_ptr")
kinds = dict(zip(pointers, ("*i64", "*fp64", "*fp32", "*i32", "*fp32", "*fp32")), n_rows="i32", seed="i32")
for coefficients, update in ((allowed_coefficients, allowed_update), (gpu_coefficients, gpu_update)):
    rule = Rule("all", triton.jit(coefficients), triton.jit(update), ("lr", "a"), ("m", "v"))
    elementwise.check(rule)
    vars(rule)["n_coefficients"] = 3
    codegen.compiled(rule, "sm_90", "bfloat16-states")
    constants = {"coefficients": rule.coefficients, "N_COLUMNS": 7, "N_STATES": 2, "N_SCALARS": 0, "N_HYPER": 2}
    constants |= {"N_COEFFICIENTS": 3, "BLOCK_SIZE": 128}
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

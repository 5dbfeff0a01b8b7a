"""What rules may do, and what is refused by name when a class is made: whatever is not elementwise on every backend."""

import functools
import linecache
import math
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401, as the others: rules below use them
import triton
import triton.language as lang  # noqa: F401
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.language import sigmoid  # noqa: F401
from triton.language import sum as total  # noqa: F401

import optim
from kernels import elementwise, rules
from kernels.eager import out_of_place
from kernels.rule import NUMPY, rebind

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


def written(expression: str):
    """A rule whose gradient goes through an expression, with a source that can be read and this module's names."""
    source, name = f"def update(p, grad, state, c):\n    return p - c[0] * ({expression}), state\n", f"<{expression}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = dict(globals())
    exec(compile(source, name, "exec"), namespace)
    return namespace["update"]


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
    "(grad > 0) * 2.0": r"\* with a condition",
    "tl.where(grad > 0, 1, -1)": r"whole numbers \(write 1.0 and -1.0\)",
    "tl.exp(2.0)": "constants alone",
    "tl.exp(grad, p)": "2 arguments instead of 1",
    "[x for x in (grad,)][0]": "ListComp",
    "(lambda x: x)(grad)": "Lambda",
    "grad.__add__(p)": "__add__",
}  # fmt: skip


@pytest.mark.parametrize("expression", REFUSED)
def test_what_is_not_elementwise_is_named(expression):
    with pytest.raises(ValueError, match=REFUSED[expression]) as error:
        optim.from_rule(written(expression), rate, defaults={"lr": 0.1}, name="bad")
    assert str(error.value).startswith("update of bad ")
    assert "tl.where" in str(error.value)


@triton.jit
def moved(x, y):
    x += y
    return x


UNARY = ("-{}", "tl.abs({})", "tl.exp({})", "tl.floor({})", "moved({}, 2)", "(1 - {})")
BINARY = (
    "({} + {})",
    "{} * {}",
    "{} / {}",
    "tl.minimum({}, {})",
    "tl.where({} > {}, grad, 0.5)",
    "tl.where({} <= {}, c[0], 0.25)",
)
EXPRESSIONS = st.recursive(
    st.sampled_from(["grad", "p", "c[0]"]),
    lambda inner: st.one_of(
        st.builds(str.format, st.sampled_from(UNARY), inner),
        st.builds(str.format, st.sampled_from(BINARY), inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(EXPRESSIONS, st.sampled_from(["tl.sum({})", "{}.sum()", "np.sum({})", "{}[0]", "summing_helper({})"]), st.data())
def test_what_is_accepted_is_elementwise_and_one_sum_anywhere_is_found(expression, refused, data):
    optim.from_rule(written(expression), rate, defaults={"lr": 0.1})
    update = rebind(written(expression), NUMPY, out_of_place)
    p, grad, lr = np.linspace(-2, 1, 6), np.array([3.0, -1.0, 0.5, 0.0, -0.0, 2.0]), np.float64(0.5)
    with np.errstate(all="ignore"):
        whole = np.broadcast_to(update(p, grad, (), (lr,))[0], p.shape)
        alone = [update(x, g, (), (lr,))[0] for x, g in zip(p, grad, strict=True)]
    np.testing.assert_array_equal(whole, alone)
    expression += " + grad"
    places = [i for i in range(len(expression)) if expression.startswith("grad", i)]
    at = data.draw(st.sampled_from(places))
    broken = expression[:at] + refused.format("grad") + expression[at + 4 :]
    with pytest.raises(ValueError, match=r"sum|np|\[\.\.\.\]"):
        optim.from_rule(written(broken), rate, defaults={"lr": 0.1})


def around(k):
    def update(p, grad, state, c):
        return p - k * grad, state

    return update


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


def nested(p, grad, state, c):
    (m,), (n,) = (grad,), c
    return p - n * m, state


def chained(p, grad, state, c):
    a = b = c[0]
    return p - a * b * grad, state


FUNCTIONS = {
    r"assigns to more than a name or a tuple of names: \(m,\), \(n,\) =": nested,
    "assigns to more than a name or a tuple of names: a = b": chained,
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


def test_a_rule_whose_source_cannot_be_read_is_refused_for_triton_could_not_compile_it():
    namespace: dict[str, Any] = {"tl": tl}
    exec("def update(p, grad, state, c): return p - c[0] * grad, state", namespace)
    with pytest.raises(ValueError, match=r"the source of update cannot be read.*in a file or a notebook"):
        optim.from_rule(namespace["update"], rate, defaults={"lr": 0.1})


@pytest.mark.parametrize("name", rules.RULES)
def test_our_own_rules_are_elementwise(name):
    elementwise.check(rules.RULES[name])

"""What an update rule is: an optimizer's maths, written once (the family itself is in `rules`).

A rule is two small functions that know nothing of launches, lists or devices:

    coefficients(hyper, step) -> tuple    once per tensor, in float64
    update(p, grad, state, coefficients) -> (p, state)    once per element, in float32

A rule that looks at whole tensors has one or two more, and its update takes what they find:

    sums(p, grad, state, coefficients) -> tuple    once per element, in float32: terms to be added up
    finish(totals, coefficients, scalars) -> (totals, scalars)    once per tensor, in float64; may be left out
    update(p, grad, state, coefficients, totals) -> (p, state)

All are elementwise: arithmetic, comparisons and a few `tl` functions (`elementwise` has the list, and
refuses `tl.sum` and the like), so that one text serves every backend: Triton compiles it for the GPU
(`multi_tensor`, `reductions`), Numba for the CPU (`cpu`), and where Numba is missing torch runs it as it stands
(`eager`). Terms are added in float64 and in an order that depends on nothing but the shapes (`pieces`).

What is subtracted from 1 is formed in `coefficients`: in float32, 1 - beta2 at
beta2 = 0.9999 is already off by 1.7e-4 of itself. Averages forget and then learn,
m - w m + w g with w = 1 - beta: beta and w, both rounded, no longer add up to 1.

The sign of `maximize` and the scale of a GradScaler are in `grad` before a rule sees it.
"""

import dis
from collections.abc import Callable, Sized
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # macOS and Windows: the rules still serve the CPU backends.

    def _jit(function: Callable) -> Callable:
        function.fn = function
        return function

    triton: Any = SimpleNamespace(jit=_jit)
    tl: Any = None


TRIAL = {
    **{"lr": 1.0, "eps": 1e-8, "weight_decay": 0.01, "l2": 0.01, "lr_decay": 0.0, "momentum_decay": 4e-3},
    **{"beta1": 0.9, "beta2": 0.999, "alpha": 0.99, "rho": 0.9, "momentum": 0.9, "dampening": 0.0, "nesterov": 0.0},
    **{"bias_correction": 0.0, "beta3": 0.99, "clip": 1.0, "T_alpha_beta3": 0.0},
    **{"trust_coefficient": 0.1, "d0": 0.1, "d_coef": 1.0, "growth_rate": 10.0},
    **{"use_bias_correction": 0.0, "safeguard_warmup": 0.0},
    **{"warmup_steps": 0.0, "r": 0.0, "weight_lr_power": 2.0, "max_grad_norm": 1.0},
}
"""Values of hyperparameters by name, which make steps so large that float16 and bfloat16 show every one."""
OTHERWISE = 0.5
OVER = ("tensor", "lane")
"""What sums go over: a tensor (with lanes, each lane of it), or all tensors of the optimizer, lane by lane."""


@triton.jit
def squared_gradient(p, grad, state, coefficients):
    return (grad * grad,)


@triton.jit
def clip_factor(total, max_norm):
    """What gradients are multiplied by, as `torch.nn.utils.clip_grad_norm_` has it."""
    factor = max_norm / (tl.sqrt(total) + 1e-6)
    # Not tl.minimum, which drops a NaN.
    return tl.where(factor > 1.0, 1.0, factor)


@dataclass(frozen=True)
class Stage:
    """Sums that a step forms before it updates anything, and what it makes of them.

    Attributes:
        sums: `(p, grad, state, coefficients) -> tuple` of terms.
        over: one of `OVER`.
        finish: `(totals, coefficients, scalars) -> (totals, scalars)`, or None if totals are used as they are.
        n_sums, n_totals: how many terms there are, and how many totals `finish` returns.
        clips: whether it clips gradients by their norm: its only total is then what they are multiplied by.
    """

    sums: Callable
    over: str
    n_sums: int
    n_totals: int
    finish: Callable | None = None
    clips: bool = False


CLIP = Stage(squared_gradient, "lane", 1, 1, clips=True)


@dataclass(frozen=True)
class Rule:
    """An update rule and the names of what it works on.

    Attributes:
        name: what messages and tables call it.
        coefficients: `@triton.jit` function `(hyper, step) -> tuple`; hyper is a tuple of float64
            in the order of `hyper`, step a float64 that counts from 1. With `scalars` it is
            `(hyper, step, scalars) -> (tuple, scalars)`.
        update: `@triton.jit` function `(p, grad, state, coefficients) -> (p, state)`; all float32,
            state a tuple in the order of `states`.
        hyper: names of the hyperparameters.
        states: names of the states that have an element for each of p's.
        scalars: names of the states that a tensor has one of, float32, beside its step.
        sums: `@triton.jit` function `(p, grad, state, coefficients) -> tuple` of float32 terms, which are added up; a
            term may be a number: the total of 1.0 counts elements. update then takes the totals as a fifth argument.
        over: what totals go over, "tensor" or "lane"; see `OVER`.
        finish: `@triton.jit` function `(totals, coefficients, scalars) -> (totals, scalars)`: makes of the totals what
            update takes, and sets scalars for the next step; all float64, coefficients rounded to float32.
        clips: whether gradients are clipped by their norm over all tensors of the optimizer, lane by lane, before
            anything else; the last of hyper is then the largest norm. See `clipping`.
        trial: values of hyper with which the rule is tried out, as when a GPU is tuned; () takes those of `TRIAL`.
            No part of what tells rules apart.
    """

    name: str
    coefficients: Callable
    update: Callable
    hyper: tuple[str, ...]
    states: tuple[str, ...]
    scalars: tuple[str, ...] = ()
    sums: Callable | None = None
    over: str = "tensor"
    finish: Callable | None = None
    clips: bool = False
    trial: tuple[float, ...] = field(default=(), compare=False)

    @property
    def trial_values(self) -> tuple[float, ...]:
        """Values of hyper, in its order, with which the rule is tried out."""
        return self.trial or tuple(TRIAL.get(name, OTHERWISE) for name in self.hyper)

    @cached_property
    def n_coefficients(self) -> int:
        """Length of the tuple of coefficients."""
        coefficients, hyper, scalars = rebind(self.coefficients, Counting()), halves(self.n_hyper), halves(self.scalars)
        with np.errstate(all="ignore"):
            step = np.float64(2)
            return len(coefficients(hyper, step, scalars)[0] if scalars else coefficients(hyper, step))

    @property
    def n_hyper(self) -> int:
        """Number of the hyperparameters that `coefficients` takes."""
        return len(self.hyper) - self.clips

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The sums of a step, in their order."""
        own = ()
        if self.sums:
            coefficients = halves(self.n_coefficients)
            with np.errstate(all="ignore"):
                terms = rebind(self.sums, Counting())(*halves(2), halves(self.states), coefficients)
                totals = halves(terms)
                if self.finish:
                    totals, _ = rebind(self.finish, Counting())(totals, coefficients, halves(self.scalars))
            own = (Stage(self.sums, self.over, len(terms), len(totals), self.finish),)
        return (*([CLIP] if self.clips else []), *own)

    @property
    def n_totals(self) -> int:
        """Number of the totals that `update` takes."""
        return self.stages[-1].n_totals if self.sums else 0

    @property
    def functions(self) -> dict[str, Callable]:
        """Its functions, by their names here."""
        named = {name: getattr(self, name) for name in ("coefficients", "update", "sums", "finish")}
        return {name: function for name, function in named.items() if function}


class Counting:
    """What `tl` is while a function is tried out to learn how many values it returns: all functions return 0.5."""

    static_range = range

    def __getattr__(self, name: str) -> Callable:
        return lambda *_: np.float64(0.5)


def halves(names: Sized | int) -> tuple[np.float64, ...]:
    """Return numbers with which a function is tried out to learn what it returns."""
    return (np.float64(0.5),) * (names if isinstance(names, int) else len(names))


@cache
def clipping(rule: Rule) -> Rule:
    """Return the rule whose gradients are clipped first, to max_grad_norm, the last of its hyperparameters."""
    trial = (*rule.trial, 1.0) if rule.trial else ()
    return replace(rule, hyper=(*rule.hyper, "max_grad_norm"), clips=True, trial=trial)


NUMPY = SimpleNamespace(
    **{name: getattr(np, name) for name in ("exp", "log", "exp2", "log2", "sin", "cos", "floor", "ceil", "abs")},
    **{name: getattr(np, name) for name in ("sqrt", "minimum", "maximum", "where")},
    sqrt_rn=np.sqrt,
    div_rn=np.divide,
    rsqrt=lambda x: 1 / np.sqrt(x),
    static_range=range,
)
"""What `tl` may mean in a rule: every backend has at least these."""


def plain(function: Callable) -> Callable:
    """The Python function inside a `@triton.jit` function, or the function itself."""
    return getattr(function, "fn", function)


def called(function: Callable) -> dict[str, Callable]:
    """The `@triton.jit` functions that it calls, by the names under which it does."""
    names, namespace = function.__code__.co_names, function.__globals__
    return {name: namespace[name] for name in names if hasattr(namespace.get(name), "fn")}


def rebind(function: Callable, language, compile: Callable = lambda function: function) -> Callable:
    """The body of a `@triton.jit` function, and of those that it calls, in which `tl` means `language`."""
    body = plain(function)
    helpers = {name: rebind(helper, language, compile) for name, helper in called(body).items()}
    namespace = {**body.__globals__, "tl": language, **helpers}
    return compile(FunctionType(body.__code__, namespace, body.__name__, body.__defaults__, body.__closure__))


def missing(function: Callable) -> set[str]:
    """The functions of `tl` that it calls, or that those which it calls call, and that only Triton has."""
    body = plain(function)
    found = set().union(*(missing(helper) for helper in called(body).values()))
    if "tl" in body.__code__.co_names:
        attributes = {i.argval for i in dis.get_instructions(body) if i.opname in ("LOAD_ATTR", "LOAD_METHOD")}
        found |= {name for name in attributes if hasattr(tl, name) and not hasattr(NUMPY, name)}
    return found


def check_portable(rule: Rule) -> None:
    """Raises: NotImplementedError, by name, if the rule calls functions of `tl` that only Triton has."""
    if names := set().union(*map(missing, rule.functions.values())):
        lacks, has = ", ".join(f"tl.{name}" for name in sorted(names)), ", ".join(sorted(vars(NUMPY)))
        raise NotImplementedError(f"Rule {rule.name!r} calls {lacks}, which the CPU backends lack; they have {has}")

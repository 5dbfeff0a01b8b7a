"""Optimizer classes made from the user's own update rules."""

import inspect
import keyword
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from kernels import elementwise
from kernels.rule import OVER, TRIAL, Rule, missing, triton
from optim.arguments import Value, check, check_betas
from optim.base import RuleOptimizer

TAKEN = (
    *("self", "params", "param_names", "maximize", "fused", "foreach", "capturable", "differentiable"),
    *("backend", "state_dtype", "rounding", "seed", "max_grad_norm"),
    *("initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"),
)
"""Names that groups and constructors already use, including those of torch's schedulers."""


def from_rule(
    update: Callable,
    coefficients: Callable,
    *,
    sums: Callable | None = None,
    over: str = "tensor",
    finish: Callable | None = None,
    states: Iterable[str] | Mapping[str, Value] = (),
    scalars: Iterable[str] | Mapping[str, Value] = (),
    defaults: Mapping[str, Any],
    name: str | None = None,
) -> "type[CustomOptimizer]":
    """Return an optimizer class that applies your rule: CPU and GPU, lanes, groups, `state_dict`, dtypes, sweeps.

    Args:
        update: `(p, grad, state, coefficients) -> (p, state)`, for one element; state is a tuple in the order of
            `states`, coefficients is what `coefficients` returned, all float32 (float64 for float64 parameters).
            Made by def, of the operations in `kernels.elementwise`. With `sums` it takes their totals, a tuple, as a
            fifth argument.
        coefficients: `(hyper, step) -> tuple`, in float64, once per tensor and step; hyper is a tuple of the defaults
            in their order, betas one after the other, and step counts from 1. With `scalars` it is
            `(hyper, step, scalars) -> (tuple, scalars)`.
        sums: `(p, grad, state, coefficients) -> tuple` of terms, for one element, which are added up before any
            element is updated. A term may be a number: the total of 1.0 is the number of elements.
        over: what terms are added up over: "tensor", each parameter (with lanes, each lane of it), or "lane", all
            parameters (with lanes, those of one lane).
        finish: `(totals, coefficients, scalars) -> (totals, scalars)`, in float64, once per tensor: makes of the totals
            what update takes, and sets scalars for the next step.
        states: names of the states, zeros at first, or a mapping of names to initial values.
        scalars: names, or initial values too, of float32 states of which each parameter (each lane of it) has one.
        defaults: names and default values of the hyperparameters, the arguments of the class; lr is one of them.
            Numbers or tuples of numbers; all have to be 0 or more, betas less than 1.
        name: name of the class; by default update's name.
    The class also takes `maximize` and the options of `RuleOptimizer`.
    Raises: ValueError if the functions do or return what they may not, or if names or values are not possible for
        states and hyperparameters.
    """
    name = name or str(getattr(update, "__name__", "the rule"))
    initial, of_scalars, defaults = initial_values(name, states), initial_values(name, scalars), dict(defaults)
    if both := initial.keys() & of_scalars.keys():
        raise ValueError(f"{name} has a state and a scalar of one name: {', '.join(both)}")
    check_sums(name, sums, over, finish)
    hyper = hyper_names(name, defaults)
    # A step with the default lr may be too small to change 16-bit parameters.
    trial = tuple(TRIAL["lr"] if key == "lr" else v for key, v in zip(hyper, flat(defaults.values()), strict=True))
    of_sums = {"sums": sums, "over": over, "finish": finish}
    rule = Rule(name, coefficients, update, hyper, tuple(initial), tuple(of_scalars), **of_sums, trial=trial)
    elementwise.check(rule)
    for what, function in rule.functions.items():
        if what in ("coefficients", "finish") and (names := missing(function)):
            raise ValueError(f"{what} of {name} may not call tl.{', tl.'.join(sorted(names))}")
    own = replace(rule, **{what: jit(function) for what, function in rule.functions.items()})

    class Custom(CustomOptimizer):
        state_names, own_rule, own_defaults = own.states + own.scalars, own, defaults
        own_initial = initial | of_scalars
        __module__, __doc__ = update.__module__, update.__doc__

        def __init__(self, params, *args, maximize: bool = False, **options):
            super().__init__(params, *args, maximize=maximize, **options)

    Custom.__init__.__signature__ = signature(defaults)
    Custom.__name__ = Custom.__qualname__ = name
    return Custom


class CustomOptimizer(RuleOptimizer):
    """Base of the classes that `from_rule` returns, with the rule, the defaults in the order of the constructor's
    arguments, and the states' initial values.
    """

    own_rule: Rule
    own_defaults: Mapping[str, Any]
    own_initial: Mapping[str, Value]

    def __init__(self, params, *args, maximize: bool = False, **options):
        defaults, chosen = self.own_defaults, dict(zip(self.own_defaults, args, strict=False))
        if len(args) > len(defaults) or set(chosen) & set(options):
            raise TypeError(f"{self.own_rule.name} takes {', '.join(defaults)} (in this order, or by name), each once")
        chosen |= {key: options.pop(key) for key in list(options) if key in defaults}
        super().__init__(params, {**defaults, **chosen, "maximize": maximize}, **options)

    def rule(self, group: dict) -> Rule:
        return self.own_rule

    def hyper(self, group: dict) -> tuple:
        return flat(group[key] for key in self.own_defaults)

    def initial(self, group: dict) -> Mapping[str, Value]:
        return self.own_initial

    def check_group(self, group: dict) -> None:
        super().check_group(group)
        check_values(group, self.own_defaults)


def signature(defaults: Mapping[str, Any]) -> inspect.Signature:
    """Return the constructor's signature, which `help` shows and from which sweeps take the hyperparameters."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, named) for name in ("self", "params")]
    parameters += [inspect.Parameter(key, named, default=value) for key, value in defaults.items()]
    parameters.append(inspect.Parameter("maximize", inspect.Parameter.KEYWORD_ONLY, default=False))
    return inspect.Signature([*parameters, inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])


def flat(values: Iterable) -> tuple:
    """Return the values, with those of a tuple one after the other."""
    return tuple(v for value in values for v in (value if isinstance(value, (tuple, list)) else (value,)))


def width(value) -> int:
    return len(value) if isinstance(value, (tuple, list)) else 1


def check_values(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError unless a group's hyperparameters are numbers or tuples like the defaults, and in range."""
    for key, default in defaults.items():
        value = group[key]
        if width(value) != width(default) or isinstance(value, (tuple, list)) != isinstance(default, (tuple, list)):
            raise ValueError(f"Invalid {key} value: {value} (like {default})")
        if key == "betas":
            check_betas(value)
        else:
            for one in value if isinstance(value, (tuple, list)) else (value,):
                check("learning rate" if key == "lr" else f"{key} value", one, lambda v: v >= 0)


def check_sums(name: str, sums, over, finish) -> None:
    """Raise ValueError unless the arguments that concern sums fit together."""
    if over not in OVER:
        raise ValueError(f"over of {name} must be one of {', '.join(map(repr, OVER))}, not {over!r}")
    if sums is None and (finish is not None or over != OVER[0]):
        raise ValueError(f"{name} has {'finish' if finish is not None else 'over'}, which is for rules that have sums")


def check_name(what: str, name, taken: Iterable[str]) -> None:
    """Raise ValueError unless a state or a hyperparameter can have this name."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in taken:
        raise ValueError(
            f"{what} may not be called {name!r}: it takes names as of variables, except {', '.join(taken)}"
        )


def initial_values(name: str, states: Iterable[str] | Mapping[str, Value]) -> dict[str, Value]:
    """Return the states' names and initial values. Raises: ValueError."""
    names = [states] if isinstance(states, str) else [*states]
    for state in names:
        check_name(f"A state of {name}", state, ("step",))
    if isinstance(states, str) or len(set(names)) < len(names):
        raise ValueError(f"states of {name} must be a tuple of different names, or a mapping, not {states!r}")
    initial: dict[str, Value] = dict(states) if isinstance(states, Mapping) else dict.fromkeys(names, 0.0)
    for state, value in initial.items():
        if not isinstance(value, torch.Tensor) and (not is_number(value) or math.isnan(value)):
            raise ValueError(f"The state {state} of {name} must start from a number or a tensor, not {value!r}")
    return initial


def hyper_names(name: str, defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a name for each number of the defaults: beta1 and beta2 for betas. Raises: ValueError."""
    hyper = []
    for key, value in defaults.items():
        check_name(f"A hyperparameter of {name}", key, TAKEN)
        is_tuple = isinstance(value, (tuple, list))
        values = value if is_tuple else [value]
        if (
            not values
            or not all(is_number(v) and math.isfinite(v) for v in values)
            or (key == "betas" and not is_tuple)
        ):
            raise ValueError(f"The default {key} of {name} must be a number or a tuple of numbers, not {value!r}")
        hyper += [f"{key.removesuffix('s')}{i + 1}" for i in range(len(values))] if is_tuple else [key]
    if "lr" not in hyper:
        raise ValueError(f"defaults of {name} must have lr, a number; they have {', '.join(defaults) or 'nothing'}")
    if len(set(hyper)) < len(hyper):
        raise ValueError(f"defaults of {name} have two hyperparameters of one name: {', '.join(hyper)}")
    check_values(defaults, defaults)
    return tuple(hyper)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def jit(function: Callable) -> Callable:
    """Return the function decorated with `@triton.jit`."""
    return function if hasattr(function, "fn") else triton.jit(function)

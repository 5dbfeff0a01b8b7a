"""An optimizer class from an update rule of your own."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from kernels.rule import NUMPY, Rule, missing, rebind, triton
from optim.arguments import Value, check, check_betas
from optim.base import RuleOptimizer


def from_rule(
    update: Callable,
    coefficients: Callable,
    *,
    states: Iterable[str] | Mapping[str, Value] = (),
    defaults: Mapping[str, Any],
    name: str | None = None,
) -> type[RuleOptimizer]:
    """An optimizer class that applies your rule: CPU and GPU, lanes, groups, `state_dict`, dtypes, sweeps.

    Args:
        update: `(p, grad, state, coefficients) -> (p, state)`, for one element; state is a tuple in the order of
            `states`, coefficients what `coefficients` returned, all float32 (float64 for float64 parameters).
            Arithmetic, comparisons and functions of `triton.language` under the name `tl`.
        coefficients: `(hyper, step) -> tuple`, in float64, once per tensor and step; hyper is a tuple of the defaults
            in their order, betas one after the other, and step counts from 1.
        states: names of the states, zeros at first, or a mapping of names to initial values.
        defaults: names and default values of the hyperparameters, the arguments of the class; lr is one of them.
            All have to be 0 or more, betas less than 1.
        name: of the class; by default update's name.
    `maximize` and the options of `RuleOptimizer` come of themselves.
    Raises: ValueError if the functions do not return what they should.
    """
    name = name or update.__name__
    initial = dict(states) if isinstance(states, Mapping) else dict.fromkeys(states, 0.0)
    hyper = [f"beta{i + 1}" if key == "betas" else key for key, v in defaults.items() for i in range(width(v))]
    own = Rule(name, jit(coefficients), jit(update), tuple(hyper), tuple(initial))
    check_rule(own)

    class Custom(RuleOptimizer):
        state_names = own.states

        def __init__(self, params, *args, maximize: bool = False, **options):
            chosen = dict(zip(defaults, args, strict=False))
            if len(args) > len(defaults) or set(chosen) & set(options):
                raise TypeError(f"{name} takes {', '.join(defaults)} (in this order, or by name), each once")
            chosen |= {key: options.pop(key) for key in list(options) if key in defaults}
            super().__init__(params, {**defaults, **chosen, "maximize": maximize}, **options)

        def rule(self, group: dict) -> Rule:
            return own

        def hyper(self, group: dict) -> tuple:
            values = (group[key] for key in defaults)
            return tuple(v for value in values for v in (value if isinstance(value, (tuple, list)) else (value,)))

        def initial(self, group: dict) -> Mapping[str, Value]:
            return initial

        def check_group(self, group: dict) -> None:
            super().check_group(group)
            for key in defaults:
                if key == "betas":
                    check_betas(group[key])
                elif width(group[key]) != width(defaults[key]):
                    raise ValueError(f"Invalid {key} value: {group[key]} (like {defaults[key]})")
                else:
                    for value in group[key] if isinstance(group[key], (tuple, list)) else (group[key],):
                        check("learning rate" if key == "lr" else f"{key} value", value, lambda v: v >= 0)

    Custom.__init__.__signature__ = signature(defaults)
    Custom.__name__ = Custom.__qualname__ = name
    Custom.__module__ = update.__module__
    Custom.__doc__ = update.__doc__
    return Custom


def signature(defaults: Mapping[str, Any]) -> inspect.Signature:
    """What `help` shows of the class, and where sweeps look for the hyperparameters that it has."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, named) for name in ("self", "params")]
    parameters += [inspect.Parameter(key, named, default=value) for key, value in defaults.items()]
    parameters.append(inspect.Parameter("maximize", inspect.Parameter.KEYWORD_ONLY, default=False))
    return inspect.Signature([*parameters, inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])


def width(value) -> int:
    return len(value) if isinstance(value, (tuple, list)) else 1


def jit(function: Callable) -> Callable:
    """The function as Triton compiles it, or as it is where its source is nowhere to be read."""
    if hasattr(function, "fn"):
        return function
    try:
        return triton.jit(function)
    except (OSError, ValueError):
        return function


def check_rule(rule: Rule) -> None:
    """Raise ValueError unless the rule's functions fit its states, by trying them on numbers."""
    half = np.float64(0.5)
    if names := missing(rule.coefficients):
        raise ValueError(f"coefficients of {rule.name} may not call tl.{', tl.'.join(sorted(names))}")
    with np.errstate(all="ignore"):
        values = rebind(rule.coefficients, NUMPY)((half,) * len(rule.hyper), np.float64(2))
        if not isinstance(values, tuple):
            raise ValueError(f"coefficients of {rule.name} must return a tuple, not {type(values).__name__}")
        if missing(rule.update):  # A rule for the GPU alone, which is told so where it meets another device.
            return
        result = rebind(rule.update, NUMPY)(half, half, (half,) * len(rule.states), values)
    fits = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], tuple)
    if not fits or len(result[1]) != len(rule.states):
        expected = ", ".join(rule.states) or "nothing"
        raise ValueError(f"update of {rule.name} must return (p, state), state being a tuple of {expected}")

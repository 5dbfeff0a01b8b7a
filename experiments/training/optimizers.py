"""Which optimizers a sweep can train, which axes each of them has, and with which default values."""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch

import optim
from experiments.common.errors import OptionError
from experiments.common.values import Kind, several, shown, taken
from experiments.training.axes import AXES


class Choice(NamedTuple):
    """What a name stands for.

    Attributes:
        lanes: class that takes `[K]` tensors, for populations.
        alone: torch's own class, for ordinary runs; None if torch has none.
        fixed: arguments of the constructor that are no axes here.
        defaults: values of axes that take the place of the constructor's.
    """

    lanes: type[torch.optim.Optimizer]
    alone: type[torch.optim.Optimizer] | None = None
    fixed: Mapping[str, Any] = {}
    defaults: Mapping[str, float] = {}


OPTIMIZERS = {
    "adam": Choice(optim.Adam, torch.optim.Adam),
    "adamw": Choice(optim.AdamW, torch.optim.AdamW),
    "amsgrad": Choice(optim.Adam, torch.optim.Adam, {"amsgrad": True}),
    "nadam": Choice(optim.NAdam, torch.optim.NAdam),
    "radam": Choice(optim.RAdam, torch.optim.RAdam),
    "sgd": Choice(optim.SGD, torch.optim.SGD, {"momentum": 0.0}),
    "momentum": Choice(optim.SGD, torch.optim.SGD, defaults={"momentum": 0.9}),
    "nesterov": Choice(optim.SGD, torch.optim.SGD, {"nesterov": True}, {"momentum": 0.9}),
    "adagrad": Choice(optim.Adagrad, torch.optim.Adagrad),
    # A momentum of zero, given as a tensor over lanes, would take a state of its own.
    "rmsprop": Choice(optim.RMSprop, torch.optim.RMSprop, {"momentum": 0.0}),
    "adadelta": Choice(optim.Adadelta, torch.optim.Adadelta),
    "lion": Choice(optim.Lion),
}
GIVEN: dict[str, type[torch.optim.Optimizer]] = {}
"""Classes that were given as such, as from a notebook, by the names under which results know them."""
ACCEPTED = f"{', '.join(OPTIMIZERS)} or MODULE:CLASS"


def names_or_classes(given: Any) -> list[str | type]:
    """One or several as a list. Raises: TypeError if one is neither a name nor a class."""
    found = several(given)
    if not all(isinstance(one, str | type) for one in found):
        raise TypeError
    return found


ONE_OR_SEVERAL = Kind(f"one or several of {ACCEPTED}", names_or_classes)


def names_of(chosen: str | type | Iterable[str | type]) -> list[str]:
    """The names of one or several optimizers, given by name or as classes."""
    names = []
    for one in taken("--optimizer", chosen, ONE_OR_SEVERAL):
        # A notebook's __main__ is main: legends leave out what begins with an underscore.
        name = one if isinstance(one, str) else f"{one.__module__.strip('_')}:{one.__qualname__}"
        if not isinstance(one, str):
            GIVEN[name] = one
        names.append(name)
    return names


def resolve(name: str) -> Choice:
    """What a name, or the `module:Class` of an optimizer that takes `[K]` tensors, stands for. Raises: OptionError."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise OptionError(f"--optimizer accepts {ACCEPTED}, not {shown(name)}")
    try:
        found = GIVEN.get(name) or getattr(importlib.import_module(module_name), class_name, None)
    # Whatever the code of a user's module raises, which may end the process.
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(
            f"--optimizer accepts a MODULE:CLASS that can be imported, and {module_name} cannot be "
            f"({type(error).__name__}: {reason})"
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise OptionError(f"--optimizer accepts the MODULE:CLASS of a torch.optim.Optimizer, and {name} is none")
    choice = Choice(found)
    if "lr" not in axes(choice):
        raise OptionError(f"--optimizer accepts a MODULE:CLASS whose constructor names lr, and {name}'s does not")
    return choice


def axes(choice: Choice) -> dict[str, float]:
    """The axes that the constructor has, in the order of `AXES`, with their default values."""
    values = {name: parameter.default for name, parameter in inspect.signature(choice.lanes).parameters.items()}
    if isinstance(values.get("betas"), tuple) and len(values["betas"]) == 2:
        values["beta1"], values["beta2"] = values["betas"]
    values |= choice.defaults
    known = {axis: values[axis] for axis in AXES if axis in values and axis not in choice.fixed}
    return {axis: float(v) if isinstance(v, int | float) else AXES[axis] for axis, v in known.items()}


def arguments(choice: Choice, values: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments from a value (or a tensor over lanes) for each axis; what it lacks is left out."""
    chosen = {axis: values[axis] for axis in axes(choice)}
    if "betas" in inspect.signature(choice.lanes).parameters and "beta1" in chosen:
        chosen["betas"] = (chosen.pop("beta1"), chosen.pop("beta2"))
    return {**chosen, **choice.fixed}


def make(name: str, params: list[torch.Tensor], configs: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a population. configs: a tensor over lanes for each axis."""
    choice = resolve(name)
    return choice.lanes(params, **arguments(choice, configs))


def check(name: str, configs: pd.DataFrame) -> None:
    """Raise OptionError if the optimizer refuses the configurations, as torch's Nesterov does a momentum of zero."""
    # Twice, for there to be lanes: a class without them takes tensors of one element.
    values = {axis: torch.tensor(configs[axis].to_numpy()).repeat(2) for axis in configs}
    try:
        make(name, [torch.zeros(2 * len(configs), 1, requires_grad=True)], values)
    # A user's class may raise anything.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--optimizer {name} does not accept these values over lanes ({reason})") from error

"""The optimizers that a sweep can train, with the axes of each and their default values."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from experiments.common.errors import OptionError
from experiments.common.values import Kind, imported, reference_to, several, shown, taken
from experiments.training.axes import AXES

if TYPE_CHECKING:
    import pandas as pd


class Entry(NamedTuple):
    """An optimizer that a sweep can train.

    Attributes:
        of: name of its class in `optim` and, if torch has one, in `torch.optim`; or a user's class.
        fixed: arguments of the constructor that are not axes.
        defaults: default values of axes that replace the constructor's.
    """

    of: str | type[torch.optim.Optimizer]
    fixed: Mapping[str, Any] = {}
    defaults: Mapping[str, float] = {}

    @property
    def lanes(self) -> type[torch.optim.Optimizer]:
        """The class for populations, which takes `[K]` tensors as hyperparameters."""
        import optim  # and Triton with it, which the names of optimizers do without

        return getattr(optim, self.of) if isinstance(self.of, str) else self.of

    @property
    def alone(self) -> type[torch.optim.Optimizer] | None:
        """torch's own class, for ordinary runs; None if torch has none."""
        return getattr(torch.optim, self.of, None) if isinstance(self.of, str) else None


OPTIMIZERS = {
    "adam": Entry("Adam"),
    "adamw": Entry("AdamW"),
    "amsgrad": Entry("Adam", {"amsgrad": True}),
    "nadam": Entry("NAdam"),
    "radam": Entry("RAdam"),
    "sgd": Entry("SGD", {"momentum": 0.0}),
    "momentum": Entry("SGD", defaults={"momentum": 0.9}),
    "nesterov": Entry("SGD", {"nesterov": True}, {"momentum": 0.9}),
    "adagrad": Entry("Adagrad"),
    # A momentum of zero, given as a tensor over lanes, would need a state.
    "rmsprop": Entry("RMSprop", {"momentum": 0.0}),
    "adadelta": Entry("Adadelta"),
    "lion": Entry("Lion"),
}
GIVEN: dict[str, type[torch.optim.Optimizer]] = {}
"""Optimizers that were given as classes, for example in a notebook, by their names in results."""
ACCEPTED = f"{', '.join(OPTIMIZERS)} or MODULE:CLASS"


def names_or_classes(given: Any) -> list[str | type]:
    """Return one or several optimizers as a list. Raises: TypeError if one is neither a name nor a class."""
    found = several(given)
    if not all(isinstance(one, str | type) for one in found):
        raise TypeError
    return found


ONE_OR_SEVERAL = Kind(f"one or several of {ACCEPTED}", names_or_classes)


def names_of(chosen: str | type | Iterable[str | type]) -> list[str]:
    """Return the names of one or several optimizers, given by name or as classes; classes are added to `GIVEN`."""
    names = []
    for one in taken("--optimizer", chosen, ONE_OR_SEVERAL):
        name = one if isinstance(one, str) else reference_to(one)
        if not isinstance(one, str):
            GIVEN[name] = one
        names.append(name)
    return names


def resolve(name: str) -> Entry:
    """Return the optimizer of a name, or of the `module:Class` of one that takes `[K]` tensors. Raises: OptionError."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name):
        raise OptionError(f"--optimizer accepts {ACCEPTED}, not {shown(name)}")
    found = GIVEN.get(name) or imported(name, "--optimizer accepts a MODULE:CLASS")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise OptionError(f"--optimizer accepts the MODULE:CLASS of a torch.optim.Optimizer, and {name} is none")
    entry = Entry(found)
    if "lr" not in axes(entry):
        raise OptionError(f"--optimizer accepts a MODULE:CLASS whose constructor names lr, and {name}'s does not")
    return entry


def axes(entry: Entry) -> dict[str, float]:
    """Return the axes that the constructor has, in the order of `AXES`, with their default values."""
    values = {name: parameter.default for name, parameter in inspect.signature(entry.lanes).parameters.items()}
    if isinstance(values.get("betas"), tuple) and len(values["betas"]) == 2:
        values["beta1"], values["beta2"] = values["betas"]
    values |= entry.defaults
    known = {axis: values[axis] for axis in AXES if axis in values and axis not in entry.fixed}
    return {axis: float(v) if isinstance(v, int | float) else AXES[axis] for axis, v in known.items()}


def arguments(entry: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments from a value, or a tensor over lanes, for each axis; ignore axes it lacks."""
    chosen = {axis: values[axis] for axis in axes(entry)}
    if "betas" in inspect.signature(entry.lanes).parameters and "beta1" in chosen:
        chosen["betas"] = (chosen.pop("beta1"), chosen.pop("beta2"))
    return {**chosen, **entry.fixed}


def make(name: str, params: list[torch.Tensor], configs: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer of a population. configs: a tensor over lanes for each axis."""
    entry = resolve(name)
    return entry.lanes(params, **arguments(entry, configs))


def check_values(name: str, configs: pd.DataFrame) -> None:
    """Raise OptionError if the optimizer refuses the configurations, as torch's Nesterov does a momentum of zero."""
    # Each value twice, because a class without lanes would accept a tensor of one element.
    values = {axis: torch.tensor(configs[axis].to_numpy()).repeat(2) for axis in configs}
    try:
        make(name, [torch.zeros(2 * len(configs), 1, requires_grad=True)], values)
    # A user's class may raise anything.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--optimizer {name} does not accept these values over lanes ({reason})") from error

"""The optimizers that a sweep can train, with the axes of each and their default values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from experiments.common.errors import OptionError, first_line
from experiments.common.values import Kind, imported, reference_to, several, shown, taken
from experiments.training.axes import COLUMNS, FLAG, NAMED, NUMBER, OURS, RUN, Axis, of_argument

if TYPE_CHECKING:
    import pandas as pd


class Entry(NamedTuple):
    """An optimizer that a sweep can train.

    Attributes:
        of: name of its class in `optim` and, if torch has one, in `torch.optim`; or a user's class.
        fixed: arguments of the constructor that are not axes.
        defaults: default values of axes that replace the constructor's.
        groups: makes groups of a population's parameters, `[K, ...]`, for a class that does not take them all alike.
    """

    of: str | type[torch.optim.Optimizer]
    fixed: Mapping[str, Any] = {}
    defaults: Mapping[str, float | str] = {}
    groups: Callable[[list[torch.Tensor]], list[dict]] | None = None

    @property
    def lanes(self) -> type[torch.optim.Optimizer]:
        """The class for populations, which takes `[K]` tensors as hyperparameters."""
        import optim  # and Triton with it, which the names of optimizers do without

        return getattr(optim, self.of) if isinstance(self.of, str) else self.of

    @property
    def alone(self) -> type[torch.optim.Optimizer] | None:
        """torch's own class, for ordinary runs; None if torch has none that takes all parameters."""
        if self.groups:
            return None
        return getattr(torch.optim, self.of, None) if isinstance(self.of, str) else None


def matrices_apart(params: list[torch.Tensor]) -> list[dict]:
    """Return two groups for Muon: matrices `[K, out, in]`, and all others, which AdamW trains with the same lr."""
    matrices, others = ([p for p in params if (p.ndim == 3) is wanted] for wanted in (True, False))
    return [{"params": matrices}, {"params": others, "use_muon": False}]


OPTIMIZERS = {
    "adam": Entry("Adam"),
    "adamw": Entry("AdamW"),
    "amsgrad": Entry("Adam", {"amsgrad": True}),
    "nadam": Entry("NAdam"),
    "radam": Entry("RAdam"),
    # What needs a momentum, or none, is no axis of those that have none, or one.
    "sgd": Entry("SGD", {"momentum": 0.0, "dampening": 0.0, "nesterov": False}),
    "momentum": Entry("SGD", defaults={"momentum": 0.9}),
    "nesterov": Entry("SGD", {"dampening": 0.0, "nesterov": True}, {"momentum": 0.9}),
    "adagrad": Entry("Adagrad"),
    "rmsprop": Entry("RMSprop"),
    "adadelta": Entry("Adadelta"),
    "lion": Entry("Lion"),
    "signum": Entry("Signum"),
    "laprop": Entry("LaProp"),
    "adopt": Entry("ADOPT"),
    "adan": Entry("Adan"),
    "ademamix": Entry("AdEMAMix"),
    "schedule-free": Entry("AdamWScheduleFree"),
    # What lanes cannot differ in is no axis, unless it is a word.
    "muon": Entry("Muon", {"eps": 1e-7, "ns_steps": 5}, {"adjust_lr_fn": "original"}, matrices_apart),
    "lamb": Entry("LAMB"),
    "lars": Entry("LARS"),
    "stable-adamw": Entry("StableAdamW"),
    "adam-mini": Entry("AdamMini"),
    "cautious-adamw": Entry("CautiousAdamW"),
    "cautious-lion": Entry("CautiousLion"),
    "prodigy": Entry("Prodigy"),
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


HOW = ("foreach", "fused", "capturable", "differentiable")
"""Arguments that say how an update is computed, and not which: they are no axes."""


def constructor(entry: Entry) -> dict[str, Any]:
    """Return the arguments of the constructor after the parameters, betas one by one, and their defaults, by name."""
    from optim.base import RuleOptimizer  # see `Entry.lanes`

    _, *parameters = inspect.signature(entry.lanes).parameters.items()
    found = {
        name: parameter.default
        for name, parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    betas = found.pop("betas", None)
    if isinstance(betas, tuple):
        found |= {f"beta{i}": beta for i, beta in enumerate(betas, 1)}
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for _, parameter in parameters)
    if passes_on and issubclass(entry.lanes, RuleOptimizer):
        found |= {name: axis.default for name, axis in OURS.items()}
    return found


def axes(entry: Entry) -> dict[str, Axis]:
    """Return the axes that the constructor has, with their default values: first those of `NAMED`, in their order.

    An argument without default has the default None, unless it is in `NAMED`. Arguments that are called as an option of
    a run, or as another column of the tables, are no axes, nor are tuples other than betas.
    """
    given = constructor(entry) | dict(entry.defaults)
    taken_ = {*entry.fixed, *RUN, *HOW, *COLUMNS}
    free = {name: of for name, of in given.items() if name not in taken_ and not isinstance(of, tuple | list)}
    found = {}
    for name in [*(name for name in NAMED if name in free), *(name for name in free if name not in NAMED)]:
        default = free[name]
        if name in OURS and default == OURS[name].default:
            found[name] = OURS[name]
        elif axis := NAMED.get(name):
            found[name] = axis._replace(default=float(default) if is_number(default) else axis.default)
        elif default is inspect.Parameter.empty:
            found[name] = Axis(name, NUMBER)
        elif axis := of_argument(name, default):
            found[name] = axis
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def arguments(entry: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments from a value, or a tensor over lanes, for each axis; ignore axes it lacks.

    An argument that is the constructor's own default in all lanes is left out, except lr, which a schedule changes: a
    momentum of zero, as a tensor over lanes, would need a state.
    """
    own, defaults, chosen = axes(entry), constructor(entry), {}
    for name in own:
        value = values.get(name, own[name].default)
        if own[name].kind is FLAG:
            value = value == "true"
        default = defaults.get(name)
        # A tensor is compared element by element, but only with a number.
        same = value == default
        is_default = bool(same.all()) if isinstance(same, torch.Tensor) else same
        if name == "lr" or not is_default:
            chosen[name] = value
    betas = [name for name in own if name not in inspect.signature(entry.lanes).parameters and name not in OURS]
    if any(name in chosen for name in betas):
        # All are tensors, or none.
        chosen["betas"] = tuple(values.get(name, own[name].default) for name in betas)
        chosen = {name: value for name, value in chosen.items() if name not in betas}
    return {**chosen, **entry.fixed}


def over_lanes(configs: pd.DataFrame, times: int, device: str = "cpu") -> dict[str, Any]:
    """Return the columns of a table of configurations as tensors, `times` one after the other; of words, the first."""
    return {
        str(axis): torch.tensor(column.to_numpy(float), device=device).repeat(times)
        if column.dtype.kind != "O"
        else column.iloc[0]
        for axis, column in configs.items()
    }


def make(name: str, params: list[torch.Tensor], configs: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer of a population. configs: a tensor over lanes, or a word, for each axis."""
    entry = resolve(name)
    return entry.lanes(entry.groups(params) if entry.groups else params, **arguments(entry, configs))


def words_of(configs: pd.DataFrame) -> list[str]:
    """Return the columns that hold words: they cannot differ between lanes that are trained together."""
    return [axis for axis in configs if configs[axis].dtype.kind == "O"]


def alike(configs: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of a table of configurations in groups, each with the same words."""
    words = words_of(configs)
    return [group for _, group in configs.groupby(words, dropna=False)] if words else [configs]


def check_values(name: str, configs: pd.DataFrame) -> None:
    """Raise OptionError if the optimizer refuses the configurations, as torch's Nesterov does a momentum of zero."""
    try:
        for group in alike(configs):
            # Each value twice, because a class without lanes would accept a tensor of one element.
            make(name, [torch.zeros(2 * len(group), 1, requires_grad=True)], over_lanes(group, 2))
    # A user's class may raise anything.
    except Exception as error:
        reason = first_line(error)
        raise OptionError(f"--optimizer {name} does not accept these values over lanes ({reason})") from error

"""Problems of a user's own: an nn.Module, arrays and a loss, by a function that returns a `Problem`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.common.errors import OptionError, first_line
from experiments.common.values import imported, reference_to, shown
from experiments.tasks.any_module import AnyModule, Loss
from experiments.tasks.data import Dataset
from experiments.tasks.trial import tried

ACCEPTED = "MODULE:FUNCTION of your own"
GIVEN: dict[str, Callable[[], Any]] = {}
"""Functions that were given as objects, for example in a notebook, by their names in results."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a sweep trains, other than the built-in tasks.

    A sweep calls `model` for each seed, after `torch.manual_seed(seed)`, and trains all configurations together as
    lanes, by `torch.vmap`. Dropout draws the same for all configurations of a seed; BatchNorm's statistics are each
    lane's own. A module that vmap cannot take is trained one lane after the other, and a sentence says so.

    Attributes:
        name: as shown in tables and figures.
        model: returns the nn.Module, with fresh weights of torch's global generator. It takes any number of
            examples. Its Python code must not depend on the step: on a GPU it runs only once.
        train, evaluate: inputs and targets, tensors or numpy arrays whose first dimension is the example.
            Floating-point ones become float32, whole numbers int64.
        loss: `loss(output, target)` returns the mean loss of a batch of one run, a tensor without dimensions, above 0
            at the start.
        metrics: further such functions, by name, for evaluations: each the mean over a batch. One that is called
            "accuracy" is drawn beside the loss, and a sweep's target may be one.
        batch_size: examples of a batch, unless a sweep asks for others.
        steps: length of a run, unless a sweep asks for another; None is one epoch.
    Raises: OptionError, a sentence, if one of these is something else.
    """

    name: str
    model: Callable[[], nn.Module]
    train: tuple[Any, Any]
    evaluate: tuple[Any, Any]
    loss: Loss
    metrics: Mapping[str, Loss] = field(default_factory=dict)
    batch_size: int = 128
    steps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise OptionError(f"the name of a Problem must be a word, not {shown(self.name)}")
        for what in ("model", "loss"):
            if not callable(getattr(self, what)):
                raise OptionError(f"the {what} of {self.name} must be a function, not {shown(getattr(self, what))}")
        is_mapping = isinstance(self.metrics, Mapping)
        if not is_mapping or not all(isinstance(name, str) and callable(one) for name, one in self.metrics.items()):
            raise OptionError(f"the metrics of {self.name} must be functions by their names, not {shown(self.metrics)}")
        if "loss" in self.metrics:
            raise OptionError(f"the metrics of {self.name} must have names other than loss")
        for what, value in (("batch_size", self.batch_size), ("steps", self.steps)):
            if not (what == "steps" and value is None) and (type(value) is not int or value < 1):
                raise OptionError(f"the {what} of {self.name} must be a whole number from 1, not {shown(value)}")
        for what in ("train", "evaluate"):
            object.__setattr__(self, what, pair(f"{what} of {self.name}", getattr(self, what)))


def pair(what: str, given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets as tensors on the CPU. Raises: OptionError if they are not two arrays of one length."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise OptionError(f"{what} must be two arrays, inputs and targets, not {shown(given)}")
    x, y = (tensor(f"the {name} in {what}", array) for name, array in zip(("inputs", "targets"), given, strict=True))
    if len(x) != len(y):
        raise OptionError(f"{what} must be as many inputs as targets, not {len(x)} and {len(y)}")
    return x, y


def tensor(what: str, given: Any) -> torch.Tensor:
    try:
        found = torch.as_tensor(given if isinstance(given, torch.Tensor) else np.array(given)).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{what} must be a tensor or an array of numbers ({first_line(error)})") from error
    if found.is_complex() or not found.ndim or not len(found):
        raise OptionError(f"{what} must be a tensor or an array of real numbers with at least one example")
    return found.to(torch.float32 if found.is_floating_point() else torch.int64).contiguous()


def name_of(given: Any) -> str:
    """Return the name of a task: the word itself, or a function's, which is added to `GIVEN`. Raises: TypeError."""
    if isinstance(given, str):
        return str(given)
    if not callable(given):
        raise TypeError
    name = reference_to(given)
    GIVEN[name] = given
    return name


def function_of(task: str) -> Callable[[], Any]:
    """Return the function of a task `MODULE:FUNCTION`. Raises: OptionError if there is none."""
    if task in GIVEN:
        return GIVEN[task]
    found = imported(task, f"the task may be {ACCEPTED}")
    if not callable(found):
        module, _, name = task.partition(":")
        raise OptionError(f"the task may be {ACCEPTED}, and {module} has no function {shown(name)}")
    return found


def is_own(task: str) -> bool:
    """Return whether a task is the name of a function, and not of a built-in task."""
    return ":" in task


def make(task: str) -> tuple[Dataset, AnyModule, Problem]:
    """Call the function of a task, and try what it returns. Raises: OptionError if that does not work."""
    try:
        found = function_of(task)()
    except OptionError:
        raise
    # A user's code may raise anything.
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise OptionError(f"the task {task} must be a function that works without arguments ({reason})") from error
    if not isinstance(found, Problem):
        raise OptionError(f"the task {task} must return an experiments.Problem, not {shown(found)}")
    (x, y), (x_eval, y_eval) = found.train, found.evaluate
    for name, a, b in (("inputs", x, x_eval), ("targets", y, y_eval)):
        if (a.dtype, a.shape[1:]) != (b.dtype, b.shape[1:]):
            raise OptionError(f"the {name} to train and to evaluate {found.name} must have the same shape and dtype")
    model = AnyModule(found.name, found.model, found.loss, found.metrics)
    return (
        Dataset(found.name, task, x, y, x_eval, y_eval),
        tried(model, x[: found.batch_size], y[: found.batch_size]),
        found,
    )

"""Problems, which a sweep can train: a data set, a model and a loss."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.common import ambient, values
from experiments.common.errors import OptionError
from experiments.tasks import cnn, data, functions, gru, mlp, own
from experiments.tasks.any_module import AnyModel, AnyModule
from experiments.tasks.data import Dataset
from experiments.tasks.model import Model


@dataclass(frozen=True)
class Problem:
    """A task with its data and a model. `data` stays on the CPU; training moves it to its device.

    Attributes:
        batch_size, steps: defaults of a run; if steps is None, a run is one epoch.
        examples: least number of examples of such a run: a smaller data set is repeated.
    """

    task: str
    data: Dataset
    model: AnyModel
    batch_size: int = 128
    steps: int | None = None
    examples: int = 0

    @property
    def classifies(self) -> bool:
        if isinstance(self.model, AnyModule):
            return "accuracy" in self.model.metrics
        return not self.data.y_train.is_floating_point()

    @property
    def loss_name(self) -> str:
        if isinstance(self.model, AnyModule):
            return "evaluation loss"
        if self.classifies:
            return "evaluation loss (cross-entropy)"
        if not self.data.y_train.shape[-1]:
            return "value above the minimum"
        return "excess evaluation MSE" if self.data.loss_floor else "evaluation loss (MSE)"


class Options(NamedTuple):
    """The options of a problem other than its task and model; see `make`."""

    hidden: int | None = None
    dropout: float = 0.0
    data_dir: str | os.PathLike[str] | None = None
    condition_number: float | None = None


class Task(NamedTuple):
    """A task with one of its models.

    Attributes:
        data, model: return the data for the chosen options, and the model for these and the data.
        takes: names of the options that the model or its data has.
        defaults: arguments of `Problem` that suit a run.
    """

    data: Callable[[Options], Dataset]
    model: Callable[[Options, Dataset], Model]
    takes: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = {}


def mnist_task(model: Callable[[Options, int], Model], *takes: str) -> Task:
    """Return a task on MNIST or images like it. model: returns the model for the options and the number of classes."""
    return Task(
        lambda chosen: data.mnist(chosen.data_dir),
        lambda chosen, digits: model(chosen, n_classes(digits)),
        takes,
        {"examples": 60_000},
    )


def n_classes(images: Dataset) -> int:
    """Return the highest label plus 1, and at least 10: digits of which some are missing are still digits."""
    return max(10, 1 + int(images.y_train.max()), 1 + int(images.y_eval.max()))


def function_task(name: str) -> Task:
    made = functions.FUNCTIONS[name]
    return Task(
        lambda _: made.make()[0], lambda *_: made.make()[1], (), {"batch_size": made.batch_size, "steps": made.steps}
    )


def hidden_widths(chosen: Options, first: int, second: int) -> tuple[int, int]:
    """Return the widths of an mlp's two hidden layers: `first` and `second`, unless a width was chosen."""
    return chosen.hidden or first, chosen.hidden or second


TASKS: dict[str, dict[str, Task]] = {
    "mnist": {
        "mlp": mnist_task(
            lambda chosen, n: mlp.mlp(784, *hidden_widths(chosen, 32, 32), n, dropout=chosen.dropout),
            "hidden",
            "dropout",
        ),
        "logistic": mnist_task(lambda _, n: mlp.mlp(784, n, name="logistic")),
        "cnn": mnist_task(lambda _, n: cnn.cnn(n_out=n)),
        "gru": mnist_task(lambda chosen, n: gru.gru(chosen.hidden or 32, n), "hidden"),
    },
    "regression": {
        # the network of the source article
        "mlp": Task(
            lambda _: data.teacher_regression(),
            lambda chosen, _: mlp.mlp(10, *hidden_widths(chosen, 20, 30), 1, dropout=chosen.dropout),
            ("hidden", "dropout"),
        ),
        "linear": Task(
            lambda chosen: data.least_squares(chosen.condition_number or 100.0),
            lambda *_: mlp.mlp(10, 1, name="linear"),
            ("condition_number",),
        ),
    },
    "heavy-tailed": {
        "linear": Task(
            lambda _: data.heavy_tailed(),
            lambda *_: mlp.mlp(128, 32, name="linear"),
            (),
            # The whole data set is a batch.
            {"batch_size": 1038, "steps": 300},
        )
    },
    "function": {name: function_task(name) for name in functions.FUNCTIONS},
}
"""The tasks that can be trained, with their models; the first model of a task is its default."""
LIMITS = {
    "hidden": ("a width of at least 1", lambda given: given is None or given >= 1),
    "dropout": ("numbers in [0, 1)", lambda given: 0 <= given < 1),
    "condition_number": (f"numbers from 1 to {data.MAX_CONDITION_NUMBER:g}", lambda given: True),
}
"""The values that the options of models accept."""


def chosen_task(task: str, model: str | None = None, **options) -> tuple[str, Task, Options]:
    """Return the model's name, its task and its options. Raises: OptionError if one of them does not exist or fit."""
    if task not in TASKS:
        raise OptionError(f"the task must be one of {', '.join(TASKS)} or {own.ACCEPTED}, not {values.shown(task)}")
    name, asked = model or next(iter(TASKS[task])), Options(**options)
    if name not in TASKS[task]:
        raise OptionError(f"--model of {task} accepts {' or '.join(TASKS[task])}, not {values.shown(name)}")
    for option, (accepts, fits) in LIMITS.items():
        given, taken = getattr(asked, option), option in TASKS[task][name].takes
        if not fits(given) or (given and not taken):
            having = dict.fromkeys(
                kind for kinds in TASKS.values() for kind, one in kinds.items() if option in one.takes
            )
            raise OptionError(
                f"{values.option(option)} accepts {accepts} and goes with --model {' or '.join(having)}, "
                f"not {given:g} with {name}"
            )
    return name, TASKS[task][name], asked


def check(task: str, model: str | None = None, **options) -> None:
    """Raise OptionError if there is no such task, or an option that does not fit it."""
    if not own.is_own(task):
        chosen_task(task, model, **options)
        return
    own.function_of(task)
    given = {"model": model, **options}
    if name := next((name for name, value in given.items() if value), None):
        raise OptionError(f"{values.option(name)} goes with {', '.join(TASKS)}, not with {task}")


@ambient.pinned()
def make(task: str, model: str | None = None, **options) -> Problem:
    """Load or generate the data of a task and choose its model.

    Args:
        task, model: keys of `TASKS`, or a task `MODULE:FUNCTION`; None takes the task's first model.
        hidden: width of both hidden layers of an mlp, or of a gru's state; by default 32 on MNIST and the
            source article's 20 and 30 on regression.
        dropout: probability that a hidden activation of an mlp is dropped in training.
        data_dir: files of MNIST or images like it; see `data.mnist`.
        condition_number: of the linear least squares problem; 100 by default.
    Raises: OptionError, DataError.
    """
    if own.is_own(task):
        check(task, model, **options)
        dataset, any_module, given = own.make(task)
        return Problem(task, dataset, any_module, given.batch_size, given.steps)
    _, of_task, options_ = chosen_task(task, model, **options)
    dataset = of_task.data(options_)
    return Problem(task, dataset, of_task.model(options_, dataset), **of_task.defaults)

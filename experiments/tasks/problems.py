"""What is trained on what: a data set, a model and a loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from experiments.common import ambient, values
from experiments.common.errors import OptionError
from experiments.tasks import cnn, data, functions, gru, mlp
from experiments.tasks.model import Model

TASKS = {"mnist": ("mlp", "logistic", "cnn", "gru"), "regression": ("mlp", "linear")}
TASKS |= {"heavy-tailed": ("linear",), "function": tuple(functions.FUNCTIONS)}
"""Tasks and the models that each can train; the first is the default."""


@dataclass(frozen=True)
class Problem:
    """A task made concrete. `data` stays on the CPU; training moves it to its device.

    Attributes:
        batch_size, steps: of a run where nothing else is asked for; without steps it is an epoch.
        examples: that such an epoch has at least: those of a small data set come again.
    """

    task: str
    data: data.Dataset
    model: Model
    batch_size: int = 128
    steps: int | None = None
    examples: int = 0

    @property
    def classifies(self) -> bool:
        return not self.data.y_train.is_floating_point()

    @property
    def loss_name(self) -> str:
        if self.classifies:
            return "evaluation loss (cross-entropy)"
        if not self.data.y_train.shape[-1]:
            return "value above the minimum"
        return "excess evaluation MSE" if self.data.loss_floor else "evaluation loss (MSE)"


@ambient.pinned()
def make(
    task: str,
    model: str | None = None,
    hidden: int | None = None,
    data_dir=None,
    condition_number: float = 100.0,
    dropout: float = 0.0,
) -> Problem:
    """Load or generate the data of a task and choose its model.

    Args:
        task, model: see `TASKS`; None takes the task's first model.
        hidden: width of both hidden layers of an mlp, or of a gru's state; by default 32 on MNIST and the
            source article's 20 and 30 on regression.
        condition_number: of the linear least squares problem.
        dropout: probability with which an mlp's hidden activations are dropped in training.
    Raises: OptionError, data.DataError.
    """
    kind = check_model(task, model, hidden, dropout)
    if task == "mnist":
        return Problem(task, data.mnist(data_dir), networks(hidden, dropout)[kind], examples=60_000)
    if task == "function":
        return Problem(task, *functions.FUNCTIONS[kind]())
    if task == "heavy-tailed":
        dataset = data.heavy_tailed()
        widths = dataset.x_train.shape[1], int(dataset.y_train.max()) + 1
        return Problem(task, dataset, mlp.mlp(*widths, name="linear"), len(dataset.x_train), 300)
    if kind == "linear":
        return Problem(task, data.least_squares(condition_number), mlp.mlp(10, 1, name="linear"))
    return Problem(task, data.teacher_regression(), mlp.mlp(10, hidden or 20, hidden or 30, 1, dropout=dropout))


def networks(hidden: int | None = None, dropout: float = 0.0) -> dict[str, Model]:
    """The models of MNIST, by their kind; arguments as of `make`."""
    return {
        "mlp": mlp.mlp(784, hidden or 32, hidden or 32, 10, dropout=dropout),
        "logistic": mlp.mlp(784, 10, name="logistic"),
        "cnn": cnn.cnn(),
        "gru": gru.gru(hidden or 32),
    }


def check_model(task: str, model: str | None, hidden: int | None, dropout: float = 0.0) -> str:
    """The model's kind. Raises: OptionError if the task is unknown, or cannot train such a model."""
    if task not in TASKS:
        raise OptionError(f"the task must be one of {', '.join(TASKS)}, not {values.shown(task)}")
    kind = model or TASKS[task][0]
    if kind not in TASKS[task]:
        raise OptionError(f"--model of {task} accepts {' or '.join(TASKS[task])}, not {values.shown(kind)}")
    if hidden is not None and (hidden < 1 or kind not in ("mlp", "gru")):
        raise OptionError(
            f"--hidden accepts a width of at least 1 and goes with --model mlp or gru, not {hidden} with {kind}"
        )
    if not 0 <= dropout < 1 or (dropout and kind != "mlp"):
        raise OptionError(f"--dropout accepts numbers in [0, 1) and goes with --model mlp, not {dropout:g} with {kind}")
    return kind


def losses(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean loss of each lane, `[lanes]`: cross-entropy for integer targets, mean squared error for floats.

    Where there are no targets, `[n_inputs, batch, 0]`, the outputs are the loss.

    Args:
        output: `[lanes, n_out, batch]`.
        target: `[n_inputs, batch]` classes or `[n_inputs, batch, n_out]` values; lanes are divided
            evenly among the inputs.
    """
    if not target.shape[-1]:
        return output.mean(dim=(1, 2))
    if target.is_floating_point():
        return (output - per_lane(target.transpose(1, 2), len(output))).square().mean(dim=(1, 2))
    return F.cross_entropy(output, per_lane(target, len(output)), reduction="none").mean(dim=1)


def correct(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How many of the batch each lane classifies correctly, `[lanes]`."""
    # On the CPU six times as fast as argmax over a dimension that is not the last.
    return (output.max(dim=1).indices == per_lane(target, len(output))).sum(dim=1)


def per_lane(target: torch.Tensor, lanes: int) -> torch.Tensor:
    if len(target) == 1:
        return target.expand(lanes, *target.shape[1:])
    return target.repeat_interleave(lanes // len(target), dim=0)

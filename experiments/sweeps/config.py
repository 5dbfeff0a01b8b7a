"""All options of a sweep: each once, with its default, the values it accepts, and its help."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from experiments.common import devices
from experiments.common.devices import DEVICES
from experiments.common.values import DURATION, FLAG, FOLDER, Kind, one_of, option, optional, real, taken, whole, word
from experiments.sweeps import axis_values, configs_file, space
from experiments.sweeps.axis_values import Range
from experiments.tasks import own, problems
from experiments.tasks.data import MAX_CONDITION_NUMBER
from experiments.training import optimizers, targets
from experiments.training.axes import NAMED, RUN

ENGINES = ("local", "ray")
MODELS = "; ".join(f"{task}: {' or '.join(models)}" for task, models in problems.TASKS.items())
Values = float | str | Iterable[float | str] | Range
OfAxis = Values | Mapping[str, Values] | None


def setting(default: Any, kind: Kind | None, help: str | None, metavar: str | None = None) -> Any:
    """Return a field of `SweepConfig`: the values it accepts, and its --help; without help it is for Python alone."""
    return field(default=default, metadata={"kind": kind, "help": help, "metavar": metavar})


def axis(name: str) -> Any:
    return setting(None, None, NAMED[name].kind.accepts, "V")


def of_run(name: str, default: Any, help: str, metavar: str) -> Any:
    """Return the field of an option of a run, which may be an axis instead."""
    kind = RUN[name].kind
    return setting(default, optional(kind) if default is None else kind, help, metavar)


def by_name(given: Any) -> dict[str, Any]:
    """Return values by the names of axes, from a dictionary or from lists of a name and words, each name once."""
    pairs = list(given.items()) if isinstance(given, Mapping) else [(name, words) for name, *words in given or ()]
    found = {str(name).replace("-", "_"): values for name, values in pairs if isinstance(name, str) and name}
    if len(found) != len(pairs):
        raise ValueError
    return found


AXES = Kind("each name of an axis once, with its values, such as rho 0.9 0.95", by_name)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The arguments of `experiments.sweep.sweep`, which documents each of them, checked and converted.

    Words as on the command line, and types such as tensors without dimensions, are converted.
    Raises: OptionError, a sentence that names the option and the values it accepts.
    """

    task: str | Callable[[], Any] = setting(
        "mnist", Kind(f"one of {', '.join(problems.TASKS)} or {own.ACCEPTED}", own.name_of), "what is trained"
    )
    lr: OfAxis = axis("lr")
    beta1: OfAxis = axis("beta1")
    beta2: OfAxis = axis("beta2")
    eps: OfAxis = axis("eps")
    weight_decay: OfAxis = axis("weight_decay")
    momentum: OfAxis = axis("momentum")
    axes: Mapping[str, OfAxis] = setting(
        (),
        AXES,
        "values of another argument of an optimizer (rho, amsgrad) or of an option of a run (batch_size); repeatable",
        "NAME V",
    )
    tie: Any = setting((), space.TIES, "axes that take the same values, as in beta1=beta2; one of them is given", "T")
    configs: Any = setting(
        None,
        optional(configs_file.SOURCE),
        "CSV file with a row for each configuration and axes as columns, instead of every combination",
        "FILE",
    )
    optimizer: str | type | Iterable[str | type] = setting(
        "adam",
        Kind(f"one or several of {optimizers.ACCEPTED}", optimizers.names_of),
        f"one or several of {optimizers.ACCEPTED} (default adam)",
        "O",
    )
    sample: str | None = setting(
        None,
        optional(word(space.SAMPLE_ACCEPTED)),
        f"{space.SAMPLE_ACCEPTED}: configurations of each optimizer from the ranges, instead of every combination",
        "S",
    )
    model: str | None = setting(
        None,
        optional(word("the name of a model, such as mlp")),
        f"{MODELS} (default: the first)",
    )
    hidden: int | None = of_run(
        "hidden", None, "width of an mlp's hidden layers (mnist 32, regression 20 and 30) or a gru's (32)", "H"
    )
    condition_number: float | None = setting(
        None,
        optional(real(problems.LIMITS["condition_number"][0], lambda value: 1 <= value <= MAX_CONDITION_NUMBER)),
        "of regression's linear model (default 100)",
        "C",
    )
    seeds: int = setting(1, whole(1), "runs of each configuration, seeds 0 to N-1 (default 1)", "N")
    epochs: float | None = of_run(
        "epochs",
        None,
        "length of a run (default 1, or what suits the task; of fewer digits than MNIST's as many steps)",
        "E",
    )
    steps: int | None = of_run("steps", None, "length of a run, instead of --epochs", "S")
    batch_size: int | None = of_run("batch_size", None, "examples a batch (default 128, or what suits the task)", "B")
    n_train: int | None = of_run(
        "n_train", None, "training examples, always the same, each class by its share (default: all)", "N"
    )
    accumulate: int = of_run(
        "accumulate", 1, "batches of a step, whose gradient is the mean over them (default 1)", "N"
    )
    schedule: str = of_run("schedule", "constant", f"of lr: {RUN['schedule'].kind.accepts} (default constant)", "S")
    warmup: int = of_run("warmup", 0, "in which lr rises to where the schedule starts (default 0)", "STEPS")
    dropout: float = of_run("dropout", 0.0, "of an mlp's hidden activations (default 0)", "P")
    init_scale: float = of_run("init_scale", 1.0, "factor of initial weights, biases excepted (default 1)", "F")
    evaluations: int = setting(8, whole(1), "evaluations of a run after its start (default 8)", "N")
    eval_examples: int | None = setting(
        None,
        optional(whole(1)),
        "examples of all evaluations but the last, each class by its share (default: all)",
        "N",
    )
    diagnostics: bool = setting(
        False, FLAG, "at evaluations also record norms of gradients, sizes of updates, and losses by class frequency"
    )
    halving: int | None = setting(
        None,
        optional(whole(2)),
        "stop configurations early: from each rung, at T/ETA^k steps, the best 1/ETA of an optimizer's go on",
        "ETA",
    )
    keep_diverged: bool = setting(
        False, FLAG, "train runs that have diverged to the end, instead of leaving them out after the next evaluation"
    )
    data_dir: str | os.PathLike[str] | None = setting(
        None,
        optional(FOLDER._replace(accepts="a folder, or a .npz file")),
        "IDX files of MNIST or images like it, torchvision's folder, or a .npz (default: MNIST_DIR, cache, download)",
        "DIR",
    )
    device: str = setting("auto", Kind(DEVICES, devices.device_name), f"{DEVICES} (default auto)")
    out: Path | None = setting(
        None, optional(FOLDER), "folder for the results, for example results/first (needed unless --dry-run)", "DIR"
    )
    fresh: bool = setting(False, FLAG, "remove the results that the folder holds, and start over")
    engine: str = setting(
        "local", one_of(" or ".join(ENGINES), ENGINES), "local or ray: where to train (default local)", "E"
    )
    ray_address: str | None = setting(
        None,
        optional(word("HOST:PORT of a Ray cluster")),
        "of a Ray cluster (default: RAY_ADDRESS, else a cluster of this machine)",
        "HOST:PORT",
    )
    checkpoint_every: float = setting(
        20.0,
        real("seconds from 0", lambda value: 0 <= value < math.inf),
        "between two checkpoints of what is being trained (default 20)",
        "SECONDS",
    )
    time_budget: str | float | None = setting(
        None,
        optional(DURATION),
        "such as 90s, 10m or 1h30m: end at the next evaluation after so long; the same command goes on",
        "TIME",
    )
    target: str | float | None = setting(
        None,
        optional(targets.TARGET),
        f"{targets.ACCEPTED} to which the report counts steps (default: a loss it chooses)",
        "T",
    )
    confirm: int | None = setting(
        None, optional(whole(1)), "run the best configuration of each optimizer again on N fresh seeds", "N"
    )
    log: str | None = setting(
        None,
        optional(one_of("tensorboard", ("tensorboard",))),
        "tensorboard: also write values as they come, to OUT/tensorboard (needs the extra tensorboard)",
        "TRACKER",
    )
    compare_alone: bool = setting(False, FLAG, "also say how long the runs would take one by one, from a sample")
    progress: bool = setting(True, FLAG, None)

    def __post_init__(self) -> None:
        given = {one.name: (getattr(self, one.name), one.metadata["kind"]) for one in fields(self)}
        for name, (value, kind) in given.items():
            if kind:
                object.__setattr__(self, name, taken("--axis" if kind is AXES else option(name), value, kind))
        for name in NAMED:
            # What can be read only once is read here.
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, axis_values.by_owner(name, value))
        own = {name: axis_values.by_owner(name, of) for name, of in self.axes.items() if of is not None}
        object.__setattr__(self, "axes", own)

    @property
    def of_problem(self) -> dict[str, Any]:
        """The options of the task and the model, as arguments of `problems.make`."""
        return {name: getattr(self, name) for name in ("hidden", "dropout", "data_dir", "condition_number")}

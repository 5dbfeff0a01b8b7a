"""What every argument of a sweep accepts, as data: in Python and on the command line alike."""

import math

import torch

from experiments import optimizers, problems, sampling, targets, values
from experiments.data import MAX_CONDITION_NUMBER
from experiments.schedules import SCHEDULES
from experiments.values import FLAG, FOLDER, POSITIVE, Kind, optional, real, whole, word

ENGINES = ("local", "ray")
DEVICES = "auto, cpu, cuda or cuda:N"


def device(value: str | torch.device) -> str:
    """A device by its name."""
    return str(value) if isinstance(value, torch.device) else word(DEVICES).take(value)


KINDS = {
    "task": word(f"one of {', '.join(problems.TASKS)}"),
    "model": optional(word("the name of a model, such as mlp")),
    "optimizer": Kind(f"one or several of {optimizers.ACCEPTED}", optimizers.names_of),
    "sample": optional(word(sampling.ACCEPTED)),
    "seeds": whole(1),
    "epochs": optional(POSITIVE),
    "steps": optional(whole(1)),
    "batch_size": optional(whole(1)),
    "accumulate": whole(1),
    "schedule": word(", ".join(SCHEDULES)),
    "warmup": whole(0),
    "dropout": real("numbers in [0, 1)"),
    "hidden": optional(whole(1, what="a width of at least 1")),
    "condition_number": real(
        f"numbers from 1 to {MAX_CONDITION_NUMBER:g}", lambda value: 1 <= value <= MAX_CONDITION_NUMBER
    ),
    "evaluations": whole(1),
    "data_dir": optional(FOLDER),
    "device": Kind(DEVICES, device),
    "out": optional(FOLDER),
    "fresh": FLAG,
    "engine": word(" or ".join(ENGINES)),
    "ray_address": optional(word("HOST:PORT of a Ray cluster")),
    "checkpoint_every": real("seconds from 0", lambda value: 0 <= value < math.inf),
    "compare_alone": FLAG,
    "target": optional(targets.TARGET),
    "confirm": optional(whole(1)),
    "progress": FLAG,
}
"""Of the axes see `grid.taken`."""

checked = values.checked
normalised = values.normalised(KINDS)

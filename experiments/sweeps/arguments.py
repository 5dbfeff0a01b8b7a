"""What every argument of a sweep accepts, as data: in Python and on the command line alike."""

import math

from experiments.common import devices, values
from experiments.common.devices import DEVICES
from experiments.common.values import FLAG, FOLDER, POSITIVE, Kind, optional, real, whole, word
from experiments.sweeps import space
from experiments.tasks import problems
from experiments.tasks.data import MAX_CONDITION_NUMBER
from experiments.training import optimizers, targets
from experiments.training.schedules import SCHEDULES

ENGINES = ("local", "ray")

KINDS = {
    "task": word(f"one of {', '.join(problems.TASKS)}"),
    "model": optional(word("the name of a model, such as mlp")),
    "optimizer": Kind(f"one or several of {optimizers.ACCEPTED}", optimizers.names_of),
    "sample": optional(word(space.SAMPLE_ACCEPTED)),
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
    "device": Kind(DEVICES, devices.device_name),
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
"""Of the axes see `space.taken`."""

checked = values.checked
normalised = values.normalised(KINDS)

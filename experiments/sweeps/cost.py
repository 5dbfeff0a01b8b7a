"""What a sweep takes of memory and of the disk."""

import shutil
from pathlib import Path

from experiments.common import devices
from experiments.common.errors import OptionError
from experiments.tasks.model import Model
from experiments.training import population

ROW_BYTES = 300
"""Of a run's evaluation: in a part, in the tables made of the parts, and in what they are written to meanwhile."""


def check_room(out: Path | None, n_runs: int, n_points: int, option: str = "the grid") -> None:
    """Raise OptionError if results of that size fit neither into the memory nor, if there is a folder, on its disk."""
    needed = n_runs * n_points * ROW_BYTES
    rooms = {"of memory": devices.memory()}
    if out is not None:
        folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        rooms[f"on the disk of {out}"] = shutil.disk_usage(folder).free
    for where, free in rooms.items():
        if needed > free:
            raise OptionError(
                f"{option} accepts as many runs as there is room for: {n_runs} runs with {n_points} evaluations take "
                f"about {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB {where} are free"
            )


KEPT_BLOCK = 32 * 2**20
"""Bytes up to which glibc's malloc gives a block of memory out again; a larger one is page-faulted in each time."""


def lanes_at_once(model: Model, batch_size: int, device: str) -> int:
    """How many lanes fit into the memory budget and, on the CPU, into blocks that need no new pages in every step."""
    lanes = devices.memory_budget(device) // population.lane_bytes(model, batch_size)
    if device == "cpu":
        lanes = min(lanes, KEPT_BLOCK // population.largest_block(model, batch_size))
    return max(1, lanes)

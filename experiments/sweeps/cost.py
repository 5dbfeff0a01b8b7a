"""The memory and the disk space that a sweep needs."""

import shutil
from pathlib import Path

from experiments.common import devices
from experiments.common.errors import OptionError
from experiments.sweeps.memory import Memory
from experiments.tasks.any_module import AnyModel, AnyModule
from experiments.training import blocks

ROW_BYTES = 300
"""Bytes of one evaluation of a run: in the file of its chunk, in the tables, and in their temporary files."""


def check_room(out: Path | None, n_runs: int, n_points: int, option: str = "the grid") -> None:
    """Raise OptionError unless results of that size fit into memory and, if there is a folder, on its disk."""
    needed = n_runs * n_points * ROW_BYTES
    free_bytes = {"of memory": devices.memory()}
    if out is not None:
        folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
        free_bytes[f"on the disk of {out}"] = shutil.disk_usage(folder).free
    for where, free in free_bytes.items():
        if needed > free:
            raise OptionError(
                f"{option} accepts as many runs as there is room for: {n_runs} runs with {n_points} evaluations take "
                f"about {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB {where} are free"
            )


def lanes_at_once(model: AnyModel, batch_size: int, device: str, memory: Memory) -> int:
    """Return how many lanes fit into the memory budget and, on the CPU, into blocks that malloc reuses."""
    lanes = memory.lanes(devices.memory_budget(device))
    if device == "cpu":
        lanes = min(lanes, blocks.most_lanes(model, batch_size))
    return max(1, lanes)


def check_fits(model: AnyModel, batch_size: int, device: str) -> None:
    """Raise OptionError if a run's parameters, gradients, two states and largest activation exceed the memory."""
    needed, most = 16 * sum(p.numel() for p in blocks.shapes(model)), devices.total_memory(device)
    needed += 4 * batch_size * max(model.widths[1:])
    if needed > most:
        options = "--batch-size accepts" if isinstance(model, AnyModule) else "--hidden and --batch-size accept"
        raise OptionError(
            f"{options} what fits into the memory of {most / 2**30:.3g} GiB, and a run of "
            f"{model.name} takes about {needed / 2**30:.3g}"
        )

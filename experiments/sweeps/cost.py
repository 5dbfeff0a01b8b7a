"""The memory and the disk space that a sweep needs."""

import shutil
from pathlib import Path

from experiments.common import devices
from experiments.common.errors import OptionError
from experiments.sweeps.memory import Memory
from experiments.sweeps.results import PARTS, STATE
from experiments.tasks.any_module import AnyModel, AnyModule
from experiments.training import blocks

ROW_BYTES = 300
"""Bytes of one evaluation of a run: in the file of its chunk, in the tables, and in their temporary files."""


def check_room(out: Path | None, n_runs: int, n_points: int, option: str = "the grid") -> None:
    """Raise OptionError unless results of that size fit into memory and, if there is a folder, on its disk."""
    needed, what = n_runs * n_points * ROW_BYTES, f"{n_runs} runs with {n_points} evaluations"
    check_free(option, what, needed, "of memory", devices.memory())
    if out is not None:
        check_free(option, what, needed, *on_disk(out))


def check_states(out: Path | None, needed: float) -> None:
    """Raise OptionError unless so many bytes of states between rungs fit on the disk of a folder, or into memory.

    States that the folder has are room: they are replaced, or counted among those that are needed.
    """
    where, free = ("of memory", devices.memory()) if out is None else on_disk(out)
    for path in out.glob(f"{PARTS}/*{STATE}") if out else ():
        free += path.stat().st_size
    check_free("--halving", "their states between rungs", needed, where, free)


def on_disk(out: Path) -> tuple[str, int]:
    """Return where results go, in words, and how many bytes are free there."""
    folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    return f"on the disk of {out}", shutil.disk_usage(folder).free


def check_free(option: str, what: str, needed: float, where: str, free: float) -> None:
    if needed > free:
        raise OptionError(
            f"{option} accepts as many runs as there is room for: {what} take "
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

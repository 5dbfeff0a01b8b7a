"""The chunk at work: its curves so far, in a file of OUT/parts that is replaced at evaluations, for readers alone."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from experiments.common import files
from experiments.sweeps import results

FILE = "at_work.curves"
EVERY, SHARE = 1.0, 50
"""Seconds between two writes, and how many times that of writing they are, at least."""


def writer(parts: Path, chunk: pd.DataFrame, started: float) -> Callable[[list[dict], torch.Tensor], None]:
    """Return the `on_points` of a chunk's population, which writes its curves so far; an earlier file is removed.

    An evaluation that comes soon after one that was written is written with the next. What cannot be written is left
    out: training needs none of it.

    started: when the training began, by `time.perf_counter`.
    """
    next_at = 0.0
    remove(parts)

    def write(points: list[dict], diverged_at: torch.Tensor) -> None:
        nonlocal next_at
        now = time.perf_counter()
        if now < next_at or not points:
            return
        table = table_of(chunk, points, diverged_at, now - started)
        with contextlib.suppress(OSError):
            files.replace(parts / FILE, lambda path: path.write_bytes(table.to_parquet(index=False)))
        next_at = time.perf_counter() + max(EVERY, SHARE * (time.perf_counter() - now))

    return write


def table_of(chunk: pd.DataFrame, points: list[dict], diverged_at: torch.Tensor, seconds: float) -> pd.DataFrame:
    """Return the table of a chunk at work, as `read` does.

    Args:
        points, diverged_at: of `on_points`; see `population.train_lanes`.
        seconds: that the chunk has taken so far.
    """
    curves = pd.concat([pd.DataFrame({k: np.asarray(v) for k, v in p.items()}) for p in points], ignore_index=True)
    steps = pd.Series(diverged_at.numpy(), dtype="Int64")
    rows = chunk[["key", "run_key", "begin", "end"]].reset_index(drop=True)
    lanes = rows.assign(lane=range(len(rows)), diverged_step=steps.where(steps > 0))
    return lanes.merge(curves, on="lane").drop(columns="lane").assign(chunk_seconds=seconds)


def read(parts: Path) -> pd.DataFrame | None:
    """Read what `writer` wrote: a row per run and evaluation; None if there is no such file, or it is damaged.

    Columns: those of the table of a finished chunk that are no axes, and end, the last step of its stage.
    """
    try:
        table = results.read_table(parts / FILE)
        return table if {"key", "run_key", "begin", "end", "step"} <= set(table) else None
    except (OSError, ValueError):
        return None


def remove(parts: Path) -> None:
    (parts / FILE).unlink(missing_ok=True)

"""Runs as TensorBoard's event files: a folder for each run, with its hyperparameters and a scalar for each value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.trackers.records import Point, Study, safe_names, values_of

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

FILES = "events.out.tfevents.*"
"""The names of event files; TensorBoard looks for "tfevents"."""
ENDS = "status", "diverged_step"


def write(out: Path, study: Study, final: Path) -> None:
    """Write a folder with an event file for each run of a study. Final values are the last ones of its scalars."""
    for record in study.records:
        ends = {name: record.results[name] for name in ENDS if name in record.results}
        write_run(out / record.name, {**record.config, **ends}, study.started, record.points)


def write_run(folder: Path, config: Mapping[str, Any], started: float, points: Iterable[Point]) -> None:
    """Write an event file. started: seconds since 1970, to which the seconds of the points are added."""
    path = begin(folder, config, started)
    append(path, [event(started + point.seconds, point.step, point.values) for point in points])


def live(
    folders: Sequence[Path], configs: Sequence[Mapping[str, Any]], known: Sequence[Iterable[tuple[float, Point]]]
) -> Callable[[list[dict], object], None]:
    """Return a function that appends the evaluations of a population to new event files; earlier ones are removed.

    Args:
        folders, configs, known: one for each lane; known are earlier evaluations, each with its time since 1970.
    Returns: a function of all evaluations so far, as `population.train_lanes` gives them to `on_points`.
    """
    for folder in folders:
        for path in folder.glob(FILES):
            path.unlink()
    paths = [begin(folder, config, time.time()) for folder, config in zip(folders, configs, strict=True)]
    for path, earlier in zip(paths, known, strict=True):
        append(path, [event(at, point.step, point.values) for at, point in earlier])
    written = 0

    def follow(points: list[dict], diverged_at: object) -> None:
        nonlocal written
        for point in points[written:]:
            found = {name: value for name, value in point.items() if name not in ("lane", "step")}
            columns = dict(zip(safe_names(found), found.values(), strict=True))
            for i, lane in enumerate(point["lane"].tolist()):
                # The epoch and the seconds are those of all lanes; a number is a tensor without dimensions.
                values = {name: value[i] if getattr(value, "ndim", 0) else value for name, value in columns.items()}
                append(paths[lane], [event(time.time(), point["step"], values_of(values))])
        written = len(points)

    return follow


def clear(out: Path) -> None:
    """Remove the event files of all runs in a folder, and the folders that are empty then; nothing else."""
    for folder in [*out.glob("*/"), out]:
        for path in folder.glob(FILES):
            path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def begin(folder: Path, config: Mapping[str, Any], at: float) -> Path:
    """Begin an event file with a run's hyperparameters; return its path. at: seconds since 1970."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
    from tensorboard.plugins.hparams import summary_v2  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    # In nanoseconds: TensorBoard goes on with the last of a folder's files.
    path = folder / f"events.out.tfevents.{time.time_ns()}"
    hparams = summary_v2.hparams_pb(dict(config), trial_id=folder.name, start_time_secs=at)
    append(path, [Event(wall_time=at, file_version="brain.Event:2"), Event(wall_time=at, summary=hparams)])
    return path


def event(at: float, step: int, values: Mapping[str, float]) -> Event:
    """Return the event of an evaluation. at: seconds since 1970."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return Event(wall_time=at, step=step, summary=Summary(value=scalars))


def append(path: Path, events: Iterable[Event]) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter  # pyright: ignore[reportMissingImports]

    with path.open("ab") as file:
        writer = RecordWriter(file)
        for one in events:
            writer.write(one.SerializeToString())

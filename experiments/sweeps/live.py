"""Values that TensorBoard shows while a sweep trains: event files in OUT/tensorboard, a folder for each run."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from experiments.common.errors import OptionError
from experiments.sweeps import chunks, results
from experiments.sweeps.config import SweepConfig
from experiments.trackers import installed, records, tensorboard_runs


def check(config: SweepConfig) -> None:
    """Raise OptionError if values cannot be logged as a sweep is told to."""
    if config.log is None:
        return
    if config.out is None:
        raise OptionError("--log needs --out, the folder that it writes to")
    installed.check("--log", config.log)


class Log:
    """The event files of a sweep's runs, which are written anew by each process that works at it."""

    def __init__(self, out: Path, asked: pd.DataFrame, about: dict, tables: Iterable[pd.DataFrame]):
        """Remove earlier event files, and write those of finished chunks.

        Args:
            asked: all runs of the sweep, as `chunks.asked_runs` returns them.
            about: the provenance that is known at the start.
            tables: of finished chunks, as of `add`.
        """
        tensorboard_runs.clear(out / results.LOG)
        self.started = records.started(about)
        runs, names = asked.drop(columns="key"), records.names_of(asked, range(len(asked)))
        self.folders = {key: out / results.LOG / name for key, name in zip(asked["key"], names, strict=True)}
        configs = (records.known(row) for row in runs.to_dict("records"))
        self.configs = dict(zip(asked["key"], configs, strict=True))
        for table in tables:
            self.add(table)

    def follow(self, keys: Iterable[str]) -> Callable[[list[dict]], None]:
        """Return the `on_points` of the population of these runs, which writes values at every evaluation."""
        keys = [*keys]
        return tensorboard_runs.live([self.folders[key] for key in keys], [self.configs[key] for key in keys])

    def add(self, table: pd.DataFrame) -> None:
        """Write all values of a finished chunk, given its table."""
        for key, rows in table.sort_values("step").groupby("key"):
            points = records.points_of(rows.loc[:, chunks.curve_columns(rows)])
            tensorboard_runs.write_run(self.folders[key], self.configs[key], self.started, points)

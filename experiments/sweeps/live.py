"""Values that TensorBoard shows while a sweep trains: event files in OUT/tensorboard, a folder for each run."""

from collections import defaultdict
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

    def __init__(self, out: Path, asked: pd.DataFrame, about: dict):
        """Remove earlier event files.

        Args:
            asked: all runs of the sweep, as `chunks.asked_runs` returns them.
            about: the provenance that is known at the start.
        """
        tensorboard_runs.clear(out / results.LOG)
        self.started = records.started(about)
        runs, names = asked.drop(columns="key"), records.names_of(asked, range(len(asked)))
        self.folders = {key: out / results.LOG / name for key, name in zip(asked["key"], names, strict=True)}
        configs = (records.known(row) for row in runs.to_dict("records"))
        self.configs = dict(zip(asked["key"], configs, strict=True))
        self.points: dict[str, list[records.Point]] = defaultdict(list)

    def follow(self, keys: Iterable[str]) -> Callable[[list[dict], object], None]:
        """Return the `on_points` of the population of these runs, which writes values at every evaluation.

        The values of stages that are finished are written at once.
        """
        keys = [*keys]
        known = [[(self.started + point.seconds, point) for point in self.points[key]] for key in keys]
        return tensorboard_runs.live([self.folders[key] for key in keys], [self.configs[key] for key in keys], known)

    def add(self, table: pd.DataFrame, written: bool = False) -> None:
        """Write all values of a finished chunk, given its table, unless they were written as they came."""
        for key, rows in table.sort_values("step").groupby("run_key"):
            key, points = str(key), records.points_of(rows.loc[:, chunks.curve_columns(rows)])
            self.points[key] += points
            if not written:
                tensorboard_runs.write_run(self.folders[key], self.configs[key], self.started, points)

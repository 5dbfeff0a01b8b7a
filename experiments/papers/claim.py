"""A claim: what somebody says, how it is tried here, and what would confirm or refute it, all stated before the run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from experiments.sweeps.results import Sweep

SWEEPS = "claim-sweeps"
"""The subfolder of a claim's folder with its sweeps."""


class Measured(NamedTuple):
    """What was measured for a claim.

    Attributes:
        samples: by the names of the claim's effects: a number for each seed, or for each case of an exact effect.
        tables: whatever the figure is drawn from.
        notes: sentences on what a reader should know beside the effects, such as a number that was found.
    """

    samples: Mapping[str, Sequence[float] | np.ndarray]
    tables: Mapping[str, pd.DataFrame]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is said, and how it is tried.

    Attributes:
        name: as on the command line.
        says: the claim, in one sentence.
        source: author, year, section and arXiv number.
        setup: what is run here, and how it differs from the source, in a few sentences.
        confirms, refutes: one sentence each: the result that would confirm the claim, and the one that would refute it.
        effects: by name, where each effect lies if the claim is true.
        measure: `measure(runs, **size)` trains what is needed and returns what was measured.
        draw: `draw(measured)` returns the figure.
        seeds: how many seeds the verdict rests on, unless the user asks for another number; 1 if nothing is random.
        quick, full: arguments of `measure`; `full` has those alone that differ, and is empty if the quick size is the
            source's.
        trial: those that differ in tests, where a run takes a few steps.
    """

    name: str
    says: str
    source: str
    setup: str
    confirms: str
    refutes: str
    effects: Mapping[str, Region]
    measure: Callable[..., Measured]
    draw: Callable[[Measured], Figure]
    seeds: int = 10
    quick: Mapping[str, Any] = field(default_factory=dict)
    full: Mapping[str, Any] = field(default_factory=dict)
    trial: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def mnist_dir(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Have `data.mnist` read a folder where no other is named, unless it is None."""
    before = os.environ.get("MNIST_DIR")
    if folder is not None:
        os.environ["MNIST_DIR"] = os.fspath(folder)
    try:
        yield
    finally:
        if before is not None:
            os.environ["MNIST_DIR"] = before
        elif folder is not None:
            del os.environ["MNIST_DIR"]


@dataclass
class Runs:
    """What trains the sweeps of a claim, and keeps them in its folder.

    Attributes:
        folder: of the claim; None keeps nothing.
        seeds: number of seeds that the verdict rests on.
        options: of every sweep, such as data_dir, fresh and progress.
        data: the name of each data set that was trained on, with a warning or "".
        seconds: that each sweep so far took to train, by its name, also in earlier calls. Only the first of a name
            removes what its folder holds, where options have `fresh`.
        waited: seconds that this call has spent in sweeps.
    """

    folder: Path | None
    seeds: int
    options: Mapping[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    waited: float = 0.0

    def sweep(self, name: str, task: str | Callable[[], Any], after: int = 0, **options) -> Sweep:
        """Train a sweep, or take from the folder what of it is there; draw no figures.

        A sweep that was interrupted goes on from its last checkpoint. Of `options`, data_dir is for sweeps of MNIST,
        and for problems of one's own, in which `data.mnist` reads it.

        Args:
            name: of its folder.
            after: number of seeds that are left out, from 0: those that have chosen something are not trained again.
            task, options: of `experiments.sweep.sweep`; seeds are the claim's by default.
        """
        from experiments.common import ambient
        from experiments.sweeps import runner
        from experiments.sweeps.config import SweepConfig
        from experiments.sweeps.plan import make_plan

        out = self.folder and self.folder / SWEEPS / name
        given = {"seeds": self.seeds, "out": out, **self.options, **options}
        data_dir = given.pop("data_dir", None)
        if task == "mnist":
            given["data_dir"] = data_dir
        if name in self.seconds:
            given.pop("fresh", None)
        started = time.perf_counter()
        with ambient.pinned(), mnist_dir(data_dir if callable(task) else None):
            plan = make_plan(SweepConfig(task=task, **{**given, "seeds": after + given["seeds"]}))
            plan = plan._replace(runs=plan.runs.loc[plan.runs["seed"] >= after].reset_index(drop=True))
            data = plan.problem.data
            self.data[data.name] = data.warning.partition("\n")[0]
            with runner.opened(plan, out, plan.config.fresh):
                result = runner.run(plan, out)
        self.seconds[name] = result.provenance["seconds"]["total"]
        self.waited += time.perf_counter() - started
        return result

    def again(self, tuned: pd.DataFrame, name: str, task: str | Callable[[], Any], **options) -> Sweep:
        """Train the best configuration of each optimizer on fresh seeds, because the best of many looks too good.

        The best one has the lowest median of `eval_loss` over the seeds of the tuning, 0 to n - 1. It is trained on as
        many as the claim has after these.

        Args:
            tuned: runs of the tuning.
            name, task, options: as they were given to the `sweep` of the tuning.
        Returns: runs and curves of the fresh seeds alone.
        """
        from experiments.reports import aggregation
        from experiments.training.axes import axes_in

        best = aggregation.best_of_each(aggregation.ranked(tuned))
        # An axis that none of them has is no column of a table of configurations.
        configs = best[["optimizer", *axes_in(tuned)]].dropna(axis="columns", how="all")
        grid = ("optimizer", "axes", "tie", "sample", "lr", "beta1", "beta2", "eps", "weight_decay", "momentum")
        others = {option: value for option, value in options.items() if option not in grid}
        return self.sweep(f"{name}-fresh", task, after=int(tuned["seed"].max()) + 1, configs=configs, **others)

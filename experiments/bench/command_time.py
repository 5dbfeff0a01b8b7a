"""Which share of the rate of `throughput sweep` does the sweep command reach?

A step of the command is the difference between a sweep of many steps and one of few, with equally many evaluations,
over the steps between. The benchmark's loop takes the same steps of the same lanes on the same batches.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch

from experiments.bench import population_time
from experiments.bench.timing import INTERVALS, in_turn, with_interval
from experiments.common.errors import OptionError
from experiments.common.tables import markdown_table
from experiments.tasks import problems
from experiments.training import population

SIZE = "mlp", 128, 32
"""Model, number of lanes and hidden width."""
STEPS = 450, 50
EVALUATIONS = 8
GOAL = 0.97
"""The share that the command should reach."""
RATIO = "command's rate / benchmark's"


def command_seconds(sweep: Callable, steps: int, lanes: int, **options) -> float:
    """Return the seconds that a sweep into a new folder reports: training, evaluations, checkpoints, no drawing.

    Args:
        sweep: `experiments.sweep.sweep`, which no module of this folder may import; options are its further arguments.
    Raises: OptionError if the lanes are not trained as one chunk, which would be another measurement.
    """
    with tempfile.TemporaryDirectory() as out:
        lr = population_time.lrs(lanes).tolist()
        about = sweep("mnist", lr=lr, steps=steps, evaluations=EVALUATIONS, out=out, **options).provenance
    if about["chunks"] > 1:
        raise OptionError(
            f"--device accepts one with room for {lanes} runs at once; here they are {about['chunks']} chunks"
        )
    return float(about["seconds"]["total"])


def loop_seconds(problem: problems.Problem, steps: tuple[int, int], lanes: int, device: str) -> float:
    """Return the seconds of the benchmark's loop from the step after the fewer steps to the last of the more."""
    x, y, _, _ = population.tensors(problem, device)
    _, _, take = population_time.population_of(problem, lanes, x, y)
    drawn = population.batch_indices(len(x), population_time.BATCH, seed=0)
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    more, few = steps
    for n in (few, more - few):
        wait()
        started = time.perf_counter()
        take(torch.stack([*itertools.islice(drawn, n)]).to(device))
    wait()
    return time.perf_counter() - started


def compare(
    kind: str, lanes: int, hidden: int | None, sweep: Callable, data_dir, device: str, rounds: int, steps=STEPS
) -> dict:
    """Time both sides in turn, and return the row of the table."""
    problem = problems.make("mnist", kind, hidden=hidden, data_dir=data_dir)
    options = {"model": kind, "hidden": hidden, "data_dir": data_dir, "device": device}
    more, few = steps
    sweeps = {n: partial(command_seconds, sweep, n, lanes, **options) for n in steps}
    sweeps[few]()  # which loads, or compiles, what both sides run
    # The sweeps have bars of their own.
    loop = partial(loop_seconds, problem, steps, lanes, device)
    seconds = in_turn({**sweeps, "loop": loop}, rounds, disable=True)
    row = {"data": problem.data.name, "K": lanes, "model": problem.model.name, "device": device, "rounds": rounds}
    return row | rates((seconds[more] - seconds[few]) / (more - few), seconds["loop"] / (more - few), lanes)


def rates(command: pd.Series, loop: pd.Series, lanes: int) -> dict[str, float]:
    """Return columns of the table for the seconds of a step in each round, of the command and of the benchmark."""
    row = {}
    for name, step in {"command": command, "benchmark": loop}.items():
        row[f"{name}: ms per step"] = step.median() * 1e3
        row[f"{name}: configuration-steps per second"] = lanes / step.median()
    return row | with_interval(RATIO, loop / command)


def text(heading: str, row: dict) -> str:
    """Return the report as Markdown."""
    more, few = STEPS
    return f"""{heading}

{markdown_table([row])}

The mark is {GOAL}. Medians over the rounds, with
{INTERVALS}.
All were timed in turn in every round, after an untimed sweep. Command: `experiments.sweep` of {more} steps less one
of {few}, each with {EVALUATIONS} evaluations into a new folder, by the seconds that it reports, over the {more - few}
steps between. Benchmark: the loop of `throughput sweep` over the same steps of the same lanes, batches and data.

Only the command stacks the batch's indices in each step, sums losses, looks for divergence, moves its bar and asks
whether a checkpoint is due. It writes one every 20 s, so on a fast machine these sweeps end before the first, and on a
slow one the longer of them writes more; it spends at most 2 % of its time on them. What both sweeps do equally often
is in no step: imports, data, compilation, evaluations, a permutation for each epoch, tables and figures. The
benchmark's loop starts in warm memory, right after the same {few} steps untimed.
"""

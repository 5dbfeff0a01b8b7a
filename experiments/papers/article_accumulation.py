"""Gradients accumulated over small batches, against those of one large batch of the same examples.

The mean over 4 equal batches of the means over their examples is the mean over all examples, so that both give the same
updates, up to rounding. That what remains is rounding shows in its size: from float32 to float64 it has to fall by the
ratio of their precisions, 2^-24 / 2^-53 = 2^29. A sum over batches in place of the mean is 4 times the gradient: SGD's
first step is 4 times as long, and Adam's, whose update does not depend on the scale of gradients, stays as it is.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from experiments.papers.article import ARTICLE, NAMES
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region
from experiments.reports import looks
from experiments.tasks import model, problems
from experiments.tasks.problems import Problem
from experiments.training import optimizers
from experiments.training.batches import batch_indices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS, PER_PART = 4, 32
LR = {"adam": 1e-3, "nadam": 1e-3, "sgd": 0.1, "nesterov": 0.01}
TASKS = {"regression": "regression", "mnist": "MNIST"}
"""Tasks, whose first model is an MLP, and their names in the figure."""
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
BITS = 29
"""By how many powers of two float64 is more precise than float32."""
DIFFERENCE = "log10 of the difference, in float64"
RATIO = "log2 of the difference in float32 / in float64"
SUM = {
    "first step of a sum / of a mean, SGD and Nesterov": ("sgd", "nesterov"),
    "first step of a sum / of a mean, Adam and NAdam": ("adam", "nadam"),
}


class Moved(NamedTuple):
    """How far the weights of each seed have moved, all parameters in a row.

    Attributes:
        first, last: float64 `[seeds, n]`, after the first and after the last step.
    """

    first: torch.Tensor
    last: torch.Tensor


def train(
    problem: Problem, optimizer: str, seeds: int, steps: int, dtype: torch.dtype, parts: int = 1, weight: float = 1.0
) -> Moved:
    """Train from seeds 0, 1, ... with batches of 128, and return how far the weights have moved.

    Args:
        parts: batches of equal size, into which each batch of 128 is divided; their gradients are added up.
        weight: of the gradient of each.
    """
    data = problem.data
    params = model.stack(problem.model, range(seeds), 1, dtype)
    start = flat(params)
    hyper = {"lr": torch.full((seeds,), LR[optimizer], dtype=torch.float64)}
    stepper = optimizers.make(optimizer, params, hyper)
    batches = zip(*(batch_indices(len(data.x_train), PARTS * PER_PART, seed) for seed in range(seeds)), strict=True)
    first = start
    for step in range(steps):
        index = torch.stack(next(batches))
        x, y = (t[index].to(dtype if t.is_floating_point() else None) for t in (data.x_train, data.y_train))
        stepper.zero_grad()
        for x_part, y_part in zip(x.chunk(parts, 1), y.chunk(parts, 1), strict=True):
            (weight * problem.model.losses(params, (), x_part, y_part).sum()).backward()
        stepper.step()
        first = first if step else flat(params)
    return Moved(first - start, flat(params) - start)


def flat(params: list[torch.Tensor]) -> torch.Tensor:
    """Return stacked parameters as one float64 tensor `[lanes, n]`."""
    return torch.cat([p.detach().flatten(1).double() for p in params], dim=1)


def measure(runs: Runs, steps: int) -> Measured:
    import pandas as pd

    rows = []
    for task, optimizer in itertools.product(TASKS, LR):
        data_dir = runs.options.get("data_dir") if task == "mnist" else None
        problem = problems.make(task, data_dir=data_dir)
        runs.data[problem.data.name] = problem.data.warning.partition("\n")[0]
        of, table = (problem, optimizer, runs.seeds), pd.DataFrame({"seed": range(runs.seeds)})
        for name, dtype in PRECISIONS.items():
            large, mean = train(*of, steps, dtype), train(*of, steps, dtype, PARTS, 1 / PARTS)
            table[name] = ((mean.last - large.last).norm(dim=1) / large.last.norm(dim=1)).numpy()
            if dtype == torch.float64:
                total = train(*of, 1, dtype, PARTS)
                table["sum"] = (total.first.norm(dim=1) / mean.first.norm(dim=1)).numpy()
        rows.append(table.assign(task=task, optimizer=optimizer))
    found = pd.concat(rows, ignore_index=True)
    # Not even one rounding is no difference, which has no logarithm.
    found[[*PRECISIONS]] = found[[*PRECISIONS]].clip(lower=2.0**-53 / 1000)
    samples = {DIFFERENCE: np.log10(found["float64"]), RATIO: np.log2(found["float32"] / found["float64"])}
    samples |= {name: found.loc[found["optimizer"].isin(which), "sum"] for name, which in SUM.items()}
    notes = ["Adam's first step hardly changes with a sum, which can hide that a mean over batches was forgotten."]
    return Measured({name: sample.to_numpy() for name, sample in samples.items()}, {"cases": found}, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    cases, styles = measured.tables["cases"], looks.of_optimizers(NAMES)
    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.0))
        left, right = drawn.subplots(1, 2, width_ratios=(3, 2))
        columns = list(itertools.product(PRECISIONS, TASKS))
        for place, (name, look) in enumerate(styles.items()):
            how = {"marker": look.marker, "color": look.colour, "linestyle": "none"}
            own = cases.loc[cases["optimizer"] == name]
            for column, (precision, task) in enumerate(columns):
                differences = own.loc[own["task"] == task, precision].to_numpy()
                x = column + 0.16 * (place - 1.5) + np.linspace(-0.04, 0.04, len(differences))
                left.plot(x, differences, **how, label=None if column else NAMES[name])
            x = place + np.linspace(-0.2, 0.2, len(own))
            right.plot(x, own["sum"], **how)
        for digits, (name, at) in zip((24, 53), zip(PRECISIONS, (0.5, 2.5), strict=True), strict=True):
            left.plot([at - 1, at + 1], [2.0**-digits] * 2, color="black", linewidth=0.8, linestyle="--")
            left.annotate(
                f"rounding of {name}, 2^-{digits}",
                (at - 0.95, 2.0**-digits),
                (0, -11),
                textcoords="offset points",
                fontsize=8.5,
            )
        left.set(yscale="log", ylim=(1e-17, 1e-5))
        left.set_xticks(range(len(columns)), [f"{precision}\n{TASKS[task]}" for precision, task in columns])
        left.set(ylabel="‖difference‖ / ‖movement of the weights‖", title="4 x 32 accumulated, against 128 at once")
        left.legend(loc="upper right")
        for factor, text in ((1, "scale-free"), (PARTS, "4 x the gradient")):
            right.axhline(factor, color="black", linewidth=0.8, linestyle="--")
            right.annotate(text, (-0.4, factor), (0, 4), textcoords="offset points", fontsize=8.5)
        right.set_xticks(range(len(NAMES)), [*NAMES.values()])
        right.set(ylim=(0, 4.6), ylabel="‖first step, sum‖ / ‖first step, mean‖", title="a sum in place of the mean")
    return drawn


CLAIMS = (
    Claim(
        name="article-accumulation",
        says="Gradients accumulated over several small batches, as a mean, are those of one large batch.",
        source=ARTICLE,
        setup="An MLP 10-20-30-1 on a regression and an MLP 784-32-32-10 on MNIST are trained for 50 steps by Adam and "
        "NAdam (lr 1e-3), SGD (lr 0.1) and Nesterov's momentum (lr 0.01), from three seeds. Each batch of 128 is taken "
        "at once, or in 4 parts of 32 whose gradients are averaged. The difference between both final weights is "
        "divided by the distance from the initial ones, in float32 and in float64. A rounding error falls from float32 "
        "to float64 by 2^29. In float64 also the norm of the first step is compared, where gradients are added up and "
        "not averaged. Neither network has a layer that mixes examples, such as batch normalisation, with which the "
        "claim could not hold.",
        confirms="in every case the difference in float64 is at most 1e-12, that in float32 is 2^27 to 2^31 times as "
        "large, and a sum over 4 batches makes the first step of SGD and Nesterov 4 times as long, and that of Adam "
        "and NAdam no longer than 1.001 times",
        refutes="one of these is not so in one case",
        effects={
            DIFFERENCE: Region(high=-12, exact=True),
            RATIO: Region(BITS - 2, BITS + 2, exact=True),
            **{
                name: Region(scale - 1e-3, scale + 1e-3, exact=True)
                for name, scale in zip(SUM, (PARTS, 1), strict=True)
            },
        },
        measure=measure,
        draw=draw,
        seeds=3,
        quick={"steps": 50},
        trial={"steps": 2},
    ),
)

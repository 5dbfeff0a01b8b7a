"""How long rare classes take: gradient descent against Adam on classes of very different frequencies.

If all inputs of class k are the unit vector e_k, softmax regression from zero treats each class on its own. The
gradient of its weights is that of a class alone, times its frequency pi_k: gradient descent with a small lr has at step
t the loss f(pi_k t) of one function f, so that the steps to any loss go as pi_k^-1. Adam divides by the size of the
gradient, and pi_k cancels: its steps do not depend on it. This is the simple imbalanced setting of the source, where
the loss is shown to be of order 1 / (pi_k t), and of order e^(-ct) under sign descent.

Random inputs have a mean, in whose direction all examples of a class add up, and each has a direction of its own, in
which it is learned alone, however frequent its class is. Nothing is exact then.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

import optim
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = {"sgd": optim.SGD, "adam": optim.Adam}
LRS = {
    "sgd": tuple(float(lr) for lr in np.geomspace(1e-3, 10, 9)),
    "adam": tuple(float(lr) for lr in np.geomspace(1e-5, 1e-1, 9)),
}
"""What is tuned over with random inputs."""
TUNING_SEEDS = 3
REACHED = math.log(2)
"""The loss of a class to which steps are counted: its examples have half of the probability. Its share of the examples
alone, without looking at inputs, would give no class so low a loss."""
OTHERS = 1.5, 0.1
"""Losses to which slopes are told beside: where inputs are random, they depend on it."""
FLOW = 0.1
"""Where inputs are alike, lr of gradient descent as a share of 1 / L, with L half of the largest pi_k."""
LR_ALIKE = 1e-2
NAMES = {"sgd": "slope of gradient descent", "adam": "slope of Adam"}
CLAIMED = {"sgd": -1.0, "adam": 0.0}


class Classes(NamedTuple):
    """A data set whose classes have few frequencies.

    Attributes:
        x: `[seeds, n, d]` inputs, one set for each seed.
        y: int64 `[n]` classes.
        weight: `[n]`, of each example in the loss; they add up to 1.
        frequency: float64 `[c]`, of each class.
    """

    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor
    frequency: np.ndarray


def classes(size: int) -> torch.Tensor:
    """Return the class of each example: 2^i classes of 2^(size - i) examples, i from 0 to size - 1; int64 `[n]`."""
    counts = torch.cat([torch.full((2**i,), 2 ** (size - i)) for i in range(size)])
    return torch.arange(len(counts)).repeat_interleave(counts)


def with_inputs_alike(size: int) -> Classes:
    """Return an example e_k for each class k, with the frequency of the class as its weight."""
    frequency = classes(size).bincount().double()
    frequency /= frequency.sum()
    n = len(frequency)
    return Classes(torch.eye(n, dtype=torch.float64)[None], torch.arange(n), frequency, frequency.numpy())


def with_random_inputs(size: int, seeds: range, centred: bool = False) -> Classes:
    """Return examples with (size + 1) 2^size features uniform in [0, 1], and a constant one for the bias.

    centred: features are uniform in [-1/2, 1/2] instead, and there is no bias.
    """
    y = classes(size)
    drawn = []
    for seed in seeds:
        x = torch.rand(len(y), (size + 1) * 2**size, generator=torch.Generator().manual_seed(seed))
        drawn.append(torch.cat([x - 0.5 * centred, torch.full((len(y), 1), float(not centred))], 1))
    weight = torch.full((len(y),), 1 / len(y))
    return Classes(torch.stack(drawn), y, weight, (y.bincount() / len(y)).double().numpy())


def initial(data: Classes, seeds: range) -> torch.Tensor:
    """Return weights as of `torch.nn.Linear`, bias last, `[seeds, c, d]`."""
    bound, shape = (data.x.shape[2] - 1) ** -0.5, (len(data.frequency), data.x.shape[2])
    drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(10**6 + seed)) for seed in seeds]
    return (2 * torch.stack(drawn) - 1) * bound


def losses(data: Classes, start: torch.Tensor, optimizer: str, lrs: tuple[float, ...], steps: int) -> np.ndarray:
    """Train by full-batch softmax regression, and return the losses of the classes of each frequency before each step.

    Args:
        start: `[seeds, c, d]` first weights, for every lr.
    Returns: `[steps, seeds, lrs, frequencies]`, the most frequent first.
    """
    seeds, c, d = start.shape
    w = start[:, None].repeat(1, len(lrs), 1, 1).flatten(0, 1).requires_grad_()
    lr = torch.tensor(lrs, dtype=torch.float64).repeat(seeds)
    taken = OPTIMIZERS[optimizer]([w], lr=lr)
    group = np.unique(-data.frequency, return_inverse=True)[1][data.y.numpy()]
    mean = torch.nn.functional.one_hot(torch.from_numpy(group)).to(data.x)
    mean /= mean.sum(0)
    transposed, target = data.x.mT.contiguous(), data.y[None, None].expand(len(w), 1, -1)
    found = []
    for _ in range(steps):
        logits = (w.detach().view(seeds, -1, d) @ transposed).view(len(w), c, -1)
        log_p = logits.log_softmax(1)
        found.append(-log_p.gather(1, target)[:, 0] @ mean)
        wrong = log_p.exp_().scatter_add_(1, target, -torch.ones_like(target).to(log_p)).mul_(data.weight)
        w.grad = (wrong.view(seeds, -1, len(data.y)) @ data.x).view_as(w)
        taken.step()
    return torch.stack(found).unflatten(1, (seeds, len(lrs))).double().numpy()


def steps_to(curves: np.ndarray, loss: float) -> np.ndarray:
    """Return after how many steps curves first reach a loss, between steps by a line, infinite if they do not.

    curves: `[steps, ...]`.
    """
    below = curves <= loss
    at = np.maximum(below.argmax(0), 1)[None]
    before, after = (np.take_along_axis(curves, at - shift, 0)[0] for shift in (1, 0))
    found = at[0] - (loss - after) / np.maximum(before - after, 1e-300)
    return np.where(np.any(below, axis=0), found, math.inf)


def slopes(frequency: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the slope of log steps `[..., frequencies]` over log frequency, -infinite if a class takes for ever."""
    x = np.log(frequency) - np.log(frequency).mean()
    reached = np.isfinite(steps).all(-1)
    log = np.log(np.where(np.expand_dims(reached, -1), np.maximum(steps, 1e-9), 1.0))
    return np.where(reached, (log * x).sum(-1) / (x * x).sum(), -math.inf)


def largest_falling(curves: np.ndarray) -> int:
    """Return which lr is the largest with which the mean loss falls in every step of every seed, or 0 if none is.

    curves: `[steps, seeds, lrs, frequencies]`; every frequency has as many examples, and lrs ascend.
    """
    mean = curves.mean(-1)
    falls = np.all(np.diff(mean, axis=0) <= 1e-6 * mean[0], axis=(0, 1))
    return int(np.flatnonzero(falls).max(initial=0))


def result(data: Classes, curves: dict[str, np.ndarray], notes: list[str]) -> Measured:
    """Return slopes by seed, steps, and curves. curves: `[steps, seeds, frequencies]` of each optimizer."""
    import pandas as pd

    frequency = np.unique(data.frequency)[::-1]
    samples, reached, drawn = {}, [], []
    for optimizer, losses_ in curves.items():
        steps = steps_to(losses_, REACHED)
        samples[NAMES[optimizer]] = slopes(frequency, steps)
        for place, of in enumerate(frequency):
            reached += [(optimizer, of, seed, at) for seed, at in enumerate(steps[:, place])]
            some = np.unique(np.geomspace(1, len(losses_) - 1, 200).round().astype(int))
            drawn += [(optimizer, of, step, np.median(losses_[step, :, place])) for step in some]
    tables = {
        "steps": pd.DataFrame(reached, columns=["optimizer", "frequency", "seed", "steps"]),
        "curves": pd.DataFrame(drawn, columns=["optimizer", "frequency", "step", "loss"]),
    }
    return Measured(samples, tables, notes)


def measure_alike(runs: Runs, size: int, steps: int) -> Measured:
    data = with_inputs_alike(size)
    n = len(data.frequency)
    start, lrs = torch.zeros(1, n, n, dtype=torch.float64), {"sgd": 2 * FLOW / data.frequency.max(), "adam": LR_ALIKE}
    curves = {name: losses(data, start, name, (lr,), steps)[:, :, 0] for name, lr in lrs.items()}
    return result(data, curves, ["Adam's curves of all frequencies coincide in the figure."])


def measure_random(runs: Runs, size: int, steps: int, lrs: dict[str, tuple[float, ...]] = LRS) -> Measured:
    tuning, fresh = range(TUNING_SEEDS), range(TUNING_SEEDS, TUNING_SEEDS + runs.seeds)
    tuned, data = with_random_inputs(size, tuning), with_random_inputs(size, fresh)
    curves, chosen, notes = {}, {}, []
    for name in OPTIMIZERS:
        place = largest_falling(losses(tuned, initial(tuned, tuning), name, lrs[name], steps))
        if place in (0, len(lrs[name]) - 1):
            notes.append(f"The lr of {name} lies at an end of its grid.")
        curves[name] = losses(data, initial(data, fresh), name, lrs[name][place : place + 1], steps)[:, :, 0]
        chosen[name] = lrs[name][place]
        notes.append(f"The lr of {name} is {chosen[name]:.2g}.")
    frequency = np.unique(data.frequency)[::-1]
    for loss in OTHERS:
        others = (f"{np.median(slopes(frequency, steps_to(curves[name], loss))):.2f}" for name in OPTIMIZERS)
        notes.append(f"To a loss of {loss:g} the slopes of gradient descent and Adam are {' and '.join(others)}.")
    data = with_random_inputs(size, fresh, centred=True)
    centred = losses(data, initial(data, fresh), "sgd", (chosen["sgd"],), steps)[:, :, 0]
    slope = np.median(slopes(frequency, steps_to(centred, REACHED)))
    notes.append(f"If inputs are centred, so that they have no mean, the slope of gradient descent is {slope:.2f}.")
    return result(data, curves, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import colormaps, style
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from experiments.common.figure_style import STYLE
    from experiments.reports import looks

    titles = {"sgd": "gradient descent", "adam": "Adam"}
    with style.context(STYLE):
        drawn = Figure(figsize=(11.0, 3.9))
        *panels, last = drawn.subplots(1, 3)
        panels[1].sharey(panels[0])
        curves, reached = measured.tables["curves"], measured.tables["steps"]
        frequency = np.sort(curves["frequency"].drop_duplicates().to_numpy(float))[::-1]
        for ax, name in zip(panels, OPTIMIZERS, strict=True):
            for number, of in enumerate(frequency):
                shade = colormaps["viridis"](0.9 * number / max(1, len(frequency) - 1))
                curve = curves.loc[(curves["optimizer"] == name) & (curves["frequency"] == of)]
                ax.plot(curve["step"], curve["loss"], color=shade, linewidth=1.4, label=f"1/{1 / of:.0f}")
            ax.axhline(REACHED, color="black", linewidth=0.8, linestyle="--")
            ax.annotate("log 2", (1, REACHED), xytext=(2, 3), textcoords="offset points", fontsize=8.5)
            ax.set(xscale="log", yscale="log", ylim=(0.02, None), xlabel="step", title=titles[name])
        panels[0].legend(title="frequency of a class", loc="lower left", ncols=2)
        panels[0].set_ylabel("mean loss of classes of a frequency")
        for name, look in looks.of_optimizers(OPTIMIZERS).items():
            found = reached.loc[(reached["optimizer"] == name) & np.isfinite(reached["steps"])]
            median = found.groupby("frequency")["steps"].median()
            last.plot(found["frequency"], found["steps"], "_", color=look.colour, markersize=5)
            last.plot(median.index, median, look.marker, color=look.colour, linestyle="none", label=titles[name])
            if len(median):
                line = median.iloc[-1] * (frequency / frequency[0]) ** CLAIMED[name]
                last.plot(frequency, line, color=look.colour, linewidth=1, label=f"slope {CLAIMED[name]:g}")
        last.set(xscale="log", yscale="log", xlabel="frequency of the class", ylabel="steps to a loss of log 2")
        last.set_xticks(frequency, [f"1/{1 / of:.0f}" for of in frequency])
        last.xaxis.set_minor_locator(NullLocator())
        last.set_title("Steps to the dashed loss (dashes: seeds)")
        last.legend()
    return drawn


SOURCE = (
    "Kunstner et al. 2024, Heavy-Tailed Class Imbalance and Why Adam Outperforms Gradient Descent on Language Models, "
    "arXiv:2402.19449, "
)
CLAIMS = (
    Claim(
        name="heavy-tailed",
        says="With classes of very different sizes the steps to a loss go as the frequency of the class to the power "
        "-1 under gradient descent, and do not depend on it under Adam, also if inputs are random.",
        source=SOURCE + "linear model on random data; the power is shown for inputs that are alike",
        setup="Softmax regression with a bias on the authors' random data of size 5: 2^i classes of 2^(5 - i) examples "
        "each, i from 0 to 4, 192 features uniform in [0, 1], all 160 examples in each step. The smallest that the "
        "authors trained is of size 7. Steps are counted to a mean loss of log 2 over the classes of a frequency, and "
        "the slope is that of a line through their logarithms. The lr is the largest of nine, a factor sqrt(10) apart, "
        "with which the loss falls in every step of three other seeds, because what is shown is for small lr. Each "
        "seed has its own inputs and initial weights.",
        confirms="the slope of gradient descent is nearer to -1 than 0.25, and that of Adam nearer to 0 than 0.25",
        refutes="either is farther from it",
        effects={NAMES["sgd"]: Region(-1.25, -0.75), NAMES["adam"]: Region(-0.25, 0.25)},
        measure=measure_random,
        draw=draw,
        quick={"size": 5, "steps": 2000},
        full={"size": 7, "steps": 10_000},
        trial={"size": 3, "steps": 150, "lrs": {"sgd": (0.3,), "adam": (0.03,)}},
    ),
    Claim(
        name="heavy-tailed-alike",
        says="If all inputs of a class are alike, the steps to a loss go as the frequency of the class to the power -1 "
        "under gradient descent, and do not depend on it under Adam.",
        source=SOURCE + "the simple imbalanced setting",
        setup="Softmax regression from zero in float64, where every input of class k is the unit vector e_k; 2^i "
        "classes of 2^(7 - i) examples each, i from 0 to 6. Gradient descent takes a tenth of the step 1 / L, as what "
        "is shown is for small lr, and Adam lr 0.01. Steps are counted to a loss of log 2, and the slope is that of a "
        "line through their logarithms. Nothing is random.",
        confirms="the slope of gradient descent is within 0.05 of -1, and that of Adam within 0.05 of 0",
        refutes="either is farther from it",
        effects={NAMES["sgd"]: Region(-1.05, -0.95, exact=True), NAMES["adam"]: Region(-0.05, 0.05, exact=True)},
        measure=measure_alike,
        draw=draw,
        seeds=1,
        quick={"size": 7, "steps": 3000},
        trial={"size": 2, "steps": 50},
    ),
)

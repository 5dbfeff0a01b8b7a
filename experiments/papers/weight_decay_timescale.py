"""Does AdamW's best weight decay keep a timescale in epochs, with and without normalised layers?

AdamW's parameters are an exponential moving average of its updates,

    p <- (1 - lr weight_decay) p + lr weight_decay (-update / weight_decay),

with a timescale of tau = 1 / (lr weight_decay) steps. If the best tau is a number of epochs, whatever lr is, the best
weight decay is as 1 / lr: a slope of -1 in logarithms. What tau leaves open is the average's scale, 1 / weight_decay.
A network does not see it where each layer is normalised, but otherwise it does, and then nothing says that it is tau
which has to be kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region
from experiments.tasks.data import mnist
from experiments.tasks.own import Problem

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from experiments.tasks.data import Dataset

BATCH_SIZE = 32
DECAYS = tuple(2.0**power for power in range(-7, 2))
"""The values of weight decay, the same everywhere: where losses are noise, the best one has a slope of 0, not -1."""
SLOPE = "slope of log(best weight decay) over log(lr)"
LR = 2e-3, 4e-3, 8e-3, 16e-3


def normalised(data: Dataset) -> Problem:
    """Return the MNIST MLP with each hidden layer normalised, so that the scale of its weights does not matter."""
    return Problem(
        name=f"{data.name}, normalised MLP",
        model=lambda: nn.Sequential(
            *(nn.Linear(784, 32, bias=False), nn.LayerNorm(32), nn.ReLU()),
            *(nn.Linear(32, 32, bias=False), nn.LayerNorm(32), nn.ReLU()),
            nn.Linear(32, 10),
        ),
        train=(data.x_train, data.y_train),
        evaluate=(data.x_eval, data.y_eval),
        loss=nn.functional.cross_entropy,
    )


def lowest(x: np.ndarray, y: np.ndarray) -> float:
    """Return where the parabola through five values around the lowest one has its minimum.

    It is sought between the outer two of the five, because of noisy values: where the parabola opens downwards, the
    lowest value of all is taken.

    Args:
        x: at least three numbers that increase.
        y: values there.
    """
    at = int(np.argmin(y))
    first = min(max(at - 2, 0), max(len(x) - 5, 0))
    near = slice(first, first + 5)
    a, b, _ = np.polyfit(x[near] - x[at], y[near], 2)
    return float(np.clip(x[at] - b / (2 * a), x[near][0], x[near][-1])) if a > 0 else float(x[at])


def best_decays(table: pd.DataFrame) -> pd.DataFrame:
    """Return for each lr and seed log2 of the best weight decay, `best`.

    table: a row for each run, with its loss.
    """
    import pandas as pd

    rows = []
    for _, runs in table.groupby(["seed", "lr"]):
        ordered = runs.sort_values("weight_decay")
        x, y = (np.log2(ordered[name].to_numpy()) for name in ("weight_decay", "loss"))
        rows.append((ordered["seed"].iloc[0], ordered["lr"].iloc[0], lowest(x, y)))
    return pd.DataFrame(rows, columns=["seed", "lr", "best"])


def measure(
    runs: Runs,
    is_normalised: bool,
    epochs: int,
    n_train: int,
    lr: tuple[float, ...] = LR,
    decays: tuple[float, ...] = DECAYS,
) -> Measured:
    def task() -> Problem:
        return normalised(mnist(runs.options.get("data_dir")))

    size = {"epochs": epochs, "n_train": n_train, "batch_size": BATCH_SIZE, "schedule": "cosine", "evaluations": 1}
    grid = {"optimizer": "adamw", "lr": lr, "weight_decay": decays}
    table = runs.sweep("lr-decay", task if is_normalised else "mnist", **grid, **size).runs
    # A run that diverged has learnt nothing.
    table = table.assign(loss=table["eval_loss"].fillna(math.inf).clip(upper=math.log(10)))
    best = best_decays(table)
    slopes = [np.polyfit(np.log2(rows["lr"]), rows["best"], 1)[0] for _, rows in best.groupby("seed")]
    medians = 2 ** best.groupby("lr")["best"].median()
    at_edge = int(best["best"].isin(np.log2([decays[0], decays[-1]])).sum())
    notes = [
        f"Best weight decay at lr {', '.join(f'{one:g}' for one in lr)}: "
        f"{', '.join(f'{medians[one]:.3g}' for one in lr)} (medians), a timescale of "
        f"{', '.join(f'{BATCH_SIZE / (one * medians[one] * n_train):.2g}' for one in lr)} epochs.",
        f"{at_edge} of {len(best)} best weight decays are the grid's lowest or highest.",
    ]
    columns = ["lr", "weight_decay", "seed", "loss"]
    return Measured({SLOPE: np.array(slopes)}, {"runs": table.loc[:, columns], "best": best}, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE
    from experiments.reports.looks import COLOURS, MARKERS

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.0))
        left, right = drawn.subplots(1, 2)
        table, best = measured.tables["runs"], measured.tables["best"]
        for number, lr in enumerate(sorted(set(table["lr"]))):
            of_lr = table.loc[table["lr"] == lr]
            by_decay = of_lr.groupby("weight_decay")["loss"]
            q25, median, q75 = (by_decay.quantile(q) for q in (0.25, 0.5, 0.75))
            look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5}
            left.plot(lr * median.index, median, label=f"lr {lr:g}", **look)
            left.fill_between(lr * median.index, q25, q75, color=COLOURS[number], alpha=0.2, linewidth=0)
        left.set(xscale="log", yscale="log", xlabel="lr × weight decay", ylabel="evaluation cross-entropy")
        left.yaxis.set_major_formatter("{x:.3g}")
        left.yaxis.set_minor_formatter("{x:.3g}")
        left.set_title(f"Loss at the end. Band: quartiles of {best['seed'].nunique()} seeds")
        values = np.array(sorted(set(best["lr"])))
        medians = np.array([2 ** best.loc[best["lr"] == value, "best"].median() for value in values])
        # Seeds side by side.
        aside = 2 ** ((best["seed"] - best["seed"].mean()) / max(1, best["seed"].max()) / 4)
        right.plot(best["lr"] * aside, 2 ** best["best"], "o", color="0.6", markersize=3, label="a seed")
        right.plot(values, medians, "D-", color=COLOURS[0], label="median")
        middle = np.exp(np.log(values * medians).mean())
        right.plot(values, middle / values, "--", color="black", linewidth=1, label="slope -1: lr × weight decay kept")
        right.set(xscale="log", yscale="log", xlabel="lr", ylabel="best weight decay", title="Best weight decay")
        right.set_xticks(values, [f"{value:g}" for value in values])
        right.set_xticks([], minor=True)
        right.yaxis.set_major_formatter("{x:.3g}")
        right.yaxis.set_minor_formatter("")
        for ax in (left, right):
            ax.legend()
    return drawn


SETUP = (
    "4,000 examples for 10 epochs with a cosine schedule, batches of 32, AdamW's other defaults, lr 2e-3 to 1.6e-2 "
    "and, at each lr, weight decays from 2^-7 to 2. The best weight decay of a seed is where a parabola through the "
    "logarithms of the five losses around the lowest one, on all test images, has its minimum. Samples are slopes of "
    "its logarithm over that of lr. The region is what is nearer to -1 than to 0, which is a weight decay that stays, "
    "or to -2. The source trains ResNet-18, ViT and NanoGPT."
)
TEXTS: dict[str, Any] = {
    "source": "Wang and Aitchison 2024, How to set AdamW's weight decay as you scale model and dataset size, "
    "arXiv:2405.13698",
    "confirms": "the slope is between -1.5 and -0.5",
    "refutes": "it is outside",
    "effects": {SLOPE: Region(-1.5, -0.5)},
    "measure": measure,
    "draw": draw,
    "trial": {"epochs": 1, "n_train": 128, "lr": LR[:2], "decays": (0.01, 0.1, 1.0)},
}
CLAIMS = (
    Claim(
        name="weight-decay-timescale",
        says="AdamW's best weight decay lies along lr * weight_decay constant, which is a timescale in epochs, in a "
        "network with normalised layers.",
        setup=f"The MNIST MLP 784-32-32-10 with LayerNorm before each ReLU, normalised as the source's are. {SETUP}",
        quick={"is_normalised": True, "epochs": 10, "n_train": 4000},
        **TEXTS,
    ),
    Claim(
        name="weight-decay-timescale-plain",
        says="AdamW's best weight decay lies along lr * weight_decay constant also in a network without normalised "
        "layers, where the scale of weights matters.",
        setup=f"The MNIST MLP 784-32-32-10, unlike the source's networks without normalisation. {SETUP}",
        quick={"is_normalised": False, "epochs": 10, "n_train": 4000},
        **TEXTS,
    ),
)

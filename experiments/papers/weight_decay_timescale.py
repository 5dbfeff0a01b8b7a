"""Does AdamW's best weight decay keep a timescale in epochs, with and without normalised layers?

AdamW's parameters are an exponential moving average of its updates,

    p <- (1 - lr weight_decay) p + lr weight_decay (-update / weight_decay),

with a timescale of tau = 1 / (lr weight_decay) steps. If the best tau is a number of epochs, the best weight decay is
as 1 / lr, and as 1 / the number of examples: slopes of -1 in logarithms. What tau leaves open is the average's scale,
1 / weight_decay. Layers that are normalised do not see it, but others do, such as the last one, and for these nothing
says that it is tau which has to be kept when lr changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from experiments.papers.bands import draw_band
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.optimum import lowest
from experiments.papers.verdicts import Region
from experiments.tasks.data import mnist
from experiments.tasks.own import Problem

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


BATCH_SIZE = 32
DECAYS = tuple(2.0**power for power in range(-7, 2))
"""The values of weight decay, the same everywhere: where losses are noise, the best one has a slope of 0, not -1."""
OVER_LR = "slope of log(best weight decay) over log(lr)"
NAMES = {"lr": "lr", "n_train": "examples"}
OVER_EXAMPLES = "slope of log(best weight decay) over log(examples)"
LR = 2e-3, 4e-3, 8e-3, 16e-3
EXAMPLES = 1000, 2800, 8000


def normalised() -> Problem:
    """Return the MNIST MLP with each hidden layer normalised, so that the scale of its weights does not matter."""
    data = mnist()
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


def best_decays(table: pd.DataFrame, over: str, points: int = 5) -> pd.DataFrame:
    """Return for each value of a column and each seed log2 of the best weight decay, `best`.

    Args:
        table: a row for each run, with its loss.
        points: of `lowest`.
    """
    import pandas as pd

    rows = []
    for _, runs in table.groupby(["seed", over]):
        ordered = runs.sort_values("weight_decay")
        x, y = (np.log2(ordered[name].to_numpy()) for name in ("weight_decay", "loss"))
        rows.append((ordered["seed"].iloc[0], ordered[over].iloc[0], lowest(x, y, points)))
    return pd.DataFrame(rows, columns=["seed", over, "best"])


def slopes(best: pd.DataFrame, over: str) -> np.ndarray:
    """Return the slope of log2 of the best weight decay over log2 of a column, for each seed in turn."""
    return np.array([np.polyfit(np.log2(rows[over]), rows["best"], 1)[0] for _, rows in best.groupby("seed")])


def measure(
    runs: Runs,
    is_normalised: bool,
    epochs: int,
    lr: tuple[float, ...],
    n_train: tuple[int, ...],
    decays: tuple[float, ...] = DECAYS,
) -> Measured:
    """Sweep the weight decay over several values of lr or several of n_train, and one of the other."""
    over = "lr" if len(lr) > 1 else "n_train"
    examples = {"axes": {"n_train": n_train}} if over == "n_train" else {"n_train": n_train[0]}
    size = {"epochs": epochs, "batch_size": BATCH_SIZE, "schedule": "cosine", "evaluations": 1}
    grid = {"optimizer": "adamw", "lr": lr, "weight_decay": decays, **examples}
    table = runs.sweep("lr-decay", normalised if is_normalised else "mnist", **grid, **size).runs
    # A run that diverged has learnt nothing.
    table = table.assign(loss=table["eval_loss"].fillna(math.inf).clip(upper=math.log(10)))
    best = best_decays(table, over)
    found = slopes(best, over)
    values = lr if over == "lr" else n_train
    medians = [2 ** best.loc[best[over] == value, "best"].median() for value in values]
    steps = [one * n / BATCH_SIZE for one in lr for n in n_train]
    at_edge = int(best["best"].isin(np.log2([decays[0], decays[-1]])).sum())
    notes = [
        f"Best weight decay at {NAMES[over]} {', '.join(f'{value:g}' for value in values)}: "
        f"{', '.join(f'{median:.3g}' for median in medians)} (medians), a timescale of "
        f"{', '.join(f'{1 / (median * step):.2g}' for median, step in zip(medians, steps, strict=True))} epochs.",
        f"{at_edge} of {len(best)} best weight decays are the grid's lowest or highest. With parabolas through three "
        f"losses the median slope is {np.median(slopes(best_decays(table, over, 3), over)):.2f}.",
    ]
    columns = [over, "weight_decay", "seed", "loss"]
    samples = {OVER_LR if over == "lr" else OVER_EXAMPLES: found}
    return Measured(samples, {"runs": table.loc[:, columns], "best": best}, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE
    from experiments.reports.looks import COLOURS, MARKERS

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.0))
        left, right = drawn.subplots(1, 2)
        table, best = measured.tables["runs"], measured.tables["best"]
        over = "lr" if "lr" in best else "n_train"
        values = np.array(sorted(set(best[over])))
        for number, value in enumerate(values):
            by_decay = table.loc[table[over] == value].groupby("weight_decay")["loss"]
            name, factor = (f"lr {value:g}", value) if over == "lr" else (f"{value:g} examples", 1.0)
            look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5}
            draw_band(left, by_decay, factor, label=name, **look)
        along = "lr × weight decay" if over == "lr" else "weight decay"
        left.set(xscale="log", yscale="log", xlabel=along, ylabel="evaluation cross-entropy")
        left.yaxis.set_major_formatter("{x:.3g}")
        left.yaxis.set_minor_formatter("{x:.3g}")
        left.set_title(f"Loss at the end. Band: quartiles of {best['seed'].nunique()} seeds")
        medians = np.array([2 ** best.loc[best[over] == value, "best"].median() for value in values])
        # Seeds side by side.
        aside = 2 ** ((best["seed"] - best["seed"].mean()) / max(1, best["seed"].max()) / 4)
        right.plot(best[over] * aside, 2 ** best["best"], "o", color="0.6", markersize=3, label="a seed")
        right.plot(values, medians, "D-", color=COLOURS[0], label="median")
        middle = np.exp(np.log(values * medians).mean())
        right.plot(values, middle / values, "--", color="black", linewidth=1, label="slope -1: timescale kept")
        right.set(xscale="log", yscale="log", xlabel=NAMES[over], ylabel="best weight decay", title="Best weight decay")
        right.set_xticks(values, [f"{value:g}" for value in values])
        right.set_xticks([], minor=True)
        right.yaxis.set_major_formatter("{x:.3g}")
        right.yaxis.set_minor_formatter("{x:.2g}")
        right.tick_params(which="minor", labelsize=8)
        for ax in (left, right):
            ax.legend()
    return drawn


SETUP = (
    "10 epochs with a cosine schedule, batches of 32, AdamW's other defaults, and weight decays from 2^-7 to 2. The "
    "best weight decay of a seed is where a parabola through the logarithms of the five losses around the lowest one, "
    "on all test images, has its minimum. Samples are slopes of its logarithm. The region is what is nearer to -1 than "
    "to 0, which is a weight decay that stays, or to -2. The source trains ResNet-18, ViT and NanoGPT."
)
NORMALISED = "The MNIST MLP 784-32-32-10 with LayerNorm before each ReLU, normalised as the source's are,"
TEXTS: dict[str, Any] = {
    "source": "Wang and Aitchison 2024, How to set AdamW's weight decay as you scale model and dataset size, "
    "arXiv:2405.13698",
    "confirms": "the slope is between -1.5 and -0.5",
    "refutes": "it is outside",
    "measure": measure,
    "draw": draw,
}
SMALL: dict[str, Any] = {"epochs": 1, "decays": (0.01, 0.1, 1.0)}
REGION = Region(-1.5, -0.5)
CLAIMS = (
    Claim(
        name="weight-decay-timescale",
        says="AdamW's best weight decay lies along lr * weight_decay constant, which is a timescale in epochs, in a "
        "network with normalised layers.",
        setup=f"{NORMALISED} and 4,000 examples, with lr 2e-3 to 1.6e-2. {SETUP}",
        effects={OVER_LR: REGION},
        quick={"is_normalised": True, "epochs": 10, "lr": LR, "n_train": (4000,)},
        trial={**SMALL, "lr": LR[:2], "n_train": (128,)},
        **TEXTS,
    ),
    Claim(
        name="weight-decay-timescale-plain",
        says="AdamW's best weight decay lies along lr * weight_decay constant also in a network without normalised "
        "layers, where the scale of weights matters.",
        setup="The MNIST MLP 784-32-32-10, unlike the source's networks without normalisation, and 4,000 examples, "
        f"with lr 2e-3 to 1.6e-2. {SETUP}",
        effects={OVER_LR: REGION},
        quick={"is_normalised": False, "epochs": 10, "lr": LR, "n_train": (4000,)},
        trial={**SMALL, "lr": LR[:2], "n_train": (128,)},
        **TEXTS,
    ),
    Claim(
        name="weight-decay-examples",
        says="AdamW's best weight decay is as 1 / the number of examples, which keeps its timescale in epochs.",
        setup=f"{NORMALISED} with 1,000, 2,800 and 8,000 examples at lr 8e-3. {SETUP}",
        effects={OVER_EXAMPLES: REGION},
        quick={"is_normalised": True, "epochs": 10, "lr": (8e-3,), "n_train": EXAMPLES},
        trial={**SMALL, "n_train": (64, 128)},
        **TEXTS,
    ),
)

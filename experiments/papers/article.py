"""Adam against SGD, Nesterov's momentum and NAdam, as an introductory article compares them, on four networks.

Each optimizer is tuned on as many learning rates as the others, in equal ratios around what short runs of one seed had
liked; its momentum, betas and eps are the defaults. The best learning rate is trained again on seeds that did not
choose it, and losses are compared seed by seed: all four begin with the same weights and see the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region
from experiments.reports import looks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ARTICLE = "The introductory article on Adam with which this sandbox began; its networks, but lengths and grids of ours"
NAMES = {"adam": "Adam", "sgd": "SGD", "nesterov": "Nesterov", "nadam": "NAdam"}
MARGIN = 1.2
"""Losses within this factor are about the same: another seed changes as much (three seeds of Adam in the gallery's
studies of regression and of the MLP: 0.045 to 0.065, 0.173 to 0.196)."""
EFFECTS = {name: f"log2 of {NAMES[name]}'s loss / Adam's" for name in ("sgd", "nesterov", "nadam")}


def grid(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return learning rates in equal ratios, from 10^low to 10^high."""
    return tuple(float(f"{lr:.3g}") for lr in np.logspace(low, high, count))


def capped(runs: pd.DataFrame) -> pd.Series:
    """Return final evaluation losses, of those that are higher, or of a run that diverged, the loss before training."""
    initial = runs["initial_eval_loss"]
    is_lower = (runs["status"] == "ok") & (runs["eval_loss"] < initial)
    return runs["eval_loss"].where(is_lower, initial)


def measure(
    runs: Runs, task: str, lr: Mapping[str, tuple[float, ...]], tuning_seeds: int, training: Mapping[str, Any]
) -> Measured:
    options = {"optimizer": [*NAMES], "lr": lr, "evaluations": 1, **training}
    tuned = runs.sweep("tuned", task, seeds=tuning_seeds, **options).runs
    fresh = runs.again(tuned, "tuned", task, **options).runs
    tuned, fresh = (table.assign(loss=capped(table)) for table in (tuned, fresh))
    by_seed = fresh.pivot(index="seed", columns="optimizer", values="loss")
    samples = {effect: np.log2(by_seed[name] / by_seed["adam"]).to_numpy() for name, effect in EFFECTS.items()}
    notes = []
    for name, title in NAMES.items():
        own = fresh.loc[fresh["optimizer"] == name]
        best, losses = float(own["lr"].iloc[0]), own["loss"]
        edge = ", on the edge of its grid" * (best in (min(lr[name]), max(lr[name])))
        notes.append(f"{title}: lr {best:g}{edge}; median loss {losses.median():.4g} on {len(own)} seeds.")
    return Measured(samples, {"tuned": tuned, "fresh": fresh}, notes)


def draw(measured: Measured, *, title: str, loss: str) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    from experiments.common.figure_style import STYLE

    tuned, fresh, styles = measured.tables["tuned"], measured.tables["fresh"], looks.of_optimizers(NAMES)
    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.2))
        left, right = drawn.subplots(1, 2)
        for name, look in styles.items():
            own = tuned.loc[tuned["optimizer"] == name].groupby("lr")
            median = own["loss"].median()
            # Adam and NAdam may coincide.
            line = "--" if name == "nadam" else "-"
            left.plot(median.index, median, line, marker=look.marker, color=look.colour, label=NAMES[name])
            diverged = own["status"].apply(lambda status: (status == "diverged").any())
            left.plot(median.index[diverged], median[diverged], "x", color="black", markersize=8)
        if (tuned["status"] == "diverged").any():
            left.plot([], [], "x", color="black", markersize=8, label="a seed diverged")
        n = tuned["seed"].nunique()
        left.set(xscale="log", yscale="log", xlabel="lr", ylabel=f"final {loss}, median of {n} seeds")
        left.set_title(f"{title}: tuning")
        left.legend(loc="best")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        by_seed = fresh.pivot(index="seed", columns="optimizer", values="loss")
        for place, name in enumerate(EFFECTS):
            ratio = (by_seed[name] / by_seed["adam"]).to_numpy()
            spread = place + np.linspace(-0.22, 0.22, len(ratio))
            right.plot(spread, ratio, styles[name].marker, color=styles[name].colour, alpha=0.8, markersize=4.5)
            right.plot([place - 0.3, place + 0.3], [np.median(ratio)] * 2, color="black", linewidth=1.6)
        right.axhline(1, color="black", linewidth=0.8, linestyle="--")
        right.fill_between([1.6, 2.4], 1 / MARGIN, MARGIN, color="0.88", zorder=0)
        right.set_yscale("log")
        # Ratios of about 1.25 have two digits.
        right.yaxis.set_major_locator(LogLocator(subs=(1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.4, 8)))
        for ax in (left, right):
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter("{x:.3g}")
        right.set_xticks(
            range(len(EFFECTS)), ["SGD\nclaimed: above 1", "Nesterov\nclaimed: above 1", "NAdam\nclaimed: in the grey"]
        )
        right.set(xlim=(-0.5, 2.5), ylabel=f"{loss} / Adam's, the same seed")
        right.set_title(f"{len(by_seed)} fresh seeds and their medians")
    return drawn


def claim(
    network: str,
    what: str,
    loss: str,
    *,
    task: str,
    lr: Mapping[str, tuple[float, ...]],
    seeds: int,
    tuning_seeds: int,
    training: Mapping[str, Any],
    trial: Mapping[str, Any],
) -> Claim:
    """Return the claim for a network.

    Args:
        network: the end of its name.
        what: network, data and length of the runs, in words.
        loss: what is compared.
        lr: grid of each optimizer, all of one size.
        training, trial: options of the sweeps, and those that differ in tests.
    """
    ends = {name: f"{min(lr[name]):g} to {max(lr[name]):g}" for name in NAMES}
    grids = ", ".join(f"{NAMES[name]} {span}" for name, span in ends.items())
    return Claim(
        name=f"article-{network}",
        says="Tuned alike, Adam ends lower than SGD and than Nesterov's momentum, and NAdam about as low as Adam.",
        source=ARTICLE,
        setup=f"{what}. Each optimizer is tuned by the median {loss} at the end, over {tuning_seeds} seeds, on "
        f"{len(lr['adam'])} learning rates in equal ratios ({grids}), with momentum 0.9, betas 0.9 and 0.999, eps 1e-8 "
        f"and a constant lr. The best lr of each is trained again on other seeds, which start from the same weights "
        f"and see the same batches for all four. A run that diverged counts with its loss before training. About as "
        f"low is within a factor of {MARGIN:g}, as much as another seed changes.",
        confirms=f"the {loss} of SGD and of Nesterov is higher than Adam's in the median of seeds, and NAdam's is "
        f"within a factor of {MARGIN:g} of Adam's",
        refutes="SGD or Nesterov ends lower than Adam, or NAdam is farther from Adam than this factor",
        effects={
            EFFECTS["sgd"]: Region(0),
            EFFECTS["nesterov"]: Region(0),
            EFFECTS["nadam"]: Region(-math.log2(MARGIN), math.log2(MARGIN)),
        },
        measure=measure,
        draw=partial(draw, title=what.partition(",")[0], loss=loss),
        seeds=seeds,
        quick={"task": task, "lr": lr, "tuning_seeds": tuning_seeds, "training": training},
        trial={
            "lr": {name: lr[name][2:4] for name in NAMES},
            "tuning_seeds": 1,
            "training": {**training, **trial},
        },
    )


def grids(
    count: int, adam: tuple[float, float], nesterov: tuple[float, float], sgd: tuple[float, float]
) -> dict[str, tuple[float, ...]]:
    """Return a `grid` of each optimizer, from the exponents of their ends; NAdam has Adam's."""
    return {
        name: grid(*ends, count)
        for name, ends in {"adam": adam, "nadam": adam, "nesterov": nesterov, "sgd": sgd}.items()
    }


MSE, ENTROPY = "evaluation MSE", "test cross-entropy"
CLAIMS = (
    claim(
        "regression",
        "MLP 10-20-30-1, to fit a random network of the same shape on 8192 examples, 20 epochs of batches of 128",
        MSE,
        task="regression",
        lr=grids(9, adam=(-3, -1), nesterov=(-2, 0), sgd=(-2, 0)),
        seeds=20,
        tuning_seeds=5,
        training={"model": "mlp", "epochs": 20},
        trial={"epochs": 0.1},
    ),
    claim(
        "mnist",
        "MLP 784-32-32-10 on MNIST, 2 epochs of batches of 128",
        ENTROPY,
        task="mnist",
        lr=grids(7, adam=(-4, -1), nesterov=(-3, 0), sgd=(-2, 1)),
        seeds=20,
        tuning_seeds=3,
        training={"model": "mlp", "epochs": 2, "eval_examples": 1000},
        trial={"epochs": 0.01, "eval_examples": 100},
    ),
    claim(
        "cnn",
        "CNN on MNIST, two 5 x 5 convolutions of 8 and 16 channels, 468 batches of 32",
        ENTROPY,
        task="mnist",
        lr=grids(5, adam=(-3.5, -1.5), nesterov=(-3, -1), sgd=(-2, 0)),
        seeds=12,
        tuning_seeds=2,
        training={"model": "cnn", "steps": 468, "batch_size": 32, "eval_examples": 500},
        trial={"steps": 2, "eval_examples": 100},
    ),
    claim(
        "gru",
        "GRU on MNIST, 32 units that read an image row by row, 234 batches of 128",
        ENTROPY,
        task="mnist",
        lr=grids(5, adam=(-3, -1), nesterov=(-2, 0), sgd=(-1, 1)),
        seeds=12,
        tuning_seeds=2,
        training={"model": "gru", "steps": 234, "batch_size": 128, "eval_examples": 500},
        trial={"steps": 2, "eval_examples": 100},
    ),
)

"""Is it beta2's half-life in examples, not in steps, that stays best across batch sizes?

An exponential average with beta2 forgets half of what it holds in h = -1 / log2(beta2) steps, which are h B examples.
Keeping these means

    beta2(B) = 2^(-B / examples) = beta2*^(B / B*),

where beta2* is that of a batch size B*. Half-lives and batch sizes are tried in steps of a factor of 4, so that runs of
each half-life in examples are among those of other half-lives in steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from experiments.papers.bands import draw_band
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.optimum import lowest
from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

HALF_LIVES = 4, 16, 64, 256, 1024, 4096
"""In steps: beta2 from 0.84 to 0.99983. With 1, whose beta2 is below beta1^2, runs do not learn."""
LR_FACTORS: dict[int, tuple[float, ...]] = {
    8: (0.5, 1.0, 2.0),
    32: (0.5, 1.0, 2.0),
    128: (0.5, 1.0, 2.0, 4.0),
    512: (0.5, 1.0, 2.0, 4.0),
}
"""By batch size."""
LR_OF_ONE = 7e-4
"""Times the square root of the batch size, this is about the best lr of Adam's default beta2 at each of them."""
KEPT, SLOPE = (
    "log2 loss, beta2 kept / half-life in examples kept",
    "slope of log(half-life in examples) over log(batch)",
)


def beta2_of(examples: float, batch_size: int) -> float:
    """Return the beta2 with a half-life of so many examples, in batches of this size."""
    return 2.0 ** (-batch_size / examples)


def tuned(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of the best lr of each batch size and half-life: that of the lowest median loss over seeds."""
    medians = table.groupby(["batch_size", "half_life", "lr"], as_index=False)["loss"].median()
    best = medians.loc[medians.groupby(["batch_size", "half_life"])["loss"].idxmin()]
    return table.merge(best[["batch_size", "half_life", "lr"]])


def kept(runs: pd.DataFrame, column: str) -> tuple[float, pd.Series]:
    """Return the best single value of a column for all batch sizes, and its mean of log2 losses over them, by seed.

    It is best in the mean over batch sizes of log2 of the median loss over seeds, among values that all of them have.
    """
    medians = np.log2(runs.groupby([column, "batch_size"])["loss"].median().unstack().dropna())
    value = float(medians.mean(axis=1).idxmin())
    chosen = runs.loc[runs[column] == value]
    return value, chosen.assign(loss=np.log2(chosen["loss"])).groupby("seed")["loss"].mean()


def best_half_lives(runs: pd.DataFrame) -> pd.DataFrame:
    """Return for each batch size and seed log2 of the best half-life in examples, `best`."""
    import pandas as pd

    rows = []
    for _, group in runs.groupby(["seed", "batch_size"]):
        ordered = group.sort_values("examples")
        x, y = (np.log2(ordered[name].to_numpy()) for name in ("examples", "loss"))
        rows.append((ordered["seed"].iloc[0], ordered["batch_size"].iloc[0], lowest(x, y)))
    return pd.DataFrame(rows, columns=["seed", "batch_size", "best"])


def measure(
    runs: Runs,
    epochs: int,
    n_train: int | None,
    lr_factors: Mapping[int, tuple[float, ...]] = LR_FACTORS,
    half_lives: tuple[int, ...] = HALF_LIVES,
) -> Measured:
    import pandas as pd

    columns = ["batch_size", "beta2", "lr"]
    rows = [
        (batch_size, beta2_of(half_life * batch_size, batch_size), LR_OF_ONE * math.sqrt(batch_size) * factor)
        for batch_size, factors in lr_factors.items()
        for half_life in half_lives
        for factor in factors
    ]
    configs = pd.DataFrame(rows, columns=columns).assign(optimizer="adam")
    size = {"epochs": epochs, "n_train": n_train, "schedule": "cosine", "evaluations": 1}
    table = runs.sweep("batch-beta2-lr", "mnist", configs=configs, **size).runs
    batch_sizes, half_life = list(lr_factors), (-1 / np.log2(table["beta2"])).round()
    # A run that diverged has learnt nothing.
    loss = table["eval_loss"].fillna(math.inf).clip(upper=math.log(10))
    table = table.assign(half_life=half_life, examples=half_life * table["batch_size"], loss=loss)
    best_lr = tuned(table)
    (of_steps, same_beta2), (of_examples, same_examples) = kept(best_lr, "half_life"), kept(best_lr, "examples")
    best = best_half_lives(best_lr)
    x = np.log2(batch_sizes)
    slopes = [np.polyfit(x, rows.sort_values("batch_size")["best"], 1)[0] for _, rows in best.groupby("seed")]
    medians = 2 ** best.groupby("batch_size")["best"].median()
    scaled = ", ".join(f"{beta2_of(of_examples, one):.4g}" for one in batch_sizes)
    sizes = f"batches of {', '.join(map(str, batch_sizes))}"
    notes = [
        f"The best beta2 for all is {beta2_of(of_steps, 1):.4g}; the best half-life in examples for all is "
        f"{of_examples:g}: beta2 {scaled} for {sizes}.",
        f"Best half-lives in examples, medians: {', '.join(f'{medians[one]:.3g}' for one in batch_sizes)} for {sizes}.",
    ]
    samples = {KEPT: (same_beta2 - same_examples).to_numpy(), SLOPE: np.array(slopes)}
    keep = ["batch_size", "half_life", "examples", "lr", "seed", "loss"]
    return Measured(samples, {"runs": best_lr.loc[:, keep], "best": best}, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE
    from experiments.reports.looks import COLOURS, MARKERS

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.0))
        left, right = drawn.subplots(1, 2)
        table, best = measured.tables["runs"], measured.tables["best"]
        for number, batch_size in enumerate(sorted(set(table["batch_size"]))):
            loss = table.loc[table["batch_size"] == batch_size].groupby("examples")["loss"]
            look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5}
            draw_band(left, loss, label=f"batch {batch_size:g}", **look)
        left.set(xscale="log", yscale="log", xlabel="half-life of beta2 (examples)", ylabel="evaluation cross-entropy")
        left.yaxis.set_major_formatter("{x:.3g}")
        left.yaxis.set_minor_formatter("{x:.3g}")
        left.set_title(f"Loss at the best lr. Band: quartiles of {best['seed'].nunique()} seeds")
        sizes = np.array(sorted(set(best["batch_size"])))
        medians = np.array([2 ** best.loc[best["batch_size"] == size, "best"].median() for size in sizes])
        # Seeds side by side.
        aside = 2 ** ((best["seed"] - best["seed"].mean()) / max(1, best["seed"].max()) / 2)
        right.plot(best["batch_size"] * aside, 2 ** best["best"], "o", color="0.6", markersize=3, label="a seed")
        right.plot(sizes, medians, "D-", color=COLOURS[0], label="median")
        middle, size = np.exp(np.log(medians).mean()), np.exp(np.log(sizes).mean())
        right.plot(
            sizes, np.full(len(sizes), middle), "--", color="black", linewidth=1, label="half-life in examples kept"
        )
        right.plot(sizes, middle * sizes / size, ":", color="black", linewidth=1.2, label="beta2 kept")
        right.set(xscale="log", yscale="log", xlabel="batch size", ylabel="best half-life (examples)")
        right.set_title("Best half-life of beta2")
        right.set_xticks(sizes, [f"{size:g}" for size in sizes])
        right.set_xticks([], minor=True)
        for ax in (left, right):
            ax.legend()
    return drawn


CLAIMS = (
    Claim(
        name="beta2-half-life",
        says="At another batch size Adam's best beta2 is the one with the same half-life in examples, beta2^(B / B*), "
        "and not the same beta2.",
        source="Marek et al. 2025, Small Batch Size Training for Language Models, arXiv:2507.07101",
        setup="Adam on the MNIST MLP 784-32-32-10, one epoch of 30,000 examples (in the full size 60,000) with a cosine"
        " schedule and without warm-up, batches of 8, 32, 128 and 512. Half-lives of beta2 are 4 to 4096 steps "
        "(0.84 to 0.99983); with 1, where beta2 is below beta1^2, batches of 128 and 512 do not train. lr is 7e-4"
        " sqrt(B) times 1/2, 1, 2 and, at 128 and 512, 4, and the best by the median over seeds is taken. First "
        "effect: the best single beta2 for all batch sizes against the best single half-life in examples, in the "
        "mean of log2 losses over batch sizes. Second: the slope over the batch size of each seed's best half-"
        "life in examples, located by a parabola: 0 if it is kept, and 1 if beta2 is. The source trains "
        "transformers.",
        confirms="the loss is lower with one half-life in examples than with one beta2, and the slope is nearer to 0 "
        "than to 1 or -1",
        refutes="one beta2 is better, or the slope is beyond 0.5",
        effects={KEPT: Region(0.0), SLOPE: Region(-0.5, 0.5)},
        measure=measure,
        draw=draw,
        quick={"epochs": 1, "n_train": 30000},
        full={"n_train": None},
        trial={"n_train": 128, "lr_factors": {4: (1.0, 2.0), 16: (1.0, 2.0)}, "half_lives": (4, 16, 64)},
    ),
)

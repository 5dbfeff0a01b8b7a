"""Does beta1 decide how fast Adam converges? Steps to a loss, at one lr for all beta1, and at the best lr of each.

Which beta1 is fastest, and which is slowest, is read from the seeds of the tuning. How much faster is then measured on
other seeds: the largest of several noisy numbers over the smallest would always look like an influence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.papers.article import ARTICLE, grid
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BETA1 = 0.0, 0.5, 0.9, 0.95, 0.99
COMMON = 1e-3
"""The default lr."""
TARGET = 0.3
"""A test cross-entropy of MNIST's MLP that the default of Adam reaches within an epoch."""
IMPORTANT = 2.0
"""What is important costs twice the steps."""
AT_COMMON, AT_BEST = (
    "log2 of slowest / fastest beta1, at lr 1e-3",
    "log2 of slowest / fastest beta1, each at its best lr",
)


def steps_to_target(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return beta1, lr, seed and steps of each run: to its first evaluation at or below the target, or infinity."""
    met = curves.loc[curves["eval_loss"] <= TARGET].groupby("run_id")[["step"]].agg("min").loc[:, "step"]
    steps = runs["run_id"].map(met).astype(float).fillna(np.inf)
    return runs[["beta1", "lr", "seed"]].assign(steps=steps)


def medians(table: pd.DataFrame) -> pd.Series:
    """Return medians over seeds of the steps, by beta1 and lr."""
    return table.groupby(["beta1", "lr"])[["steps"]].agg("median").loc[:, "steps"]


def slowdown(fresh: pd.DataFrame, slowest: tuple[float, float], fastest: tuple[float, float]) -> np.ndarray:
    """Return for each seed log2 of the slowest's steps over the fastest's; 0 where neither reaches the target.

    slowest, fastest: beta1 and lr.
    """
    steps = fresh.set_index(["beta1", "lr", "seed"])["steps"].sort_index()
    slow, fast = (steps.loc[beta1, lr].to_numpy() for beta1, lr in (slowest, fastest))
    neither = np.isinf(slow) & np.isinf(fast)
    return np.log2(np.where(neither, 1.0, slow) / np.where(neither, 1.0, fast))


def measure(
    runs: Runs, lr: tuple[float, ...], tuning_seeds: int, steps: int, every: int, eval_examples: int
) -> Measured:
    import pandas as pd

    options = {"model": "mlp", "steps": steps, "evaluations": steps // every, "eval_examples": eval_examples}
    tuned = steps_to_target(*runs.sweep("tuned", "mnist", seeds=tuning_seeds, beta1=BETA1, lr=lr, **options)[:2])
    by_pair = medians(tuned)
    # The lowest lr of equally fast ones, and of those that never reach the target.
    best = {beta1: float(by_pair.loc[beta1].idxmin()) for beta1 in BETA1}
    pairs = [(beta1, at) for beta1 in BETA1 for at in dict.fromkeys((COMMON, best[beta1]))]
    configs = pd.DataFrame(pairs, columns=["beta1", "lr"])
    fresh = steps_to_target(*runs.sweep("fresh", "mnist", after=tuning_seeds, configs=configs, **options)[:2])
    samples, notes, labelled = {}, [], fresh.assign(best=fresh["lr"] == fresh["beta1"].map(best))
    for effect, chosen in ((AT_COMMON, dict.fromkeys(BETA1, COMMON)), (AT_BEST, best)):
        order = sorted(BETA1, key=lambda beta1, chosen=chosen: by_pair.loc[beta1, chosen[beta1]])
        slowest, fastest = ((beta1, chosen[beta1]) for beta1 in (order[-1], order[0]))
        samples[effect] = slowdown(fresh, slowest, fastest)
        labelled = labelled.assign(**{f"fastest {effect}": fresh["beta1"].eq(fastest[0]) & fresh["lr"].eq(fastest[1])})
        ends = [f"beta1 {beta1:g} at lr {at:g}" for beta1, at in (slowest, fastest)]
        notes.append(f"{effect.removeprefix('log2 of ')}: {ends[0]}, against {ends[1]}.")
    if edges := [f"{beta1:g}" for beta1, at in best.items() if at in (min(lr), max(lr))]:
        notes.append(f"The best lr is on the edge of the grid for beta1 {', '.join(edges)}.")
    return Measured(samples, {"tuned": tuned, "fresh": labelled, "steps": pd.DataFrame({"last": [steps]})}, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    tuned, fresh = measured.tables["tuned"], measured.tables["fresh"]
    missed = 1.6 * float(measured.tables["steps"]["last"].iloc[0])
    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.2))
        left, right = drawn.subplots(1, 2, sharey=True)
        by_pair = medians(tuned).clip(upper=missed)
        for number, beta1 in enumerate(BETA1):
            own = by_pair.loc[beta1]
            left.plot(own.index, own, "osD^v"[number], color=f"C{number}", linestyle="-", label=f"beta1 {beta1:g}")
        left.axvline(COMMON, color="black", linewidth=0.8, linestyle=":")
        left.set(
            xscale="log", xlabel="lr (dotted: the default)", title=f"tuning: medians of {tuned['seed'].nunique()} seeds"
        )
        left.set_ylabel(f"steps to a test cross-entropy of {TARGET:g}")
        left.legend(loc="lower left")
        parts = (fresh["lr"] == COMMON, "at lr 1e-3", AT_COMMON), (fresh["best"], "at its best lr", AT_BEST)
        for number, (which, label, effect) in enumerate(parts):
            colour = ("0.45", "C1")[number]
            slow = IMPORTANT * fresh.loc[fresh[f"fastest {effect}"], "steps"].median()
            text = f"twice the fastest, {label}"
            right.axhline(min(slow, missed), color=colour, linewidth=1, linestyle=":", label=text)
            for place, beta1 in enumerate(BETA1):
                own = fresh.loc[which & (fresh["beta1"] == beta1), "steps"].clip(upper=missed).to_numpy()
                x = place + 0.36 * (number - 0.5) + np.linspace(-0.11, 0.11, len(own))
                text = label if place == 0 else None
                right.plot(x, own, "os"[number], color=colour, markersize=3.5, alpha=0.8, label=text)
                middle = np.median(own)
                right.plot([x[0] - 0.04, x[-1] + 0.04], [middle, middle], color="black", linewidth=1.6)
        right.set_xticks(range(len(BETA1)), [f"{beta1:g}" for beta1 in BETA1])
        right.set(xlabel="beta1", title=f"{fresh['seed'].nunique()} fresh seeds and their medians")
        right.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
        for ax in (left, right):
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter("{x:g}")
            ax.axhline(missed, color="black", linewidth=0.8, linestyle="--")
            ax.set_ylim(top=1.3 * missed)
        right.text(0.5, 1.04 * missed, "not reached", fontsize=8.5)
    return drawn


CLAIMS = (
    Claim(
        name="article-beta1",
        says="beta1 has an important influence on the speed of convergence.",
        source=ARTICLE,
        setup="Adam on MNIST with an MLP 784-32-32-10, 936 batches of 128 (2 epochs), beta1 0, 0.5, 0.9, 0.95, 0.99, "
        "beta2 0.999, constant lr. Speed is the number of steps to a cross-entropy of 0.3 on 1000 test images, every 8 "
        "steps (at the end, on all). It is measured at the default lr of 1e-3, and at the best of seven lr (1e-4 to "
        "1e-1) for each beta1, the one with the fewest steps in the median of three seeds. These seeds also say which "
        "beta1 is slowest and which is fastest; both are then compared on other seeds, in pairs. A run that does not "
        "reach the loss counts as infinite. Important is what costs twice the steps.",
        confirms="the slowest beta1 takes at least twice the steps of the fastest in the median of seeds, both at the "
        "default lr and with lr tuned for each beta1",
        refutes="it takes less than twice the steps, in either of the two",
        effects={AT_COMMON: Region(np.log2(IMPORTANT)), AT_BEST: Region(np.log2(IMPORTANT))},
        measure=measure,
        draw=draw,
        seeds=12,
        quick={"lr": grid(-4, -1, 7), "tuning_seeds": 3, "steps": 936, "every": 8, "eval_examples": 1000},
        trial={"lr": (1e-3, 1e-2), "tuning_seeds": 1, "steps": 4, "every": 2, "eval_examples": 100},
    ),
)

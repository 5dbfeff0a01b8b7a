"""Is one beta enough for Adam?

The betas of a square grid are tried, with the learning rate tuned for each pair. The lowest of 49 losses flatters its
pair, and so does the lowest of the seven with beta1 = beta2, though less. Each choice is therefore judged by seeds that
it was not made on: the first ones choose the lr of each pair, the next ones the pairs, and the last ones are compared.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BETAS = 0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999
ROW = 0.9
"""The beta1 that is usually kept."""
PAIR = ["beta1", "beta2"]
MARGIN = 0.05
"""By how much of the loss the diagonal may be worse: here 0.2 points of accuracy."""
OF_ALL, OF_ROW = "loss, best of beta1 = beta2 / best of all", "loss, best of beta1 = beta2 / best of beta1 = 0.9"
EFFECTS = {OF_ALL: Region(high=1 + MARGIN), OF_ROW: Region(high=1 + MARGIN)}


def best_of(losses: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return for each value of `by` the configuration with the lowest median loss. losses: a row for each run."""
    medians = losses.groupby([*PAIR, "lr"])["eval_loss"].median().reset_index()
    return medians.loc[medians.groupby(by)["eval_loss"].idxmin()] if by else medians.nsmallest(1, "eval_loss")


def measure(
    runs: Runs, steps: int, warmup: int, rates: int, betas: tuple = BETAS, choosing: tuple[int, int] = (3, 10)
) -> Measured:
    """rates: number of learning rates from 1e-3 to 10^-1.5. choosing: number of seeds that choose an lr, and a pair."""
    import pandas as pd

    options = {"steps": steps, "warmup": warmup, "schedule": "cosine", "evaluations": 1}

    def trained(name: str, configs: pd.DataFrame, first: int, count: int) -> pd.DataFrame:
        configs = configs[[*PAIR, "lr"]].assign(optimizer="adam")
        found = runs.sweep(name, "mnist", after=first, configs=configs, seeds=count, **options).runs
        # A diverged run has no loss, or one beyond that of the start.
        ended = found["eval_loss"].where(found["status"] == "ok", math.inf).clip(upper=found["initial_eval_loss"])
        return found.assign(eval_loss=ended)

    grid = [(beta1, beta2, lr) for beta1 in betas for beta2 in betas for lr in np.logspace(-3, -1.5, rates)]
    tuned = best_of(trained("rates", pd.DataFrame(grid, columns=[*PAIR, "lr"]), 0, choosing[0]), PAIR)
    pairs = trained("pairs", tuned, *choosing)
    chosen = {
        "all": best_of(pairs, []),
        "diagonal": best_of(pairs.loc[pairs["beta1"] == pairs["beta2"]], []),
        "row": best_of(pairs.loc[pairs["beta1"] == ROW], []),
    }
    finalists = pd.concat(chosen.values()).drop_duplicates(PAIR)
    last = trained("finalists", finalists, sum(choosing), runs.seeds)

    def losses(of: str) -> np.ndarray:
        pair = chosen[of][PAIR].to_numpy()[0]
        return last.loc[(last[PAIR] == pair).all(axis=1)].sort_values("seed")["eval_loss"].to_numpy()

    samples = {OF_ALL: losses("diagonal") / losses("all"), OF_ROW: losses("diagonal") / losses("row")}
    names = {"all": "of all", "diagonal": "of beta1 = beta2", "row": f"of beta1 = {ROW:g}"}
    medians = pairs.groupby(PAIR)["eval_loss"].median()
    bad = (medians > 2 * medians.min()).to_numpy()
    rates_of = tuned.sort_values(PAIR)["lr"].to_numpy()
    edges = np.isclose(rates_of, 1e-3) | np.isclose(rates_of, 10**-1.5)
    notes = [
        f"Best {names[of]}: beta1 {one['beta1'].iloc[0]:g}, beta2 {one['beta2'].iloc[0]:g}, lr "
        f"{one['lr'].iloc[0]:.2g}; median loss {np.median(losses(of)):.4f}."
        for of, one in chosen.items()
    ]
    notes.append(
        f"Of {len(bad)} pairs, {bad.sum()} end above twice the loss of the best, or diverge. For "
        f"{(edges & ~bad).sum()} of the others the best lr is the lowest or the highest of its grid."
    )
    return Measured(samples, {"tuned": tuned, "pairs": pairs, "finalists": last}, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from experiments.common.figure_style import STYLE
    from experiments.reports import looks

    medians = measured.tables["pairs"].groupby(PAIR)["eval_loss"].median().unstack()
    above = 100 * (medians / medians.min(axis=None) - 1)
    betas = [f"{beta:g}" for beta in above.index]
    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.6))
        left, right = drawn.subplots(1, 2, width_ratios=(1.5, 1))
        shown = left.imshow(above.to_numpy(), origin="lower", vmin=0, vmax=50, cmap="viridis_r", aspect="auto")
        for (row, column), value in np.ndenumerate(above.to_numpy()):
            text = f"{value:.0f}" if value < 999.5 else ">999"
            left.text(column, row, text, ha="center", va="center", color="white" if value > 25 else "black", fontsize=9)
        for place in range(len(betas)):
            frame = (place - 0.5, place - 0.5), 1, 1
            left.add_patch(Rectangle(*frame, fill=False, edgecolor="black", linewidth=2))
        left.grid(visible=False)
        left.set_xticks(range(len(betas)), betas)
        left.set_yticks(range(len(betas)), betas)
        left.set(xlabel="beta2", ylabel="beta1", title="Median loss above the best pair's, % (framed: beta1 = beta2)")
        drawn.colorbar(shown, ax=left, extend="max", label="% above the best")
        for x, effect in enumerate(EFFECTS):
            ratio = np.sort(measured.samples[effect])
            right.plot(x + np.linspace(-0.15, 0.15, len(ratio)), ratio, "o", color="black", markersize=4)
        right.axhspan(0, 1 + MARGIN, color=looks.COLOURS[2], alpha=0.2, linewidth=0)
        right.annotate("claimed: median below", (0.98, 1 + MARGIN), (0, 3), textcoords="offset points", fontsize=8.5,
                       ha="right", xycoords=right.get_yaxis_transform())  # fmt: skip
        values = np.concatenate([*measured.samples.values()])
        right.set_xticks(range(2), ["best of all", f"best of beta1 = {ROW:g}"])
        right.set(xlim=(-0.5, 1.5), ylim=(min(0.85, values.min() - 0.02), max(1.15, values.max() + 0.02)))
        right.set(ylabel="loss of the best with beta1 = beta2, divided by that of")
        right.set_title("Fresh seeds")
    return drawn


CLAIMS = (
    Claim(
        name="equal-betas",
        says="Adam does about as well with beta1 = beta2 as with the best betas.",
        source="Orvieto & Gower 2025, In Search of Adam's Secret Sauce, arXiv:2505.21829",
        setup="MNIST, mlp 784-32-32-10, one epoch with batches of 128, 47 steps of warm-up, a cosine. Both betas are "
        "of 0, 0.5, 0.8, 0.9, 0.95, 0.99 and 0.999; each pair has the best of seven learning rates on three seeds. "
        "Ten others choose the best pair of all 49, the best of the seven with beta1 = beta2 and, at the same budget, "
        "the best of the seven with beta1 0.9; the verdict rests on yet others. The source trains language models.",
        confirms="the best pair with beta1 = beta2 ends with at most 1.05 times the loss of the best of all, and of "
        "the best with beta1 0.9",
        refutes="it ends with more than 1.05 times one of these",
        effects=EFFECTS,
        measure=measure,
        draw=draw,
        seeds=20,
        quick={"steps": 468, "warmup": 47, "rates": 7},
        trial={"steps": 2, "warmup": 1, "rates": 2, "betas": (0.9, 0.99), "choosing": (1, 2)},
    ),
)

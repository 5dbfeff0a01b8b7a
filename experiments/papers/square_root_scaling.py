"""Does Adam's training depend on the batch size no more, if its hyperparameters are scaled by the square root rule?

Where noise of standard deviation s / sqrt(B) dominates the gradient of a batch of B examples, sqrt(exp_avg_sq) is about
s / sqrt(B). A step then moves a parameter by about lr sqrt(B) / s times the mean gradient, with noise of about lr. For
each example this is a drift of lr / (sqrt(B) s) and a variance of lr^2 / B. With batches of k B examples,

    lr -> lr sqrt(k),   1 - beta -> k (1 - beta) for both betas,   eps -> eps / sqrt(k)

keep the drift and the variance, to first order in 1 - beta the memory of both averages in examples, and eps relative to
sqrt(exp_avg_sq). At the start of training the gradient dominates. Steps then have the length of lr, and as 1 / k as
many of them are sqrt(k) times as long, the rule has to lag behind. So curves are compared after the first epoch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from experiments.papers.bands import draw_band
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BASE = {"lr": 2e-3, "beta1": 0.99, "beta2": 0.999, "eps": 1e-4}
FACTORS = 4, 16
SQUARE_ROOT, LINEAR = "square root", "linear"
PER_EPOCH = 4
MARGIN = math.log2(1.1)
SMALL, LARGE, CLOSER = "log2 loss, k = 4 / base", "log2 loss, k = 16 / base", "log2 distance, linear / square root"


def scaled(batch_size: int, k: int, power: float = 0.5) -> dict[str, float]:
    """Return the hyperparameters for batches of k times as many examples.

    Args:
        batch_size: of the base.
        power: of k in the factor of lr: 0.5 of the rule, and 1 of the control.
    """
    return {
        "batch_size": batch_size * k,
        "lr": BASE["lr"] * k**power,
        "beta1": 1 - k * (1 - BASE["beta1"]),
        "beta2": 1 - k * (1 - BASE["beta2"]),
        "eps": BASE["eps"] / math.sqrt(k),
    }


def cases(batch_size: int) -> pd.DataFrame:
    """Return a row for each case: its rule, k, and hyperparameters."""
    import pandas as pd

    of_rules = [(rule, k, power) for rule, power in ((SQUARE_ROOT, 0.5), (LINEAR, 1.0)) for k in FACTORS]
    rows = [{"rule": rule, "k": k, **scaled(batch_size, k, power)} for rule, k, power in (("base", 1, 0.5), *of_rules)]
    return pd.DataFrame(rows).assign(optimizer="adam")


def ratios(curves: pd.DataFrame) -> pd.DataFrame:
    """Return curves with the log2 of their training loss over that of the base's run of the same seed."""
    base = curves.loc[curves["rule"] == "base"].set_index(["seed", "part"])["train_loss"].rename("base")
    joined = curves.join(base, on=["seed", "part"])
    return joined.assign(ratio=(joined["train_loss"] / joined["base"]).map(math.log2))


def measure(runs: Runs, epochs: int, batch_size: int, n_train: int | None, eval_examples: int | None) -> Measured:
    table = cases(batch_size)
    configs = table.drop(columns=["rule", "k"])
    # What is compared are training losses; an evaluation ends each of their means.
    size = {"epochs": epochs, "n_train": n_train, "evaluations": PER_EPOCH * epochs, "eval_examples": eval_examples}
    trained = runs.sweep("scaled", "mnist", configs=configs, keep_diverged=True, **size)
    of_run = trained.runs[["run_id", "seed", "batch_size", "lr"]].assign(lr=trained.runs["lr"].round(9))
    of_case = table[["rule", "k", "batch_size", "lr"]].assign(lr=table["lr"].round(9))
    curves = trained.curves.merge(of_run.merge(of_case, on=["batch_size", "lr"]), on="run_id")
    curves = curves.loc[curves["step"] > 0].sort_values(["run_id", "step"])
    # A run that diverged has learnt nothing.
    curves = curves.assign(train_loss=curves["train_loss"].fillna(math.inf).clip(upper=math.log(10)))
    # Quarters of epochs; batch sizes do not divide an epoch alike.
    curves = ratios(curves.assign(part=curves.groupby("run_id").cumcount() + 1))
    late = curves.loc[curves["part"] > PER_EPOCH]
    mean = late.groupby(["rule", "k", "seed"])["ratio"].mean()
    distance = late.assign(ratio=late["ratio"].abs()).groupby(["rule", "k", "seed"])["ratio"].mean()
    k = FACTORS[-1]
    further = distance[LINEAR, k] / distance[SQUARE_ROOT, k]
    samples = {
        SMALL: mean[SQUARE_ROOT, FACTORS[0]].to_numpy(),
        LARGE: mean[SQUARE_ROOT, k].to_numpy(),
        CLOSER: further.map(math.log2).to_numpy(),
    }
    first = curves.loc[(curves["part"] == 1) & (curves["rule"] == SQUARE_ROOT)].groupby("k")["ratio"].median()
    final = curves.loc[curves["part"] == curves["part"].max()].groupby(["rule", "k"])["eval_loss"].median()
    notes = [
        "In the first quarter of an epoch, which is left out, the loss of the rule is "
        f"{' and '.join(f'{2 ** first[k]:.2f}' for k in FACTORS)} times the base's for k = 4 and 16.",
        f"Final evaluation loss, medians: base {final['base', 1]:.4f}; square root {final[SQUARE_ROOT, 4]:.4f} and "
        f"{final[SQUARE_ROOT, 16]:.4f}, linear {final[LINEAR, 4]:.4f} and {final[LINEAR, 16]:.4f} for k = 4 and 16.",
    ]
    return Measured(
        samples, {"curves": curves.loc[:, ["rule", "k", "batch_size", "seed", "part", "train_loss", "ratio"]]}, notes
    )


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE
    from experiments.reports.looks import COLOURS, MARKERS

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.2))
        left, right = drawn.subplots(1, 2)
        curves = measured.tables["curves"]
        for number, rule_and_k in enumerate(curves[["rule", "k"]].drop_duplicates().itertuples(index=False)):
            rule, k = rule_and_k
            case = curves.loc[(curves["rule"] == rule) & (curves["k"] == k)]
            batch, line = int(case["batch_size"].iloc[0]), "--" if rule == LINEAR else "-"
            look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5, "linestyle": line}
            for ax, column in ((left, "train_loss"), (right, "ratio")):
                name = f"base, batch {batch}" if rule == "base" else f"{rule}, batch {batch}"
                draw_band(ax, case.groupby("part")[column], 1 / PER_EPOCH, label=name, **look)
        left.set(yscale="log", xlabel="epoch", ylabel="training cross-entropy, means of quarter epochs")
        left.yaxis.set_major_formatter("{x:.3g}")
        left.yaxis.set_minor_formatter("{x:.2g}")
        left.set_title("Loss for as many examples")
        right.axhspan(-MARGIN, MARGIN, color="0.9", zorder=0)
        right.axvline(1, color="black", linewidth=0.8, linestyle=":")
        right.set(xlabel="epoch", ylabel="log2(loss / base's of the same seed)")
        right.set_title("Ratio to the base (grey: margin, after epoch 1)")
        handles, labels = left.get_legend_handles_labels()
        legend = f"Factor of lr, and batch size. Band: quartiles of {curves['seed'].nunique()} seeds"
        drawn.legend(handles, labels, loc="outside lower center", ncols=5, title=legend)
    return drawn


CLAIMS = (
    Claim(
        name="square-root-scaling",
        says="With k times the batch, lr sqrt(k), k (1 - beta) for both betas and eps / sqrt(k), Adam's loss after as "
        "many examples is the same; with lr k it is not.",
        source="Malladi et al. 2022, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, the square root "
        "scaling rule, arXiv:2205.10287",
        setup="Adam on the MNIST MLP 784-32-32-10 for 4 epochs at constant lr, without warm-up: batches of 16 at lr "
        "2e-3, where noise sets the loss, with betas 0.99 and 0.999 and eps 1e-4. Then k = 4 and 16 times as many by "
        "the rule, and with lr k in place of lr sqrt(k). Runs of one seed start at the same weights and see the same "
        "examples in the same order. Compared are training losses, means of quarter epochs, after the first epoch: "
        "the rule holds where noise dominates the gradient, which at the start it does not. Logarithms of ratios to "
        "the base are averaged over quarters; a distance is the mean of their absolute values. The margin is "
        "10 %, about half of what twice the base's lr changes. The source trains VGG, ResNet and RoBERTa.",
        confirms="losses of the rule are within 10 % of the base's for k = 4 and 16, and for k = 16 farther from the "
        "base's with linear lr",
        refutes="for k = 4 or 16 they are more than 10 % away, or linear lr is nearer to the base",
        effects={SMALL: Region(-MARGIN, MARGIN), LARGE: Region(-MARGIN, MARGIN), CLOSER: Region(0.0)},
        measure=measure,
        draw=draw,
        seeds=16,
        quick={"epochs": 4, "batch_size": 16, "n_train": None, "eval_examples": 500},
        trial={"epochs": 2, "batch_size": 1, "n_train": 64, "eval_examples": None},
    ),
)

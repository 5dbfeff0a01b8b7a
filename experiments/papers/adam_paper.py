"""Adam's paper, sections 6.1 and 6.2: logistic regression, and a network with dropout, each at its best alpha.

The paper gives no grids, strengths of L2, seeds or intervals. Here every optimizer is tuned over as many values of
alpha, by the cost that the claim is about, and then trained with the best one on seeds that the tuning has not seen.
Costs are cross-entropies of training batches, without the penalty of L2 and with dropout, as they arise in training.

With alpha / sqrt(t) a step of Adagrad falls as 1 / t where gradients keep their size, for it divides by the root of
their sum of squares, which itself grows as sqrt(t). A constant alpha is what its authors propose. The paper does not
say which one it was, so that both are trained, and a note tells the difference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from experiments.papers.bands import draw_band
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.sweeps.results import Sweep

UNTRAINED = math.log(10)
"""The cost of ten classes with equal probabilities. A higher one, and that of a run that diverged, counts as this."""
MARGIN = 0.05
CONSTANT = "adagrad, constant alpha"
RSQRT_LR = {"adam": "0.0025..0.32:8", "nesterov": "0.01..1.28:8", "adagrad": "0.005..0.64:8"}
CONSTANT_LR = "0.0005..0.064:8"
DROPOUT_LR = {
    "adam": "1e-4..0.0316:6",
    "adagrad": "1e-3..0.316:6",
    "rmsprop": "3.16e-5..0.01:6",
    "nesterov": "3.16e-3..1:6",
    "adadelta": "0.1..31.6:6",
}
OTHERS = [name for name in DROPOUT_LR if name != "adam"]
ADAM_NESTEROV, ADAM_ADAGRAD, NESTEROV_ADAGRAD = "Adam / Nesterov - 1", "Adam / Adagrad - 1", "Nesterov / Adagrad - 1"


def of_dropout(other: str) -> str:
    """Return the name of an effect of `adam-dropout`."""
    return f"log2(Adam / {other})"


def whole_cost(sweep: Sweep) -> pd.Series:
    """Return the training cost of each run, the mean over all its steps, in the order of `sweep.runs`."""
    import pandas as pd

    # The first evaluation comes before any step, and has none.
    of_run = dict(iter(sweep.curves.loc[sweep.curves["step"] > 0].groupby("run_id")["train_loss"]))
    mean = pd.Series([of_run[one].mean() for one in sweep.runs["run_id"]], index=sweep.runs.index)
    return mean.where(sweep.runs["status"] == "ok", math.inf)


def last_cost(sweep: Sweep) -> pd.Series:
    """Return the training cost of each run in its last epoch."""
    return sweep.runs["train_loss"].where(sweep.runs["status"] == "ok", math.inf)


def by_seed(runs: pd.DataFrame, cost: pd.Series) -> pd.DataFrame:
    """Return the costs with a row for each seed and a column for each optimizer, at most `UNTRAINED`."""
    table = runs.assign(cost=cost.clip(upper=UNTRAINED).fillna(UNTRAINED))
    return table.pivot(index="seed", columns="optimizer", values="cost")


def alphas(runs: pd.DataFrame, grids: dict[str, str]) -> str:
    """Return a sentence about the best alpha of each optimizer, and whether it is the first or last one of its grid."""
    said = []
    best = runs.drop_duplicates("optimizer")
    for name, alpha in zip(best["optimizer"].to_list(), best["lr"].to_list(), strict=True):
        ends = grids[name].partition(":")[0].split("..")
        at_edge = any(math.isclose(alpha, float(end), rel_tol=0.01) for end in ends)
        said.append(f"{name} {alpha:.3g}{' (at the edge of its grid)' * at_edge}")
    return f"Best alpha: {', '.join(said)}."


def curves_of(*sweeps: Sweep) -> pd.DataFrame:
    """Return all curves with the optimizer and the seed of each."""
    import pandas as pd

    joined = [one.curves.merge(one.runs[["run_id", "optimizer", "seed"]], on="run_id") for one in sweeps]
    return pd.concat(joined, ignore_index=True)


def tuned(
    runs: Runs, name: str, lr: dict[str, str], cost: Callable[[Sweep], pd.Series], tuning_seeds: int = 2, **options
) -> Sweep:
    """Return the runs of each optimizer with its best alpha on fresh seeds.

    Args:
        lr: the alphas of each optimizer.
        cost: returns that of each run, by which alphas are compared.
        tuning_seeds, options: number of seeds of the tuning, and what `Runs.sweep` takes.
    """
    options |= {"optimizer": list(lr), "lr": lr}
    first = runs.sweep(name, "mnist", seeds=tuning_seeds, **options)
    return runs.again(first.runs.assign(eval_loss=cost(first)), name, "mnist", **options)


def measure_logistic(runs: Runs, epochs: int, alphas_of_each: int = 8, **fewer) -> Measured:
    lr = {name: f"{grid.partition(':')[0]}:{alphas_of_each}" for name, grid in RSQRT_LR.items()}
    options = {"model": "logistic", "weight_decay": 1e-4, "epochs": epochs, "evaluations": epochs}
    options |= {"eval_examples": 500, "cost": whole_cost, **fewer}
    falling = tuned(runs, "rsqrt", lr, schedule="rsqrt", **options)
    constant_lr = f"{CONSTANT_LR.partition(':')[0]}:{alphas_of_each}"
    constant = tuned(runs, "constant", {"adagrad": constant_lr}, **options)
    constant = constant._replace(runs=constant.runs.assign(optimizer=CONSTANT))
    cost = by_seed(falling.runs, whole_cost(falling)).join(by_seed(constant.runs, whole_cost(constant)))
    samples = {
        ADAM_NESTEROV: (cost["adam"] / cost["nesterov"] - 1).to_numpy(),
        ADAM_ADAGRAD: (cost["adam"] / cost["adagrad"] - 1).to_numpy(),
        NESTEROV_ADAGRAD: (cost["nesterov"] / cost["adagrad"] - 1).to_numpy(),
    }
    beside = (cost["adam"] / cost[CONSTANT] - 1).median()
    notes = [
        alphas(falling.runs, lr),
        f"Adagrad with a constant alpha, beside the claim: {alphas(constant.runs, {CONSTANT: constant_lr})} "
        f"Adam / Adagrad - 1 then has the median {beside:.4f}.",
    ]
    return Measured(samples, {"curves": curves_of(falling, constant), "cost": cost}, notes)


def measure_dropout(runs: Runs, hidden: int, n_train: int, epochs: int, alphas_of_each: int = 6, **fewer) -> Measured:
    import numpy as np

    lr = {name: f"{grid.partition(':')[0]}:{alphas_of_each}" for name, grid in DROPOUT_LR.items()}
    options = {"hidden": hidden, "n_train": n_train, "dropout": 0.5, "epochs": epochs, "evaluations": epochs}
    options |= {"eval_examples": 500, "cost": last_cost, **fewer}
    found = tuned(runs, "dropout", lr, **options)
    cost = by_seed(found.runs, last_cost(found))
    samples = {of_dropout(other): np.log2(cost["adam"] / cost[other]).to_numpy() for other in OTHERS}
    ranks = cost.median().sort_values()
    order = ", ".join(f"{name} {value:.4f}" for name, value in ranks.items())
    notes = [alphas(found.runs, lr), f"Median training cost of the last epoch: {order}."]
    return Measured(samples, {"curves": curves_of(found), "cost": cost}, notes)


def draw_curves(ax: Axes, curves: pd.DataFrame, optimizers: Iterable[str]) -> None:
    """Draw the training cost against epochs: the median of each optimizer, and a band between quartiles of seeds."""
    from experiments.reports import looks

    names = list(optimizers)
    look = looks.of_optimizers(name for name in names if name != CONSTANT)
    look[CONSTANT] = look["adagrad"]._replace(line="--", marker="")
    for name in names:
        of_one = curves.loc[(curves["optimizer"] == name) & (curves["step"] > 0)]
        cost = of_one.groupby("epoch")["train_loss"]
        style: dict[str, Any] = {"color": look[name].colour, "linestyle": look[name].line, "marker": look[name].marker}
        draw_band(ax, cost, label=name, markersize=4, markevery=max(1, cost.ngroups // 10), **style)
    ax.set(xlabel="epoch", ylabel="training cost, mean of an epoch (nats)", yscale="log")
    ax.yaxis.set_major_formatter("{x:.3g}")
    ax.yaxis.set_minor_formatter("{x:.3g}")
    ax.legend(title=f"medians, quartiles of {curves['seed'].nunique()} seeds", alignment="left")


def draw_samples(ax: Axes, samples: dict, labels: list[str], regions: list[Region], xlabel: str) -> None:
    """Draw the samples of each effect in a row of its own, with the region where the claim has them."""
    ends = [abs(value) for values in samples.values() for value in values]
    reach = 1.15 * max([*ends, 1e-6, *(abs(region.high) for region in regions)])
    for row, (name, region) in enumerate(zip(samples, regions, strict=True)):
        ax.axhspan(row - 0.35, row + 0.35, *_share(region, reach), color="0.9", linewidth=0)
        values = sorted(samples[name])
        spread = [row + 0.25 * ((2 * k + 1) / len(values) - 1) for k in range(len(values))]
        ax.plot(values, spread, "o", color="#0072B2", markersize=3.5)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(xlim=(-reach, reach), ylim=(len(regions) - 0.5, -0.5), xlabel=xlabel)
    ax.set_yticks(range(len(regions)), labels)
    ax.set_title("one point a seed; grey: as claimed")


def _share(region: Region, reach: float) -> tuple[float, float]:
    """Return the ends of a region as shares of an axis from -reach to reach."""
    low, high = (min(max(end, -reach), reach) for end in (region.low, region.high))
    return (low + reach) / (2 * reach), (high + reach) / (2 * reach)


def draw_logistic(measured: Measured) -> Figure:
    labels = ["Adam against\nNesterov", "Adam against\nAdagrad", "Nesterov against\nAdagrad"]
    xlabel = "difference in training cost, all epochs, relative"
    return draw(measured, LOGISTIC, labels, xlabel, "Logistic regression on MNIST")


def draw_dropout(measured: Measured) -> Figure:
    labels = [f"against\n{other}" for other in OTHERS]
    return draw(measured, DROPOUT, labels, "log2(Adam's cost / other), last epoch", "An MLP with dropout on MNIST")


def draw(measured: Measured, effects: dict[str, Region], labels: list[str], xlabel: str, title: str) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.0))
        left, right = drawn.subplots(1, 2)
        draw_curves(left, measured.tables["curves"], measured.tables["cost"].median().sort_values().index)
        left.set_title(title)
        draw_samples(right, {name: measured.samples[name] for name in effects}, labels, list(effects.values()), xlabel)
    return drawn


SOURCE = "Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, section {}, arXiv:1412.6980"
LOGISTIC = {
    ADAM_NESTEROV: Region(-MARGIN, MARGIN),
    ADAM_ADAGRAD: Region(high=0.0),
    NESTEROV_ADAGRAD: Region(high=0.0),
}
DROPOUT = {of_dropout(other): Region(high=0.0) for other in OTHERS}
CLAIMS = (
    Claim(
        name="adam-logistic",
        says="On logistic regression Adam is about as fast as SGD with Nesterov's momentum, and both are faster than "
        "Adagrad.",
        source=SOURCE.format("6.1"),
        setup="MNIST, ten classes, batches of 128, alpha / sqrt(t), L2 of strength 1e-4 in the gradient, momentum 0.9, "
        "and Adam's default betas. The quick size has 8 epochs, the full one the source's 45. Each optimizer is tuned "
        "over eight alphas, by the training cost over all epochs, on two seeds, and then compared on fresh ones, "
        "pair by pair. The margin of 5 % is 0.015 of a cost of 0.3: curves that are closer lie on each other in a "
        "figure that spans the paper's 0.2 to 0.7. The strength of L2, momentum and the grids are not the source's, "
        "which gives none, and pixels are normalised by mean and standard deviation.",
        confirms="the training cost over all epochs differs by less than 5 % between Adam and Nesterov, and that of "
        "both is lower than Adagrad's",
        refutes="Adam and Nesterov are farther apart than that, or Adagrad's cost is lower than that of one of them",
        effects=LOGISTIC,
        measure=measure_logistic,
        draw=draw_logistic,
        seeds=12,
        quick={"epochs": 8},
        full={"epochs": 45},
        trial={"epochs": 1, "alphas_of_each": 2, "n_train": 256, "eval_examples": None},
    ),
    Claim(
        name="adam-dropout",
        says="Of Adam, Adagrad, RMSProp, Nesterov's momentum and Adadelta, Adam trains a network with dropout to the "
        "lowest cost.",
        source=SOURCE.format("6.2"),
        setup="MNIST, two hidden layers of ReLU, batches of 128, dropout of 0.5 in both hidden layers, constant alpha. "
        "The quick size has 64 units in each, 6000 images and 40 epochs; the full one the source's 1000 units, all "
        "images and 200 epochs. With few images a network passes many times over each, as the source's does. Each "
        "optimizer is tuned over six alphas, half a decade apart, by the training cost of the last epoch, on two "
        "seeds, and then compared on fresh ones, pair by pair. The source does not tell its grids.",
        confirms="Adam's training cost in the last epoch is lower than that of each of the other four",
        refutes="one of the others has a lower cost",
        effects=DROPOUT,
        measure=measure_dropout,
        draw=draw_dropout,
        seeds=12,
        quick={"hidden": 64, "n_train": 6000, "epochs": 40},
        full={"hidden": 1000, "n_train": 60000, "epochs": 200},
        trial={"hidden": 8, "n_train": 256, "epochs": 1, "alphas_of_each": 2, "eval_examples": None},
    ),
)

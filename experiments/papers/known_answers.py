"""What is known of Adam to the last digit.

First step: exp_avg = (1 - beta1) grad and exp_avg_sq = (1 - beta2) grad^2, so that without bias correction the step is
lr (1 - beta1) / sqrt(1 - beta2), whatever the gradient; the correction divides by these very factors.

Place of eps: with c = 1 - beta2^t, torch divides by sqrt(exp_avg_sq / c) + eps. The efficient form of the paper's
section 2 multiplies lr by sqrt(c) and divides by sqrt(exp_avg_sq) + eps, which is to divide by sqrt(exp_avg_sq / c) +
eps / sqrt(c).

Least squares: the least loss is the squared distance of the targets from the span of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

import optim
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region
from experiments.tasks import data
from kernels.rule import tl

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

BETA1, BETA2 = (0.0, 0.9), (0.99, 0.999, 0.9999)
GRADIENTS = -3.7, 1e-3, 2e5
"""The first step is the same for each, but for its sign."""
EPS, LR, GRADIENT = 1e-8, 1e-3, 1e-12
"""With so small a gradient the step is almost lr * gradient / eps, and eps is what it says."""
CONDITIONS = 1.0, 10.0, 100.0
ULP = 2.0**-23
"""Relative distance between float32 numbers: evaluations report no smaller excess loss."""
LRS, MOMENTUM = {"adam": 0.3, "momentum": 0.5}, 0.95
WITHOUT, WITH = "relative error without bias correction", "relative error with bias correction"
PLACES, OURS = "relative error of the ratio of effective eps", "relative error of effective eps, Adam here and in torch"
EXCESS, FORMULA = "excess loss / least loss", "relative difference of two computations of the least loss"


def first_steps(bias_correction: bool) -> pd.DataFrame:
    """Return for each pair of betas and gradient the first step of Adam, over lr, in float64 and with eps 0."""
    import pandas as pd

    table = pd.DataFrame([(b1, b2, g) for b1 in BETA1 for b2 in BETA2 for g in GRADIENTS])
    table.columns = ["beta1", "beta2", "gradient"]
    beta1, beta2, gradient = (torch.tensor(column.to_numpy(float)) for _, column in table.items())
    p = torch.zeros(len(table), 1, dtype=torch.float64, requires_grad=True)
    p.grad = gradient.unsqueeze(1)
    lr = torch.full_like(beta1, LR)
    optim.Adam([p], lr=lr, betas=(beta1, beta2), eps=0.0, bias_correction=bias_correction).step()
    return table.assign(ratio=(p.detach()[:, 0] / LR).abs().numpy())


def measure_first_step(runs: Runs) -> Measured:
    without, corrected = first_steps(bias_correction=False), first_steps(bias_correction=True)
    without["predicted"] = (1 - without["beta1"]) / (1 - without["beta2"]) ** 0.5
    samples = {WITHOUT: (without["ratio"] / without["predicted"] - 1).abs(), WITH: (corrected["ratio"] - 1).abs()}
    found = without.drop_duplicates(["beta1", "beta2"])
    said = (f"{ratio:.3g} at beta1 {b1:g} and beta2 {b2:g}" for b1, b2, _, ratio, _ in found.itertuples(index=False))
    notes = [f"Without bias correction the first step over lr is {', '.join(said)}."]
    tables = {"without": without, "with": corrected}
    return Measured({name: of.to_numpy() for name, of in samples.items()}, tables, notes)


def draw_first_step(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(5.6, 3.8))
        ax = drawn.subplots()
        for number, beta1 in enumerate(BETA1):
            for name, filled in (("without", "full"), ("with", "none")):
                found = measured.tables[name]
                found = found.loc[(found["beta1"] == beta1) & (found["gradient"] == GRADIENTS[0])]
                label = f"beta1 {beta1:g}, {name} bias correction"
                # Hollow marks stand around what they would hide.
                size = 6 if filled == "full" else 10 + 5 * number
                look = {"marker": "os"[number], "fillstyle": filled, "markersize": size, "color": f"C{number}"}
                ax.plot(1 - found["beta2"], found["ratio"], linestyle="none", label=label, **look)
            at = [10**-exponent for exponent in (1.9, 2, 3, 4, 4.1)]
            ax.plot(at, [(1 - beta1) / x**0.5 for x in at], color=f"C{number}", linewidth=1, zorder=1)
        ax.axhline(1, color="black", linewidth=0.8, linestyle="--", zorder=1)
        ax.annotate("lr", (2e-4, 1), xytext=(0, -11), textcoords="offset points", fontsize=8.5)
        ax.set(xscale="log", yscale="log", ylim=(0.5, 3e3), xlabel="1 - beta2", ylabel="first step / lr")
        ax.set_title("First step; lines: (1 - beta1) / sqrt(1 - beta2)")
        ax.legend()
    return drawn


def update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    weight1, weight2, step_size, root, eps = coefficients
    exp_avg = exp_avg + weight1 * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq + weight2 * (grad * grad - exp_avg_sq)
    return p - step_size * exp_avg / (tl.sqrt(exp_avg_sq) / root + eps), (exp_avg, exp_avg_sq)


def outside(hyper, step):
    """Have eps outside of the bias correction: added after it, as in torch and in Algorithm 1."""
    lr, beta1, beta2, eps = hyper
    root = tl.sqrt(1 - tl.exp(step * tl.log(beta2)))
    return 1 - beta1, 1 - beta2, lr / (1 - tl.exp(step * tl.log(beta1))), root, eps


def inside(hyper, step):
    """Have eps inside of the bias correction: divided by its root too, as in the efficient form."""
    lr, beta1, beta2, eps = hyper
    root = tl.sqrt(1 - tl.exp(step * tl.log(beta2)))
    return 1 - beta1, 1 - beta2, lr / (1 - tl.exp(step * tl.log(beta1))), root, eps / root


DEFAULTS = {"lr": LR, "betas": (0.9, 0.999), "eps": EPS}
STATES = "exp_avg", "exp_avg_sq"
EpsOutside = optim.from_rule(update, outside, states=STATES, defaults=DEFAULTS, name="EpsOutside")
EpsInside = optim.from_rule(update, inside, states=STATES, defaults=DEFAULTS, name="EpsInside")


def effective_eps(made: Callable[..., torch.optim.Optimizer], beta2: float, steps: int) -> np.ndarray:
    """Return the eps of Algorithm 1 that would make the same steps, float64 `[steps]`.

    The gradient is the same in every step, so that bias-corrected averages are gradient and gradient^2, and a step is
    lr * gradient / (gradient + eps).
    """
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p.grad = torch.full_like(p, GRADIENT).detach()
    optimizer, found = made([p], lr=LR, betas=(0.9, beta2), eps=EPS), torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        # From 0 a step loses no digits.
        p.detach().zero_()
        optimizer.step()
        found[step] = -p.detach()[0]
    return (GRADIENT * (LR / found - 1)).numpy()


def measure_eps(runs: Runs, steps: int) -> Measured:
    import numpy as np
    import pandas as pd

    tables, ours = [], []
    step = np.arange(1, steps + 1)
    for beta2 in BETA2:
        of = {made: effective_eps(made, beta2, steps) for made in (EpsOutside, EpsInside, optim.Adam, torch.optim.Adam)}
        ratio, predicted = of[EpsInside] / of[EpsOutside], (1 - beta2**step) ** -0.5
        tables.append(pd.DataFrame({"beta2": beta2, "step": step, "ratio": ratio, "predicted": predicted}))
        ours += [np.abs(of[made] / EPS - 1).max() for made in (optim.Adam, torch.optim.Adam)]
    table = pd.concat(tables, ignore_index=True)
    of_default = table.loc[(table["beta2"] == 0.999) & table["step"].isin((1, 1000))]
    said = (f"{ratio:.4g} at step {at}" for at, ratio in zip(of_default["step"], of_default["ratio"], strict=True))
    notes = [f"At beta2 0.999 the ratio is {', '.join(said)}."]
    error = (table["ratio"] / table["predicted"] - 1).abs().groupby(table["beta2"]).max()
    return Measured({PLACES: error.to_numpy(), OURS: ours}, {"eps": table}, notes)


def draw_eps(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(5.6, 3.8))
        ax = drawn.subplots()
        table = measured.tables["eps"]
        for number, beta2 in enumerate(BETA2):
            found = table.loc[table["beta2"] == beta2]
            ax.plot(found["step"], found["predicted"], color=f"C{number}", linewidth=1)
            some = found.loc[found["step"].isin((1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))]
            look: dict[str, Any] = {"linestyle": "none", "marker": "osD"[number], "color": f"C{number}"}
            ax.plot(some["step"], some["ratio"], label=f"beta2 {beta2:g}", **look)
        ax.axhline(1, color="black", linewidth=0.8, linestyle="--", zorder=1)
        ax.set(xscale="log", yscale="log", xlabel="step t", ylabel="effective eps, inside / outside")
        ax.set_title("eps inside of bias correction; lines: 1 / sqrt(1 - beta2^t)")
        ax.legend()
    return drawn


def least_loss(dataset: data.Dataset) -> float:
    """Return the mean squared part of the targets that is orthogonal to inputs and bias, by QR in float64."""
    x, y = dataset.x_train.double(), dataset.y_train.double()
    q = torch.linalg.qr(torch.cat([torch.ones(len(x), 1), x], 1).double())[0]
    return float((y - q @ (q.T @ y)).square().mean())


def measure_least_squares(runs: Runs, steps: int, conditions: tuple[float, ...] = CONDITIONS) -> Measured:
    import pandas as pd

    common = {"model": "linear", "optimizer": [*LRS], "lr": {name: [lr] for name, lr in LRS.items()}}
    common |= {"momentum": [MOMENTUM], "batch_size": 8192, "steps": steps, "schedule": "cosine", "evaluations": 50}
    tables, differences = [], []
    for condition in conditions:
        dataset = data.least_squares(condition)
        found = runs.sweep(f"condition-{condition:g}", "regression", condition_number=condition, **common)
        curves = found.curves.merge(found.runs[["run_id", "optimizer", "seed"]], on="run_id")
        tables.append(curves.assign(condition=condition, excess=curves["eval_loss"] / dataset.loss_floor))
        differences.append(abs(least_loss(dataset) / dataset.loss_floor - 1))
    table = pd.concat(tables, ignore_index=True)
    last = table.loc[table["step"] == steps, "excess"].to_numpy()
    return Measured({EXCESS: last, FORMULA: differences}, {"curves": table})


def draw_least_squares(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 3.8))
        panels = drawn.subplots(1, len(LRS), sharey=True)
        table = measured.tables["curves"]
        for ax, (optimizer, lr) in zip(panels, LRS.items(), strict=True):
            for number, condition in enumerate(table["condition"].unique()):
                found = table.loc[(table["optimizer"] == optimizer) & (table["condition"] == condition)]
                of_step = found.groupby("step")["excess"]
                median, label = of_step.median(), f"condition number {condition:g}"
                ax.plot(median.index, median, marker="osD"[number], markersize=3, label=label)
                ax.fill_between(of_step.min().index, of_step.min(), of_step.max(), alpha=0.2, linewidth=0)
            ax.axhline(ULP, color="black", linewidth=0.8, linestyle="--")
            ax.annotate("2⁻²³", (0, ULP), xytext=(0, 4), textcoords="offset points", fontsize=8.5)
            ax.set(yscale="log", xlabel="step", title=f"{optimizer}, lr {lr:g} to 0 by a cosine")
            ax.legend(loc="upper right")
        panels[0].set_ylabel("excess loss / least loss")
    return drawn


CLAIMS = (
    Claim(
        name="first-step",
        says="Without bias correction Adam's first step is (1 - beta1) / sqrt(1 - beta2) times lr, and with it lr.",
        source="Kingma & Ba 2015, Adam, section 3, arXiv:1412.6980",
        setup="One step of Adam in float64 with eps 0, for beta1 0 and 0.9, beta2 0.99, 0.999 and 0.9999, and three "
        "gradients. Nothing is random.",
        confirms="every step is the predicted one, to a relative error of 1e-12",
        refutes="any step is farther from it",
        effects={WITHOUT: Region(high=1e-12, exact=True), WITH: Region(high=1e-12, exact=True)},
        measure=measure_first_step,
        draw=draw_first_step,
        seeds=1,
    ),
    Claim(
        name="eps-placement",
        says="An eps added before bias correction is worth 1 / sqrt(1 - beta2^t) times as much as one added after.",
        source="Kingma & Ba 2015, Adam, Algorithm 1 and the efficient form of section 2, arXiv:1412.6980",
        setup="Two rules that differ in one coefficient: eps outside of the bias correction, as in Algorithm 1 and in "
        "torch, and eps inside of it, as in the paper's efficient form. Both take steps in float64 with a constant "
        "gradient of 1e-12 and eps 1e-8; the eps of Algorithm 1 that makes the same steps is computed from them, for "
        "beta2 0.99, 0.999 and 0.9999. Nothing is random.",
        confirms="the ratio of both is the predicted one in every step, and the eps of Adam, here and in torch, is the "
        "one that was given, to relative errors of 1e-10",
        refutes="any error is larger",
        effects={PLACES: Region(high=1e-10, exact=True), OURS: Region(high=1e-10, exact=True)},
        measure=measure_eps,
        draw=draw_eps,
        seeds=1,
        quick={"steps": 1000},
        trial={"steps": 50},
    ),
    Claim(
        name="least-squares-optimum",
        says="On least squares, training ends at the loss of the closed form.",
        source="Legendre 1805, Nouvelles méthodes pour la détermination des orbites des comètes, appendix",
        setup="Linear regression with 10 inputs, a bias and noise, condition numbers 1, 10 and 100, all 8,192 examples "
        "in each step. Adam at lr 0.3 and momentum 0.95 at lr 0.5, with a cosine to 0, in float32. The least loss "
        "comes from a singular value decomposition, and again from a QR decomposition, in float64. The excess over it "
        "is reported as 2^-23 of it at least, which is float32's resolution.",
        confirms="every run ends within 8 units of float32 of the least loss, and both computations agree to 1e-12",
        refutes="any run ends higher, or the computations differ for any condition number",
        effects={EXCESS: Region(high=8 * ULP, exact=True), FORMULA: Region(high=1e-12, exact=True)},
        measure=measure_least_squares,
        draw=draw_least_squares,
        seeds=3,
        quick={"steps": 600},
        trial={"steps": 10, "conditions": (100.0,)},
    ),
)

"""Where beta2 decides to which side Adam goes: AMSGrad's counter-example at a constant lr.

Gradients are 1010 once in a period of 101 steps, and -10 otherwise, whatever the position. After many periods the
averages of Adam repeat too: with g_j in step j of a period, an average with beta is

    (1 - beta) sum_i beta^i g_(j-i) / (1 - beta^101),    i = 0, ..., 100, j - i taken modulo 101,

exp_avg of g and exp_avg_sq of g^2. In a period Adam moves by -lr sum_j exp_avg_j / sqrt(exp_avg_sq_j). If beta2 is
small, exp_avg_sq has forgotten the large gradient when the last small ones are divided by its root: Adam goes to 1,
the worst point. Bias correction does not change the sum after many steps. AMSGrad divides by a constant, and a
period's gradients add up to 10. ADOPT divides by the exp_avg_sq of the step before, which is least when the large
gradient comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import optim
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region
from experiments.tasks.functions import PERIOD

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LR, BETA1 = 0.01, (0.0, 0.9)
GRADIENTS = np.array([10.0 * PERIOD] + [-10.0] * (PERIOD - 1))
GAPS = tuple(float(gap) for gap in np.geomspace(1e-2, 1e-4, 9))
"""Values of 1 - beta2."""
FACTORS = 0.9, 0.95, 0.98, 0.99, 1.01, 1.02, 1.05, 1.1
"""Further values for Adam, as factors of the predicted ones at which it turns."""
SHOWN = 0.99, 0.9999
TURN, AMSGRAD, ADOPT = "1 - beta2 at which Adam turns / predicted", "drift of AMSGrad / lr", "drift of ADOPT / lr"
NAMES = {"adam": "Adam", "amsgrad": "AMSGrad", "adopt": "ADOPT"}


def averaged(values: np.ndarray, beta: float) -> np.ndarray:
    """Return the average with this beta after each step of a period that repeats; values, float64 `[PERIOD]`."""
    weights = (1 - beta) * beta ** np.arange(PERIOD) / (1 - beta**PERIOD)
    return np.array([weights @ np.roll(values[::-1], j + 1) for j in range(PERIOD)])


def drift(optimizer: str, beta1: float, beta2: float) -> float:
    """Return by how much an optimizer moves in a period, over lr, after many periods."""
    size = np.sqrt(averaged(GRADIENTS**2, beta2))
    if optimizer == "adopt":
        # Its momentum is an average of what is divided already, and changes no sum.
        return float(-(GRADIENTS / np.roll(size, 1)).sum())
    return float(-(averaged(GRADIENTS, beta1) / (size if optimizer == "adam" else size.max())).sum())


def turn(beta1: float) -> float:
    """Return the 1 - beta2 at which Adam's drift is zero, by bisection."""
    low, high = 1e-5, 1e-1
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if drift("adam", beta1, 1 - middle) > 0 else (middle, high)
    return (low * high) ** 0.5


def walk(
    optimizer: str, configs: pd.DataFrame, periods: int, *, bounded: bool = False, lr: float = LR, falls: bool = False
) -> np.ndarray:
    """Return where an optimizer is at first and after each period, float64 `[periods + 1, configurations]`.

    The gradient does not depend on the position, so that the bounds only stop it.

    Args:
        configs: columns beta1 and gap, which is 1 - beta2.
        bounded: from 0.5, and within [-1, 1], as the function has it; otherwise from 0, and without bounds.
        falls: lr / sqrt(t) in step t instead of a constant lr.
    """
    beta1, gap = (torch.tensor(configs[name].to_numpy(float)) for name in ("beta1", "gap"))
    w = torch.full((len(configs), 1), 0.5 * bounded, dtype=torch.float64, requires_grad=True)
    gradient = torch.zeros_like(w)
    w.grad, rates = gradient.detach(), torch.full_like(beta1, lr)
    options: dict[str, Any] = {"lr": rates, "betas": (beta1, 1 - gap)}
    if optimizer == "adopt":
        taken = optim.ADOPT([w], **options)
    else:
        taken = optim.Adam([w], **options, amsgrad=optimizer == "amsgrad")
    path = [w.detach().clone()]
    for period in range(periods):
        for step, slope in enumerate(GRADIENTS.tolist(), 1 + period * PERIOD):
            gradient.fill_(slope)
            if falls:
                rates.fill_(lr / step**0.5)
            taken.step()
            if bounded:
                w.detach().clamp_(-1, 1)
        path.append(w.detach().clone())
    return torch.cat(path, dim=1).T.numpy()


def measure_drifts(periods: int, last: int, gaps: tuple[float, ...], factors: tuple[float, ...]) -> pd.DataFrame:
    """Return the drift of each optimizer, with columns optimizer, beta1, gap, measured and predicted."""
    import pandas as pd

    tables = []
    for optimizer in NAMES:
        near = {b: [f * turn(b) for f in factors] if optimizer == "adam" else [] for b in BETA1}
        configs = pd.DataFrame([(b, g) for b in BETA1 for g in sorted([*gaps, *near[b]])], columns=["beta1", "gap"])
        predicted = [drift(optimizer, b, 1 - g) for b, g in configs.itertuples(index=False)]
        path = walk(optimizer, configs, periods)
        measured = (path[-1] - path[-1 - last]) / last / LR
        tables.append(configs.assign(optimizer=optimizer, measured=measured, predicted=predicted))
    return pd.concat(tables, ignore_index=True)


def turns(table: pd.DataFrame) -> list[float]:
    """Return, over the prediction for each beta1, the largest gap up to which Adam falls, and the next one."""
    found = []
    for beta1, of_beta1 in table.loc[table["optimizer"] == "adam"].groupby("beta1"):
        falls = of_beta1["measured"] < 0
        ends = of_beta1.loc[falls, "gap"].max(), of_beta1.loc[~falls, "gap"].min()
        # Without a change there is no turn among the values.
        found += [float(np.nan_to_num(end / turn(beta1), nan=0.0)) for end in ends]
    return found


def positions(periods: int) -> pd.DataFrame:
    """Return the paths of each optimizer with its bounds, for beta1 0.9: columns optimizer, beta2, step and w."""
    import pandas as pd

    configs = pd.DataFrame({"beta1": 0.9, "gap": [1 - beta2 for beta2 in SHOWN]})
    step = PERIOD * np.arange(periods + 1)
    return pd.concat(
        pd.DataFrame({"optimizer": optimizer, "beta2": beta2, "step": step, "w": w})
        for optimizer in NAMES
        for beta2, w in zip(SHOWN, walk(optimizer, configs, periods, bounded=True).T, strict=True)
    )


def measure(
    runs: Runs,
    periods: int,
    last: int,
    shown: int,
    gaps: tuple[float, ...] = GAPS,
    factors: tuple[float, ...] = FACTORS,
) -> Measured:
    """Measure drifts over the `last` of some periods; shown: periods of the paths in the figure."""
    import pandas as pd

    table = measure_drifts(periods, last, gaps, factors)
    paths = positions(shown)
    source = pd.DataFrame({"beta1": [0.9], "gap": [0.01]})
    ends = {name: walk(name, source, shown, bounded=True, lr=0.5, falls=True)[-1, 0] for name in ("adam", "amsgrad")}
    steps = shown * PERIOD
    samples: dict[str, Any] = {TURN: turns(table)}
    for name, optimizer in ((AMSGRAD, "amsgrad"), (ADOPT, "adopt")):
        samples[name] = table.loc[table["optimizer"] == optimizer, "measured"].to_numpy()
    adam = table.loc[table["optimizer"] == "adam"]
    error = (adam["measured"] - adam["predicted"]).abs().max()
    predicted = " and ".join(f"{1 - turn(b):.5f} for beta1 {b:g}" for b in BETA1)
    adopt = paths.loc[(paths["optimizer"] == "adopt") & (paths["beta2"] == SHOWN[0])]
    highest, turned = adopt["w"].max(), adopt.loc[adopt["w"] >= adopt["w"].max() - 1e-3, "step"].max()
    notes = [
        f"The predicted beta2 is {predicted}; drifts of Adam are within {error:.1g} lr of the predicted ones.",
        f"ADOPT at beta2 {SHOWN[0]:g} and beta1 0.9 first goes to {highest:.3f} and is there up to step {turned:,}, "
        "because the bound of its updates holds the large gradient back.",
        f"With lr 0.5 / sqrt(t), betas 0.9 and 0.99, as in the source, Adam is at {ends['adam']:.3f} after {steps:,} "
        f"steps and AMSGrad at {ends['amsgrad']:.3f}.",
    ]
    return Measured(samples, {"drift": table, "paths": paths}, notes)


def draw_paths(ax: Axes, paths: pd.DataFrame) -> None:
    from matplotlib.ticker import MaxNLocator

    from experiments.reports import looks

    for optimizer, look in looks.of_optimizers(NAMES).items():
        for beta2, line in zip(SHOWN, ("--", "-"), strict=True):
            path = paths.loc[(paths["optimizer"] == optimizer) & (paths["beta2"] == beta2)]
            label = f"{NAMES[optimizer]}, beta2 {beta2:g}"
            ax.plot(path["step"], path["w"], line, color=look.colour, linewidth=1.5, label=label)
    for bound, said in ((1, "the worst point"), (-1, "the best point")):
        ax.axhline(bound, color="black", linewidth=0.8, linestyle=":")
        ax.annotate(said, (0, bound), xytext=(0, 4), textcoords="offset points", fontsize=8.5)
    ax.set(xlabel="step", ylabel="position w", ylim=(-1.2, 1.25), title=f"The function, lr {LR:g}, beta1 0.9")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.legend(fontsize=8)


def draw_drifts(ax: Axes, table: pd.DataFrame) -> None:
    from experiments.reports import looks

    gaps = np.geomspace(1e-2, 1e-4, 100)
    for optimizer, look in looks.of_optimizers(NAMES).items():
        for beta1, fill in zip(BETA1, ("none", "full"), strict=True):
            found = table.loc[(table["optimizer"] == optimizer) & (table["beta1"] == beta1)]
            marks: dict[str, Any] = {"linestyle": "none", "marker": look.marker, "fillstyle": fill, "markersize": 4.5}
            label = f"{NAMES[optimizer]}, beta1 {beta1:g}"
            ax.plot(found["gap"], found["measured"], color=look.colour, label=label, **marks)
            ax.plot(gaps, [drift(optimizer, beta1, 1 - gap) for gap in gaps], color=look.colour, linewidth=0.8)
    ax.axhline(0, color="black", linewidth=0.8)
    for beta1 in BETA1:
        ax.axvline(turn(beta1), color="black", linewidth=0.8, linestyle="--", ymax=0.5)
    ax.set(
        xscale="log", xlabel="1 - beta2", ylabel="drift in a period / lr", title="After many periods; lines: predicted"
    )
    place = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "fontsize": 8.5}
    ax.annotate("predicted turns", (turn(BETA1[0]), -3), **place)
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set_ylim(-6, 6)
    ax.legend(fontsize=8)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.2))
        left, right = drawn.subplots(1, 2)
        draw_paths(left, measured.tables["paths"])
        draw_drifts(right, measured.tables["drift"])
    return drawn


CLAIMS = (
    Claim(
        name="beta2-transition",
        says="On AMSGrad's counter-example Adam drifts to the best point if beta2 is above 0.99960 for beta1 0, or "
        "0.99952 for beta1 0.9, and to the worst one below; AMSGrad and ADOPT drift to the best one for every beta2.",
        source="Reddi et al. 2018, On the Convergence of Adam and Beyond, arXiv:1904.09237; Zhang et al. 2022, Adam "
        "Can Converge Without Any Modification on Update Rules, arXiv:2208.09632; Taniguchi et al. 2024, ADOPT, "
        "arXiv:2411.02853; the numbers are derived here",
        setup="Slopes of 1010 in every 101st step and -10 in the others, constant lr 0.01, nine values of beta2 from "
        "0.99 to 0.9999, and for Adam also values within 10 % of the predicted 1 - beta2. The drift is the mean move "
        "in a period, without the bounds of the function, in float64 over the last 100 of 1,000 periods: averages have "
        "settled then, and the bound of ADOPT's updates, (t - 1)^(1/4), is no longer reached. The positions in the "
        "figure are those of the function with its bounds. Nothing is random. Samples of the first effect are the last "
        "value on one side of the turn and the first on the other, for each beta1.",
        confirms="Adam drifts to the best point at 0.99 of the predicted 1 - beta2 and to the worst at 1.01 of it, for "
        "both values of beta1, and AMSGrad and ADOPT drift to the best one in every case",
        refutes="Adam turns elsewhere, or AMSGrad or ADOPT drifts to the worst point in any case",
        effects={
            TURN: Region(0.98, 1.02, exact=True),
            AMSGRAD: Region(high=0.0, exact=True),
            ADOPT: Region(high=0.0, exact=True),
        },
        measure=measure,
        draw=draw,
        seeds=1,
        quick={"periods": 1000, "last": 100, "shown": 200},
        full={"shown": 5000},
        trial={"periods": 4, "last": 2, "shown": 3, "gaps": (1e-2, 1e-4), "factors": (0.9, 1.1)},
    ),
)

"""Does Adam's advantage over SGD come from blocks of the Hessian that differ?

Two quadratics have the same nine eigenvalues, in three rotated blocks of three. The heterogeneous one has (1, 2, 3),
(99, 100, 101) and (4998, 4999, 5000): one rate per block would solve it, and Adam has one per element. In the
homogeneous one every block has the whole range, so that no rates per block help: its condition number stays about 5000.

Gradient descent is stable to lr 2 / 5000. With a cosine from there it shrinks the part of eigenvalue 1 in 1000 steps by
about exp(-1000 (2 / 5000) / 2) = 0.82. Momentum 0.9 is stable to 3.8 / 5000 and makes that rate ten times as large:
about exp(-3.8) = 0.02.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from experiments.papers.bands import draw_band
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MODELS = "heterogeneous", "homogeneous"
SGD = {0.0: "sgd", 0.9: "momentum"}
"""The name of SGD with each momentum; Adam has the same value as beta1."""
FLOOR = 1e-20
"""Lower losses count as this one; the first is about 1e4."""
TUNING_SEEDS = 10
ORDERS, HALF_AN_ORDER = Region(low=2.0), Region(high=0.5)


def effect(model: str, momentum: float) -> str:
    return f"log10(SGD / Adam), {model}, {f'momentum and beta1 {momentum:g}' if momentum else 'no momentum'}"


def bounded(runs: pd.DataFrame) -> pd.Series:
    """Return the final losses of runs, at least FLOOR, and at most the initial ones, which diverged runs have."""
    ended = runs["eval_loss"].where(runs["status"] == "ok", np.inf).fillna(np.inf)
    return ended.clip(lower=FLOOR).clip(upper=runs["initial_eval_loss"])


def measure(runs: Runs, steps: int, adam_lr: str, sgd_lr: str, tuning_seeds: int = TUNING_SEEDS) -> Measured:
    import pandas as pd

    samples, tuned, fresh = {}, [], []
    for model in MODELS:
        for momentum, sgd in SGD.items():
            name, given = f"{model}-{sgd}", {"model": model, "momentum_of_both": momentum}
            options = {"model": model, "steps": steps, "schedule": "cosine", "evaluations": 1}
            grid = {"optimizer": ["adam", sgd], "lr": {"adam": adam_lr, sgd: sgd_lr}, "beta1": momentum}
            grid |= {"momentum": momentum} if momentum else {}
            tuning = runs.sweep(name, "function", seeds=tuning_seeds, **options, **grid).runs
            best = runs.again(tuning, name, "function", **options, **grid).runs
            tuned.append(tuning.assign(loss=bounded(tuning), **given))
            fresh.append(best.assign(loss=bounded(best), **given))
            by_seed = fresh[-1].pivot(index="seed", columns="optimizer", values="loss")
            samples[effect(model, momentum)] = np.log10(by_seed[sgd] / by_seed["adam"]).to_numpy()
    tables = {"tuned": pd.concat(tuned, ignore_index=True), "fresh": pd.concat(fresh, ignore_index=True)}
    return Measured(samples, tables, notes_on(tables["fresh"]))


def notes_on(fresh: pd.DataFrame) -> list[str]:
    """Return a sentence on the tuned lr and the median loss of each optimizer, for each model."""
    said = []
    for model in MODELS:
        of_model = fresh.loc[fresh["model"] == model]
        groups = of_model.groupby(["momentum_of_both", "optimizer"])[["lr", "loss"]].median()
        parts = [
            f"{'Adam, beta1' if optimizer == 'adam' else 'SGD, momentum'} {momentum:g}: {loss:.2g} at lr {lr:.2g}"
            for (momentum, optimizer), lr, loss in zip(groups.index, groups["lr"], groups["loss"], strict=True)
        ]
        said.append(f"Median final losses, {model}: {'; '.join(parts)}.")
    return said


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE
    from experiments.reports import looks

    tuned, fresh = measured.tables["tuned"], measured.tables["fresh"]
    look = looks.of_optimizers(["adam", "sgd"])
    with style.context(STYLE):
        drawn = Figure(figsize=(11.0, 4.2))
        *panels, ratios = drawn.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
        for ax, model in zip(panels, MODELS, strict=True):
            for momentum, sgd in SGD.items():
                for optimizer in (sgd, "adam"):
                    colour, marker, _ = look["adam" if optimizer == "adam" else "sgd"]
                    wanted = {"model": model, "momentum_of_both": momentum, "optimizer": optimizer}
                    curve, best = (table.loc[(table[list(wanted)] == wanted).all(axis=1)] for table in (tuned, fresh))
                    loss = curve.groupby("lr")["loss"]
                    label = f"Adam, beta1 {momentum:g}" if optimizer == "adam" else f"SGD, momentum {momentum:g}"
                    draw_band(ax, loss, linestyle="-" if momentum else ":", color=colour, label=label)
                    face = colour if momentum else "white"
                    ax.plot(best["lr"], best["loss"], marker, color=colour, markerfacecolor=face, markersize=4)
            ax.axhline(fresh["initial_eval_loss"].median(), color="black", linewidth=0.8, linestyle="--")
            ax.set(xscale="log", yscale="log", xlabel="peak lr of the cosine", title=f"{model.capitalize()} blocks")
            ax.set(ylabel="final loss", ylim=(FLOOR / 10, 1e6))
        panels[1].text(0.03, 0.05, "dashed: initial loss;\ndiverged runs are drawn there", fontsize=8.5,
                       transform=panels[1].transAxes)  # fmt: skip
        names = [(model, momentum) for model in MODELS for momentum in SGD]
        for x, (model, momentum) in enumerate(names):
            ratio = np.sort(measured.samples[effect(model, momentum)])
            at = x + np.linspace(-0.2, 0.2, len(ratio))
            ratios.plot(at, ratio, "o", color="black", markerfacecolor="black" if momentum else "white", markersize=4)
        for start, border, text in ((0, ORDERS.low, "claimed: above"), (2, HALF_AN_ORDER.high, "claimed: below")):
            ratios.hlines(border, start - 0.4, start + 1.4, color=looks.INK, linestyle="--")
            above = text.endswith("above")
            ratios.annotate(
                text,
                (start - 0.4, border),
                (0, -4 if above else 4),
                textcoords="offset points",
                va="top" if above else "bottom",
                fontsize=8.5,
            )
        labels = [f"{model[:5]}.,\n{momentum:g}" for model, momentum in names]
        ratios.set_xticks(range(len(names)), labels)
        ratios.set(xlim=(-0.5, 3.5), xlabel="blocks, momentum", ylabel="log10(SGD / Adam)")
        ratios.set_title("Final losses, fresh seeds")
        handles, labels = panels[0].get_legend_handles_labels()
        title = "Lines: median and quartiles of the tuning. Marks: fresh seeds at the best lr."
        drawn.legend(handles, labels, loc="outside lower center", ncols=4, title=title)
    return drawn


CLAIMS = (
    Claim(
        name="block-hessians",
        says="Adam beats SGD by orders of magnitude where blocks of the Hessian differ, and not where they are alike.",
        source="Zhang et al. 2024, Why Transformers Need Adam, arXiv:2402.16788, and Orvieto & Gower 2025, "
        "In Search of Adam's Secret Sauce, arXiv:2505.21829",
        setup="Quadratics of nine dimensions with the same eigenvalues from 1 to 5000 in three rotated blocks: "
        "heterogeneous, {1, 2, 3}, {99, 100, 101}, {4998, 4999, 5000}, and homogeneous, {1, 99, 4998}, {2, 100, 4999}, "
        "{3, 101, 5000}. 1000 steps without noise, with a cosine schedule, from N(0, 1). Adam has beta2 0.999. SGD "
        "and Adam are compared with equal momentum: none, and 0.9, which is Adam's beta1. For each the lr is the best "
        "of 81, 20 a decade, over ten starting points; the verdict rests on others. Losses below 1e-20 count as 1e-20.",
        confirms="SGD's final loss is at least 100 times Adam's with heterogeneous blocks, and at most 3.2 times "
        "Adam's (half an order of magnitude) with homogeneous blocks, without momentum and with it",
        refutes="it is less than 100 times Adam's with heterogeneous blocks, or more than 3.2 times with "
        "homogeneous ones",
        effects={
            effect(model, momentum): region
            for model, region in zip(MODELS, (ORDERS, HALF_AN_ORDER), strict=True)
            for momentum in SGD
        },
        measure=measure,
        draw=draw,
        seeds=20,
        quick={"steps": 1000, "adam_lr": "1e-2..100:81", "sgd_lr": "1e-6..1e-2:81"},
        trial={"steps": 3, "adam_lr": "0.1..1:2", "sgd_lr": "1e-5..1e-4:2", "tuning_seeds": 1},
    ),
)

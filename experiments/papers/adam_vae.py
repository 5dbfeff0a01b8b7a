"""Adam's paper, section 6.4: a variational autoencoder with and without bias correction.

Without correction the first step of Adam is (1 - beta1) / sqrt(1 - beta2) times alpha, element by element: 10, 31.6 and
100 times for beta1 = 0 and beta2 = 0.99, 0.999, 0.9999, and a tenth of that for beta1 = 0.9. Step t is longer by
1 / sqrt(1 - beta2^t) once exp_avg is warm, which is 7.1 for beta2 = 0.9999 and 1.07 for beta2 = 0.99 at t = 200. With
correction both factors are 1. The section calls Adam without correction RMSProp with momentum.

Losses are compared in shares of the best fall: a difference in nats, divided by how far the best of all configurations
has got below the untrained network at that moment with that seed. A loss above that of the untrained network, or of a
run that diverged, counts as that of the untrained one, so that a share is at most 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments.papers.bands import draw_band
from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region
from experiments.tasks import data
from experiments.tasks.own import Problem

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETA1, BETA2 = (0.0, 0.9), (0.99, 0.999, 0.9999)
CORRECTED, UNCORRECTED = "true", "false"
SETTING = ["beta1", "beta2", "lr"]
MARGIN = 0.02
UNSTABLE, UNCHANGED = "early, lost without correction, beta2 0.9999", "early, lost without correction, beta2 0.99"
CLOSER_TO_1 = "late, best of beta2 0.999 and 0.9999 - best of 0.99"
WORST = "late, with correction - without, worst setting"


class Autoencoder(nn.Module):
    """A VAE with a hidden layer of softplus units on each side; returns logits, and mean and log variance of z."""

    def __init__(self, pixels: int, hidden: int, latent: int):
        super().__init__()
        self.encoder, self.posterior = nn.Linear(pixels, hidden), nn.Linear(hidden, 2 * latent)
        self.decoder, self.pixels = nn.Linear(latent, hidden), nn.Linear(hidden, pixels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_var = self.posterior(F.softplus(self.encoder(x))).chunk(2, dim=-1)
        z = mean + torch.exp(log_var / 2) * torch.randn(mean.shape, device=x.device)
        return self.pixels(F.softplus(self.decoder(z))), mean, log_var


def bound(output: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the negative evidence lower bound of binary pixels, in nats, the mean over images `[n, pixels]`.

    output: of `Autoencoder`.
    """
    logits, mean, log_var = output
    misfit = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    divergence = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
    return (misfit + divergence) / len(x)


def problem(is_small: bool, hidden: int, latent: int, batch_size: int) -> Problem:
    """Return the autoencoder of MNIST's images as pixels of 0 and 1, 10 x 10 if it is small, else 28 x 28."""
    digits = data.mnist()
    low, high = digits.x_train.min(), digits.x_train.max()

    def pixels(x: torch.Tensor) -> torch.Tensor:
        x = ((x - low) / (high - low)).view(-1, 1, 28, 28)
        # MNIST's digits fill the inner 20 x 20 pixels.
        x = F.avg_pool2d(x[:, :, 4:24, 4:24], 2) if is_small else x
        return (x.flatten(1) > 0.5).float()

    x, x_eval = pixels(digits.x_train), pixels(digits.x_eval[:1000])
    return Problem(
        name=f"{digits.name}, {'10 x 10' if is_small else '28 x 28'} binary pixels",
        model=lambda: Autoencoder(x.shape[1], hidden, latent),
        train=(x, x),
        evaluate=(x_eval, x_eval),
        loss=bound,
        batch_size=batch_size,
    )


def small_problem() -> Problem:
    return problem(True, hidden=32, latent=8, batch_size=32)


def problem_of_source() -> Problem:
    return problem(False, hidden=500, latent=50, batch_size=100)


PROBLEMS = {"small": small_problem, "source": problem_of_source}


def measure(runs: Runs, size: str, early: int, late: int, alphas: int = 5) -> Measured:
    """Train all configurations. size: a key of `PROBLEMS`; early, late: steps after which losses are compared."""
    found = runs.sweep(
        "vae",
        PROBLEMS[size],
        optimizer="adam",
        lr=f"1e-5..1e-1:{alphas}",
        beta1=BETA1,
        beta2=BETA2,
        axes={"bias_correction": [CORRECTED, UNCORRECTED]},
        steps=late,
        evaluations=late // early,
    )
    table = losses(found.runs, found.curves, {"early": early, "late": late})
    samples, notes = effects_of(table)
    diverged = int((found.runs["status"] == "diverged").sum())
    notes.append(f"{diverged} of {len(found.runs)} runs diverged.")
    return Measured(samples, {"losses": table}, notes)


def losses(runs: pd.DataFrame, curves: pd.DataFrame, moments: dict[str, int]) -> pd.DataFrame:
    """Return the runs with their losses after these numbers of steps, at most those of the untrained networks."""
    table = runs[[*SETTING, "bias_correction", "seed", "initial_eval_loss"]].copy()
    for name, step in moments.items():
        # Curves of runs that have diverged end there.
        at = curves.loc[curves["step"] == step].set_index("run_id")["eval_loss"].to_dict()
        loss = [at.get(run, math.inf) for run in runs["run_id"]]
        table[name] = table.assign(loss=loss)[["loss", "initial_eval_loss"]].min(axis=1)
    return table


def shares(table: pd.DataFrame, moment: str) -> tuple[np.ndarray, np.ndarray]:
    """Return losses in shares of the best fall, with correction and without, `[seeds, beta1, beta2, alphas]` each.

    0 is the lowest loss of the seed at that moment, 1 the loss of the untrained network.
    """
    best = table.groupby("seed")[moment].transform("min")
    fall = (table["initial_eval_loss"] - best).clip(lower=1e-9)
    ordered = table.assign(share=(table[moment] - best) / fall).sort_values(["seed", *SETTING])
    shape = table["seed"].nunique(), len(BETA1), len(BETA2), -1
    corrected, uncorrected = (
        ordered.loc[ordered["bias_correction"] == kind, "share"].to_numpy().reshape(shape)
        for kind in (CORRECTED, UNCORRECTED)
    )
    return corrected, uncorrected


def lost(corrected: np.ndarray, uncorrected: np.ndarray) -> np.ndarray:
    """Return by how much losses are higher without correction, at the alpha that is best with it; mean over beta1.

    Args:
        corrected, uncorrected: shares of one beta2, `[seeds, beta1, alphas]`.
    """
    import numpy as np

    best = np.median(corrected, axis=0).argmin(axis=1)
    return (uncorrected - corrected)[:, np.arange(len(best)), best].mean(axis=1)


def best_of(shares: np.ndarray) -> np.ndarray:
    """Return the shares of the configuration with the lowest median, `[seeds]`, of `[seeds, ...]`."""
    import numpy as np

    flat = shares.reshape(len(shares), -1)
    return flat[:, np.median(flat, axis=0).argmin()]


def effects_of(table: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the samples of each effect, a number for each seed, and notes about them."""
    import numpy as np

    corrected, uncorrected = shares(table, "early")
    of_beta2 = [lost(corrected[:, :, one], uncorrected[:, :, one]) for one in range(len(BETA2))]
    corrected, uncorrected = shares(table, "late")
    difference = corrected - uncorrected
    medians = np.median(difference, axis=0)
    worst = np.unravel_index(medians.argmax(), medians.shape)
    samples = {
        UNSTABLE: of_beta2[-1],
        UNCHANGED: of_beta2[0],
        CLOSER_TO_1: best_of(corrected[:, :, 1:]) - best_of(corrected[:, :, :1]),
        WORST: difference[(slice(None), *worst)],
    }
    alphas = sorted(table["lr"].unique())
    worse = int((medians > MARGIN).sum())
    notes = [
        f"The setting in which correction does worst late is beta1 {BETA1[worst[0]]:g}, beta2 {BETA2[worst[1]]:g}, "
        f"alpha {alphas[worst[2]]:.0e}; of {medians.size} settings {worse} are worse with correction by more than "
        f"{MARGIN:g}, and {int((medians < -MARGIN).sum())} are better by more.",
    ]
    for moment in ("early", "late"):
        of_all, at_last = (
            float(np.median(best_of(without) - best_of(with_it)))
            for with_it, without in (shares(table, moment), [one[:, :, -1] for one in shares(table, moment)])
        )
        notes.append(
            f"Each at its best alpha and betas, {moment}, without correction - with it has the median {of_all:.4f}, "
            f"and at beta2 {BETA2[-1]:g} {at_last:.4f}."
        )
    return samples, notes


def draw_panel(ax: Axes, table: pd.DataFrame) -> None:
    """Draw losses against alpha, with and without correction, early and late: medians, bands between quartiles."""
    for kind, label, colour, marker in LOOKS:
        of_kind = table.loc[table["bias_correction"] == kind].groupby("lr")
        for moment, line, filled in (("early", "--", "white"), ("late", "-", colour)):
            style: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": filled}
            draw_band(ax, of_kind[moment], label=f"{label}, {moment}", markersize=4.5, **style)
    untrained = table["initial_eval_loss"].median()
    ax.axhline(untrained, color="black", linewidth=0.8, linestyle=":")
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate("untrained, or diverged", (0, untrained), xytext=(3, 3), fontsize=8, **at)
    ax.set(xscale="log")


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    table = measured.tables["losses"]
    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 6.0))
        panels = drawn.subplots(len(BETA1), len(BETA2), sharex=True, sharey=True)
        for row, beta1 in zip(panels, BETA1, strict=True):
            for ax, beta2 in zip(row, BETA2, strict=True):
                draw_panel(ax, table.loc[(table["beta1"] == beta1) & (table["beta2"] == beta2)])
                ax.set_title(f"beta1 {beta1:g}, beta2 {beta2:g}")
            row[0].set_ylabel("negative ELBO (nats)")
        panels[0][0].set_ylim(top=1.06 * table["initial_eval_loss"].median())
        for ax in panels[-1]:
            ax.set_xlabel("alpha")
        handles, labels = panels[0][0].get_legend_handles_labels()
        title = f"medians of {table['seed'].nunique()} seeds, with quartiles as bands; late is ten times as many steps"
        drawn.legend(handles, labels, loc="outside lower center", ncols=4, title=title)
    return drawn


LOOKS = (CORRECTED, "with correction", "#D55E00", "o"), (UNCORRECTED, "without", "#009E73", "s")
"""Red with correction and green without, as in the source."""
CLAIMS = (
    Claim(
        name="adam-vae",
        says="A variational autoencoder trains unstably early without bias correction if beta2 is near 1; with it, "
        "beta2 near 1 is best in the end, and no setting is worse than without it.",
        source="Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, section 6.4, arXiv:1412.6980",
        setup="One hidden layer of softplus units on each side and a Bernoulli likelihood; beta1 0, 0.9, beta2 0.99, "
        "0.999, 0.9999, alpha 1e-5 to 1e-1 by decades, with and without correction: 60 configurations, trained "
        "together. Losses are the negative evidence lower bound of 1000 test images, early and after ten times as many "
        "steps. The quick size has MNIST's inner 20 x 20 pixels as 10 x 10, 32 hidden units, 8 latent ones, batches of "
        "32, and 200 and 2000 steps; the full one 28 x 28, 500, 50, 100, and the source's 10 and 100 epochs. Pixels "
        "are 0 or 1. Effects are differences of losses between runs of one seed, in shares of the best fall: how far "
        "the best of the 60 is below the untrained network. Losses above the latter, or of runs that diverged, count "
        "as its loss. What is lost without correction is measured at the alpha that is best with it, and averaged over "
        "both beta1. The margin is 0.02, a line's width or two in a figure of losses.",
        confirms="early, more than 0.02 is lost without correction at beta2 0.9999 and less than that is lost or won "
        "at 0.99; and late, with correction the best of beta2 0.999 and 0.9999 is lower than the best of 0.99, and "
        "in no setting of beta1, beta2 and alpha correction costs more than 0.02",
        refutes="one of these four is not so",
        effects={
            UNSTABLE: Region(low=MARGIN),
            UNCHANGED: Region(-MARGIN, MARGIN),
            CLOSER_TO_1: Region(high=0.0),
            WORST: Region(high=MARGIN),
        },
        measure=measure,
        draw=draw,
        seeds=8,
        quick={"size": "small", "early": 200, "late": 2000},
        full={"size": "source", "early": 6000, "late": 60000},
        trial={"early": 1, "late": 2, "alphas": 2},
    ),
)

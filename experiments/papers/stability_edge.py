"""Where Adam becomes unstable: the edge of stability of a preconditioned quadratic.

With a constant preconditioner P, steps p <- p - lr P^-1 exp_avg on a quadratic with Hessian H have for each eigenvalue
s of P^-1 H the characteristic polynomial

    z^2 - (1 + beta1 - (1 - beta1) lr s) z + beta1,

one of whose roots passes -1 where s exceeds (2 + 2 beta1) / ((1 - beta1) lr): 38 / lr for beta1 = 0.9. If Adam settles,
gradients vanish and P becomes eps, so it can settle only where eps > lambda_max lr / 38. A smaller eps keeps it in an
oscillation, in which sqrt(exp_avg_sq) makes up for what eps lacks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from experiments.papers.claim import Claim, Measured, Runs
from experiments.papers.verdicts import Region
from experiments.tasks import problems
from optim import Adam

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MODELS = "heterogeneous", "homogeneous"
BETA1 = 0.0, 0.5, 0.9, 0.95
LR, SETTLING_BETA1, BETA2 = 1e-3, 0.9, (0.95, 0.96, 0.97, 0.98)
LAMBDA_MAX = 5000.0
FACTORS = 0.9, 0.95, 0.98, 0.99, 0.995, 1.005, 1.01, 1.02, 1.05, 1.1
"""What is tried, as factors of the predicted edge."""
SETTLED = 1e-20
"""A final loss below this one has vanished. In the oscillation at 0.995 of the edge it is about 4e-11."""
FROZEN, SETTLING = "edge with P frozen / predicted", "least eps that settles / predicted"


def edge(beta1: float) -> float:
    """Return the largest stable eigenvalue of the preconditioned Hessian, times lr."""
    return (2 + 2 * beta1) / (1 - beta1)


def hessian_of(model: str) -> torch.Tensor:
    """Return the Hessian of a block quadratic, float64 `[9, 9]`."""
    module = problems.make("function", model).model.build()
    # The functions are quadratic, so any point will do.
    found = torch.autograd.functional.hessian(
        lambda w: functional_call(module, {"w": w}, (torch.zeros(1, 9),)).sum(), torch.zeros(9)
    )
    return torch.as_tensor(found).double()


def growth(hessian: torch.Tensor, beta1: torch.Tensor, factor: torch.Tensor, steps: int) -> torch.Tensor:
    """Return by how much log10 of the distance to the minimum grows in a step, over the last half, `[K]`.

    The preconditioner is drawn, and put back after each step. Steps are then linear, so that parameters and exp_avg can
    be divided by the distance, which keeps them in range.

    Args:
        hessian: float64 `[n, n]`.
        beta1, factor: float64 `[K]` each, of K runs; lr is the factor times the predicted edge.
        steps: of each run.
    """
    preconditioner, start = torch.randn(2, len(hessian), generator=torch.Generator().manual_seed(0)).double()
    preconditioner = 0.5 + preconditioner.abs()
    lambda_max = torch.linalg.eigvalsh(hessian / torch.outer(preconditioner, preconditioner).sqrt())[-1]
    w = start.expand(len(beta1), -1).clone().requires_grad_()
    w.grad = torch.zeros_like(w)
    lr = factor * (2 + 2 * beta1) / (1 - beta1) / lambda_max
    optimizer = Adam([w], lr=lr, betas=(beta1, torch.full_like(beta1, 0.999)), eps=1e-300, bias_correction=False)
    # A step with no gradient makes the states.
    optimizer.step()
    state, total = optimizer.state[w], torch.zeros_like(beta1)
    for step in range(steps):
        # What the step makes of this is preconditioner ** 2.
        w.grad = w.detach() @ hessian
        state["exp_avg_sq"].copy_((preconditioner.square() - (1 - 0.999) * w.grad.square()) / 0.999)
        optimizer.step()
        distance = w.detach().norm(dim=1, keepdim=True)
        w.detach().div_(distance)
        state["exp_avg"].div_(distance)
        if step >= steps // 2:
            total += distance.squeeze(1).log10()
    return total / (steps - steps // 2)


def measure_frozen(steps: int) -> pd.DataFrame:
    """Return `growth` for each Hessian, beta1 and factor."""
    import pandas as pd

    tables = []
    for model in MODELS:
        cases = pd.DataFrame([(model, b, f) for b in BETA1 for f in FACTORS], columns=["model", "beta1", "factor"])
        beta1, factor = (torch.tensor(cases[name].to_numpy()) for name in ("beta1", "factor"))
        tables.append(cases.assign(growth=growth(hessian_of(model), beta1, factor, steps).numpy()))
    return pd.concat(tables, ignore_index=True)


def brackets(table: pd.DataFrame, by: list[str], below: pd.Series) -> list[float]:
    """Return for each case the largest factor at which `below` is true, and the smallest at which it is not."""
    cases = [case for _, case in table.assign(below=below).groupby(by)]
    # Without a change there is no edge among the factors.
    low = [case.loc[case["below"], "factor"].max() for case in cases]
    high = [case.loc[~case["below"], "factor"].min() for case in cases]
    return [*(0.0 if math.isnan(a) else a for a in low), *(math.inf if math.isnan(b) else b for b in high)]


def measure(runs: Runs, frozen_steps: int, steps: int, factors: tuple[float, ...] = FACTORS) -> Measured:
    import pandas as pd

    frozen = measure_frozen(frozen_steps)
    predicted = LAMBDA_MAX * LR / edge(SETTLING_BETA1)
    table = pd.DataFrame([(b, f * predicted) for b in BETA2 for f in factors], columns=["beta2", "eps"])
    table = table.assign(optimizer="adam", lr=LR, beta1=SETTLING_BETA1)
    found = [
        runs.sweep(model, "function", model=model, configs=table, steps=steps, evaluations=1).runs.assign(model=model)
        for model in MODELS
    ]
    settling = pd.concat(found, ignore_index=True)
    settling["factor"] = settling["eps"] / predicted
    samples = {
        FROZEN: brackets(frozen, ["model", "beta1"], frozen["growth"] < 0),
        SETTLING: brackets(settling, ["model", "beta2", "seed"], settling["eval_loss"] > SETTLED),
    }
    notes = [f"The predicted least eps is {predicted:.4f}, for lambda_max {LAMBDA_MAX:g}, lr {LR:g} and beta1 0.9."]
    return Measured(samples, {"frozen": frozen, "settling": settling}, notes)


def draw(measured: Measured) -> Figure:
    from matplotlib import style
    from matplotlib.figure import Figure

    from experiments.common.figure_style import STYLE

    with style.context(STYLE):
        drawn = Figure(figsize=(9.0, 4.0))
        left, right = drawn.subplots(1, 2)
        frozen, settling = measured.tables["frozen"], measured.tables["settling"]
        for number, beta1 in enumerate(BETA1):
            of_beta1 = frozen.loc[(frozen["beta1"] == beta1) & (frozen["model"] == MODELS[0])]
            label = f"beta1 {beta1:g}: {edge(beta1):g} / lr"
            left.plot(of_beta1["factor"], of_beta1["growth"], "osD^"[number], linestyle="-", label=label)
        left.axhline(0, color="black", linewidth=0.8)
        left.set(xlabel="largest eigenvalue of P⁻¹H / predicted edge", ylabel="growth of log10(distance) in a step")
        left.set_title("P frozen: unstable above")
        for number, beta2 in enumerate(BETA2):
            of_beta2 = settling.loc[settling["beta2"] == beta2]
            # Zero has no logarithm.
            loss = of_beta2["eval_loss"].clip(lower=1e-40)
            shift = 1 + 0.0008 * (number - 1.5)
            right.plot(of_beta2["factor"] * shift, loss, "osD^"[number], markersize=3.5, label=f"beta2 {beta2:g}")
        right.axhline(SETTLED, color="black", linewidth=0.8, linestyle=":")
        right.annotate("below: vanished", (0.9, SETTLED), xytext=(0, -10), textcoords="offset points", fontsize=8.5)
        right.set(yscale="log", xlabel="eps / predicted least eps", ylabel="final loss (0 is drawn at 1e-40)")
        right.set_title(f"Adam at lr {LR:g}: settles above")
        for ax in (left, right):
            ax.set_xticks([0.9, 0.95, 1.0, 1.05, 1.1])
            ax.axvline(1, color="black", linewidth=0.8, linestyle="--")
            ax.legend()
    return drawn


CLAIMS = (
    Claim(
        name="stability-edge",
        says="Adam is stable up to an eigenvalue (2 + 2 beta1) / ((1 - beta1) lr) of the preconditioned Hessian.",
        source="Cohen et al. 2022, Adaptive Gradient Methods at the Edge of Stability, arXiv:2207.14484",
        setup="Quadratics of nine dimensions with block Hessians, heterogeneous and homogeneous, and lambda_max 5000. "
        "First with a preconditioner that is drawn and kept, in float64, for beta1 0, 0.5, 0.9, 0.95. Then Adam itself "
        "at lr 1e-3 and beta1 0.9, beta2 0.95 to 0.98, with eps near lambda_max lr / 38, from N(0, 1). Both are tried "
        "at 0.9 to 1.1 of what is predicted. Samples are the last value on one side of the edge, and the first on the "
        "other.",
        confirms="losses fall at 0.995 of the edge and grow at 1.005, in every case, and those of Adam vanish with eps "
        "at 1.005 of the least one and at 0.995 do not",
        refutes="one of the edges is farther than 1 % from the prediction",
        effects={FROZEN: Region(0.99, 1.01, exact=True), SETTLING: Region(0.99, 1.01, exact=True)},
        measure=measure,
        draw=draw,
        quick={"frozen_steps": 2000, "steps": 8000},
        trial={"frozen_steps": 20, "steps": 3, "factors": (0.9, 1.1)},
    ),
)

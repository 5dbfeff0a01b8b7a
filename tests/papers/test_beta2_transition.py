"""The drift on AMSGrad's counter-example, against a direct computation, and the digits of Adam's turn."""

import numpy as np
import pandas as pd
import pytest

from experiments.papers import beta2_transition as claim
from experiments.papers.claim import Runs


def drift_of_many_periods(optimizer: str, beta1: float, beta2: float, periods: int) -> float:
    """The move over lr in the last of many periods, from the definitions of the optimizers, one step at a time."""
    m = v = largest = position = before = 0.0
    for _ in range(periods):
        before = position
        for grad in claim.GRADIENTS:
            divided = grad / v**0.5 if v else 0.0
            v = beta2 * v + (1 - beta2) * grad**2
            largest = max(largest, v)
            m = beta1 * m + (1 - beta1) * (divided if optimizer == "adopt" else grad)
            position -= m / {"adam": v, "amsgrad": largest, "adopt": 1.0}[optimizer] ** 0.5
    return position - before


@pytest.mark.parametrize("optimizer", claim.NAMES)
def test_the_drift_is_that_after_many_periods(optimizer):
    # exp_avg_sq forgets its start in so many periods.
    expected = drift_of_many_periods(optimizer, 0.9, 0.999, periods=400)
    assert claim.drift(optimizer, 0.9, 0.999) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, "0.99960"), (0.9, "0.99952")])
def test_adam_turns_at_these_digits(beta1, beta2):
    turn = claim.turn(beta1)
    assert f"{1 - turn:.5f}" == beta2
    assert claim.drift("adam", beta1, 1 - 1.001 * turn) > 0 > claim.drift("adam", beta1, 1 - 0.999 * turn)


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad"])
def test_what_is_measured_is_the_drift(optimizer):
    # ADOPT's bound lets the large gradient through only after thousands of steps.
    path = claim.walk(optimizer, pd.DataFrame({"beta1": [0.0, 0.9], "gap": 0.1}), 5)
    assert (path[-1] - path[-2]) / claim.LR == pytest.approx(
        [claim.drift(optimizer, beta1, 0.9) for beta1 in (0.0, 0.9)], rel=1e-3
    )


@pytest.mark.parametrize("falls", [False, True])
def test_the_path_is_that_of_the_function_with_its_bounds(falls):
    periods, schedule = 30, "rsqrt" if falls else "constant"
    options = {"lr": 0.5 if falls else 0.1, "beta1": 0.9, "beta2": 0.99, "schedule": schedule}
    steps = periods * claim.PERIOD
    sweep = Runs(None, 1, {"progress": False}).sweep(
        "x", "function", model="counter-example", steps=steps, evaluations=periods, **options
    )
    path = claim.walk(
        "adam", pd.DataFrame({"beta1": [0.9], "gap": 0.01}), periods, bounded=True, lr=options["lr"], falls=falls
    )
    # The loss is the mean slope, 10 / PERIOD, times the distance from -1.
    assert path[:, 0] == pytest.approx(sweep.curves["eval_loss"] * claim.PERIOD / 10 - 1, abs=1e-4)
    assert falls or path[-1, 0] == 1.0


def test_a_table_without_a_turn_has_none():
    table = pd.DataFrame({"optimizer": "adam", "beta1": [0.0, 0.0], "gap": [1e-4, 1e-2], "measured": [1.0, 1.0]})
    assert claim.turns(table) == [0.0, 1e-4 / claim.turn(0.0)]
    assert np.isfinite(claim.turns(table.assign(measured=-1.0))).all()

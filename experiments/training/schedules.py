"""Learning-rate schedules: by what a run's lr is multiplied in each of its steps."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, steps: 1.0,
    "rsqrt": lambda step, steps: step**-0.5,
    "cosine": lambda step, steps: (1 + math.cos(math.pi * (step - 1) / steps)) / 2,
}
"""Factors of lr in step 1, 2, ..., steps. The cosine would be 0 in the step after the last (arXiv:1608.03983)."""


def factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """The factor of lr in a step (from 1) of a run of so many steps.

    The first `warmup` steps rise linearly to 1; the schedule begins after them and takes what is left of the run.
    """
    if step <= warmup:
        return step / warmup
    return SCHEDULES[schedule](step - warmup, steps - warmup)

"""Learning-rate schedules: the factor of a run's lr in each of its steps."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, steps: 1.0,
    "rsqrt": lambda step, steps: step**-0.5,
    "cosine": lambda step, steps: (1 + math.cos(math.pi * (step - 1) / steps)) / 2,
}
"""Factors of lr in step 1, 2, ..., steps. The cosine reaches 0 one step after the last (arXiv:1608.03983)."""


def factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """Return the factor of lr in one step, counted from 1, of a run of `steps` steps.

    In the first `warmup` steps it rises linearly to 1; the schedule covers the rest of the run.
    """
    if step <= warmup:
        return step / warmup
    return SCHEDULES[schedule](step - warmup, steps - warmup)

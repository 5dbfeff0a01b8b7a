"""Where a hyperparameter is best, between the values that were tried."""

import numpy as np


def lowest(x: np.ndarray, y: np.ndarray, points: int = 5) -> float:
    """Return where the parabola through the values around the lowest one has its minimum.

    It is sought between the outer two of them. Where the parabola opens downwards, as noise can make it, the place
    of the lowest value is taken.

    Args:
        x: at least three numbers that increase.
        y: values there.
        points: how many of them the parabola is fitted to, an odd number.
    """
    at = int(np.argmin(y))
    first = min(max(at - points // 2, 0), max(len(x) - points, 0))
    near = slice(first, first + points)
    a, b, _ = np.polyfit(x[near] - x[at], y[near], 2)
    return float(np.clip(x[at] - b / (2 * a), x[near][0], x[near][-1])) if a > 0 else float(x[at])

"""Contenders are timed in turn, and what is said of their times is right."""

import time

import numpy as np
import pandas as pd
import pytest

from experiments.bench import timing


def test_contenders_are_timed_in_turn_and_slow_ones_take_longer():
    calls = []
    contenders = {
        "quick": lambda: calls.append("quick"),
        "slow": lambda: calls.append("slow") or time.sleep(0.01),
    }
    seconds = timing.time_in_turn(contenders, 5, lambda: None)
    assert calls == ["quick", "quick", "slow", "slow"] * 5
    assert list(seconds.columns) == ["quick", "slow"]
    assert (seconds["slow"] >= 0.01).all()
    assert (seconds["quick"] < seconds["slow"]).all()


def test_median_interval_covers_the_median_of_a_known_sample():
    values = pd.Series(np.random.default_rng(0).normal(10, 1, 400))
    median, low, high = timing.median_interval(values)
    assert median == np.median(values)
    # The median of 400 normal values has a standard error of 1.2533 / 20.
    assert 9.7 < low < median < high < 10.3
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.35)


@pytest.mark.parametrize(
    ("ratio", "spread", "expected"),
    [
        (2.0, 0.1, "faster"),
        (0.5, 0.1, "slower"),
        (1.0, 0.02, "same"),
        # Noise that leaves both open, and a median at the mark itself.
        (1.0, 2.0, "ambiguous"),
        (1.05, 0.05, "ambiguous"),
    ],
)
def test_verdict_is_right_for_contenders_of_known_ratio(ratio, spread, expected):
    ratios = pd.Series(ratio + spread * np.random.default_rng(0).normal(size=100))
    _, low, high = timing.median_interval(ratios)
    assert timing.verdict(low, high) == expected

"""Verdicts on synthetic samples whose answer is known: true, false, too few, and equal within the margin."""

import math

import numpy as np
import pytest

from experiments.papers.verdicts import CONFIRMED, REFUTED, UNDECIDED, Region, judge, outcome

LARGER, EQUAL = Region(low=0.0), Region(-0.1, 0.1)


def samples(mean: float, n: int = 10, spread: float = 0.02) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, spread, n)


@pytest.mark.parametrize(
    ("region", "mean", "spread", "verdict"),
    [
        (LARGER, 0.5, 0.1, CONFIRMED),
        (LARGER, -0.5, 0.1, REFUTED),
        (LARGER, 0.0, 0.1, UNDECIDED),
        (EQUAL, 0.0, 0.02, CONFIRMED),
        (EQUAL, 0.5, 0.02, REFUTED),
        (EQUAL, 0.1, 0.02, UNDECIDED),
        # Not told from 0 is not equal.
        (EQUAL, 0.0, 0.5, UNDECIDED),
        # A small effect is told from 0, and is no larger than was said.
        (EQUAL, 0.05, 0.001, CONFIRMED),
    ],
)
def test_the_answer_is_known(region, mean, spread, verdict):
    found = outcome(region, samples(mean, spread=spread))
    assert found.verdict == verdict
    assert found.low <= found.median <= found.high
    assert found.level >= 0.95


@pytest.mark.parametrize(
    ("divergent", "needed"), [([math.inf] * 3, 6), ([-math.inf] * 2, 6), ([*[0.0] * 6, math.inf], 9)]
)
def test_infinite_samples_say_how_many_would_decide(divergent, needed):
    found = outcome(EQUAL, np.array(divergent))
    assert found.verdict == UNDECIDED
    assert found.needed == needed


def test_too_few_samples_decide_nothing_and_say_how_many_would():
    found = outcome(LARGER, np.array([1.0, 2.0, 3.0]))
    assert (found.verdict, found.n, found.needed) == (UNDECIDED, 3, 6)
    assert math.isnan(found.low)
    assert math.isnan(found.level)


def test_as_many_as_were_said_decide():
    few = samples(0.3, n=10, spread=1.0)
    needed = outcome(LARGER, few).needed
    assert 10 < needed < 1000
    # As many that are like these: each of them again and again.
    assert outcome(LARGER, np.resize(few, needed)).verdict == CONFIRMED


def test_what_no_number_decides_says_so():
    assert outcome(LARGER, np.array([-1.0, 1.0] * 5)).needed == 0


def test_one_refuted_effect_refutes_and_one_undecided_leaves_the_claim_open():
    regions = {"first": LARGER, "second": LARGER}
    true, false, open_ = samples(0.5), samples(-0.5), samples(0.0)
    assert judge(regions, {"first": true, "second": true})[0] == CONFIRMED
    assert judge(regions, {"first": open_, "second": false})[0] == REFUTED
    assert judge(regions, {"first": true, "second": open_})[0] == UNDECIDED


def test_intervals_of_several_effects_hold_together():
    alone = judge({"a": LARGER}, {"a": samples(0.5)})[1]["a"]
    of_five = judge(dict.fromkeys("abcde", LARGER), {name: samples(0.5) for name in "abcde"})[1]["a"]
    assert alone.level >= 0.95
    assert of_five.level >= 0.99
    assert of_five.low < alone.low
    assert alone.high < of_five.high


def test_exact_effects_are_judged_by_their_range():
    edge = Region(37.8, 38.2, exact=True)
    assert outcome(edge, np.array([37.9, 38.1])).verdict == CONFIRMED
    assert outcome(edge, np.array([38.1])).verdict == CONFIRMED
    assert outcome(edge, np.array([38.1, 38.3])) == (2, 38.2, 38.1, 38.3, 1.0, REFUTED, 0)
    assert outcome(edge, np.array([39.0, 40.0])).verdict == REFUTED
    # They are no part of what chance may decide.
    assert judge({"edge": edge, "mean": LARGER}, {"edge": [38.0], "mean": samples(0.5)})[1]["mean"].level < 0.99


def test_divergence_is_a_sample():
    worse = outcome(LARGER, np.array([*samples(0.5, 8), math.inf, math.inf]))
    assert worse.verdict == CONFIRMED


@pytest.mark.parametrize("broken", [[], [1.0, math.nan]])
def test_no_samples_are_an_error(broken):
    with pytest.raises(ValueError, match="an effect needs samples, none of them NaN"):
        outcome(LARGER, np.array(broken))


def test_a_true_claim_is_rarely_refuted():
    """Of 400 claims at the border, where half of them are true, intervals err in at most a twentieth."""
    rng = np.random.default_rng(1)
    verdicts = [outcome(LARGER, rng.normal(0.0, 1.0, 10)).verdict for _ in range(400)]
    wrong = sum(verdict != UNDECIDED for verdict in verdicts)
    assert wrong <= 0.05 * 400

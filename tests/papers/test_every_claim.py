"""Every claim is stated in full, and its set-up runs: a few steps, a verdict and a figure."""

import inspect
import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.common import intervals
from experiments.papers import page
from experiments.papers.claim import Runs
from experiments.papers.every import CLAIMS, MODULES
from experiments.papers.verdicts import CONFIRMED, REFUTED, UNDECIDED

EVERY = pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))


@EVERY
def test_a_claim_is_stated_in_full(claim):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.name)
    assert claim.says.endswith(".")
    assert claim.setup.endswith(".")
    assert not claim.source.endswith(".")
    for sentence in (claim.confirms, claim.refutes):
        assert sentence
        assert not sentence.endswith(".")
    assert claim.effects
    for region in claim.effects.values():
        assert region.low < region.high
        assert not math.isinf(region.low) or not math.isinf(region.high)


@EVERY
def test_sizes_are_those_that_a_claim_takes(claim):
    takes = inspect.signature(claim.measure)
    for size in (claim.full, claim.trial):
        takes.bind(None, **{**claim.quick, **size})
    assert all(claim.quick.get(name) != value for name, value in claim.full.items())


@EVERY
def test_a_claim_has_enough_seeds_for_its_intervals(claim):
    n_random = sum(not region.exact for region in claim.effects.values())
    if n_random:
        assert intervals.rank(claim.seeds, 1 - (1 - intervals.LEVEL) / n_random) > 0


def test_names_are_different():
    assert len(CLAIMS) == sum(len(module.CLAIMS) for module in MODULES)


@pytest.mark.slow
@EVERY
def test_a_set_up_runs_and_trains_nothing_twice(claim, tmp_path, mnist_folder, monkeypatch, trained):
    monkeypatch.delenv("MNIST_DIR", raising=False)

    def measure():
        runs = Runs(tmp_path / claim.name, 2, {"progress": False, "data_dir": mnist_folder})
        return claim.measure(runs, **{**claim.quick, **claim.trial})

    measured, n = measure(), len(trained)
    again = measure()
    assert len(trained) == n
    for name, samples in measured.samples.items():
        np.testing.assert_array_equal(samples, again.samples[name])
    assert isinstance(claim.draw(measured), Figure)
    found = page.record(claim, measured, {})
    assert found["verdict"] in (CONFIRMED, REFUTED, UNDECIDED)
    for name, region in claim.effects.items():
        outcome = found["effects"][name]["outcome"]
        assert outcome["n"] > 0
        if not region.exact:
            # Two samples decide nothing.
            assert (outcome["n"], outcome["verdict"]) == (2, UNDECIDED)
            assert any(said.startswith(f"{name}: about ") for said in page.what_would_decide(found))

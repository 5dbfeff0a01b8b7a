"""A sweep that is small enough to be trained often, and ways to interrupt and to compare it."""

import signal
from pathlib import Path

import pandas as pd

from experiments import sweep
from experiments.sweeps import results
from experiments.training import population
from tests.tables import without_seconds

AXES = {"lr": [1e-3, 1e-2, 1e-1], "beta1": [0.0, 0.9], "seeds": 2, "steps": 12, "batch_size": 64, "evaluations": 3}
KEYS = ["optimizer", "lr", "beta1", "seed"]


def train(out: Path | None, **options) -> results.Sweep:
    return sweep.sweep("regression", **{**AXES, **options}, out=out, progress=False)


def write_report(out: Path, *result) -> list[Path]:
    """Write a report in place of `writer.write`, without figures."""
    (out / "report.md").write_text("drawn")
    return [out / "report.md"]


def assert_same(a: results.Sweep, b: results.Sweep) -> None:
    """Compare two sweeps to the last bit, except columns of seconds."""
    pd.testing.assert_frame_equal(a.runs, b.runs, check_exact=True)
    pd.testing.assert_frame_equal(without_seconds(a.curves), without_seconds(b.curves), check_exact=True)


def interrupting(monkeypatch, after: int, number: signal.Signals, times: int = 1) -> None:
    """Send the signal in the middle of a step, when half of the parameters have changed."""
    original, steps = population.step_, []

    def step_(params, optimizer, *arguments, **options):
        # The steps by which memory is counted train nothing.
        if not hasattr(optimizer, "param_groups"):
            return original(params, optimizer, *arguments, **options)
        steps.append(1)
        if len(steps) == after:
            take = optimizer.step

            def torn():
                for _ in range(times):
                    signal.raise_signal(number)
                take()

            optimizer.step = torn
        return original(params, optimizer, *arguments, **options)

    monkeypatch.setattr(population, "step_", step_)

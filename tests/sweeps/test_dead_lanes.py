"""Does a sweep leave out runs that have diverged, lose nothing by it, and tell how far the others move?"""

import signal

import numpy as np
import pandas as pd
import pytest

from experiments.common.errors import OptionError
from experiments.reports import aggregation
from tests.sweeps.small import assert_same, interrupting, train
from tests.tables import last

pytestmark = pytest.mark.usefixtures("no_figures")
SICK = {"lr": [1e-3, 1e-2, 1e30, 1e31], "beta1": [0.9], "seeds": 2}


def test_survivors_of_a_sweep_are_what_they_are_among_diverged_runs_and_curves_end(tmp_path):
    without, kept = train(tmp_path / "a", **SICK), train(tmp_path / "b", **SICK, keep_diverged=True)
    columns = ["lr", "seed", "status", "diverged_step"]
    pd.testing.assert_frame_equal(without.runs.loc[:, columns], kept.runs.loc[:, columns])
    assert without.runs["status"].tolist() == ["ok", "ok", "diverged", "diverged"] * 2
    assert last(without.curves, "step").tolist() == [12, 12, 4, 4] * 2
    assert set(last(kept.curves, "step")) == {12}
    ok = without.runs["status"] == "ok"
    # Single losses in float32 differ in last bits alone, because products of fewer lanes round differently.
    np.testing.assert_allclose(without.runs["eval_loss"][ok], kept.runs["eval_loss"][ok], rtol=2e-6)
    assert without.provenance["sweep"].get("keep_diverged") is None
    assert kept.provenance["sweep"]["keep_diverged"] is True
    with pytest.raises(OptionError, match=r"holds another sweep \(it differs in keep_diverged\)"):
        train(tmp_path / "a", **SICK, keep_diverged=True)
    # Half of the lanes pay for two thirds of the steps.
    share = last(without.curves.assign(run_seconds=aggregation.run_seconds(*without[:2])), "run_seconds")
    assert share[ok].min() > 1.5 * share[~ok].max()


@pytest.mark.parametrize("after", [4, 5, 9])
def test_a_sweep_interrupted_before_or_after_runs_have_left_ends_with_the_same_bits(after, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupting(patch, after, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=f"goes on from step {after} of 12"):
            train(tmp_path, **SICK)
    assert_same(train(tmp_path, **SICK), train(None, **SICK))

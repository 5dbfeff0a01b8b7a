"""Does a halved sweep that is killed, interrupted or damaged end as if it had not been?"""

import signal

import pytest

from experiments.sweeps import cost, ledger, reading
from tests.conftest import spy_on_training
from tests.sweeps.processes import survives_twenty_kills
from tests.sweeps.small import assert_same, interrupting, train

pytestmark = pytest.mark.usefixtures("no_figures")
GRID = {"lr": [1e30, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1], "beta1": [0.9], "steps": 16, "evaluations": 8, "halving": 2}


@pytest.fixture(scope="module")
def whole():
    return train(None, **GRID)


# In the first stage, at a rung, in the second, and in the last.
@pytest.mark.parametrize("after", [1, 2, 3, 12])
def test_interrupted_in_any_stage_it_goes_on_to_the_same_bits(after, tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        interrupting(patch, after, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="runs are finished and kept"):
            train(tmp_path, **GRID)
    assert (so_far := reading.read_unfinished(tmp_path))
    assert so_far.provenance["unfinished"]["of"] == 14
    again = train(tmp_path, **GRID)
    assert_same(again, whole)
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(tmp_path.rglob("*.state"))


def test_a_sweep_that_is_not_finished_shows_runs_as_they_were_at_their_last_rung(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        interrupting(patch, 12, signal.SIGINT)
        # Those that were stopped at the first two rungs, or had diverged.
        with pytest.raises(KeyboardInterrupt, match="10 of 14 runs are finished and kept"):
            train(tmp_path, **GRID)
    so_far = reading.load(tmp_path)
    assert so_far.provenance["unfinished"] == {"finished": 10, "of": 14, "begun": 4}
    assert so_far.runs["status"].value_counts().to_dict() == {"stopped": 8, "unfinished": 4, "diverged": 2}
    ended = whole.runs["status"] != "ok"
    columns = ["run_id", "lr", "seed", "status", "stopped_step", "eval_loss"]
    assert so_far.runs.loc[ended, columns].equals(whole.runs.loc[ended, columns])


@pytest.mark.parametrize("damage", ["state", "chunks.json"])
def test_a_state_that_is_lost_is_trained_again_to_the_same_bits(damage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: 4)
    whole, original = train(None, **GRID), ledger.Ledger.drop_states
    with monkeypatch.context() as patch:
        # Stop when the second stage is finished, and the states of the first are gone.
        def stop(self):
            original(self)
            raise KeyboardInterrupt

        patch.setattr(ledger.Ledger, "drop_states", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, **GRID)
    state = next((tmp_path / "parts").glob("*.state"))
    if damage == "state":
        state.write_bytes(state.read_bytes()[:-1] + b"?")
    else:
        (tmp_path / "parts" / "chunks.json").write_text("{")
    sizes = spy_on_training(monkeypatch)
    again = train(tmp_path, **GRID)
    told = capsys.readouterr().err
    if damage == "state":
        assert f"WARNING: {state} is damaged: its runs start over\n" in told
        assert_same(again, whole)
    else:
        assert "chunks.json is damaged" in told
        assert again.runs["stopped_step"].equals(whole.runs["stopped_step"])
    assert sum(sizes) > 4
    assert not list(tmp_path.rglob("*.state"))


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_as_if_it_had_not_been(tmp_path):
    words = ["--optimizer", "adam", "rmsprop", "lion", "--steps", 600, "--halving", 2]
    survives_twenty_kills(tmp_path, words, seed=1)
    killed, whole = reading.load(tmp_path / "killed"), reading.load(tmp_path / "whole")
    assert {"stopped", "ok"} <= set(killed.runs["status"])
    assert_same(killed, whole)

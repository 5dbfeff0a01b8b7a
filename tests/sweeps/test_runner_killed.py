"""Does a killed sweep end as if it had not been killed, and is a folder that another process writes to refused?"""

import pytest

from experiments import sweep
from experiments.sweeps import checkpoints, reading
from experiments.training import population
from tests.sweeps.processes import COMMAND, kill, start, survives_twenty_kills, wait_for
from tests.sweeps.small import assert_same, train

pytestmark = pytest.mark.usefixtures("no_figures")


def test_two_processes_on_one_folder_are_refused_until_the_first_is_gone(tmp_path, capsys):
    out = tmp_path / "out"
    first = start(out, "--steps", 1_000_000)
    try:
        wait_for((out / "parts" / "chunks.json").exists, first)
        before = (out / "provenance.json").read_bytes()
        for words in ([], ["--fresh"]):
            assert sweep.main([*COMMAND, "--steps", "1000000", "--out", str(out), *words]) == 2
            told = capsys.readouterr().err
            assert f"and process {first.pid} on" in told
            assert f"is writing to {out}\n" in told
        assert (out / "provenance.json").read_bytes() == before
    finally:
        kill(first)
    with checkpoints.locked(out):  # its lock went with it
        pass


@pytest.mark.slow
def test_killed_in_mid_chunk_a_sweep_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    out, resumed_at, original = tmp_path / "killed", [], population.train_lanes
    process = start(out, "--steps", 150, "--checkpoint-every", 0)
    wait_for(lambda: list(out.glob("parts/[!.]*.pt")), process)
    kill(process)
    axes = {"lr": "1e-3..1e-1:6", "beta1": [0.0, 0.9], "seeds": 2, "steps": 150}
    whole = train(None, **axes, evaluations=8)

    def spy(*arguments, resume: dict, **options):
        resumed_at.append(resume["step"])
        return original(*arguments, resume=resume, **options)

    monkeypatch.setattr(population, "train_lanes", spy)
    assert_same(train(out, **axes, evaluations=8), whole)
    assert 0 < resumed_at[0] < 150


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_sweep_ends_as_if_it_had_not_been(tmp_path):
    survives_twenty_kills(tmp_path, ["--optimizer", "adam", "rmsprop", "lion", "--steps", 400], seed=0)
    assert_same(reading.load(tmp_path / "killed"), reading.load(tmp_path / "whole"))

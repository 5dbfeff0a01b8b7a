"""The sweep command is timed against the benchmark's loop: what is computed from seconds, and a real tiny run."""

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments import sweep, throughput
from experiments.bench import command_time
from experiments.common.errors import OptionError


def invented(calls: list, chunks: int = 1):
    """A sweep that takes 5 seconds and a hundredth for each step, and keeps what it was called with."""

    def run(task, **options):
        assert Path(options["out"]).is_dir()
        calls.append({"task": task, **options})
        return SimpleNamespace(provenance={"chunks": chunks, "seconds": {"total": 5 + options["steps"] / 100}})

    return run


def test_a_step_is_the_difference_of_two_sweeps_over_the_steps_between(mnist_folder, monkeypatch):
    monkeypatch.setattr(command_time, "loop_seconds", lambda *_: 0.36)
    calls = []
    row = command_time.compare("mlp", 4, 8, invented(calls), mnist_folder, "cpu", 3, (50, 10))
    assert row["command: ms per step"] == pytest.approx(10)
    assert row["benchmark: ms per step"] == pytest.approx(9)
    assert row["command: configuration-steps per second"] == pytest.approx(400)
    assert row["benchmark: configuration-steps per second"] == pytest.approx(4 / 9e-3)
    assert [row[command_time.RATIO + end] for end in ("", ", low", ", high")] == pytest.approx([0.9] * 3)
    assert (row["K"], row["rounds"], row[command_time.RATIO + ", level"]) == (4, 3, 0.75)
    # One untimed, then two a round, each into a folder of its own that is gone.
    assert [call["steps"] for call in calls] == [10, *[50, 10] * 3]
    assert len({call["out"] for call in calls}) == 7
    assert not any(Path(call["out"]).exists() for call in calls)
    assert {(len(call["lr"]), call["evaluations"], call["hidden"]) for call in calls} == {(4, 8, 8)}


def test_ratios_are_formed_within_rounds():
    row = command_time.rates(pd.Series([1.0, 2.0, 4.0]), pd.Series([1.0, 1.0, 4.0]), 2)
    assert (row["command: ms per step"], row["benchmark: configuration-steps per second"]) == (2000, 2)
    assert [row[command_time.RATIO + end] for end in ("", ", low", ", high")] == [1, 0.5, 1]


def test_lanes_that_are_not_one_chunk_are_refused():
    with pytest.raises(OptionError, match="--device accepts one with room for 4 runs at once; here they are 2 chunks"):
        command_time.command_seconds(invented([], chunks=2), 10, 4)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_real_sweep_is_timed_against_the_loop(device, mnist_folder, trained):
    # 256 examples are two batches: the loop goes on into the next epochs, too.
    row = command_time.compare("mlp", 2, 4, sweep.sweep, mnist_folder, device, 3, (5, 2))
    assert trained == [2] * 7
    assert row["data"].startswith("MNIST-format data from ")
    assert row["benchmark: ms per step"] > 0
    assert not math.isnan(row[command_time.RATIO])


def test_table_and_page_are_written(mnist_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_time, "SIZE", ("mlp", 2, 4))
    monkeypatch.setattr(command_time, "loop_seconds", lambda *_: 4.0)
    monkeypatch.setattr(sweep, "sweep", invented([]))
    command = ["command", "--device", "cpu", "--rounds", "6", "--data-dir", str(mnist_folder), "--out", str(tmp_path)]
    assert throughput.main(command) == 0
    assert pd.read_csv(tmp_path / "throughput_command.csv")[command_time.RATIO].tolist() == pytest.approx([1])
    text = (tmp_path / "throughput_command.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "1.00 [1.00, 1.00]" in text


def test_a_machine_without_room_is_told_in_one_sentence(mnist_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "sweep", invented([], chunks=3))
    command = ["command", "--device", "cpu", "--data-dir", str(mnist_folder), "--out", str(tmp_path / "out")]
    assert throughput.main(command) == 2
    assert "room for 128 runs at once; here they are 3 chunks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""The benchmark's arithmetic, and the benchmark itself on small files."""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from experiments import models, throughput


def test_sides_are_timed_in_turn_and_slow_ones_take_longer():
    calls = []
    sides = {
        "quick": lambda: calls.append("quick"),
        "slow": lambda: calls.append("slow") or time.sleep(0.01),
    }
    seconds = throughput.time_in_turn(sides, 5, lambda: None)
    assert calls == ["quick", "quick", "slow", "slow"] * 5
    assert list(seconds.columns) == ["quick", "slow"]
    assert (seconds["slow"] >= 0.01).all()
    assert (seconds["quick"] < seconds["slow"]).all()


def test_median_interval_covers_the_median_of_a_known_sample():
    values = pd.Series(np.random.default_rng(0).normal(10, 1, 400))
    median, low, high = throughput.median_interval(values)
    assert median == np.median(values)
    # The median of 400 normal values has a standard error of 1.2533 / 20.
    assert 9.7 < low < median < high < 10.3
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.35)


def test_step_work_counts_every_matrix_product_and_every_byte_of_the_update():
    model = models.mlp(784, 32, 32, 10)
    flops, update_bytes = throughput.step_work(model, lanes=3)
    forward = 784 * 32 + 32 * 32 + 32 * 10
    backward = forward + (32 * 32 + 32 * 10)
    assert flops == 2 * throughput.BATCH * 3 * (forward + backward)
    assert update_bytes == 7 * 4 * 3 * sum(p.numel() for p in model.build().parameters())


def test_too_few_rounds_are_refused(tmp_path, capsys):
    assert throughput.main(["sweep", "--rounds", "2", "--out", str(tmp_path / "out")]) == 2
    assert "--rounds accepts whole numbers from 3, not 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_line_writes_its_table(mnist_folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.throughput", "sweep", "--rounds", "3", "--data-dir", mnist_folder]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=True)
    table = pd.read_csv(out / "throughput_sweep.csv")
    assert table["K"].tolist() == [128, 32]
    for name in ("speed-up over one after the other", "update / torch's flat fused update", "share of roofline"):
        assert (table[f"{name}, low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}, high"]).all()
        assert (table[name] > 0).all()
        assert name in done.stdout
    assert (out / "throughput_sweep.md").read_text().strip() == done.stdout.strip()

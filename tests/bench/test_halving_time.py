"""Halved sweeps are timed against full ones: what is computed from them, and real tiny rounds."""

import pandas as pd
import pytest

from experiments import sweep, throughput
from experiments.bench import halving_time


def test_rounds_have_points_of_their_own():
    tables = [halving_time.points(number) for number in range(3)]
    assert len(pd.concat(tables).drop_duplicates()) == 3 * halving_time.LANES
    for table in tables:
        for axis, (start, stop) in halving_time.RANGES.items():
            assert table[axis].between(start, stop).all()
            # Sobol's points are spread evenly: as many above the middle of the scale as below.
            middle = 1 - ((1 - start) * (1 - stop)) ** 0.5 if axis.startswith("beta") else (start * stop) ** 0.5
            assert (table[axis] < middle).sum() == halving_time.LANES / 2


@pytest.mark.slow
def test_real_rounds(mnist_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(halving_time, "LANES", 16)
    monkeypatch.setattr(halving_time, "EPOCHS", 20)
    asked, real = [], sweep.sweep

    def kept(task, **options):
        asked.append((options, found := real(task, **options)))
        return found

    monkeypatch.setattr(sweep, "sweep", kept)
    command = ["halving", "--device", "cpu", "--rounds", "3", "--data-dir", str(mnist_folder), "--out", str(tmp_path)]
    assert throughput.main(command) == 0
    in_order = [None, 4, 8, 16, None, None]
    assert [options.get("evaluations") for options, _ in asked] == [*in_order, *in_order[::-1], *in_order]
    row = pd.read_csv(tmp_path / "throughput_halving.csv").iloc[0]
    full, *halved, left, kept_on = (found.runs for _, found in asked[:6])
    assert row["lowest loss"] == full["eval_loss"].min()
    # All go to the first rung, 4 of 16 from there on, and one of 4 from the second one.
    shares = {"T/4": 1 / 4 + 3 / 16, "T/8, T/4": 1 / 8 + 1 / 32 + 3 / 64, "T/16, T/4": 1 / 16 + 3 / 64 + 3 / 64}
    for (rungs, share), runs in zip(shares.items(), halved, strict=True):
        assert row[f"{rungs}: steps / full"] == pytest.approx(share, abs=0.02)
        best = runs[runs["status"] == "ok"].sort_values("eval_loss").iloc[0]
        assert row[f"{rungs}: loss / lowest"] == pytest.approx(best["eval_loss"] / full["eval_loss"].min())
        same = full.loc[full["run_id"] == best["run_id"], "eval_loss"].item()
        assert row[f"{rungs}: rank"] == 1 + (full.loc[full["status"] == "ok", "eval_loss"] < same).sum()
    assert row["last but one: loss / lowest"] >= 1
    assert row["diverged"] == (left["status"] == "diverged").sum() == (kept_on["status"] == "diverged").sum() == 8
    text = (tmp_path / "throughput_halving.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert " of 3 | " in text

"""Are runs divided into chunks that fit into memory, and is what fits nowhere refused?"""

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import sweep
from experiments.common.errors import OptionError
from experiments.sweeps import chunks, cost, plan
from experiments.training import population
from tests.sweeps.small import assert_same, train

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize("n_rows", [1, 7, 24])
def test_chunks_cover_all_runs_once_and_are_products_of_configurations_and_seeds(n_rows):
    configs = pd.DataFrame({"lr": np.arange(1.0, 5.0)})
    runs = plan.runs_of({"adam": configs, "sgd": configs.iloc[:2]}, seeds=4)
    assert len(runs) == 24
    runs["setting"] = 0
    kept = runs.sample(n_rows, random_state=0).sort_index()
    for lanes in (1, 3, 5, 100):
        cut = chunks.cut(kept, [lanes])
        assert sorted(row for chunk in cut for row in chunk.index) == list(kept.index)
        for chunk in cut:
            assert len(chunk) <= lanes
            assert chunk["optimizer"].nunique() == 1
            assert len(chunk) == chunk["seed"].nunique() * chunk["config"].nunique()
            assert chunk["seed"].is_monotonic_increasing


@pytest.mark.slow
def test_chunks_that_memory_is_too_small_for_are_halved(tmp_path, monkeypatch, capsys):
    whole, original = train(None), population.train_lanes

    def at_most_four(problem, configs, seeds, **options):
        if len(configs) * len(seeds) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return original(problem, configs, seeds, **options)

    monkeypatch.setattr(population, "train_lanes", at_most_four)
    halved = train(tmp_path)
    assert "out of memory: 12 runs at once become 6" in capsys.readouterr().err
    np.testing.assert_allclose(halved.runs.eval_loss, whole.runs.eval_loss, rtol=1e-4)
    monkeypatch.undo()
    # A chunk that was halved is repeated as its halves.
    for path in (tmp_path / "parts").glob("*.parquet"):
        path.unlink()
    assert_same(train(tmp_path), halved)

    def no_room(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(population, "train_lanes", no_room)
    with pytest.raises(OptionError, match="--device accepts one with memory for at least one run"):
        train(None)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    assert not chunks.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as lack:
        torch.empty(2**60)
    assert chunks.is_out_of_memory(lack.value)
    assert chunks.is_out_of_memory(MemoryError())
    assert chunks.is_out_of_memory(torch.OutOfMemoryError())


def test_grids_too_large_for_disk_or_memory_are_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    out, grid = tmp_path / "out", ["--lr", "1e-4..1:90000", "--eps", "1e-9..1:90000"]
    assert sweep.main(["regression", *grid, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "8100000000 runs with 9 evaluations take about" in told
    assert told.count("\n") == 1
    free = type("Usage", (), {"free": 3000})
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda folder: free)
    assert sweep.main(["regression", "--lr", "1e-3..1:9", "--out", str(out)]) == 2
    assert f"GiB on the disk of {out} are free" in capsys.readouterr().err
    assert not out.exists()

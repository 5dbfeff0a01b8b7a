"""Does a sweep keep what it has trained when its grid grows, its folder is damaged, or the disk is full?"""

import resource
import signal

import numpy as np
import pytest

from experiments import sweep
from experiments.common.errors import OptionError
from experiments.reports import writer
from experiments.sweeps import checkpoints, cost, reading
from experiments.training import population
from tests.conftest import spy_on_training
from tests.sweeps.small import assert_same, train

pytestmark = pytest.mark.usefixtures("no_figures")


def small_chunks(monkeypatch, lanes: int = 4) -> None:
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: lanes)


def forbid_training(monkeypatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError("this was trained before")

    monkeypatch.setattr(population, "train_lanes", refuse)


def test_a_grown_grid_trains_what_is_missing_alone(tmp_path, monkeypatch):
    train(tmp_path, lr=[1e-3, 1e-2], seeds=1)
    sizes = spy_on_training(monkeypatch)
    grown = train(tmp_path)
    assert sorted(sizes) == [4, 4]  # two configurations with both seeds; four with the second
    whole = train(None)
    assert sum(sizes) == 8 + 12
    keys = ["lr", "beta1", "seed"]
    assert grown.runs[keys].equals(whole.runs[keys])
    np.testing.assert_allclose(grown.runs.eval_loss, whole.runs.eval_loss, rtol=1e-4)
    assert grown.curves[["run_id", "step"]].equals(whole.curves[["run_id", "step"]])
    forbid_training(monkeypatch)
    assert_same(train(tmp_path), grown)
    assert_same(reading.load(tmp_path), grown)


def test_another_sweep_is_refused_and_fresh_removes_it_and_nothing_else(tmp_path, monkeypatch, capsys):
    train(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for options, differing in (({"steps": 13}, "steps"), ({"batch_size": 32}, "batch_size")):
        with pytest.raises(OptionError, match=rf"holds another sweep \(it differs in {differing}\), which --fresh"):
            train(tmp_path, **options)
    assert len(reading.load(tmp_path).runs) == 12
    monkeypatch.setattr(writer, "write", lambda *_: [])
    sizes = spy_on_training(monkeypatch)
    train(tmp_path, lr=1e-3, beta1=0.9, fresh=True)
    assert sizes == [2]
    assert not (tmp_path / "report.md").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(reading.load(tmp_path).runs) == 2
    train(tmp_path, lr=1e-3, beta1=0.9, fresh=True)
    assert sizes == [2, 2]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="holds other files"):
        train(foreign, fresh=True)
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_damaged_files_are_named_and_only_their_runs_repeated(tmp_path, monkeypatch, capsys):
    small_chunks(monkeypatch)
    whole = train(tmp_path)
    first, second, _ = sorted((tmp_path / "parts").glob("*.parquet"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    second.write_bytes(b"")
    sizes = spy_on_training(monkeypatch)
    assert_same(train(tmp_path), whole)
    assert sizes == [4, 4]
    told = capsys.readouterr().err
    assert f"WARNING: {first} is damaged: its 4 runs are trained again\n" in told
    assert f"WARNING: {second} is damaged: its 4 runs are trained again\n" in told
    # Finished chunks stay finished without the list of chunks.
    (tmp_path / "parts" / "chunks.json").write_text("{")
    assert_same(train(tmp_path), whole)
    assert sizes == [4, 4]
    assert "chunks.json is damaged" in capsys.readouterr().err
    runs = tmp_path / "runs.parquet"
    runs.write_bytes(runs.read_bytes()[:-1])
    with pytest.raises(OptionError, match=r"runs.parquet is damaged: the command of its sweep makes it again"):
        reading.load(tmp_path)
    assert_same(train(tmp_path), whole)
    assert_same(reading.load(tmp_path), whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_its_chunk_starts_over(tmp_path, monkeypatch, capsys):
    whole, write = train(None), checkpoints.save_checkpoint

    def write_and_stop(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_checkpoint", write_and_stop)
    with pytest.raises(KeyboardInterrupt, match=r"0 of 12 runs are finished and kept in .*, the same command goes on"):
        train(tmp_path, checkpoint_every=0.0)
    monkeypatch.undo()
    assert set(reading.load(tmp_path).runs["status"]) == {"unfinished"}
    (checkpoint,) = (tmp_path / "parts").glob("*.pt")
    content = bytearray(checkpoint.read_bytes())
    content[-200] ^= 1
    checkpoint.write_bytes(content)
    assert_same(train(tmp_path), whole)
    assert f"WARNING: {checkpoint} is damaged: its runs start over\n" in capsys.readouterr().err
    assert not list((tmp_path / "parts").glob("*.pt"))


@pytest.fixture
def file_limit():
    """Return a function that limits the size of this process's files, bytes, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


# Too little for a checkpoint; enough for a checkpoint but not for the table of a chunk.
@pytest.mark.parametrize(("size", "every"), [(20_000, "0"), (5_000, "60")])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(size, every, tmp_path, file_limit, capsys):
    train(tmp_path, lr=[1e-3])
    before = {path: path.read_bytes() for path in (tmp_path / "parts").glob("*-*")}
    words = ["regression", "--lr", "1e-3", "1e-2", "1e-1", "--beta1", "0", "0.9", "--seeds", "2", "--steps", "12"]
    words += ["--batch-size", "64", "--evaluations", "3", "--out", str(tmp_path)]
    file_limit(size)
    assert sweep.main([*words, "--checkpoint-every", every]) == 2
    file_limit(resource.RLIM_INFINITY)
    assert f"python -m experiments.sweep: {tmp_path} has no more room (" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "parts").glob("*-*")} == before
    assert not list(tmp_path.rglob(".*.*.*"))
    assert (reading.load(tmp_path).runs["status"] != "unfinished").sum() == 4
    assert len(train(tmp_path).runs) == 12

"""Does a sweep keep all that it has trained when its process is killed or its folder is damaged?"""

import ast
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import sweep
from experiments.common.errors import OptionError
from experiments.reports import writer
from experiments.sweeps import checkpoints, chunks, cost, plan, ray_runner, reading, results, run_keys
from experiments.sweeps.config import SweepConfig
from experiments.training import population
from tests.conftest import spy_on_training

AXES = {"lr": [1e-3, 1e-2, 1e-1], "beta1": [0.0, 0.9], "seeds": 2, "steps": 12, "batch_size": 64, "evaluations": 3}


def write_report(out: Path, *result) -> list[Path]:
    (out / "report.md").write_text("drawn")
    return [out / "report.md"]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Draw no figures, which take seconds."""
    monkeypatch.setattr(writer, "write", write_report)


def small_chunks(monkeypatch, lanes: int = 4) -> None:
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: lanes)


def train(out: Path | None, **options) -> results.Sweep:
    return sweep.sweep("regression", **{**AXES, **options}, out=out, progress=False)


def assert_same(a: results.Sweep, b: results.Sweep) -> None:
    """Compare two sweeps to the last bit, except columns of seconds."""
    pd.testing.assert_frame_equal(a.runs, b.runs, check_exact=True)
    pd.testing.assert_frame_equal(a.curves.drop(columns="seconds"), b.curves.drop(columns="seconds"), check_exact=True)


def forbid_training(monkeypatch) -> None:
    def refuse(*arguments, **options):
        raise AssertionError("this was trained before")

    monkeypatch.setattr(population, "train", refuse)


@pytest.mark.parametrize("n_rows", [1, 7, 24])
def test_chunks_cover_all_runs_once_and_are_products_of_configurations_and_seeds(n_rows):
    configs = pd.DataFrame({"lr": np.arange(1.0, 5.0)})
    runs = plan.runs_of({"adam": configs, "sgd": configs.iloc[:2]}, seeds=4)
    assert len(runs) == 24
    kept = runs.sample(n_rows, random_state=0).sort_index()
    for lanes in (1, 3, 5, 100):
        cut = chunks.cut(kept, lanes)
        assert sorted(row for chunk in cut for row in chunk.index) == list(kept.index)
        for chunk in cut:
            assert len(chunk) <= lanes
            assert chunk["optimizer"].nunique() == 1
            assert len(chunk) == chunk["seed"].nunique() * chunk["config"].nunique()
            assert chunk["seed"].is_monotonic_increasing


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
    with pytest.raises(OptionError, match="holds no results"):
        reading.load(tmp_path)
    (checkpoint,) = (tmp_path / "parts").glob("*.pt")
    content = bytearray(checkpoint.read_bytes())
    content[-200] ^= 1
    checkpoint.write_bytes(content)
    assert_same(train(tmp_path), whole)
    assert f"WARNING: {checkpoint} is damaged: its runs start over\n" in capsys.readouterr().err
    assert not list((tmp_path / "parts").glob("*.pt"))


def test_the_identity_of_a_run_is_what_its_result_depends_on(monkeypatch):
    def keys(**options) -> list[str]:
        asked = {"task": "regression", "steps": 5, "batch_size": 64, "evaluations": 2, "device": "cpu"}
        return run_keys.keys(plan.make_plan(SweepConfig(**{**asked, **options})))

    (key,) = keys()
    assert keys() == [key]
    assert key in keys(lr=[1e-3, 1e-2], beta1=[0.0, 0.9], seeds=3, optimizer=["sgd", "adam"])
    others = [{"steps": 6}, {"batch_size": 32}, {"schedule": "cosine"}, {"dropout": 0.1}, {"hidden": 9}]
    others += [{"eps": 1e-7}, {"optimizer": "adamw"}, {"evaluations": 3}, {"optimizer": "lion"}]
    others += [{"model": "linear"}, {"model": "linear", "condition_number": 10.0}]
    found = [keys(**other)[0] for other in others]
    assert len({key, *found}) == 1 + len(others)
    monkeypatch.setattr(run_keys, "code_version", lambda: "edited")
    assert keys() != [key]


def test_the_code_that_training_imports_is_the_code_that_identities_name():
    code = {path for pattern in run_keys.CODE for path in run_keys.ROOT.glob(pattern)}
    # These modules read options and word errors; their results are in the plan.
    wordings = {run_keys.ROOT / f"experiments/common/{name}.py" for name in ("errors", "values", "run_info")}
    seen, left = set(), [run_keys.ROOT / "experiments/training/population.py"]
    while left:
        seen.add(path := left.pop())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("experiments"):
                module = run_keys.ROOT / node.module.replace(".", "/")
                paths = [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
                left += {path for path in paths if path.exists()} - seen
    assert len(seen) > 10
    assert seen <= code | wordings


SOURCE = """
def step(p, lr):
    "Take a step."
    if lr < 0:
        raise ValueError(f"lr is {lr}")  # no way back
    print("a step")
    return p - lr
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Take a step.", "Step.", True),
        ("lr is {lr}", "--lr accepts numbers from 0, not {lr}", True),
        ("  # no way back", "", True),
        ('    print("a step")\n', "", True),
        ("p - lr", "(p\n        - lr)", True),
        ("p - lr", "p + lr", False),
        ("ValueError", "KeyError", False),
        ("lr < 0", "lr < 1", False),
    ],
)
def test_an_identity_does_not_depend_on_words(old, new, same):
    assert old in SOURCE
    before, after = (run_keys.meaning(ast.parse(text), prose=True) for text in (SOURCE, SOURCE.replace(old, new)))
    assert (before == after) is same


def test_a_users_optimizer_is_known_by_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_sgd.py").write_text("import torch\nclass Own(torch.optim.SGD): pass\n")
    first = run_keys.own_source("own_sgd:Own")
    assert first == run_keys.own_source("own_sgd:Own") == (tmp_path / "own_sgd.py").read_text()


@pytest.mark.slow
def test_chunks_that_memory_is_too_small_for_are_halved(tmp_path, monkeypatch, capsys):
    whole, original = train(None), population.train

    def at_most_four(problem, configs, seeds, **options):
        if len(configs) * len(seeds) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return original(problem, configs, seeds, **options)

    monkeypatch.setattr(population, "train", at_most_four)
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

    monkeypatch.setattr(population, "train", no_room)
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


COMMAND = ["regression", "--lr", "1e-3..1e-1:6", "--beta1", "0", "0.9", "--seeds", "2", "--batch-size", "64"]


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
    assert len(reading.load(tmp_path).runs) == 4
    assert len(train(tmp_path).runs) == 12


FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([__name__])


def run_command(words: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    writer.write = write_report  # this process has no fixtures
    sys.exit(sweep.main(words))


def start(out: Path, *words: object) -> BaseProcess:
    """Start the command in a process of its own, whose output goes to a file beside the folder.

    It is forked from a process that has imported everything, which takes seconds.
    """
    command = [*COMMAND, *map(str, words), "--out", str(out)]
    process = FORKED.Process(target=run_command, args=(command, out.with_suffix(".log")))
    process.start()
    return process


def wait_for(what, process: BaseProcess, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def end_of(process: BaseProcess) -> int | None:
    process.join(timeout=300)
    return process.exitcode


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
    out, resumed_at, original = tmp_path / "killed", [], population.train
    process = start(out, "--steps", 150, "--checkpoint-every", 0)
    wait_for(lambda: list(out.glob("parts/[!.]*.pt")), process)
    kill(process)
    axes = {"lr": "1e-3..1e-1:6", "beta1": [0.0, 0.9], "seeds": 2, "steps": 150}
    whole = train(None, **axes, evaluations=8)

    def spy(*arguments, resume: dict, **options):
        resumed_at.append(resume["step"])
        return original(*arguments, resume=resume, **options)

    monkeypatch.setattr(population, "train", spy)
    assert_same(train(out, **axes, evaluations=8), whole)
    assert 0 < resumed_at[0] < 150


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_sweep_ends_as_if_it_had_not_been(tmp_path):
    """Kill a sweep of three chunks at moments from just after its start to its last files."""
    rng, out, seen = random.Random(0), tmp_path / "killed", []
    words = ["--optimizer", "adam", "rmsprop", "lion", "--steps", 400]
    for i in range(20):
        process = start(out, *words, "--checkpoint-every", 0)
        if i % 4:
            owner = out / "parts" / checkpoints.OWNER
            wait_for(lambda: owner.exists() and f"process {process.pid} " in owner.read_text(), process)  # noqa: B023
        time.sleep(rng.uniform(0.0, 2.0))
        kill(process)
        seen.append({path: path.stat().st_mtime_ns for path in out.glob("parts/*-*.parquet")})
    for name in ("killed", "whole"):
        assert end_of(start(tmp_path / name, *words)) == 0
        assert "WARNING" not in (tmp_path / f"{name}.log").read_text()
    final = {path: path.stat().st_mtime_ns for path in out.glob("parts/*-*.parquet")}
    assert all(before.items() <= final.items() for before in seen), "a finished chunk was trained again"
    assert not list(out.rglob("*.pt"))
    assert not list(out.rglob(".*.*.*"))
    assert_same(reading.load(out), reading.load(tmp_path / "whole"))


def test_a_ray_cluster_that_is_not_there_is_one_sentence(tmp_path, capsys, monkeypatch):
    words = [*COMMAND, "--engine", "ray", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(ray_runner, "find_spec", lambda name: None)
    assert sweep.main(words) == 2
    assert "--engine ray needs the extra cluster: pip install -e '.[cluster]'" in capsys.readouterr().err
    monkeypatch.setattr(ray_runner, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "ray", object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for given in (address, f"ray://{address}", "nowhere"):
            assert sweep.main([*words, "--ray-address", given]) == 2
            told = capsys.readouterr().err
            assert f"--ray-address accepts HOST:PORT of a Ray cluster that can be reached, and {given} cannot" in told
            assert told.count("\n") == 1
    assert sweep.main([*COMMAND, "--engine", "dask", "--out", str(tmp_path / "out")]) == 2
    assert "--engine accepts local or ray, not 'dask'" in capsys.readouterr().err


LOSE_A_WORKER = """
import os, signal, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from experiments import sweep


def add(**options):
    # Ray gives up on a node after 30 s, which is short where tests share a machine.
    for left in (2, 1, 0):
        try:
            return nodes.add_node(num_cpus=1, **options)
        except Exception:
            if not left:
                raise

nodes = Cluster()
add(include_dashboard=False)
add()
killed = []

def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])

def busy():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            # The worker's parent is a node's daemon, whose parent is this process.
            if open(f"/proc/{pid}/cmdline").read().startswith("ray::train_one") and parent(parent(pid)) == os.getpid():
                yield int(pid)
        except OSError:
            pass

def kill_one():
    while not killed:
        for pid in busy():
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            break
        time.sleep(0.05)

threading.Thread(target=kill_one, daemon=True).start()
code = sweep.main([*sys.argv[1:], "--engine", "ray", "--ray-address", nodes.address])
nodes.shutdown()
print(f"killed {len(killed)}", file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_two_workers_of_a_ray_cluster_train_what_one_process_does_though_one_is_killed(tmp_path):
    """Use nodes that are processes of this machine, and kill a worker in its first chunk."""
    pytest.importorskip("ray", reason="needs the extra cluster")
    words = [*COMMAND, "--steps", "800", "--out", str(tmp_path / "ray")]
    done = subprocess.run([sys.executable, "-c", LOSE_A_WORKER, *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "killed 1" in done.stderr
    assert len(list((tmp_path / "ray" / "parts").glob("*.parquet"))) == 2
    assert end_of(start(tmp_path / "here", "--steps", 800)) == 0
    ray, local = reading.load(tmp_path / "ray"), reading.load(tmp_path / "here")
    assert ray.provenance["engine"] == "ray"
    keys = ["run_id", "lr", "beta1", "seed", "status"]
    assert ray.runs[keys].equals(local.runs[keys])
    # Chunks have other sizes here, on one thread each, so the runs are equal up to rounding.
    np.testing.assert_allclose(ray.runs.initial_eval_loss, local.runs.initial_eval_loss, rtol=1e-5)
    np.testing.assert_allclose(ray.runs.eval_loss.median(), local.runs.eval_loss.median(), rtol=0.2)

"""Does a Ray cluster train what one process does, though a worker dies, and is one that is not there named?"""

import socket
import subprocess
import sys

import numpy as np
import pytest

from experiments import sweep
from experiments.sweeps import ray_runner, reading
from tests.sweeps.processes import COMMAND, end_of, start
from tests.sweeps.small import assert_same


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
    # A plain sweep is the same with one stage.
    asked, n_chunks = ["--steps", "4000", "--halving", "2"], 9
    words = [*COMMAND, *asked, "--out", str(tmp_path / "ray")]
    done = subprocess.run([sys.executable, "-c", LOSE_A_WORKER, *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "killed 1" in done.stderr
    assert len(list((tmp_path / "ray" / "parts").glob("*.parquet"))) == n_chunks
    assert not list(tmp_path.rglob("*.state"))
    assert end_of(start(tmp_path / "here", *asked)) == 0
    ray, local = reading.load(tmp_path / "ray"), reading.load(tmp_path / "here")
    assert ray.provenance["engine"] == "ray"
    keys = ["run_id", "lr", "beta1", "seed", "status", "stopped_step"]
    assert ray.runs[keys].equals(local.runs[keys])
    # Chunks have other sizes here, on one thread each, so the runs are equal up to rounding.
    np.testing.assert_allclose(ray.runs.initial_eval_loss, local.runs.initial_eval_loss, rtol=1e-5)
    np.testing.assert_allclose(ray.runs.eval_loss.median(), local.runs.eval_loss.median(), rtol=0.2)


@pytest.mark.slow
def test_a_sweep_on_a_cluster_ends_in_time_and_goes_on_to_the_same_bits(tmp_path):
    pytest.importorskip("ray", reason="needs the extra cluster")
    out, whole, asked = tmp_path / "out", tmp_path / "whole", ["--steps", 48, "--evaluations", 16, "--halving", 2]
    assert end_of(start(out, *asked, "--engine", "ray", "--time-budget", "0.000001s")) == 0
    said = out.with_suffix(".log").read_text()
    assert "The time budget is over. Unfinished: 0 of 24 runs are finished" in said
    # It is over before the first rung, in one chunk, and the others have not begun.
    assert [path.suffix for path in (out / "parts").glob("*-*")] == [".pt"]
    for folder in (out, whole):
        assert end_of(start(folder, *asked, "--engine", "ray")) == 0
        assert "Unfinished" not in folder.with_suffix(".log").read_text()
    assert_same(reading.load(out), reading.load(whole))
    chunks = [sorted(path.name.partition("-")[0] for path in (one / "parts").glob("*.parquet")) for one in (out, whole)]
    assert chunks[0] == chunks[1]
    assert not [*out.rglob("*.pt"), *out.rglob("*.state")]

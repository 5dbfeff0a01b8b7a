"""The benchmarks' arithmetic, what they count, and the benchmarks themselves at their smallest."""

import gzip
import hashlib
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

import optim
from experiments import throughput
from experiments.bench import host_time, networks, population_time, timing
from experiments.common import errors, tables
from experiments.tasks import data, mlp


def test_contenders_are_timed_in_turn_and_slow_ones_take_longer():
    calls = []
    contenders = {
        "quick": lambda: calls.append("quick"),
        "slow": lambda: calls.append("slow") or time.sleep(0.01),
    }
    seconds = timing.time_in_turn(contenders, 5, lambda: None)
    assert calls == ["quick", "quick", "slow", "slow"] * 5
    assert list(seconds.columns) == ["quick", "slow"]
    assert (seconds["slow"] >= 0.01).all()
    assert (seconds["quick"] < seconds["slow"]).all()


def test_median_interval_covers_the_median_of_a_known_sample():
    values = pd.Series(np.random.default_rng(0).normal(10, 1, 400))
    median, low, high = timing.median_interval(values)
    assert median == np.median(values)
    # The median of 400 normal values has a standard error of 1.2533 / 20.
    assert 9.7 < low < median < high < 10.3
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.35)


@pytest.mark.parametrize(
    ("ratio", "spread", "expected"),
    [
        (2.0, 0.1, "faster"),
        (0.5, 0.1, "slower"),
        (1.0, 0.02, "same"),
        # Noise that leaves both open, and a median at the mark itself.
        (1.0, 2.0, "ambiguous"),
        (1.05, 0.05, "ambiguous"),
    ],
)
def test_verdict_is_right_for_contenders_of_known_ratio(ratio, spread, expected):
    ratios = pd.Series(ratio + spread * np.random.default_rng(0).normal(size=100))
    _, low, high = timing.median_interval(ratios)
    assert timing.verdict(low, high) == expected


def test_markdown_table_shows_an_interval_in_the_cell_of_its_median():
    row = {"size": "2^16", "ms": 0.123456, "ratio": 1.0, "ratio, low": 0.9, "ratio, high": 1.1, "builds": 0}
    *_, line = tables.markdown_table([row]).splitlines()
    assert line == "| 2^16 | 0.123 | 1.00 [0.90, 1.10] | 0 |"


def test_markdown_table_leaves_cells_empty_that_have_no_value():
    rows = [{"size": "a", "us": math.nan, "us, low": math.nan, "us, high": math.nan}, {"size": "b", "GB/s": 12345.6}]
    assert tables.markdown_table(rows).splitlines()[2:] == ["| a |  |  |", "| b |  | 12346 |"]


def test_step_work_counts_every_matrix_product_and_every_byte_of_the_update():
    model = mlp.mlp(784, 32, 32, 10)
    flops, update_bytes = population_time.step_work(model, lanes=3)
    forward = 784 * 32 + 32 * 32 + 32 * 10
    backward = forward + (32 * 32 + 32 * 10)
    assert flops == 2 * population_time.BATCH * 3 * (forward + backward)
    assert update_bytes == 7 * 4 * 3 * sum(p.numel() for p in model.build().parameters())


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("ResNet-50", 161, 25_557_032),
        ("GPT-2 small", 148, 124_439_808),
        ("ViT-B/16", 152, 86_567_656),
        ("GPT-2 medium", 292, 354_823_168),
        ("MNIST MLP", 6, 118_282),
    ],
)
def test_shapes_are_as_many_and_as_large_as_the_networks(name, tensors, parameters):
    listed = networks.LISTS[name]()
    assert len(listed) == tensors
    assert sum(math.prod(shape) for shape in listed) == parameters
    assert [p.ndim for p in host_time.tiny(name)] == [len(shape) for shape in listed]


@pytest.mark.parametrize("moves", [False, True])
def test_steps_write_a_table_only_if_gradients_have_moved(moves):
    params = host_time.tiny("ResNet-50")
    host_time.move_grads(params)
    optimizer = optim.AdamW(params)
    optimizer.step()
    counts = {"uploads": 0, "builds": 0}
    host_time.counted(optimizer, lambda: host_time.median_step_seconds(optimizer, params, moves, steps=4), counts)
    # The untimed step counts too.
    assert counts == {"uploads": 5 if moves else 0, "builds": 0}


def test_builds_are_counted():
    params = host_time.tiny("ResNet-50")
    host_time.move_grads(params)
    optimizer = optim.AdamW(params)
    counts = {"uploads": 0, "builds": 0}
    host_time.counted(optimizer, lambda: optimizer.step() or 0.0, counts)
    assert counts["builds"] == 1
    assert counts["uploads"] > 0


def test_moved_gradients_are_elsewhere_and_shaped_alike():
    params = host_time.tiny("GPT-2 small")
    host_time.move_grads(params)
    old = [p.grad for p in params]
    host_time.move_grads(params)
    for p, grad in zip(params, old, strict=True):
        assert p.grad is not None
        assert grad is not None
        assert p.grad.data_ptr() != grad.data_ptr()
        assert p.grad.shape == p.shape


def test_steps_without_device_work_change_nothing():
    params = host_time.tiny("ResNet-50")
    host_time.move_grads(params)
    ours, theirs = optim.AdamW(params), torch.optim.AdamW(params, fused=True)
    ours.step()
    theirs.step()
    before = [p.detach().clone() for p in params]
    host_time.drop_launches_(ours)
    ours.step()
    with host_time.torch_without_device_work():
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    theirs.step()
    assert not torch.equal(params[0], before[0])


@pytest.mark.parametrize("device_work", [False, True])
def test_host_comparison_neither_writes_nor_builds_while_gradients_stay(device_work):
    row = host_time.compare("ResNet-50", device_work, rounds=2)
    assert (row["uploads"], row["builds"]) == (0, 0)
    assert row["tensors"] == 161
    for where in ("stay", "move"):
        low, middle, high = (row[f"ours / torch, gradients {where}{end}"] for end in (", low", "", ", high"))
        assert 0 < low <= middle <= high
        assert row[f"ours / torch, gradients {where}, level"] == 0.5
    # The range of two rounds says nothing about all of an interval.
    assert row["at most 1/3 if gradients"] == "-"


@pytest.mark.slow
def test_command_line_writes_the_table_of_hosts(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.throughput", "host", "--rounds", "3", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    table = pd.read_csv(out / "throughput_host.csv")
    assert table["list"].tolist() == list(networks.LISTS) * 2
    assert (table[["uploads", "builds"]] == 0).all(axis=None)
    assert (out / "throughput_host.md").read_text().strip() == done.stdout.strip()


@pytest.mark.slow
def test_command_line_writes_its_table(mnist_folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.throughput", "sweep", "--rounds", "3", "--data-dir", mnist_folder]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=True)
    table = pd.read_csv(out / "throughput_sweep.csv")
    assert table["K"].tolist() == [128, 32, 32, 32]
    assert table["share of roofline"].notna().tolist() == [True, True, False, False]
    for name in ("speed-up over one after the other", "update / torch's flat fused update", "share of roofline"):
        known = table[table[name].notna()]
        assert (known[f"{name}, low"] <= known[name]).all()
        assert (known[name] <= known[f"{name}, high"]).all()
        assert (known[name] > 0).all()
        assert name in done.stdout
    assert (out / "throughput_sweep.md").read_text().strip() == done.stdout.strip()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "size",
    [("mlp", 2, 8), *(pytest.param((kind, 2, None), marks=pytest.mark.slow) for kind in ("gru", "cnn"))],
    ids=lambda size: size[0],
)
def test_populations_are_timed_on_noise_where_mnist_cannot_be_had(device, size, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise errors.DataError("no MNIST anywhere")

    monkeypatch.setattr(population_time.problems, "make", unreachable)
    for name in ("MATRIX", "COPY_ELEMENTS"):
        monkeypatch.setattr(population_time, name, 64)
    monkeypatch.setattr(population_time, "find_spec", lambda name: None)
    kind, lanes, hidden = size
    row = population_time.compare(kind, lanes, hidden, None, device, 3)
    assert (row["data"], row["K"], row["model"].split()[0]) == ("noise of MNIST's shapes", 2, size[0])
    assert ("share of roofline" in row) == (size[0] == "mlp")
    assert row["speed-up over one after the other"] > 0
    with pytest.raises(errors.DataError, match="no MNIST anywhere"):
        population_time.compare(kind, lanes, hidden, tmp_path, device, 3)


@pytest.fixture
def small_sweep(monkeypatch):
    """`sweep` of two sizes that take no time."""
    monkeypatch.setattr(population_time, "SIZES", {"cpu": (("mlp", 2, 8), ("mlp", 3, 8))})
    monkeypatch.setattr(population_time, "find_spec", lambda name: None)
    for name in ("MATRIX", "COPY_ELEMENTS"):
        monkeypatch.setattr(population_time, name, 64)


def test_without_a_download_nothing_is_asked_for_and_table_and_page_say_that_it_is_noise(
    small_sweep, tmp_path, monkeypatch
):
    with socket.socket() as silent:
        # As a firewall that drops packets: who connects waits for an answer that never comes.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(0)
        monkeypatch.setattr(data, "MIRRORS", (f"http://127.0.0.1:{silent.getsockname()[1]}/",))
        monkeypatch.delenv("MNIST_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        command = ["sweep", "--device", "cpu", "--rounds", "3", "--out", str(tmp_path)]
        assert throughput.main([*command, "--no-download"]) == 0
        with pytest.raises(BlockingIOError):
            silent.accept()
        # It is what would have been asked.
        monkeypatch.setattr(data, "DOWNLOAD_TIMEOUT", 0.1)
        monkeypatch.setattr(data, "_mnist_5k", lambda reason: population_time.noise())
        assert throughput.main([*command, "--out", str(tmp_path / "download")]) == 0
        silent.accept()[0].close()
    assert set(pd.read_csv(tmp_path / "throughput_sweep.csv")["data"]) == {"noise of MNIST's shapes"}
    text = (tmp_path / "throughput_sweep.md").read_text()
    assert "Data noise of MNIST's shapes, batch 128. MNIST was not available; random numbers" in text


@pytest.mark.parametrize("where", ["variable", "cache", "option"])
def test_without_a_download_mnist_that_is_here_is_timed(where, small_sweep, mnist_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_download", lambda *_: pytest.fail("it was to download nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MNIST_DIR", str(mnist_folder) if where == "variable" else "")
    cache = tmp_path / "adam-sandbox" / "mnist"
    cache.mkdir(parents=True)
    if where == "cache":
        # These files are as good as MNIST's if their checksums are what is expected.
        for stem in data.FILES:
            packed = gzip.compress((mnist_folder / stem).read_bytes())
            (cache / f"{stem}.gz").write_bytes(packed)
            monkeypatch.setitem(data.FILES, stem, hashlib.sha256(packed).hexdigest())
    folder = mnist_folder if where == "option" else None
    problem = population_time.problem_of("mlp", 8, folder, download=False)
    assert problem.data.name.startswith("MNIST-format data from ")
    if where == "cache":
        (cache / "t10k-labels-idx1-ubyte.gz").write_bytes(b"half")
        assert population_time.problem_of("mlp", 8, None, download=False).data.name == population_time.NOISE


@pytest.mark.parametrize(("known", "files"), [(1, ["throughput_sweep.csv", "throughput_sweep.md"]), (0, [])])
def test_populations_that_are_interrupted_keep_the_sizes_that_are_known(
    known, files, small_sweep, tmp_path, monkeypatch, capsys
):
    def step(kind, lanes, *_, **__):
        if lanes == 2 + known:
            raise KeyboardInterrupt
        return real(kind, lanes, *_, **__)

    real = population_time.compare
    monkeypatch.setattr(population_time, "compare", step)
    command = ["sweep", "--device", "cpu", "--rounds", "3", "--no-download", "--out", str(tmp_path / "out")]
    assert throughput.main(command) == 130
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == files
    rest = "mlp 2 8; mlp 3 8" if known == 0 else "mlp 3 8"
    assert f"Interrupted: not timed were {rest}.\n" in capsys.readouterr().out
    if known:
        assert pd.read_csv(tmp_path / "out" / "throughput_sweep.csv")["K"].tolist() == [2]
        assert (tmp_path / "out" / "throughput_sweep.md").read_text().endswith(f"not timed were {rest}.\n")


HANGS = """
import sys, time
from experiments import throughput
from experiments.bench import population_time, step_time
module = population_time if sys.argv[1] == "sweep" else step_time
compare, calls = module.compare, []

def hang(*arguments, **options):
    calls.append(arguments)
    if len(calls) == (3 if sys.argv[1] == "step" else 2):
        print("hangs", flush=True)
        time.sleep(100)
    return compare(*arguments, **options)

module.compare = hang
population_time.SIZES = {"cpu": (("mlp", 2, 8), ("mlp", 3, 8))}
sys.exit(throughput.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        ("step --only SGD --implementations ours --sizes 2^10 2^12 2^14", ["bandwidth", "roofline"]),
        ("models --only Adam --sizes 'MNIST MLP'", [""]),
        ("sweep --no-download", []),
    ],
)
def test_what_is_interrupted_ends_with_page_table_and_figures(arguments, figures, tmp_path):
    words = [*shlex.split(arguments), "--device", "cpu", "--rounds", "3", "--out", str(tmp_path)]
    command = [sys.executable, "-c", HANGS, *words]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env={**os.environ, "PYTHONPATH": "."}) as process:
        assert process.stdout
        assert process.stdout.readline() == "hangs\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        if figures:
            time.sleep(0.3)
            # It draws now, and has to go on.
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    stem = f"throughput_{words[0]}"
    names = [f"{stem}.csv", f"{stem}.md", *(f"{stem}{'_' * bool(end)}{end}.png" for end in figures)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "nterrupted" in (tmp_path / f"{stem}.md").read_text()

"""Populations are timed on MNIST, or on noise that is called so, and keep what is known when interrupted."""

import gzip
import hashlib
import socket

import pandas as pd
import pytest

from experiments import throughput
from experiments.bench import population_time
from experiments.common import errors
from experiments.tasks import data, mlp


def test_step_work_counts_every_matrix_product_and_every_byte_of_the_update():
    model = mlp.mlp(784, 32, 32, 10)
    flops, update_bytes = population_time.step_work(model, lanes=3)
    forward = 784 * 32 + 32 * 32 + 32 * 10
    backward = forward + (32 * 32 + 32 * 10)
    assert flops == 2 * population_time.BATCH * 3 * (forward + backward)
    assert update_bytes == 7 * 4 * 3 * sum(p.numel() for p in model.build().parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "size",
    [
        *(("mlp", 2, 8), ("own mlp", 2, None)),
        *(pytest.param((kind, 2, None), marks=pytest.mark.slow) for kind in ("cnn", "own transformer")),
    ],
    ids=lambda size: size[0],
)
def test_populations_are_timed_on_noise_where_mnist_cannot_be_had(device, size, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise errors.DataError("no MNIST anywhere")

    monkeypatch.setattr(population_time.problems, "make", unreachable)
    for name in ("MATRIX", "COPY_ELEMENTS"):
        monkeypatch.setattr(population_time, name, 64)
    monkeypatch.setattr(population_time, "peers", dict)
    kind, lanes, hidden = size
    row = population_time.compare(kind, lanes, hidden, None, device, 3)
    assert (row["data"], row["K"]) == ("noise of MNIST's shapes", 2)
    assert row["model"].startswith(kind)
    assert ("share of roofline" in row) == (size[0] == "mlp")
    assert row["speed-up over one after the other"] > 0
    with pytest.raises(errors.DataError, match="no MNIST anywhere"):
        population_time.compare(kind, lanes, hidden, tmp_path, device, 3)


def test_a_users_networks_are_timed_by_vmap_in_chunks_of_a_sweep():
    for kind, lanes, sizes in (
        *(("own mlp", 128, [128]), ("own cnn", 32, [11, 11, 10]), ("own transformer", 32, [16, 16])),
        ("cnn", 32, [32]),
    ):
        problem = population_time.problem_of(kind, None, None, download=False)
        assert getattr(problem.model, "told", "") == ""
        assert population_time.chunk_sizes(problem.model, lanes, "cpu") == sizes
        assert population_time.chunk_sizes(problem.model, lanes, "cuda:0") == [lanes]


@pytest.fixture
def small_sweep(monkeypatch):
    """`sweep` of two sizes that take no time."""
    monkeypatch.setattr(population_time, "SIZES", {"cpu": (("mlp", 2, 8), ("mlp", 3, 8))})
    monkeypatch.setattr(population_time, "peers", dict)
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

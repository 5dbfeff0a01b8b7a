"""Without a GPU the Triton kernel runs in the interpreter, which has to be chosen before Triton is imported."""

import os
import signal
import warnings
from pathlib import Path

# Tests run side by side, and threads that wait for work by spinning take the cores from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import settings

from experiments.training import population

mpl.use("Agg")
# The same examples in every run: a change that breaks nothing never fails.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
# A shell that starts the tests in the background lets them, and the processes they start, ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


COMPILED_QUICKLY = ("Adam", "AdamW", "SGD")
"""Classes that quick tests try on the cpu backend: for each rule and dtype Numba compiles for seconds."""
FIRST = ("kernels", "gpu", "optim", "lane_steps", "memory", "half_precision", "rounding", "capture")
MEASURING = ("cuda", "search", "gpu_machine", "gpu_steps", "population_time")
"""Files with tests of what matters most on a GPU, and of what `make gpu` measures with after its tests."""


def params_of(item: pytest.Item) -> dict:
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec else {}


def has_cuda_tensors(item: pytest.Item) -> bool:
    """Whether a test that runs anywhere has CUDA tensors where there is a GPU: it is marked so, or gets "triton"."""
    params = params_of(item)
    gets_triton = any(isinstance(value, str) and value == "triton" for value in params.values())
    return gets_triton or item.get_closest_marker("gpu_too") is not None


def rank(item: pytest.Item) -> tuple[int, int]:
    """Where a test comes in a run on a GPU, which may be cut short.

    First whether kernels compute what they should and are launched as they should be, then what is measured with, then
    classes whose kernels differ from the first ones by their formulas alone.
    """
    file = item.path.stem.removeprefix("test_")
    if file in MEASURING:
        return 1, 0
    name = params_of(item).get("name")
    if isinstance(name, str) and name not in COMPILED_QUICKLY:
        return 2, 0
    return 0, FIRST.index(file) if file in FIRST else len(FIRST)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        params = params_of(item)
        name = params.get("name")
        if params.get("backend") == "cpu" and isinstance(name, str) and name not in COMPILED_QUICKLY:
            item.add_marker(pytest.mark.slow)
    if torch.cuda.is_available():
        # The one place that decides which tests are among those of the GPU, and in which order.
        for item in items:
            if has_cuda_tensors(item):
                item.add_marker(pytest.mark.gpu)
        items.sort(key=rank)
    else:
        skip = pytest.mark.skip(reason="needs a CUDA GPU")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


MAY_SKIP = ("GPU", "MNIST_DIR")
"""What the reason of a skipped test names where ADAM_SANDBOX_NO_SKIPS is set: hardware, or data that is not here."""


def refuse_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Have a skipped test fail where ADAM_SANDBOX_NO_SKIPS=1 says that everything it can need is installed."""
    if not os.environ.get("ADAM_SANDBOX_NO_SKIPS") or not report.skipped or not isinstance(report.longrepr, tuple):
        return
    path, line, reason = report.longrepr
    if not any(name in reason for name in MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: ADAM_SANDBOX_NO_SKIPS allows no test to be left out, and this was: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    refuse_skip(report)
    return report


@pytest.fixture
def mnist_folder(tmp_path, monkeypatch) -> Path:
    """Four small IDX files of noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, n in (("train", 256), ("t10k", 100)):
        for kind, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
            values = rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
            header = bytes((0, 0, 8, len(shape))) + b"".join(int(size).to_bytes(4, "big") for size in shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return folder


def spy_on_training(monkeypatch) -> list[int]:
    """Returns how many runs each call of `population.train_lanes` has from now on."""

    sizes, original = [], population.train_lanes

    def spy(problem, configs, seeds, **options):
        sizes.append(len(configs) * len(seeds))
        return original(problem, configs, seeds, **options)

    monkeypatch.setattr(population, "train_lanes", spy)
    return sizes


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """How many runs each call of `population.train_lanes` in the test had."""
    return spy_on_training(monkeypatch)


@pytest.fixture(params=["triton", "cpu", "eager"])
def backend(request) -> str:
    """Every backend in turn; on a GPU machine triton gets CUDA tensors (see `device_of`)."""
    if request.param == "cpu":
        pytest.importorskip("numba", reason="the cpu backend needs Numba")
    return request.param


def device_of(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def sync_debug_mode(mode: str) -> None:
    """Whether waiting for the GPU is an error; torch warns, once a process, that this is a prototype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode(mode)

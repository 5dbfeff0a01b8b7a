"""Without a GPU the Triton kernel runs in the interpreter, which has to be chosen before Triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import matplotlib as mpl
import pytest

mpl.use("Agg")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA GPU")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(params=["triton", "cpu", "eager"])
def backend(request) -> str:
    """Every backend in turn; on a GPU machine triton gets CUDA tensors (see `device_of`)."""
    if request.param == "cpu":
        pytest.importorskip("numba", reason="the cpu backend needs Numba")
    return request.param


def device_of(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"

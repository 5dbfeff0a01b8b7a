"""Which module updates a tensor: Triton's kernel, Numba's loops, or eager formulas."""

import functools
import importlib
import os
import warnings
from importlib.util import find_spec

import torch

from optim import memory

BACKENDS = {"triton": "kernels.multi_tensor", "cpu": "kernels.cpu", "eager": "kernels.eager"}


def backend_of(optimizer, p: torch.Tensor, grad: torch.Tensor):
    """The module that updates p: the one asked for, or else the fastest that takes the tensors."""
    if optimizer.backend:
        return backend_module(optimizer.backend)
    module = backend_module({"cuda": "triton", "cpu": "cpu"}.get(p.device.type, "eager"))
    takes_both = all(memory.real_dtype(tensor) in module.DTYPES for tensor in (p, grad))
    return module if takes_both else backend_module("eager")


def backend_module(name: str):
    if name == "cpu" and not has_numba():
        name = "eager"
    return importlib.import_module(BACKENDS[name])


@functools.cache
def has_numba() -> bool:
    """Whether Numba is installed, and compiles; says once what it means if not."""
    if find_spec("numba"):
        return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
    warnings.warn(
        "Numba is not installed: CPU tensors are updated by eager formulas, about twenty times slower", stacklevel=2
    )
    return False

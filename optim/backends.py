"""The choice of a tensor's backend: Triton's kernel, Numba's loops, or eager formulas."""

import functools
import importlib
import os
import warnings
from importlib.util import find_spec

import torch

from kernels.occupancy import LIMITS
from optim import memory
from optim.arguments import accepted

BACKENDS = {"triton": "kernels.launch", "cpu": "kernels.cpu", "eager": "kernels.eager"}
COMPILED = "compiled:"
"""The prefix of backends that simulate what Triton compiles for a GPU, such as compiled:sm_90."""


def check_name(name: str | None) -> None:
    """Raise ValueError unless there is a backend of this name."""
    if not (isinstance(name, str) and name.startswith(COMPILED)):
        accepted(name, "backend", (*BACKENDS, None))
    elif (target := name.removeprefix(COMPILED)) not in LIMITS:
        raise ValueError(f"Invalid backend: {name!r} ({COMPILED} and one of {', '.join(LIMITS)}, not {target!r})")


def backend_of(optimizer, p: torch.Tensor, grad: torch.Tensor):
    """Return the module that updates p: the one asked for, or else the fastest that takes the tensors."""
    if optimizer.backend:
        return backend_module(optimizer.backend)
    module = backend_module({"cuda": "triton", "cpu": "cpu"}.get(p.device.type, "eager"))
    takes_both = all(memory.real_dtype(tensor) in module.DTYPES for tensor in (p, grad))
    return module if takes_both else backend_module("eager")


def backend_module(name: str):
    if name == "cpu" and not has_numba():
        name = "eager"
    if name.startswith(COMPILED):
        return importlib.import_module("kernels.simulator.backend").for_target(name.removeprefix(COMPILED))
    return importlib.import_module(BACKENDS[name])


@functools.cache
def has_numba() -> bool:
    """Return whether Numba is installed and compiles; warn, once, if it is not installed."""
    if find_spec("numba"):
        return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
    warnings.warn(
        "Numba is not installed: CPU tensors are updated by eager formulas, about twenty times slower", stacklevel=2
    )
    return False

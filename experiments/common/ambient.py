"""Pin the process-wide settings of torch, numpy and pandas to their defaults while runs are trained.

Results keep their bits whatever settings a program or notebook prefers, and those settings are restored afterwards.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch

PANDAS = {
    "display.chop_threshold": None,
    "display.colheader_justify": "right",
    "display.float_format": None,
    "display.max_colwidth": 50,
    "display.precision": 6,
    "io.parquet.engine": "auto",
}

PRECISE = ("ieee", "none")
"""Accepted settings of the precision of float32 products: all bits are used."""


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Enable gradients, disable autocast, default to float32 on the CPU with full precision; reset numpy and pandas.

    The number of threads, which affects speed and the last bits, stays as the caller has set it.
    """
    import pandas as pd  # what only names the problems does without

    options = [item for name, value in PANDAS.items() for item in (name, value)]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        enter(torch.autograd.set_detect_anomaly(False))
        for kind in ("cpu", "cuda"):
            # Skip the context where autocast is off: it costs time.
            if torch.is_autocast_enabled(kind):
                enter(torch.autocast(kind, enabled=False))
        # Only if another device is the default, because every torch call goes through this mode.
        if torch.get_default_device() != torch.device("cpu"):
            enter(torch.device("cpu"))
        enter(restored(torch.get_default_dtype, torch.set_default_dtype, torch.float32))
        enter(restored(torch.are_deterministic_algorithms_enabled, deterministic(), False))
        enter(restored(flushes_denormals, torch.set_flush_denormal, False))
        # torch replaces its module mkldnn with an object that has more attributes.
        mkldnn = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
        for backend in (mkldnn, torch.backends.cuda.matmul):
            enter(restored(lambda of=backend: of.fp32_precision, functools.partial(precision, backend), *PRECISE))
        enter(pd.option_context(*options))
        yield


@contextlib.contextmanager
def restored(get: Callable, set_: Callable, *accepted) -> Iterator[None]:
    """Keep a setting if it has an accepted value, else set the first of these; restore the old value at the end."""
    before = get()
    if before in accepted:
        yield
        return
    set_(accepted[0])
    try:
        yield
    finally:
        set_(before)


def deterministic() -> Callable[[bool], None]:
    """Return a setter of torch's deterministic algorithms that keeps the current `warn_only`."""
    return functools.partial(
        torch.use_deterministic_algorithms, warn_only=torch.is_deterministic_algorithms_warn_only_enabled()
    )


def precision(backend, value: str) -> None:
    """Set the precision of a backend's float32 products."""
    backend.fp32_precision = value


def flushes_denormals() -> bool:
    """Return whether this thread flushes denormal numbers to zero, which torch can set but not report."""
    return bool(np.float64(5e-324) * np.float64(1) == 0)

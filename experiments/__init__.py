"""Data, stacked models, populations, sweeps and what is drawn from them."""

import importlib
from typing import Any

from kernels import __version__ as __version__
from kernels.commands import refuse_others

refuse_others(__name__)


PUBLIC = {"Problem": "experiments.tasks.own", "load": "experiments.results"}
"""The names that this package offers beside its modules, and the modules that have them."""


def __getattr__(name: str) -> Any:
    """Import `Problem` or `load` when it is asked for: torch or pandas comes with it."""
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

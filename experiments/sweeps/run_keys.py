"""Keys of runs: hashes of all that their results depend on, so that none is trained twice or taken for another."""

import ast
import functools
import hashlib
import inspect
import itertools
import json
import os
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.common.processes import ROOT
from experiments.sweeps import results
from experiments.sweeps.plan import Plan
from experiments.tasks import own
from experiments.tasks.data import Dataset
from experiments.training import optimizers
from experiments.training.axes import RUN
from kernels.files import cache_folder, keep, kept
from optim import backends

CODE = (
    "kernels/*.py",
    "kernels/rules/*.py",
    "optim/*.py",
    "experiments/tasks/*.py",
    "experiments/training/*.py",
    "experiments/common/ambient.py",
)
"""The files that training depends on. Plans, chunks, figures and messages change no result."""
SAYS = ("print", "warn", "debug", "info", "warning")
"""Names of functions that only print or log a message."""
ORIGIN = 8
PRECISION = ("DNNL_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE")
PRECISION += ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",)
"""Environment variables by which libraries compute products of float32 from fewer bits."""


def keys(plan: Plan) -> list[str]:
    """Return the keys of a plan's runs, in their order, of 32 hexadecimal digits each.

    A key depends on the configuration, task, model and training, the seed, the values of the data, the code, torch's
    version, the type of device (CPU or GPU) and the compiler. It does not depend on other runs, the chunks, the number
    of threads or the processor, which change only last bits. Runs of one sweep, whatever its grid and the options
    of its runs, share the first `ORIGIN` digits.
    """
    device = torch.device(plan.device).type
    common = {
        "task": plan.identity["task"],
        "evaluations": plan.identity["evaluations"],
        "code": code_version(),
        "torch": torch.__version__,
        "problem": task_source(plan.identity["task"]),
        "device": device,
        "compiler": compiler(device),
        "precision": {name: os.environ[name] for name in PRECISION if os.environ.get(name)},
    }
    of_sweep = {name: of for name, of in plan.identity.items() if name not in (*results.GRID, *RUN, "model")}
    origin = hashlib.sha256(json.dumps([common, of_sweep], sort_keys=True).encode()).hexdigest()[:ORIGIN]
    found = pd.Series("", index=plan.runs.index)
    checksums: dict[int, str] = {}
    for _, rows in plan.runs.groupby(["optimizer", "setting"], sort=False):
        name, setting = str(rows["optimizer"].iloc[0]), plan.settings[rows["setting"].iloc[0]]
        data = setting.problem.data
        if id(data) not in checksums:
            checksums[id(data)] = dataset_checksum(data)
        of_setting = common | {"model": setting.problem.model.name}
        of_setting["data"] = data.name, data.origin, checksums[id(data)]
        of_setting["training"] = setting.training
        sha256 = hashlib.sha256(json.dumps([of_setting, name, own_source(name)], sort_keys=True).encode())
        found[rows.index] = [origin + digest for digest in digests(rows, name, sha256)]
    return found.tolist()


def digests(rows: pd.DataFrame, optimizer: str, of_optimizer: Any) -> Iterator[str]:
    """Yield a hash of each row's seed and values, also of those axes that keep the optimizer's default.

    of_optimizer: a hash of all that the rows share.
    """
    defaults = {name: axis.default for name, axis in optimizers.axes(optimizers.resolve(optimizer)).items()}
    columns = [rows[name] if name in rows else itertools.repeat(default) for name, default in defaults.items()]
    for seed, *values in zip(rows["seed"], *columns, strict=False):
        sha256 = of_optimizer.copy()
        sha256.update(repr((int(seed), *zip(defaults, values, strict=True))).encode())
        yield sha256.hexdigest()[: 32 - ORIGIN]


def compiler(device: str) -> str:
    """Return the name and version of what compiles the rules for a device; "none" if nothing does."""
    if device == "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
        return f"triton {version('triton')}{', interpreted' * interpreted}"
    return f"numba {version('numba')}" if backends.has_numba() else "none"


def dataset_checksum(dataset: Dataset) -> str:
    """Return the SHA-256 of all values of a data set that training uses, in hexadecimal."""
    sha256 = hashlib.sha256(repr((dataset.in_order, dataset.loss_floor)).encode())
    for t in (dataset.x_train, dataset.y_train, dataset.x_eval, dataset.y_eval):
        sha256.update(repr((t.dtype, t.shape)).encode())
        sha256.update(t.contiguous().numpy().data)
    return sha256.hexdigest()


@functools.cache
def code_version() -> str:
    """Return the SHA-256 of the code that training depends on, in hexadecimal; see `meaning` for what counts.

    Parsing takes half a second, so the user's cache keeps the result for each state of the files.
    """
    paths = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    contents = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths}
    state = hashlib.sha256(repr((Path(__file__).read_bytes(), contents)).encode()).hexdigest()
    path = cache_folder("code") / state
    if known := kept(path):
        return known.decode()
    found = version_of(contents)
    keep(path, found.encode())
    return found


def version_of(contents: dict[str, bytes]) -> str:
    """Return the SHA-256, in hexadecimal, of what files mean, given their contents by name."""
    sha256 = hashlib.sha256()
    for name, content in contents.items():
        told = meaning(ast.parse(content), prose=name.startswith("experiments"))
        sha256.update(f"{name}\n{told}\n".encode())
    return sha256.hexdigest()


def meaning(node: Any, prose: bool) -> Any:
    """Return a syntax tree as nested tuples, without what changes no result: comments, layout, docstrings, messages.

    The tuples are the same under every version of Python that parses the code into the same nodes.

    Args:
        prose: whether strings with a space in them are only read by people, and are left out.
    """
    if isinstance(node, list):
        return tuple(meaning(one, prose) for one in node if not says(one))
    if isinstance(node, ast.Raise):
        call = node.exc
        return "Raise", ast.unparse(call.func if isinstance(call, ast.Call) else call) if call else ""
    if isinstance(node, ast.AST):
        # Later versions add fields, which are empty in code that an earlier one could parse.
        fields = [(name, meaning(value, prose)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return type(node).__name__, *fields
    return "" if prose and isinstance(node, str) and " " in node else repr(node)


def says(node: Any) -> bool:
    """Return whether a statement is a docstring, or only prints or logs a message."""
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Call):
        function = node.value.func
        return getattr(function, "attr", getattr(function, "id", None)) in SAYS
    return isinstance(node.value, ast.Constant)


def own_source(name: str) -> str:
    """Return the text of the file of a user's optimizer; "" for one of `optimizers.OPTIMIZERS`."""
    return "" if name in optimizers.OPTIMIZERS else source_of(optimizers.resolve(name).lanes)


def task_source(task: str) -> str:
    """Return the text of the file of a user's problem; "" for a built-in task."""
    return source_of(own.function_of(task)) if own.is_own(task) else ""


@functools.lru_cache(maxsize=64)
def source_of(given: Any) -> str:
    """Return the text of the file of a user's class or function, as it was when first asked for.

    One without a file, as in a notebook, or one that depends on more than its text, because it has default arguments
    or sees the variables of another function, gets a new text each time.
    """
    # A class made by `from_rule` has the module of its rule.
    module = inspect.getmodule(given)
    if module is None or any(getattr(given, name, None) for name in ("__closure__", "__defaults__", "__kwdefaults__")):
        return uuid.uuid4().hex
    try:
        return Path(inspect.getfile(module)).read_text(encoding="utf-8")
    except (TypeError, OSError):
        return uuid.uuid4().hex

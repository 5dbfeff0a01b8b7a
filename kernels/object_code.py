"""A rule's machine code for the CPU: how it is called, and where it is kept, so that a machine compiles a rule once.

The user's cache has an object file for each rule and dtypes, followed by 32 bytes, its SHA-256:
`objdump -d ~/.cache/adam-sandbox/cpu/adam-*.o` shows it. A file that is damaged, or cannot be read or written, is as
if it were not there.
"""

import contextlib
import ctypes
import dis
import functools
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import llvmlite
import llvmlite.binding as llvm

from kernels import files
from kernels.rule import Rule, called, plain

ARGUMENTS = (
    *("rows", "hyper", "coefficients", "keys", "chunk_row", "chunk_index"),
    *("n_rows", "n_chunks", "chunk_size", "seed", "grad_scale"),
    *("clip", "values", "scales"),
)
"""What the code is given: the address of an array of int64 that holds, in this order, the addresses of what
`table.Table` calls so, and numbers. The bits of grad_scale are those of a float64."""
STAGE_ARGUMENTS = (
    *("rows", "hyper", "coefficients", "clip"),
    *("piece_row", "piece_index", "first_piece", "slot_rows", "first_row", "partials", "totals", "values"),
    *("n_pieces", "n_slots"),
)
"""What the code of a stage is given in the same way: from the table, from its `pieces.Totals`, and numbers."""
SOURCES = (
    *("codes.py", "cpu_compressed.py"),
    *("cpu_rule.py", "cpu_language.py", "cpu_storage.py", "cpu_sums.py", "object_code.py", "pieces.py"),
    *("rule.py", "table.py"),
)
"""Files on which the code depends, beside the rule's own functions."""
DAYS = 90
"""Files that have not been used for so long are removed."""


class Shared(NamedTuple):
    """A function whose work threads share.

    Attributes:
        share: `share(arguments, share, shares)` does one of equal shares.
        own_share: the address of `own_share(arguments)`, by which an OpenMP thread does its share.
    """

    share: Callable[[int, int, int], None]
    own_share: int


class StageCode(NamedTuple):
    """A stage of a rule.

    Attributes:
        measure: adds up pieces.
        reduce: `reduce(arguments)` adds up the pieces of each slot.
        finish: `finish(arguments)` makes of totals what the update takes.
    """

    measure: Shared
    reduce: Callable[[int], None]
    finish: Callable[[int], None]


class Code(NamedTuple):
    """A step of the rows of a table.

    Attributes:
        prologue: `prologue(arguments)` counts steps and computes coefficients.
        walk: updates the elements of chunks.
        stages: what comes in between.
        owner: what keeps the code in memory.
    """

    prologue: Callable[[int], None]
    walk: Shared
    stages: tuple[StageCode, ...]
    owner: object


def link(image: bytes, symbols: dict[str, int], n_stages: int = 0) -> Code:
    """Make the functions of an object file callable.

    Args:
        symbols: addresses of functions that it calls and that the process does not export.
        n_stages: the number of the rule's stages.

    Raises:
        RuntimeError: it calls what there is not.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    library = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
    for name, address in symbols.items():
        library.import_symbol(name, address)
    serial = ["prologue", *(f"{name}{i}" for i in range(n_stages) for name in ("reduce", "finish"))]
    shared = ["walk", *(f"measure{i}" for i in range(n_stages))]
    for name in (*serial, *shared, *(f"{name}_own_share" for name in shared)):
        library.export_symbol(name)
    compiler = llvm.create_lljit_compiler()
    tracker = library.link(compiler, "rule")
    one, three = ctypes.CFUNCTYPE(None, ctypes.c_int64), ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)
    alone = {name: one(tracker[name]) for name in serial}
    together = {name: Shared(three(tracker[name]), tracker[f"{name}_own_share"]) for name in shared}
    stages = [StageCode(together[f"measure{i}"], alone[f"reduce{i}"], alone[f"finish{i}"]) for i in range(n_stages)]
    return Code(alone["prologue"], together["walk"], tuple(stages), (compiler, tracker))


@functools.cache
def exported(name: str) -> int:
    """Return the address of a function that the process or a library of its exports; 0 if there is none."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except (AttributeError, TypeError):  # Windows has no library of all.
        return 0


def has_openmp() -> bool:
    """Return whether code can ask OpenMP for the number of its thread."""
    return exported("omp_get_thread_num") != 0


@functools.cache
def surroundings(settings: tuple[object, ...]) -> str:
    """Return what code depends on beside its rule: sources, compilers, the processor, settings."""
    sources = [Path(__file__).with_name(name).read_bytes() for name in SOURCES]
    versions = sys.version, version("numba"), llvmlite.__version__, version("numpy")
    processor = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return repr((sources, versions, processor, settings))


def meaning(function: Callable) -> tuple:
    """Return what a function of a rule does: its bytecode, and that of the helpers that it calls.

    Raises: LookupError if it takes more than `tl` and helpers from around itself, which could change.
    """
    body, code = plain(function), plain(function).__code__
    helpers = called(body)
    taken = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    if code.co_freevars or taken - {"tl", "len", *helpers}:
        raise LookupError(body.__name__)
    meanings = [(name, meaning(helper)) for name, helper in sorted(helpers.items())]
    return code.co_code, code.co_consts, code.co_names, code.co_varnames, body.__defaults__, meanings


def path_of(rule: Rule, *kinds: object) -> Path | None:
    """Return where the code of a rule is kept that was compiled for these dtypes and kind of rounding.

    None stands for nowhere: the rule depends on more than can be compared.
    """
    of_numba = sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_"))
    try:
        functions = [(name, meaning(function)) for name, function in rule.functions.items()]
    except LookupError:
        return None
    names = rule.hyper, rule.states, rule.scalars, rule.over, rule.clips
    what = f"{surroundings((has_openmp(), *of_numba))}{(*names, functions, kinds)}"
    name = re.sub(r"\W", "_", rule.name)[:60]
    return files.cache_folder("cpu") / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:32]}.o"


def load(path: Path, n_stages: int = 0) -> Code | None:
    """Return the code that is kept there; None if there is none that can be used. n_stages is as in `link`."""
    image = files.kept(path)
    if image is None:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    try:
        return link(image, {}, n_stages)
    except RuntimeError:
        return None


def keep(path: Path, image: bytes) -> None:
    """Keep an object file there, where this is possible, and remove those that nobody has used for long."""
    files.keep(path, image)
    with contextlib.suppress(OSError):
        for other in path.parent.glob("*.o"):
            if time.time() - other.stat().st_mtime > DAYS * 24 * 3600:
                other.unlink()

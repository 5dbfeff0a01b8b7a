"""Can Triton run a kernel on this GPU? Run one, and if it fails say in one sentence why.

Triton needs a C compiler to build the extension that launches kernels: 3.7 builds one for all, 3.6 one for each kernel.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from experiments.common import processes
from experiments.common.errors import OptionError
from experiments.common.processes import Outcome, Stage

COMMAND = ["-c", "from experiments.common import preflight; preflight.launch()"]
LIMIT = 40.0
REASONS = {
    r"Failed to find C compiler": "it needs a C compiler, and there is none: install gcc or clang, or set CC to one",
    r"Python\.h'?:? (No such file|file not found)": "it needs Python.h, which the C compiler does not find: install "
    f"the headers of {sys.executable}, in a package python3-dev or python3-devel for one of the system's",
    r"libcuda\.so\S* cannot found|cannot find -l\S*cuda": "it needs the driver's libcuda.so.1, and does not find it: "
    "ldconfig has to know its folder, or TRITON_LIBCUDA_PATH to name it",
}
"""Advice by patterns in the output of Triton or the compiler."""
BUILD = r"in _build\b"
"""Pattern of Triton's function that starts the compiler, in a traceback."""


@triton.jit
def add_one_kernel(x_ptr, BLOCK_SIZE: tl.constexpr):
    """Add 1 to BLOCK_SIZE elements in place, in one program."""
    offsets = tl.arange(0, BLOCK_SIZE)
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets) + 1)


def launch(device: str = "cuda") -> None:
    """Run a kernel. Raises: RuntimeError if its result is wrong, or any exception of Triton."""
    x = torch.zeros(16, device=device)
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        add_one_kernel[(1,)](x, BLOCK_SIZE=16)  # pyright: ignore[reportArgumentType]
    if not (x == 1).all():
        raise RuntimeError("a kernel ran and has not written what it computes")


def check_gpu(device: str = "cuda") -> None:
    """Raise OptionError with the sentence of `refusal` unless a kernel runs; start no process if one does."""
    try:
        with silent():
            launch(device)
    except Exception:
        if why := refusal({**os.environ}):
            raise OptionError(why) from None
        raise


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Discard everything that this process and its children, such as a compiler, write to stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def refusal(environment: dict[str, str], command: list[str] | None = None, limit: float = LIMIT) -> str | None:
    """Run `COMMAND`, or another command, as a process; return None if it succeeds, else a sentence that says why."""
    # Otherwise compilers report errors in the user's language.
    made = processes.run(Stage("preflight", command or COMMAND, None, (), limit), limit, {**environment, "LC_ALL": "C"})
    if made.ended == "done":
        return None
    if made.ended == "interrupted":
        raise KeyboardInterrupt
    return f"Triton cannot run a kernel here: {reason(made, limit)}"


def reason(made: Outcome, limit: float) -> str:
    """Return why the process failed, by its exit and its output."""
    if made.ended == "cut short":
        return f"the first one had not ended after {limit:.0f} s"
    for pattern, words in REASONS.items():
        if re.search(pattern, made.tail):
            return words
    _, _, trace = made.tail.rpartition("Traceback (most recent call last)")
    # The exception starts at the margin with its type, and may have further lines.
    errors = re.findall(r"^[A-Za-z_][\w.]*: .+|^\w*(?:Error|Exception)$", trace, re.MULTILINE)
    error = errors[-1].strip() if errors else ""
    if re.search(BUILD, trace):
        if unusable := re.search(r"\[Errno \d+\] (.+): '(.*)'$", error):
            named = unusable[2] or "nothing"
            return f"it needs a C compiler, and CC names {named}, which cannot be run ({unusable[1]})"
        if complaint := re.search(r"(?:fatal )?error: (.+)", made.tail):
            return f"it needs a C compiler, which fails: {complaint[1].strip()}"
    if not error and made.code is not None and made.code < 0:
        return f"its process was ended by {signal.Signals(-made.code).name}"
    return error or f"its process ended with {made.code}"

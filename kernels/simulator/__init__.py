"""A simulator that runs what Triton compiled for a GPU on the CPU, from its LLVM IR.

`Program(ir, ...)` reads the IR with llvmlite, and `Program.launch` executes it for all programs of the grid and all
their threads at once: each value is a numpy array [programs, threads]. Threads execute a block of instructions
together; where they diverge, a mask says which are active. Inline PTX, barriers, shared memory, asynchronous copies,
AMD's buffers, shuffles between the threads of a warp, ldmatrix and stmatrix behave as the manuals of their
instructions say.

It raises `Fault` for what a GPU would trap or silently get wrong:

- a global access outside the given tensors, a write to a tensor that may only be read, a misaligned access;
- shared memory that is read before it is written, before an asynchronous copy into it has been waited for, or after
  another warp has written it without a barrier in between;
- threads that diverge before a barrier, or within a warp before a shuffle (shfl.sync, update.dpp, readlane,
  readfirstlane), ldmatrix or stmatrix.

It raises NotImplementedError for an instruction that it does not know.

It does not show what ptxas and AMD's back end make of the IR (they contract products and sums, and approximate
instructions are exact here), the order of accesses to global memory, races there, launches, streams and graphs, or
speed.
"""

from importlib.util import find_spec

if find_spec("llvmlite") is None:
    raise ImportError("what Triton compiles is simulated by llvmlite, which is missing: pip install 'llvmlite>=0.50'")

from kernels.simulator.faults import Fault
from kernels.simulator.program import Program

__all__ = ["Fault", "Program"]

"""Run what Triton compiled for a GPU on the CPU: a simulator of its LLVM IR, for tests and for the curious.

`Program(ir, ...)` reads the IR by llvmlite, and `Program.launch` executes it, all programs of the grid and all their
threads at once: each value is a numpy array of [programs, threads]. Threads go through a block of instructions
together; where they part, a mask says who takes part. Inline PTX, barriers, shared memory, asynchronous copies, AMD's
buffers, ldmatrix and stmatrix do what the manuals of their instructions say.

It raises `Fault` for what a GPU would trap, or silently get wrong:

- a global access beyond the tensors that were named, a write to one that is only to be read, a misaligned access;
- shared memory that is read before it is written, before the asynchronous copy into it has been waited for, or after
  threads of another warp have written it and no barrier has come between;
- threads that part before a barrier, or within a warp before ldmatrix, stmatrix or readfirstlane.

An instruction that it does not know is a NotImplementedError that names it.

What it cannot show: what ptxas and AMD's back end make of the IR, among it contraction of products and sums and the
results of approximate instructions, which are exact here; the order in which programs and warps get to global memory,
and races there; launches, streams and graphs. It says nothing about speed.
"""

from importlib.util import find_spec

if find_spec("llvmlite") is None:
    raise ImportError("what Triton compiles is simulated by llvmlite, which is missing: pip install 'llvmlite>=0.50'")

from kernels.simulator.faults import Fault
from kernels.simulator.program import Program

__all__ = ["Fault", "Program"]

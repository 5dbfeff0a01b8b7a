"""A kernel's instructions, decoded once, and launches that execute them."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite.binding import ValueKind

from kernels.simulator import intrinsics, operations, ptx
from kernels.simulator.faults import Fault
from kernels.simulator.memory import Global, Shared
from kernels.simulator.values import constant, merge, scalar

CONSTANTS = (
    *(ValueKind.constant_int, ValueKind.constant_fp, ValueKind.constant_pointer_null, ValueKind.constant_data_vector),
    *(ValueKind.constant_aggregate_zero, ValueKind.constant_vector, ValueKind.undef_value, ValueKind.poison_value),
)
SHARED_ADDRESS = re.compile(
    r"ptr addrspace\(3\) (?:@[\w.]+|getelementptr (?:inbounds )?(?:nuw )?\(i8, ptr addrspace\(3\) @[\w.]+, i32 (\d+)\))"
)


Operand = int | str | np.ndarray | np.generic | tuple
"""The number of a value, or a constant."""


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        execute: (launch, mask, *operands) -> value, or None.
        result: the number of its value; None if it has none.
    """

    execute: Callable
    operands: tuple[Operand, ...]
    result: int | None


class Block(NamedTuple):
    """A basic block.

    Attributes:
        phis: (result, {previous block: operand}).
        next: numbers of the blocks that may follow: one; two, the one for a false condition first; or none at the end.
        condition: chooses between two; else None.
    """

    phis: list[tuple[int, dict[int, Operand]]]
    instructions: list[Instruction]
    next: tuple[int, ...]
    condition: Operand | None


class Launch:
    """The state of a launch that instructions can access."""

    def __init__(self, n_programs: int, n_threads: int, warp_size: int, memory: Global, shared: Shared):
        self.memory, self.shared, self.warp_size = memory, shared, warp_size
        self.program = np.arange(n_programs, dtype=np.uint32)[:, None]
        self.thread = np.arange(n_threads, dtype=np.uint32)[None, :]
        self.shape = (n_programs, n_threads)


class Program:
    """A compiled kernel, ready to be launched.

    Args:
        ir: LLVM IR of one kernel for sm_NN or gfx9NN, from Triton's `compiled.asm["llir"]`.
        n_threads: threads of a program.
        n_shared: bytes of shared memory of a program.
        warp_size: 32, or 64 on AMD.
    Raises: RuntimeError if llvmlite cannot parse the IR; NotImplementedError for an instruction that is not known.
    """

    def __init__(self, ir: str, *, n_threads: int, n_shared: int = 0, warp_size: int = 32):
        self.n_threads, self.n_shared, self.warp_size = n_threads, n_shared, warp_size
        module = llvm.parse_assembly(ir)
        (kernel,) = (function for function in module.functions if not function.is_declaration)
        self._numbers: dict[str, int] = {}
        arguments, blocks = [*kernel.arguments], [*kernel.blocks]
        # Values without a name get one, by which operands refer to them.
        for i, value in enumerate((*arguments, *blocks, *(x for block in blocks for x in block.instructions))):
            if str(value.type) != "void":
                value.name = f"v{i}"
                self._numbers[value.name] = i
        self._kinds = [str(argument.type) for argument in arguments]
        self._block_of = {block.name: i for i, block in enumerate(blocks)}
        self._strings = {
            name: text.removesuffix(r"\00")
            for name, text in re.findall(r'^@([\w.]+) = .* c"((?:[^"\\]|\\.)*)"', ir, re.MULTILINE)
        }
        self._flushes = bool(re.search(r'!"nvvm-reflect-ftz", i32 1', ir))
        self._blocks = [self._block(block) for block in blocks]

    def _operand(self, value) -> Operand:
        if value.name in self._numbers and not value.is_constant:
            return self._numbers[value.name]
        kind, text = str(value.type), str(value)
        if value.value_kind in CONSTANTS:
            return constant(kind, text.removeprefix(kind).strip())
        if value.value_kind == ValueKind.global_variable and value.name in self._strings:
            return self._strings[value.name]
        if value.value_kind == ValueKind.global_variable and kind.startswith("ptr addrspace(3)"):
            return np.zeros((1, 1), np.uint64)
        if match := SHARED_ADDRESS.fullmatch(text):
            return np.full((1, 1), int(match[1] or 0), np.uint64)
        raise NotImplementedError(f"the operand {text}")

    def _block(self, block) -> Block:
        phis, instructions, following, condition = [], [], (), None
        for instruction in block.instructions:
            operands = [*instruction.operands]
            match instruction.opcode:
                case "phi":
                    came = (self._block_of[block.name] for block in instruction.incoming_blocks)
                    sources = dict(zip(came, map(self._operand, operands), strict=True))
                    phis.append((self._numbers[instruction.name], sources))
                case "br":
                    # LLVM keeps the block of a false condition first.
                    conditions, targets = (operands[:1], operands[1:]) if len(operands) == 3 else ([], operands)
                    following = tuple(self._block_of[target.name] for target in targets)
                    condition = next(map(self._operand, conditions), None)
                case "ret":
                    pass
                case _:
                    instructions.append(self._instruction(instruction, operands))
        return Block(phis, instructions, following, condition)

    def _instruction(self, instruction, operands: list) -> Instruction:
        kind, called = str(instruction.type), None
        result = None if kind == "void" else self._numbers[instruction.name]
        if instruction.opcode == "call":
            *operands, called = operands
        of = [str(operand.type) for operand in operands]
        if called is None:
            execute = operations.decode(instruction.opcode, kind, of, str(instruction))
        elif called.value_kind == ValueKind.inline_asm:
            execute = ptx.decode(str(called), kind)
        else:
            execute = intrinsics.decode(called.name, kind, of, self._flushes)
        return Instruction(execute, tuple(map(self._operand, operands)), result)

    def launch(
        self, n_programs: int, arguments: Sequence[torch.Tensor | int], read: Sequence[torch.Tensor] = (), written=()
    ) -> None:
        """Execute the kernel; tensors change in place.

        Args:
            n_programs: the size of the one-dimensional grid.
            arguments: the kernel's arguments, in order; missing ones (Triton's scratch memory) are 0.
            read, written: CPU tensors without gaps that it may read, and that it may also write, arguments included.
        Raises: ValueError for tensors on other devices or with gaps; Fault.
        """
        values: list = [None] * (1 + max(self._numbers.values(), default=0))
        given = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]
        for i, kind in enumerate(self._kinds):
            values[i] = scalar(kind, str(given[i] if i < len(given) else 0)).reshape(1, 1)
        shared = Shared(n_programs, self.n_shared, self.n_threads, self.warp_size)
        launch = Launch(n_programs, self.n_threads, self.warp_size, Global(read, written), shared)
        with np.errstate(all="ignore"):
            self._run(launch, values)

    def _run(self, launch: Launch, values: list) -> None:
        """Execute the first block that has threads, until all are at the end.

        LLVM puts a loop before the code that follows it, where threads that leave early wait for the others.
        """
        end = len(self._blocks)
        at, came = np.zeros(launch.shape, np.int64), np.full(launch.shape, -1)
        while (now := int(at.min())) < end:
            block, mask = self._blocks[now], at == now
            # Threads at the end need no values any more.
            covers = (mask | (at == end)).all()
            mask = narrowed(mask)

            def look(x, values=values):
                return values[x] if isinstance(x, int) else x

            keep = None if covers else mask
            for result, value in [(result, chosen(sources, came, look)) for result, sources in block.phis]:
                values[result] = merge(keep, value, values[result])
            for execute, operands, result in block.instructions:
                found = execute(launch, mask, *map(look, operands))
                if result is not None:
                    values[result] = merge(keep, found, values[result])
            here = np.broadcast_to(True if mask is None else mask, launch.shape)
            if not block.next:
                target = end
            elif block.condition is None:
                (target,) = block.next
            else:
                no, yes = block.next
                target = np.broadcast_to(np.where(look(block.condition), yes, no), launch.shape)[here]
            at[here], came[here] = target, now
        if launch.shared.pending:
            raise Fault("the kernel ends before its asynchronous copies have been waited for")


def chosen(sources: dict, came: np.ndarray, look: Callable):
    """Return the value of a phi: for each thread, that of the block it comes from."""
    value = None
    for block, operand in sources.items():
        mask = came == block
        if mask.any():
            value = merge(narrowed(mask), look(operand), value)
    return value


def narrowed(mask: np.ndarray) -> np.ndarray | None:
    """Return the mask; None if it is true for all, [programs, 1] if the threads of each program agree."""
    return None if mask.all() else mask[:, :1] if (mask == mask[:, :1]).all() else mask

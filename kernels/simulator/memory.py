"""The memories of a simulated GPU: tensors in global memory, and each program's shared memory."""

from collections.abc import Sequence

import numpy as np
import torch

from kernels.simulator.faults import Fault, refuse

BASE = 64
NOBODY, SEVERAL = -1, -2


def everything(dtype: np.dtype) -> np.ndarray:
    """Return this process's memory from address `BASE` on as one array. Only addresses that exist may be accessed."""

    class Interface:
        __array_interface__ = {"data": (BASE, False), "shape": (2**47 // dtype.itemsize,), "typestr": dtype.str}  # noqa: RUF012

    Interface.__array_interface__["version"] = 3
    return np.asarray(Interface())


class Regions:
    """Regions of memory, in order of their addresses."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
        self.starts = np.array([start for start, _ in spans], np.uint64)
        # A region that begins within an earlier one reaches at least to its end.
        self.ends = np.maximum.accumulate(np.array([end for _, end in spans], np.uint64)) if spans else self.starts

    def hold(self, address: np.ndarray, n_bytes: int) -> np.ndarray:
        """Return whether n_bytes from each address on are within one region."""
        i = np.searchsorted(self.starts, address, side="right").astype(np.int64) - 1
        if not len(self.starts):
            return np.zeros(address.shape, bool)
        # Subtracted rather than added: a sum near 2^64 would wrap around.
        return (i >= 0) & (address < self.ends[i]) & (np.uint64(n_bytes) <= self.ends[i] - address)


class Global:
    """Global memory: the tensors that a launch may access, at their addresses in this process."""

    def __init__(self, read: Sequence[torch.Tensor], written: Sequence[torch.Tensor]):
        """Take the tensors that may be read, and those that may also be written.

        Raises: ValueError for a tensor on another device, or with gaps, which the launch may not access.
        """
        for t in (*read, *written):
            last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
            if t.device.type != "cpu" or (t.numel() and last != t.numel() - 1):
                raise ValueError("a simulated launch takes CPU tensors without gaps in memory")
        self.readable, self.writable = Regions([*read, *written]), Regions(written)

    def check(self, address: np.ndarray, n_bytes: int, align: int, mask: np.ndarray | None, writes: bool) -> None:
        taking_part = True if mask is None else mask
        what = f"{'writes' if writes else 'reads'} {n_bytes} bytes at {{:#x}}"
        refuse(taking_part & (address % align != 0), f"{what}, which is misaligned", address)
        outside = taking_part & ~self.readable.hold(address, n_bytes)
        refuse(outside, f"{what}, outside of all tensors that the launch was given", address)
        if writes:
            kept = taking_part & ~self.writable.hold(address, n_bytes)
            refuse(kept, f"{what}, in a tensor that it may only read", address)

    def load(
        self, address: np.ndarray, dtype: np.dtype, n: int, align: int, mask: np.ndarray | None = None
    ) -> np.ndarray:
        """Load [programs, threads, n] elements from each address on, 0 where the mask is false.

        Args:
            align: addresses must be multiples of so many bytes.
        Raises: Fault if one is not, or if the n elements are not all within one readable tensor.
        """
        self.check(address, n * dtype.itemsize, align, mask, writes=False)
        if mask is None:
            return everything(dtype)[self.index(address, dtype, n)]
        address, mask = np.broadcast_arrays(address, mask)
        whole = np.zeros((*address.shape, n), dtype)
        whole[mask] = everything(dtype)[self.index(address[mask], dtype, n)]
        return whole

    def store(self, address: np.ndarray, value: np.ndarray, align: int, mask: np.ndarray | None = None) -> None:
        """Store [programs, threads, n] elements at each address. Raises: Fault as `load`, for writable tensors."""
        n = value.shape[2]
        self.check(address, n * value.dtype.itemsize, align, mask, writes=True)
        taking_part = np.ones((1, 1), bool) if mask is None else mask
        shape = np.broadcast_shapes(address.shape, value.shape[:2], taking_part.shape)
        address, taking_part = np.broadcast_to(address, shape), np.broadcast_to(taking_part, shape)
        value = np.broadcast_to(value, (*shape, n))
        everything(value.dtype)[self.index(address[taking_part], value.dtype, n)] = value[taking_part]

    @staticmethod
    def index(address: np.ndarray, dtype: np.dtype, n: int) -> np.ndarray:
        first = ((address - np.uint64(BASE)) // np.uint64(dtype.itemsize)).astype(np.int64)
        return first[..., None] + np.arange(n)


class Shared:
    """Each program's shared memory, and which warp has accessed which byte since which barrier."""

    def __init__(self, n_programs: int, n_bytes: int, n_threads: int, warp_size: int):
        shape = (n_programs, n_bytes)
        self.data = np.zeros(shape, np.uint8)
        self.epoch = np.zeros((n_programs, 1), np.int32)
        """The number of barriers that each program has passed."""
        self.written, self.writer = np.full(shape, NOBODY, np.int32), np.full(shape, NOBODY, np.int32)
        """The epoch and warp of each byte's last write; likewise for reads, possibly by `SEVERAL` warps."""
        self.read, self.reader = self.written.copy(), self.writer.copy()
        self.in_flight = np.zeros(shape, bool)
        """Bytes that an asynchronous copy is still to fill."""
        self.warp = (np.arange(n_threads, dtype=np.int32) // warp_size)[None, :]
        self.programs = np.arange(n_programs)[:, None]
        self.pending: list[tuple[np.ndarray, ...]] = []
        """Asynchronous copies: each one's groups (`NOBODY` before a commit), programs, bytes, warps and values."""
        self.groups = np.zeros(n_programs, np.int32)

    def places(self, address: np.ndarray, n_bytes: int, align: int, mask: np.ndarray | None, verb: str) -> tuple:
        """Return program, byte and warp of all bytes that threads access, each [accesses, n_bytes] or [accesses, 1].

        Raises: Fault if an access is misaligned or beyond the end.
        """
        taking_part = True if mask is None else mask
        what = f"{verb} {n_bytes} bytes of shared memory at {{}}"
        refuse(taking_part & (address % align != 0), f"{what}, which is misaligned", address)
        end = self.data.shape[1]
        refuse(taking_part & (address + np.uint64(n_bytes) > end), f"{what}, and there are {end}", address)
        mask = self.came(mask)
        programs, address, warp = (np.broadcast_to(x, mask.shape) for x in (self.programs, address, self.warp))
        byte = address[mask].astype(np.int64)[:, None] + np.arange(n_bytes)
        return programs[mask][:, None], byte, warp[mask][:, None]

    def load(self, address: np.ndarray, n_bytes: int, align: int, mask: np.ndarray | None = None) -> np.ndarray:
        """Load uint8 [programs, threads, n_bytes], 0 where the mask is false.

        Raises: Fault as `places`, and for bytes that were never written, that an asynchronous copy is still to fill,
            or that another warp has written since the last barrier.
        """
        program, byte, warp = self.places(address, n_bytes, align, mask, "reads")
        at = program, byte
        self.complain(self.in_flight[at], at, "is read before the asynchronous copy into it was waited for")
        self.complain(self.written[at] == NOBODY, at, "is read, and nobody has written it")
        now = self.epoch[program, 0]
        unseen = (self.written[at] == now) & (self.writer[at] != warp)
        self.complain(unseen, at, "is read after another warp wrote it, with no barrier between")
        others = (self.read[at] == now) & (self.reader[at] != warp)
        self.reader[at] = np.where(others, SEVERAL, warp)
        # If two warps read a byte in this instruction, the second must not hide the first.
        first = np.broadcast_to(warp, byte.shape)
        self.reader[at] = np.where(self.reader[at] != first, SEVERAL, self.reader[at])
        self.read[at] = now
        came = self.came(mask)
        whole = np.zeros((*came.shape, n_bytes), np.uint8)
        whole[came] = self.data[at]
        return whole

    def store(self, address: np.ndarray, value: np.ndarray, align: int, mask: np.ndarray | None = None) -> None:
        """Store uint8 [programs, threads, n_bytes]. Raises: Fault as `places` and `claim`."""
        program, byte, warp = self.places(address, value.shape[2], align, mask, "writes")
        value = self.taken(value, mask)
        self.claim((program, byte), warp, value)
        self.put(program, byte, warp, value)

    def put(self, program: np.ndarray, byte: np.ndarray, warp: np.ndarray, value: np.ndarray) -> None:
        """Write bytes and record the write, without a check."""
        at = program, byte
        self.data[at], self.written[at], self.writer[at] = value, self.epoch[program, 0], warp

    def claim(self, at: tuple, warp: np.ndarray, value: np.ndarray | None) -> None:
        """Raise Fault unless these bytes may be written now: by one warp, or with the values that they have."""
        self.complain(self.in_flight[at], at, "is written while an asynchronous copy fills it")
        now = self.epoch[at[0], 0]
        read = (self.read[at] == now) & (self.reader[at] != warp)
        self.complain(read, at, "is written after another warp read it, with no barrier between")
        written = (self.written[at] == now) & (self.writer[at] != warp)
        same = False if value is None else self.data[at] == value
        self.complain(written & ~np.asarray(same), at, "is written by two warps, with no barrier between")

    def taken(self, value: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Return the values of the active threads, [accesses, n_bytes]."""
        came = self.came(mask)
        return np.broadcast_to(value, (*came.shape, value.shape[2]))[came]

    def copy(self, address: np.ndarray, value: np.ndarray, mask: np.ndarray | None) -> None:
        """Begin an asynchronous copy of uint8 [programs, threads, n_bytes], which `wait` completes."""
        n_bytes = value.shape[2]
        program, byte, warp = self.places(address, n_bytes, n_bytes, mask, "copies")
        self.claim((program, byte), warp, None)
        self.in_flight[program, byte] = True
        group = np.full_like(program, NOBODY)
        self.pending.append((group, program, byte, warp, self.taken(value, mask)))

    def commit(self, mask: np.ndarray | None) -> None:
        """Put all copies of active programs that are in no group into a new one."""
        takes_part = self.programs_of(mask)
        for group, program, *_ in self.pending:
            joins = (group == NOBODY) & takes_part[program]
            group[joins] = self.groups[program[joins]]
        self.groups += takes_part

    def wait(self, n: int, mask: np.ndarray | None) -> None:
        """Complete all groups of copies of active programs except the last n."""
        takes_part, left = self.programs_of(mask), []
        for copy in self.pending:
            group, program, *_ = copy
            done = ((group != NOBODY) & (group < self.groups[program] - n) & takes_part[program])[:, 0]
            _, program, byte, warp, value = (x[done] for x in copy)
            self.in_flight[program, byte] = False
            self.put(program, byte, warp, value)
            if not done.all():
                left.append(tuple(x[~done] for x in copy))
        self.pending = left

    def came(self, mask: np.ndarray | None) -> np.ndarray:
        """Return which threads are active, bool [programs, threads]."""
        return np.broadcast_to(np.True_ if mask is None else mask, (len(self.data), self.warp.shape[1]))

    def programs_of(self, mask: np.ndarray | None) -> np.ndarray:
        """Return which programs have active threads, bool [programs]."""
        return np.any(self.came(mask), axis=1)

    def barrier(self, mask: np.ndarray | None) -> None:
        """Begin a new epoch. Raises: Fault if only some threads of a program reach the barrier."""
        came = self.came(mask)
        parted = came.any(axis=1) & ~came.all(axis=1)
        if parted.any():
            raise Fault(f"program {int(parted.argmax())}: some of its threads come to a barrier, and others do not")
        self.epoch += came[:, :1]

    def complain(self, wrong: np.ndarray, at: tuple, what: str) -> None:
        if wrong.any():
            program, byte = (np.broadcast_to(x, wrong.shape)[wrong][0] for x in at)
            raise Fault(f"program {program}: byte {byte} of shared memory {what}")

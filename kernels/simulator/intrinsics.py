"""Intrinsic functions of LLVM, NVIDIA and AMD: mathematics by numpy, the rest as the manuals say."""

import re
from collections.abc import Callable

import numpy as np

from kernels.simulator.faults import refuse
from kernels.simulator.values import both, dtype_of, fma, from_bytes, signed, to_bytes, unsigned
from kernels.simulator.warps import barrier, butterfly, first_lane, largest, read_lane, update_dpp, warps


def flushed(x: np.ndarray) -> np.ndarray:
    """Replace subnormal numbers by zeros of the same sign."""
    return np.where(abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def of_signed(function: Callable) -> Callable:
    return lambda a, b: unsigned(function(signed(a), signed(b)))


def words(x: np.ndarray) -> np.ndarray:
    """View doubles as [..., 2] 32-bit words, the low one first."""
    return np.ascontiguousarray(x).view(np.uint32).reshape(*x.shape, 2)


def double(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.stack(np.broadcast_arrays(low, high), axis=-1)).view(np.float64)[..., 0]


def ldexp(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    return np.ldexp(x, signed(exponent))


def classes(x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return whether numbers are of a class whose bit is set in wanted (llvm.is.fpclass)."""
    tiny = np.finfo(x.dtype).tiny
    # Two bits of NaNs, then infinities, normal and subnormal numbers and zeros, from -inf to inf.
    rank = np.select([np.isinf(x), abs(x) >= tiny, x != 0], [0, 1, 2], 3)
    bit = np.where(np.isnan(x), 0b11, 1 << np.where(np.signbit(x), 2 + rank, 9 - rank))
    return (bit & wanted) != 0


FUNCTIONS = {
    **dict.fromkeys(("llvm.sqrt", "llvm.nvvm.sqrt.rn", "llvm.nvvm.sqrt.approx", "llvm.amdgcn.sqrt"), np.sqrt),
    **dict.fromkeys(("llvm.nvvm.div.rn", "llvm.nvvm.div.full", "llvm.nvvm.div.approx"), np.divide),
    **dict.fromkeys(("llvm.nvvm.rcp.approx", "llvm.nvvm.rcp.rn", "llvm.amdgcn.rcp"), np.reciprocal),
    **dict.fromkeys(("llvm.nvvm.rsqrt.approx", "llvm.amdgcn.rsq"), lambda x: 1 / np.sqrt(x)),
    **dict.fromkeys(("llvm.fma", "llvm.fmuladd", "llvm.nvvm.fma.rn"), fma),
    **dict.fromkeys(("llvm.fabs", "llvm.nvvm.fabs"), np.abs),
    **dict.fromkeys(("llvm.exp2", "llvm.nvvm.ex2.approx", "llvm.amdgcn.exp2"), np.exp2),
    **dict.fromkeys(("llvm.log2", "llvm.nvvm.lg2.approx", "llvm.amdgcn.log"), np.log2),
    **dict.fromkeys(("llvm.sin", "llvm.nvvm.sin.approx"), np.sin),
    **dict.fromkeys(("llvm.cos", "llvm.nvvm.cos.approx"), np.cos),
    **dict.fromkeys(("llvm.minnum", "llvm.nvvm.fmin"), np.fmin),
    **dict.fromkeys(("llvm.maxnum", "llvm.nvvm.fmax"), np.fmax),
    "llvm.nvvm.add.rn": np.add,
    "llvm.nvvm.mul.rn": np.multiply,
    "llvm.minimum": np.minimum,
    "llvm.maximum": np.maximum,
    "llvm.floor": np.floor,
    "llvm.ceil": np.ceil,
    "llvm.trunc": np.trunc,
    "llvm.rint": np.rint,
    "llvm.copysign": np.copysign,
    "llvm.exp": np.exp,
    "llvm.log": np.log,
    "llvm.ldexp": ldexp,
    "llvm.is.fpclass": classes,
    "llvm.frexp": lambda x: (lambda fraction, power: (fraction, unsigned(power.astype(np.int32))))(*np.frexp(x)),
    "llvm.smax": of_signed(np.maximum),
    "llvm.smin": of_signed(np.minimum),
    "llvm.vector.reduce.smax": lambda x: unsigned(signed(x).max(-1)),
    "llvm.umax": np.maximum,
    "llvm.umin": np.minimum,
    "llvm.usub.sat": lambda x, y: x - np.minimum(x, y),
    "llvm.nvvm.d2i.lo": lambda x: words(x)[..., 0],
    "llvm.nvvm.d2i.hi": lambda x: words(x)[..., 1],
    "llvm.nvvm.lohi.i2d": double,
}
"""Functions of operands alone, by names without type suffixes. Approximations are exact here."""

SUFFIX = re.compile(r"(\.(ftz|f|d|[if](16|32|64)|v\d+[if](16|32|64)))*$")


def plain(name: str) -> str:
    """Strip the suffixes for types and for the treatment of subnormal numbers from a name."""
    return SUFFIX.sub("", name)


def matrix_places(launch, mask, address: np.ndarray, n: int, transposed: bool, what: str) -> list[list[np.ndarray]]:
    """Return where in shared memory each thread's elements of n 8x8 matrices of 16-bit elements are.

    Thread i of a warp gives the address of row i % 8 of matrix i // 8. It holds two elements of each matrix: adjacent
    ones of a row, at one address or, transposed, two of a column, at two addresses.
    """
    (rows,) = warps(launch, mask, address, what=what)
    refuse((rows % 16 != 0).any(axis=2), f"{what} of a row that is misaligned")
    major, minor = np.divmod(np.arange(32), 4)
    picks = [(2 * minor, 2 * major), (2 * minor + 1, 2 * major)] if transposed else [(major, 4 * minor)]
    return [
        [(rows[..., 8 * j + row] + byte.astype(np.uint64)).reshape(launch.shape) for row, byte in picks]
        for j in range(n)
    ]


def load_matrices(n: int, transposed: bool) -> Callable:
    """Decode ldmatrix; see `matrix_places`."""

    def loaded(launch, mask, address):
        found = []
        for places in matrix_places(launch, mask, address, n, transposed, "ldmatrix"):
            size = 4 // len(places)
            parts = [launch.shared.load(place, size, size, mask) for place in places]
            found.append(from_bytes(np.concatenate(parts, axis=2), "i32"))
        return tuple(found) if n > 1 else found[0]

    return loaded


def store_matrices(n: int, transposed: bool) -> Callable:
    """Decode stmatrix, the reverse of ldmatrix; see `matrix_places`."""

    def stored(launch, mask, address, *registers) -> None:
        all_places = matrix_places(launch, mask, address, n, transposed, "stmatrix")
        for places, register in zip(all_places, registers, strict=True):
            parts = np.split(to_bytes(register), len(places), axis=2)
            for place, part in zip(places, parts, strict=True):
                launch.shared.store(place, part, part.shape[2], mask)

    return stored


def buffer_load(kind: str) -> Callable:
    """Decode a load at an offset in a buffer; beyond its end it loads 0."""
    dtype, n = dtype_of(kind)
    size = dtype.itemsize * max(1, n)

    def loaded(launch, mask, buffer, offset, more, _flags):
        address, inside = within(buffer, offset, more, size)
        found = launch.memory.load(address, dtype, max(1, n), min(4, size), both(mask, inside))
        return found if n else found[..., 0]

    return loaded


def buffer_store(kind: str) -> Callable:
    """Decode a store at an offset in a buffer; beyond its end it does nothing."""
    dtype, n = dtype_of(kind)
    size = dtype.itemsize * max(1, n)

    def stored(launch, mask, value, buffer, offset, more, _flags):
        address, inside = within(buffer, offset, more, size)
        launch.memory.store(address, value if n else value[..., None], min(4, size), both(mask, inside))

    return stored


def within(buffer: tuple, offset: np.ndarray, more: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return addresses, and whether they are within the buffer."""
    start, length = buffer
    offset = (offset + more).astype(np.uint64)
    return start + offset, offset + np.uint64(size) <= length


def reflect(flushes: bool) -> Callable:
    """Decode __nvvm_reflect, which asks whether subnormal float32 numbers are flushed to 0."""

    def answered(_launch, _mask, question: str):
        if question != "__CUDA_FTZ":
            raise NotImplementedError(f"__nvvm_reflect of {question}")
        return np.full((1, 1), flushes, np.uint32)

    return answered


def nothing(_launch, _mask, *_) -> None:
    pass


def decode(name: str, kind: str, of: list[str], flushes: bool) -> Callable:
    """Return the function (launch, mask, *operands) -> value that executes a call.

    Args:
        name: the called function; kind, of: types of its value and its operands.
        flushes: the answer to __nvvm_reflect of __CUDA_FTZ.
    Raises: NotImplementedError for a function that is not known.
    """
    if (function := FUNCTIONS.get(plain(name))) is not None:
        if ".ftz" in name:
            return lambda _launch, _mask, *operands: flushed(function(*operands))
        return lambda _launch, _mask, *operands: function(*operands)
    if match := re.fullmatch(r"llvm\.nvvm\.(ld|st)matrix\.sync\.aligned\.m8n8\.x(\d)(\.trans)?\.b16\.p3", name):
        make = load_matrices if match[1] == "ld" else store_matrices
        return make(int(match[2]), bool(match[3]))
    if match := re.fullmatch(r"llvm\.nvvm\.cp\.async\.c[ag]\.shared\.global\.(\d+)(\.s)?", name):
        return asynchronous_copy(int(match[1]))
    match name.removeprefix("llvm."):
        case "nvvm.read.ptx.sreg.tid.x" | "amdgcn.workitem.id.x":
            return lambda launch, _mask: launch.thread
        case "nvvm.read.ptx.sreg.ctaid.x" | "amdgcn.workgroup.id.x":
            return lambda launch, _mask: launch.program
        case "nvvm.barrier.cta.sync.aligned.all" | "nvvm.barrier0" | "amdgcn.s.barrier":
            return lambda launch, mask, *_: launch.shared.barrier(mask)
        case "nvvm.cp.async.commit.group":
            return lambda launch, mask: launch.shared.commit(mask)
        case "nvvm.cp.async.wait.group":
            return lambda launch, mask, n: launch.shared.wait(int(n[0, 0]), mask)
        case "nvvm.cp.async.wait.all":
            return lambda launch, mask: (launch.shared.commit(mask), launch.shared.wait(0, mask))[1]
        case "amdgcn.readfirstlane.i32":
            return first_lane
        case "amdgcn.readlane.i32" | "amdgcn.readlane.f64":
            return read_lane
        case "amdgcn.update.dpp.i32" | "amdgcn.update.dpp.i64":
            return update_dpp
        case "nvvm.redux.sync.max":
            return largest
        case "nvvm.shfl.sync.bfly.i32":
            return butterfly
        case "amdgcn.make.buffer.rsrc.p8.p1":
            return lambda _launch, _mask, start, _stride, length, _flags: (start, length.astype(np.uint64))
        case "nvvm.bar.warp.sync" | "amdgcn.wave.barrier":
            return barrier
        case "amdgcn.s.waitcnt" | "assume":
            return nothing
    if name.startswith("llvm.amdgcn.raw.ptr.buffer.load."):
        return buffer_load(kind)
    if name.startswith("llvm.amdgcn.raw.ptr.buffer.store."):
        return buffer_store(of[0])
    if name == "__nvvm_reflect":
        return reflect(flushes)
    raise NotImplementedError(f"a call of {name}")


def asynchronous_copy(n_bytes: int) -> Callable:
    """Decode cp.async of n_bytes to shared memory, where bytes from `size` on become 0."""

    def copied(launch, mask, target, source, size=None):
        size = np.full((1, 1), n_bytes, np.uint32) if size is None else size
        shape = np.broadcast_shapes(source.shape, size.shape)
        value = np.zeros((*shape, n_bytes), np.uint8)
        for n in np.unique(size):
            refuse(size > n_bytes, f"copies {{}} of at most {n_bytes} bytes", size)
            if n:
                here = both(mask, size == n)
                found = launch.memory.load(source, np.dtype(np.uint8), int(n), n_bytes, here)
                value = value + np.pad(found, ((0, 0), (0, 0), (0, n_bytes - int(n))))
        launch.shared.copy(target, value, mask)

    return copied

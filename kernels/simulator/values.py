"""LLVM's types and values as numpy arrays: scalars [programs, threads], vectors [programs, threads, elements].

An axis has length 1 if all its programs or threads have the same value. Integers and pointers are unsigned; signed
operations convert them. A bfloat is its 16 bits, without arithmetic. A struct is a tuple.
"""

import re

import numpy as np

DTYPES = {
    **{"i1": np.bool_, "i8": np.uint8, "i16": np.uint16, "i32": np.uint32, "i64": np.uint64},
    **{"half": np.float16, "bfloat": np.uint16, "float": np.float32, "double": np.float64},
}
GARBAGE = 0xA5
"""Every byte of an undefined value, so that results are wrong if it matters."""


def dtype_of(kind: str) -> tuple[np.dtype, int]:
    """Return the numpy dtype of an LLVM type, and the number of a vector's elements, 0 for a scalar.

    Raises: NotImplementedError for other types.
    """
    if match := re.fullmatch(r"<(\d+) x (.*)>", kind):
        return dtype_of(match[2])[0], int(match[1])
    if kind.startswith("ptr"):
        return np.dtype(np.uint64), 0
    if kind not in DTYPES:
        raise NotImplementedError(f"LLVM's type {kind}")
    return np.dtype(DTYPES[kind]), 0


def undefined(dtype: np.dtype) -> np.generic:
    """Return a 0-dimensional undefined value."""
    return np.bool_(True) if dtype.kind == "b" else np.frombuffer(bytes([GARBAGE] * dtype.itemsize), dtype)[0]


def scalar(kind: str, text: str) -> np.generic:
    """Return the 0-dimensional value of a literal."""
    dtype, _ = dtype_of(kind)
    if text in ("poison", "undef"):
        return undefined(dtype)
    if text in ("true", "false", "zeroinitializer", "null", "none"):
        return dtype.type(text == "true")
    if text.startswith(("0xH", "0xR")):  # the bits of a half, or of a bfloat
        return np.uint16(int(text[3:], 16)).view(dtype)
    if dtype.kind == "f":
        # LLVM writes the bits of a double, also for narrower types.
        wide = np.uint64(int(text, 16)).view(np.float64) if text.startswith("0x") else np.float64(text)
        return dtype.type(wide)
    if kind == "bfloat":
        return np.uint16(np.float32(text).view(np.uint32) >> np.uint32(16))
    return dtype.type(int(text) & (2 ** (8 * dtype.itemsize) - 1))


def constant(kind: str, text: str):
    """Return a constant, the same for all threads, from LLVM's text after its type."""
    if kind.startswith("{") and text in ("poison", "undef", "zeroinitializer"):
        return tuple(constant(member, text) for member in kind[1:-1].strip().split(", "))
    dtype, n = dtype_of(kind)
    if not n:
        return scalar(kind, text).reshape(1, 1)
    element = kind.partition(" x ")[2][:-1]
    if text.startswith("<"):
        found = [scalar(element, literal[len(element) :].strip()) for literal in text[1:-1].split(", ")]
    else:
        literal = re.fullmatch(r"splat \(\w+ (.*)\)", text)
        found = [scalar(element, literal[1] if literal else text)] * n
    return np.array(found, dtype).reshape(1, 1, n)


def signed(x: np.ndarray) -> np.ndarray:
    """Return the same bits as signed integers; the bool 1 becomes -1."""
    return -x.astype(np.int8) if x.dtype.kind == "b" else x.view(x.dtype.str.replace("u", "i"))


def unsigned(x: np.ndarray) -> np.ndarray:
    return x.view(x.dtype.str.replace("i", "u"))


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Return the bytes of a scalar or a vector, uint8 [programs, threads, bytes]."""
    x = np.ascontiguousarray(x)
    return x.view(np.uint8).reshape(*x.shape[:2], -1)


def from_bytes(x: np.ndarray, kind: str) -> np.ndarray:
    """Return the value of this type whose bytes are uint8 [programs, threads, bytes]."""
    dtype, n = dtype_of(kind)
    found = np.ascontiguousarray(x).view(dtype)
    return found if n else found[..., 0]


def merge(mask: np.ndarray | None, new, old):
    """Return new where the mask is true, else old, which is None if no thread has had a value."""
    if mask is None or old is None:
        return new
    if isinstance(new, tuple):
        return tuple(merge(mask, a, b) for a, b in zip(new, old, strict=True))
    return np.where(mask[..., None] if new.ndim == 3 else mask, new, old)


def both(mask: np.ndarray | None, other: np.ndarray) -> np.ndarray:
    """Return the conjunction of two masks; None is true for all."""
    return other if mask is None else mask & other


def bfloat_to_float(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bfloat(x: np.ndarray) -> np.ndarray:
    """Round float32 to the bits of bfloat16, to nearest, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a * b + c, rounded once; in float64 the last bit may differ in rare ties."""
    if a.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)
    product = a * b
    # Dekker's product and Knuth's sum give the errors of rounding a * b and its sum with c.
    split = np.float64(2**27 + 1)
    a_high, b_high = split * a - (split * a - a), split * b - (split * b - b)
    a_low, b_low = a - a_high, b - b_high
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    part = total - product
    lost = lost + ((product - (total - part)) + (c - part))
    return np.where(np.isfinite(lost), total + lost, total)

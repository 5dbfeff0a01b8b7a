"""LLVM's own instructions, on numpy arrays."""

import operator
import re
from collections.abc import Callable

import numpy as np

from kernels.simulator import values
from kernels.simulator.values import dtype_of, from_bytes, signed, to_bytes, unsigned

ARITHMETIC = {
    **{"add": operator.add, "sub": operator.sub, "mul": operator.mul, "and": operator.and_, "or": operator.or_},
    **{"xor": operator.xor, "udiv": operator.floordiv, "urem": operator.mod},
    **{
        "fadd": operator.add,
        "fsub": operator.sub,
        "fmul": operator.mul,
        "fdiv": operator.truediv,
        "fneg": operator.neg,
    },
}
INTEGER_COMPARISONS = {"eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "ge": operator.ge}
INTEGER_COMPARISONS |= {"lt": operator.lt, "le": operator.le}


def field(pattern: str, text: str) -> str:
    """Return the group of a pattern in an instruction's text. Raises: NotImplementedError if it does not match."""
    match = re.search(pattern, text)
    if match is None:
        raise NotImplementedError(text.strip())
    return match[1]


def shift(left: bool, arithmetic: bool) -> Callable:
    def shifted(_launch, _mask, x, by):
        if arithmetic:
            return unsigned(signed(x) >> signed(by))
        return x << by if left else x >> by

    return shifted


def signed_division(remainder: bool) -> Callable:
    """Decode a division or remainder that rounds towards zero; numpy rounds down."""

    def divided(_launch, _mask, x, by):
        x, by = signed(x), signed(by)
        quotient = abs(x) // np.where(by == 0, 1, abs(by)) * np.sign(x) * np.sign(by)
        return unsigned((x - quotient * by if remainder else quotient).astype(x.dtype))

    return divided


def comparison(text: str, ordered_floats: bool) -> Callable:
    """Decode icmp or fcmp."""
    predicate = field(r"= [fi]cmp (?:(?:samesign|fast|nnan|ninf|nsz|arcp|contract|afn|reassoc) )*(\w+)", text)
    if not ordered_floats:
        compare = INTEGER_COMPARISONS[predicate[-2:]]
        if predicate.startswith("s"):
            return lambda _launch, _mask, a, b: compare(signed(a), signed(b))
        return lambda _launch, _mask, a, b: compare(a, b)
    if predicate in ("ord", "uno"):
        return lambda _launch, _mask, a, b: (np.isnan(a) | np.isnan(b)) == (predicate == "uno")
    compare = INTEGER_COMPARISONS[predicate[1:]]

    def compared(_launch, _mask, a, b):
        unordered = np.isnan(a) | np.isnan(b)
        return compare(a, b) | unordered if predicate[0] == "u" else compare(a, b) & ~unordered

    return compared


def conversion(opcode: str, kind: str, of: str) -> Callable:
    """Decode a conversion of numbers to another type."""
    dtype, _ = dtype_of(kind)
    bfloat, from_bfloat = "bfloat" in kind, "bfloat" in of

    def converted(_launch, _mask, x):
        if opcode in ("sext", "sitofp"):
            x = signed(x)
        if from_bfloat:
            x = values.bfloat_to_float(x)
        if bfloat:
            return values.float_to_bfloat(x.astype(np.float32))
        if opcode == "trunc" and dtype.kind == "b":
            return (x & x.dtype.type(1)).astype(bool)
        if opcode == "fptosi":
            return unsigned(x.astype(dtype.str.replace("u", "i")))
        return x.astype(dtype)

    return converted


def bitcast(kind: str) -> Callable:
    if kind.startswith("ptr"):
        return lambda _launch, _mask, x: x
    return lambda _launch, _mask, x: from_bytes(to_bytes(x), kind)


def element_pointer(text: str, n_operands: int) -> Callable:
    """Decode getelementptr with one index."""
    element = field(r"= getelementptr (?:(?:inbounds|nuw|nusw) )*(\w+), ptr", text)
    if n_operands != 2:
        raise NotImplementedError(text.strip())
    size = np.int64(dtype_of(element)[0].itemsize)

    def moved(_launch, _mask, pointer, index):
        return pointer + unsigned(signed(index).astype(np.int64) * size)

    return moved


def load(kind: str, pointer: str, text: str) -> Callable:
    dtype, n = dtype_of(kind)
    align = int(field(r", align (\d+)", text))
    shared = space(pointer) == 3

    def loaded(launch, mask, address):
        if shared:
            return from_bytes(launch.shared.load(address, dtype.itemsize * max(1, n), align, mask), kind)
        found = launch.memory.load(address, dtype, max(1, n), align, mask)
        return found if n else found[..., 0]

    return loaded


def store(kind: str, pointer: str, text: str) -> Callable:
    _, n = dtype_of(kind)
    align = int(field(r", align (\d+)", text))
    shared = space(pointer) == 3

    def stored(launch, mask, value, address):
        if shared:
            launch.shared.store(address, to_bytes(value), align, mask)
        else:
            launch.memory.store(address, value if n else value[..., None], align, mask)

    return stored


def space(pointer: str) -> int:
    """Return the address space of a pointer's type: 0 or 1 is global memory, 3 shared memory."""
    match = re.search(r"addrspace\((\d+)\)", pointer)
    found = int(match[1]) if match else 0
    if found not in (0, 1, 3):
        raise NotImplementedError(f"memory of {pointer}")
    return found


def select(_launch, _mask, condition, yes, no):
    if condition.ndim < yes.ndim:
        condition = condition[..., None]
    return np.where(condition, yes, no)


def insert_element(_launch, _mask, vector, value, index):
    shape = np.broadcast_shapes(vector.shape[:2], value.shape, index.shape)
    vector = np.broadcast_to(vector, (*shape, vector.shape[2]))
    return np.where(np.arange(vector.shape[2]) == index[..., None], value[..., None], vector)


def extract_element(_launch, _mask, vector, index):
    shape = np.broadcast_shapes(vector.shape[:2], index.shape)
    vector = np.broadcast_to(vector, (*shape, vector.shape[2]))
    index = np.broadcast_to(index, shape).astype(np.int64)
    return np.take_along_axis(vector, index[..., None], axis=2)[..., 0]


def shuffle(text: str, n: int) -> Callable:
    """Decode shufflevector, whose mask of n elements is a constant in the text."""
    mask = field(r"<\d+ x i32> (zeroinitializer|poison|splat \(i32 \d+\)|<[^>]*>)[^>]*$", text)
    if mask.startswith("splat"):
        picks = [int(re.findall(r"\d+", mask)[-1])] * n
    else:
        # Elements that are never used may be any.
        picks = [int(x.split()[1].replace("poison", "0")) for x in mask[1:-1].split(", ")] if "<" in mask else [0] * n

    def shuffled(_launch, _mask, a, b, *_):
        shape = np.broadcast_shapes(a.shape[:2], b.shape[:2])
        both = [np.broadcast_to(x, (*shape, x.shape[2])) for x in (a, b)]
        return np.concatenate(both, axis=2)[..., picks]

    return shuffled


def of_struct(opcode: str, text: str) -> Callable:
    """Decode insertvalue or extractvalue, one level deep."""
    found = field(r"((?:, \d+)+)(?:, !|$)", text.strip()).split(", ")[1:]
    if len(found) != 1:
        raise NotImplementedError(text.strip())
    i = int(found[0])
    if opcode == "extractvalue":
        return lambda _launch, _mask, struct: struct[i]

    def inserted(_launch, _mask, struct, value):
        return (*struct[:i], value, *struct[i + 1 :])

    return inserted


def decode(opcode: str, kind: str, of: list[str], text: str) -> Callable:
    """Return the function (launch, mask, *operands) -> value that executes an instruction.

    Args:
        kind: type of its value.
        of: types of its operands.
        text: the instruction's text, for what llvmlite does not provide.
    Raises: NotImplementedError for an instruction that is not known.
    """
    if opcode in ARITHMETIC:
        if opcode.startswith("f") and "bfloat" in kind:
            raise NotImplementedError(text.strip())
        function = ARITHMETIC[opcode]
        return lambda _launch, _mask, *operands: function(*operands)
    match opcode:
        case "shl" | "lshr" | "ashr":
            return shift(opcode == "shl", opcode == "ashr")
        case "sdiv" | "srem":
            return signed_division(opcode == "srem")
        case "icmp" | "fcmp":
            return comparison(text, opcode == "fcmp")
        case "zext" | "sext" | "trunc" | "fpext" | "fptrunc" | "uitofp" | "sitofp" | "fptoui" | "fptosi":
            return conversion(opcode, kind, of[0])
        case "ptrtoint" | "inttoptr":
            dtype, _ = dtype_of(kind)
            return lambda _launch, _mask, x: x.astype(dtype)
        case "bitcast":
            return bitcast(kind)
        case "freeze":
            return lambda _launch, _mask, x: x
        case "getelementptr":
            return element_pointer(text, len(of))
        case "load":
            return load(kind, of[0], text)
        case "store":
            return store(of[0], of[1], text)
        case "select":
            return select
        case "insertelement":
            return insert_element
        case "extractelement":
            return extract_element
        case "shufflevector":
            return shuffle(text, dtype_of(kind)[1])
        case "insertvalue" | "extractvalue":
            return of_struct(opcode, text)
        case "fence":
            return lambda _launch, _mask: None
    raise NotImplementedError(text.strip())

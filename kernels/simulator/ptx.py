"""The few instructions of inline PTX that Triton writes."""

import re
from collections.abc import Callable

import numpy as np

from kernels.simulator.intrinsics import asynchronous_copy
from kernels.simulator.values import both, dtype_of, from_bytes, merge, to_bytes, undefined

CODE = re.compile(r'asm (?:sideeffect )?(?:alignstack )?"((?:[^"\\]|\\.)*)", "([^"]*)"')
STATEMENT = re.compile(r"(?:@(!?)\$(\d+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
OPERAND = re.compile(r"\{([^}]*)\}|\[([^\]]*)\]|(\$\d+|-?\w[\w.]*)")
QUALIFIERS = {"global", "shared", "volatile", "weak", "L1::evict_first", "L1::evict_last", "L1::no_allocate"}
QUALIFIERS |= {"L2::cache_hint", "L2::evict_first", "L2::evict_last"}
"""Qualifiers of loads and stores, of which only `shared` changes values."""


class Registers:
    """The operands of a piece of inline PTX: first its results, then its inputs."""

    def __init__(self, n_results: int, given: tuple):
        self.results: list = [None] * n_results
        self.given = given

    def value(self, text: str) -> np.ndarray:
        """Return the value of `$3` or of a number."""
        if not text.startswith("$"):
            return np.full((1, 1), int(text, 0), np.uint64)
        i = int(text[1:])
        return self.results[i] if i < len(self.results) else self.given[i - len(self.results)]

    def bits(self, text: str, n_bits: int) -> np.ndarray:
        """Return a value as an unsigned integer of n_bits."""
        x = self.value(text)
        wanted = np.dtype(f"u{n_bits // 8}")
        if x.dtype.itemsize == wanted.itemsize and x.ndim == 2:
            return np.ascontiguousarray(x).view(wanted)
        # Vectors of narrow elements go into one register, and small constants into any.
        return from_bytes(to_bytes(x), f"i{n_bits}") if x.ndim == 3 else x.astype(wanted)

    def address(self, text: str) -> np.ndarray:
        """Return the address `$1 + 16`."""
        base, _, offset = text.partition("+")
        return self.value(base.strip()).astype(np.uint64) + np.uint64(int(offset or 0))

    def set(self, text: str, value: np.ndarray, mask: np.ndarray | None) -> None:
        i = int(text.strip()[1:])
        # A register that a thread has not set holds anything.
        before = undefined(value.dtype) if self.results[i] is None else self.results[i]
        self.results[i] = merge(mask, value, before)


def operands(text: str) -> list[tuple[str, list[str]]]:
    """Return the operands: ("vector", registers), ("address", [text]) or ("value", [text])."""
    found = []
    for match in OPERAND.finditer(text):
        if match[1] is not None:
            found.append(("vector", [x.strip() for x in match[1].split(",")]))
        else:
            found.append(("address", [match[2]]) if match[2] is not None else ("value", [match[3]]))
    return found


def width(modifiers: list[str], name: str) -> tuple[int, int]:
    """Return the number of elements of a load or store, and the bits of each. Raises: NotImplementedError."""
    n, bits = 1, 0
    for modifier in modifiers:
        if modifier in ("v2", "v4", "v8"):
            n = int(modifier[1:])
        elif match := re.fullmatch(r"[bu](8|16|32|64)", modifier):
            bits = int(match[1])
        elif modifier not in QUALIFIERS:
            raise NotImplementedError(f"PTX's {name}")
    if not bits:
        raise NotImplementedError(f"PTX's {name}")
    return n, bits


def memory_access(name: str, text: str) -> Callable:
    """Decode ld or st, in global or shared memory."""
    kind, *modifiers = name.split(".")
    n, bits = width(modifiers, name)
    is_shared, n_bytes = "shared" in modifiers, n * bits // 8
    found = operands(text)
    ((address,),) = (x for what, x in found if what == "address")
    # A cache policy may follow the address and the values.
    registers = next((x for what, x in found if what == "vector"), None)
    if registers is None:
        registers = next((x for what, x in found if what == "value"), [])

    def loaded(launch, mask, all_):
        at = all_.address(address)
        if is_shared:
            got = launch.shared.load(at, n_bytes, n_bytes, mask)
            got = np.ascontiguousarray(got).view(f"u{bits // 8}")
        else:
            got = launch.memory.load(at, np.dtype(f"u{bits // 8}"), n, n_bytes, mask)
        for i, register in enumerate(registers):
            all_.set(register, got[..., i], mask)

    def stored(launch, mask, all_):
        at, values = all_.address(address), [all_.bits(register, bits) for register in registers]
        value = np.stack(np.broadcast_arrays(*values), axis=2)
        if is_shared:
            launch.shared.store(at, to_bytes(value), n_bytes, mask)
        else:
            launch.memory.store(at, value, n_bytes, mask)

    return loaded if kind == "ld" else stored


def statement(name: str, text: str) -> Callable:
    """Return the function (launch, mask, registers) that executes an instruction. Raises: NotImplementedError."""
    kind = name.partition(".")[0]
    if kind in ("ld", "st") and re.match(r"\w+\.(global|shared)\.", name):
        return memory_access(name, text)
    if re.fullmatch(r"mov\.[bu](16|32|64)", name):
        (_, (target,)), (_, (source,)) = operands(text)
        bits = int(name[-2:])
        return lambda _launch, mask, all_: all_.set(target, all_.bits(source, bits), mask)
    if name.startswith("createpolicy."):
        (_, (target,)), *_ = operands(text)
        return lambda _launch, mask, all_: all_.set(target, np.zeros((1, 1), np.uint64), mask)
    if re.fullmatch(r"cp\.async\.c[ag]\.shared\.global(\.L2::(cache_hint|\d+B))*", name):
        (_, (target,)), (_, (source,)), (_, (n_bytes,)), *more = operands(text)
        copy = asynchronous_copy(int(n_bytes, 0))
        # A cache policy, if there is one, comes last.
        sizes = [x for _, (x,) in more][: len(more) - ("cache_hint" in name)]

        def copied(launch, mask, all_):
            copy(launch, mask, all_.address(target), all_.address(source), *(all_.bits(x, 32) for x in sizes))

        return copied
    raise NotImplementedError(f"PTX's {name}")


def decode(code: str, kind: str) -> Callable:
    """Return the function (launch, mask, *operands) -> value that executes a piece of inline PTX.

    Args:
        code: LLVM's text, `asm "...", "..."`.
        kind: type of its value: void, one type, or a struct of several.
    Raises: NotImplementedError for an instruction that is not known.
    """
    match = CODE.search(code)
    if match is None:
        raise NotImplementedError(code)
    text, n_results = match[1].replace(r"\0A", "\n").replace(r"\09", " "), match[2].count("=")
    kinds = [] if kind == "void" else kind.strip("{} ").split(", ")
    if len(kinds) != n_results:
        raise NotImplementedError(code)
    steps = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        found = STATEMENT.fullmatch(part)
        if found is None:
            raise NotImplementedError(f"PTX's {part}")
        negated, predicate, name, rest = found.groups()
        steps.append((bool(negated), predicate, statement(name, rest)))

    def execute(launch, mask, *given):
        registers = Registers(n_results, given)
        for negated, predicate, step in steps:
            here = mask
            if predicate is not None:
                here = both(mask, registers.value(f"${predicate}") ^ negated)
            step(launch, here, registers)
        results = tuple(
            from_bytes(to_bytes(x), kind) if np.dtype(dtype_of(kind)[0]) != x.dtype or dtype_of(kind)[1] else x
            for kind, x in zip(kinds, registers.results, strict=True)
        )
        return None if not results else results[0] if len(results) == 1 else results

    return execute

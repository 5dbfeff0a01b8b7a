"""Compile the kernel for a GPU that need not be present, and read facts from its machine code.

    python -m kernels.codegen sm_90 gfx942 --rule adam nadam --dtype float32 --run

prints one JSON object for each target, rule and dtype, by default for all rules and dtypes. Of rules with sums, or with
--clip, it has the kernels that add them up in its list of stages. With --run the compiled step is also simulated on the
CPU and compared with the eager formulas. Nothing is timed.
TRITON_INTERPRET must not be set: it replaces the compiler.
"""

import argparse
import hashlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from kernels import codes, compressed_kernel, multi_tensor, reductions, rules
from kernels.commands import command
from kernels.config import Config, Dtypes, default
from kernels.occupancy import LIMITS
from kernels.rule import Rule, clipping

WARP_SIZE = {"cuda": 32, "hip": 64}
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
ALL_DESCRIBED = TRITON >= (3, 7)


@dataclass(frozen=True)
class MachineCode:
    """Facts about one compiled kernel, read from its machine code.

    Attributes:
        registers: vector registers of a thread.
        spills: bytes (NVIDIA: stack and local memory) or registers (AMD) that were spilled.
        shared: bytes of shared memory (AMD: LDS) of a program.
        instructions: their number, including the path of masked blocks.
        loads, stores: the number of global accesses of each width in bits.
        digest: hash of the instructions; kernels with the same digest, `shared` and `num_warps` are the same.
    """

    target: str
    rule: str
    dtype: str
    config: Config
    shared: int
    registers: int
    spills: int
    instructions: int
    loads: dict[int, int]
    stores: dict[int, int]
    digest: str


def parse_target(name: str) -> GPUTarget:
    """Return Triton's target for `sm_90` or `gfx942`. Raises: ValueError for anything else."""
    if match := re.fullmatch(r"sm_([0-9]{2,3})", name):
        return GPUTarget("cuda", int(match[1]), WARP_SIZE["cuda"])
    if re.fullmatch(r"gfx9\w+", name):
        return GPUTarget("hip", name, WARP_SIZE["hip"])
    raise ValueError(f"target must be sm_NN or gfx9NN, not {name!r}")


def check_target(name: str) -> None:
    """Raise ValueError unless a target is known and this Triton compiles for it."""
    if name not in LIMITS:
        raise ValueError(f"accepts {', '.join(LIMITS)}, not {name!r}")
    if name == "sm_110" and TRITON < (3, 7):  # CUDA 12.9 has another name for it.
        raise ValueError(f"accepts sm_110 from Triton 3.7 on, and this is {triton.__version__}")


def compile_kernel(kernel, target: str, arguments: dict[str, str], constants: dict, num_warps: int = 4):
    """Compile a `@triton.jit` function for a GPU that need not be present. Nothing is run.

    Args:
        target: sm_NN or gfx9NN.
        arguments: names and Triton types (such as "*fp32" or "i32") of its arguments, in order; "constexpr" for one
            that is None. The compiler assumes of pointers what a launch with small tensors would tell it, unless they
            are in `do_not_specialize`: that they are multiples of 16 and, on AMD, within 2 GiB.
        constants: values of its `tl.constexpr` arguments, which come after the others, in order.
        num_warps: warps of a program.
    Returns: Triton's compiled kernel, with its text in `asm["ptx"]`, its machine code in `asm["cubin"]` (AMD:
        `asm["amdgcn"]`), which `facts` reads, and its `metadata`.
    Raises: ValueError for an unknown target; RuntimeError under TRITON_INTERPRET, which replaces the compiler.
    """
    constants = dict.fromkeys((name for name, kind in arguments.items() if kind == "constexpr"), None) | constants
    gpu, names = parse_target(target), [*dict.fromkeys((*arguments, *constants))]
    if not isinstance(kernel, triton.JITFunction):
        raise RuntimeError("kernels are compiled only where TRITON_INTERPRET was not set when Triton was imported")
    # Described as by a launch, which then finds this kernel in Triton's cache: Triton 3.6 lists only constants that
    # are strings, 3.7 all.
    described = [(names.index(name),) for name, value in constants.items() if ALL_DESCRIBED or isinstance(value, str)]
    pointers = [
        (i,)
        for i, (kind, parameter) in enumerate(zip(arguments.values(), kernel.params, strict=False))
        if kind.startswith("*") and not parameter.do_not_specialize
    ]
    backend = make_backend(gpu)
    promises = backend.parse_attr(backend.get_tensor_specialization(torch.empty(16), align=True))
    source = ASTSource(
        fn=kernel,
        signature={**arguments, **dict.fromkeys(constants, "constexpr")},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # In the order of arguments, on which the key of Triton's cache depends.
        attrs=dict(sorted((dict.fromkeys(pointers, promises) | {index: [] for index in described}).items())),
    )
    return triton.compile(source, target=gpu, options={"num_warps": num_warps})


def compiled(rule: Rule, target: str, dtype: str = "float32", config: Config | None = None):
    """Compile the traversal of a rule, by default in the default configuration; see `compile_kernel`.

    Args:
        target: sm_NN or gfx9NN.
        dtype: one of the `VARIANTS`.
    Raises: ValueError for an unknown target.
    """
    p_dtype, state_dtype, stochastic = VARIANTS[dtype]
    return traversal(rule, target, (p_dtype, p_dtype, state_dtype), stochastic, config)


def traversal(rule: Rule, target: str, dtypes: Dtypes, stochastic: bool = False, config: Config | None = None):
    """Compile the traversal for any dtypes of parameters, gradients and states."""
    config = config or default(parse_target(target).warp_size)
    pointers = {"rows_ptr": "*i64", "chunk_row_ptr": "*i32", "chunk_index_ptr": "*i32", "coefficients_ptr": "*fp32"}
    pointers |= {"keys_ptr": "*i32"} | given(clip_ptr=rule.clips)
    if dtypes[2] == codes.DTYPE:
        constants = compressed_kernel.update_constants(rule, *dtypes[:2], stochastic, config)
        pointers |= {"scales_ptr": "*i64"}
        return compile_kernel(compressed_kernel.compressed_kernel, target, pointers, constants, config.num_warps)
    constants = multi_tensor.update_constants(rule, *dtypes, stochastic, config)
    pointers |= given(totals_ptr=rule.sums)
    return compile_kernel(multi_tensor.multi_tensor_kernel, target, pointers, constants, config.num_warps)


def given(**pointers) -> dict[str, str]:
    """Return the types of pointers to float32, of which some are None."""
    return {name: "*fp32" if is_given else "constexpr" for name, is_given in pointers.items()}


def sums(rule: Rule, stage: int, target: str, dtypes: Dtypes):
    """Compile the kernel that adds up the terms of one of a rule's stages; see `compile_kernel`."""
    pointers = {"rows_ptr": "*i64", "piece_row_ptr": "*i32", "piece_index_ptr": "*i32", "coefficients_ptr": "*fp32"}
    pointers |= given(clip_ptr=rule.clips and stage > 0) | {"partials_ptr": "*fp64"}
    constants = reductions.sums_constants(rule, rule.stages[stage], *dtypes)
    num_warps = default(parse_target(target).warp_size).num_warps
    return compile_kernel(reductions.sums_kernel, target, pointers, constants, num_warps)


def totals(rule: Rule, stage: int, target: str, reduce: bool = True, finish: bool = True):
    """Compile the kernel that makes of them what the update takes; see `compile_kernel`."""
    pointers = {"rows_ptr": "*i64", "hyper_ptr": "*fp64", "coefficients_ptr": "*fp32", "first_piece_ptr": "*i32"}
    pointers |= {"slot_rows_ptr": "*i32", "first_row_ptr": "*i32", "partials_ptr": "*fp64", "totals_ptr": "*fp64"}
    constants = reductions.totals_constants(rule, rule.stages[stage], reduce, finish)
    return compile_kernel(reductions.totals_kernel, target, pointers | {"values_ptr": "*fp32"}, constants)


def prologue(rule: Rule, target: str):
    """Compile the kernel that computes a rule's coefficients; see `compile_kernel`."""
    arguments = {"rows_ptr": "*i64", "hyper_ptr": "*fp64", "coefficients_ptr": "*fp32", "keys_ptr": "*i32"}
    arguments |= {"grad_scale_ptr": "*fp32", "found_inf_ptr": "*fp32", "n_rows": "i32", "seed": "i32"}
    return compile_kernel(multi_tensor.prologue_kernel, target, arguments, multi_tensor.prologue_constants(rule))


def compile_update(rule: Rule, target: str, dtype: str = "float32", config: Config | None = None) -> MachineCode:
    """Return facts about the machine code of `compiled`; arguments and errors are the same."""
    config = config or default(parse_target(target).warp_size)
    kernel = compiled(rule, target, dtype, config)
    return MachineCode(target, rule.name, dtype, config, kernel.metadata.shared, **facts(kernel.asm))


def compile_stages(rule: Rule, target: str, dtype: str = "float32") -> list[dict[str, dict]]:
    """Return facts about the two kernels of each of a rule's stages: "sums" and "totals" of `reductions`."""
    p_dtype, state_dtype, _ = VARIANTS[dtype]
    stages = range(len(rule.stages))
    kernels = [(sums(rule, i, target, (p_dtype, p_dtype, state_dtype)), totals(rule, i, target)) for i in stages]
    return [{"sums": facts(adds.asm), "totals": facts(finishes.asm)} for adds, finishes in kernels]


def facts(asm: dict) -> dict:
    """Return some of the fields of `MachineCode`, from a compiled kernel."""
    return read_cubin(asm["cubin"]) if "cubin" in asm else read_amdgcn(asm["amdgcn"])


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def cuobjdump(cubin: bytes, what: str) -> str:
    """Return what the cuobjdump that Triton ships prints of an NVIDIA binary: `--dump-sass` has its instructions."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout


def read_cubin(cubin: bytes) -> dict:
    """Read registers, spills and access widths of an NVIDIA binary."""
    usage, sass = (cuobjdump(cubin, what) for what in ("--dump-resource-usage", "--dump-sass"))
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}

    def widths(opcode: str) -> dict[int, int]:
        found = re.findall(rf"\b{opcode}\.E((?:\.\w+)*)", sass)
        bits = (re.search(r"\.(?:U|S|ENL2\.)?(8|16|64|128|256)\b", modifiers) for modifiers in found)
        return dict(sorted(Counter(int(match[1]) if match else 32 for match in bits).items()))

    # A line has an instruction's address and text, and 128 bits of code follow on it and the next line.
    code = [line.strip() for line in sass.splitlines() if re.match(r"\s+/\*", line)]
    return {
        "registers": used["REG"],
        "spills": used["STACK"] + used["LOCAL"],
        "instructions": sum(line.endswith("*/") and ";" in line for line in code),
        # LDGSTS loads into shared memory.
        "loads": widths("LDG(?:STS)?"),
        "stores": widths("STG"),
        "digest": digest(code),
    }


def read_amdgcn(assembly: str) -> dict:
    """Read registers, spills and access widths from AMD assembly."""
    bits = {"dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128, "ushort": 16, "short": 16, "ubyte": 8}

    def widths(kind: str) -> dict[int, int]:
        found = re.findall(rf"\b(?:global|buffer|flat)_{kind}_([a-z0-9]+)", assembly)
        return dict(sorted(Counter(bits[name] for name in found if name in bits).items()))

    used = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", assembly)}
    code = [line.split(";")[0].strip() for line in assembly.splitlines() if re.match(r"\t[a-z]", line)]
    return {
        "registers": used["vgpr_count"],
        "spills": used["vgpr_spill_count"] + used["sgpr_spill_count"],
        "instructions": len(code),
        "loads": widths("load"),
        "stores": widths("store"),
        "digest": digest(code),
    }


VARIANTS = {
    "float32": (torch.float32, torch.float32, False),
    "bfloat16": (torch.bfloat16, torch.float32, False),
    "bfloat16-stochastic": (torch.bfloat16, torch.float32, True),
    "bfloat16-states": (torch.bfloat16, torch.bfloat16, True),
    "float16": (torch.float16, torch.float32, False),
}
"""The dtype of parameters and gradients, the dtype of states, and whether bfloat16 is rounded stochastically."""


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(prog="python -m kernels.codegen", description="Facts about the compiled kernels.")
    cli.add_argument("targets", nargs="*", default=["sm_90"], metavar="TARGET", help="sm_NN or gfx9NN (default sm_90)")
    cli.add_argument("--rule", nargs="+", choices=rules.RULES, default=[*rules.RULES], help="default: all")
    cli.add_argument("--dtype", nargs="+", choices=VARIANTS, default=[*VARIANTS], help="default: all")
    cli.add_argument("--clip", action="store_true", help="have the rules clip gradients by their norm")
    cli.add_argument("--run", action="store_true", help="simulate the compiled step, and compare what it updates")
    args = cli.parse_args(argv)
    if not isinstance(multi_tensor.multi_tensor_kernel, triton.JITFunction):
        print(f"{cli.prog}: TRITON_INTERPRET accepts nothing here: it replaces the compiler", file=sys.stderr)
        return 2
    try:
        for target in args.targets:
            check_target(target)
    except ValueError as error:
        print(f"{cli.prog}: TARGET {error}", file=sys.stderr)
        return 2
    compare = None
    if args.run:
        try:
            from kernels.simulator.trial import compare  # which compiles by this module
        except ImportError as error:
            print(f"{cli.prog}: --run: {error}", file=sys.stderr)
            return 2
    failed = False
    chosen = [clipping(rules.RULES[name]) if args.clip else rules.RULES[name] for name in args.rule]
    for target, rule, dtype in itertools.product(args.targets, chosen, args.dtype):
        found = asdict(compile_update(rule, target, dtype))
        if rule.stages:
            found["stages"] = compile_stages(rule, target, dtype)
        if compare:
            result = compare(rule, target, dtype)
            found["run"] = result._asdict()
            failed |= not result.passed
        print(json.dumps(found), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What the simulator of compiled kernels traps, on small kernels in LLVM IR, faulty ones and right ones."""

from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("llvmlite", reason="the simulator reads LLVM IR by llvmlite")

from kernels.simulator import Fault, Program
from kernels.simulator.values import constant, fma

HEAD = """
@global_smem = external addrspace(3) global [0 x i8], align 16
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)
declare void @llvm.nvvm.cp.async.commit.group()
declare void @llvm.nvvm.cp.async.wait.group(i32)
declare i32 @llvm.nvvm.unheard.of(i32)
define ptx_kernel void @kernel(ptr addrspace(1) %x, ptr addrspace(1) %y) {
  %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %wide = zext i32 %t to i64
  %from = getelementptr float, ptr addrspace(1) %x, i64 %wide
  %to = getelementptr float, ptr addrspace(1) %y, i64 %wide
  %own = shl i32 %t, 2
  %mine = getelementptr i8, ptr addrspace(3) @global_smem, i32 %own
  %next.t = add i32 %t, 1
  %next.in = and i32 %next.t, 63
  %next = shl i32 %next.in, 2
  %others = getelementptr i8, ptr addrspace(3) @global_smem, i32 %next
"""
LOAD = "%v = load float, ptr addrspace(1) %from, align 4\n"
PUT = "store float %v, ptr addrspace(3) %mine, align 4\n"
GET = "%w = load float, ptr addrspace(3) %others, align 4\n"
STORE = "store float %w, ptr addrspace(1) %to, align 4\n"
BARRIER = "call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)\n"
COPY = (
    'call void asm sideeffect "cp.async.ca.shared.global [ $0 + 0 ], [ $1 + 0 ], 0x4, $2;", "r,l,r"'
    "(ptr addrspace(3) %mine, ptr addrspace(1) %from, i32 4)\n"
)
COMMIT = "call void @llvm.nvvm.cp.async.commit.group()\n"


def wait(n: int) -> str:
    return f"call void @llvm.nvvm.cp.async.wait.group(i32 {n})\n"


N = 64


def run(body: str, x=None, *, written=None, n_shared: int = 4 * N, read=None) -> torch.Tensor:
    """y after a launch of one program of two warps."""
    x = torch.arange(float(N)) if x is None else x
    y = torch.full((N,), -1.0)
    program = Program(HEAD + body + "ret void\n}\n", n_threads=N, n_shared=n_shared)
    program.launch(1, (x, y), read=[x] if read is None else read, written=[y] if written is None else written)
    return y


def test_threads_see_through_shared_memory_what_others_wrote_before_a_barrier():
    assert torch.equal(run(LOAD + PUT + BARRIER + GET + STORE), torch.arange(float(N)).roll(-1))


def test_an_asynchronous_copy_is_there_once_it_was_waited_for_and_a_barrier_passed():
    body = COPY + COMMIT + wait(0) + BARRIER + GET + STORE
    assert torch.equal(run(body), torch.arange(float(N)).roll(-1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (LOAD + PUT + GET + STORE, "is read after another warp wrote it, with no barrier between"),
        (GET + STORE, "is read, and nobody has written it"),
        (COPY + COMMIT + BARRIER + GET + STORE + wait(0), "before the asynchronous copy into it was waited for"),
        (COPY + COMMIT + wait(1) + BARRIER + GET + STORE + wait(0), "before the asynchronous copy into it"),
        (COPY + COMMIT + wait(0) + GET + STORE, "is read after another warp wrote it, with no barrier between"),
        (LOAD + COPY + PUT + COMMIT + wait(0), "is written while an asynchronous copy fills it"),
        (COPY + COMMIT, "ends before its asynchronous copies have been waited for"),
        (LOAD + PUT + BARRIER + GET + PUT + STORE, "is written after another warp read it, with no barrier between"),
    ],
    ids=lambda value: value if " " in value and len(value) < 70 else "",
)
def test_shared_memory_that_is_not_ready_is_a_fault(body, message):
    with pytest.raises(Fault, match=message):
        run(body)


def test_an_access_beyond_a_tensor_is_a_fault_though_other_memory_lies_there():
    whole = torch.arange(float(N + 8))
    with pytest.raises(Fault, match=r"program 0, thread 60: reads 4 bytes at 0x\w+, outside of all tensors"):
        run(LOAD + "%w = fadd float %v, 1.0\n" + STORE, whole, read=[whole[:60]])


def test_a_write_to_what_may_only_be_read_is_a_fault_and_writes_nothing():
    x = torch.arange(float(N))
    with pytest.raises(Fault, match=r"writes 4 bytes .*, in a tensor that it may only read"):
        run(LOAD + "%w = fadd float %v, 1.0\nstore float %w, ptr addrspace(1) %from, align 4\n", x)
    assert torch.equal(x, torch.arange(float(N)))


WIDE = (
    '%r = call { i32, i32, i32, i32 } asm sideeffect "ld.global.v4.b32 { $0, $1, $2, $3 }, [ $4 + 0 ];", '
    '"=r,=r,=r,=r,l"(ptr addrspace(1) %x)\n'
    "%first = extractvalue { i32, i32, i32, i32 } %r, 3\n%w = bitcast i32 %first to float\n" + STORE
)


def test_a_wide_access_wants_an_address_as_wide():
    x = torch.arange(float(N + 8))
    aligned = x[(-x.data_ptr() % 16) // 4 :]
    assert (run(WIDE, aligned) == aligned[3]).all()
    with pytest.raises(Fault, match=r"reads 16 bytes .*, which is misaligned"):
        run(WIDE, aligned[1:])


PARTED = """
  %early = icmp ult i32 %t, 32
  br i1 %early, label %some, label %all
some:
  {0}
  br label %all
all:
  {1}
"""


def test_threads_that_part_meet_again():
    body = LOAD + PARTED.format("%more = fadd float %v, 1.0", "%w = phi float [ %more, %some ], [ %v, %0 ]\n" + STORE)
    body = body.replace("%0 ]", "%entry ]")
    head = HEAD.replace("%y) {\n", "%y) {\nentry:\n")
    x, y = torch.arange(float(N)), torch.zeros(N)
    Program(head + body + "ret void\n}\n", n_threads=N).launch(1, (x, y), read=[x], written=[y])
    assert torch.equal(y, x + (x < 32))


def test_a_barrier_that_only_some_threads_reach_is_a_fault():
    with pytest.raises(Fault, match="some of its threads come to a barrier, and others do not"):
        run(PARTED.format(BARRIER, ""))


LOOP = """
  br label %head
head:
  %i = phi i32 [ 0, %entry ], [ %j, %head ]
  %sum = phi float [ 0.0, %entry ], [ %w, %head ]
  %w = fadd float %sum, 1.0
  %j = add i32 %i, 1
  %again = icmp ult i32 %j, %own
  br i1 %again, label %head, label %after
after:
"""


def test_threads_leave_a_loop_one_after_the_other_with_their_own_values():
    head, x, y = HEAD.replace("%y) {\n", "%y) {\nentry:\n"), torch.zeros(N), torch.zeros(N)
    Program(head + LOOP + STORE + "ret void\n}\n", n_threads=N).launch(1, (x, y), read=[x], written=[y])
    assert torch.equal(y, (4 * torch.arange(float(N))).clamp(min=1))


def test_predicates_of_inline_ptx_choose_who_loads():
    code = (
        "%some = icmp ult i32 %t, 7\n"
        '%r = call i32 asm sideeffect "mov.u32 $0, $1;\\0A\\09@$3 ld.global.b32 { $0 }, [ $2 + 0 ];", "=r,r,l,b"'
        "(i32 0, ptr addrspace(1) %from, i1 %some)\n%w = bitcast i32 %r to float\n"
    )
    x = torch.arange(1.0, 8.0)
    assert torch.equal(run(code + STORE, x), torch.cat([x, torch.zeros(N - 7)]))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("%u = call i32 @llvm.nvvm.unheard.of(i32 %t)\n", "llvm.nvvm.unheard.of"),
        ('call void asm sideeffect "red.global.add.f32 [ $0 ], $1;", "l,r"(ptr addrspace(1) %x, i32 %t)\n', "red.glo"),
        ("%u = atomicrmw add ptr addrspace(1) %x, i32 1 monotonic\n", "atomicrmw add"),
    ],
)
def test_what_is_not_known_is_named_before_anything_runs(body, name):
    with pytest.raises(NotImplementedError, match=name):
        Program(HEAD + body + "ret void\n}\n", n_threads=N)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("i32", "-1", [2**32 - 1]),
        ("float", "0x3FB99999A0000000", [np.float32(0.1)]),
        ("<2 x float>", "<float 1.000000e+00, float -2.500000e+00>", [1.0, -2.5]),
        ("<4 x i32>", "splat (i32 3)", [3] * 4),
        ("half", "0xH3C00", [1.0]),
        ("<2 x i1>", "<i1 true, i1 false>", [True, False]),
        ("<2 x i64>", "zeroinitializer", [0, 0]),
    ],
)
def test_constants_are_what_llvm_means(kind, text, expected):
    found = constant(kind, text)
    assert isinstance(found, np.ndarray)
    assert found.ravel().tolist() == expected


def test_fma_rounds_once():
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(2000) * 2.0 ** rng.integers(-20, 20, 2000) for _ in range(3))
    c[::2] = -(a * b)[::2]  # what is left is the rounding of the product
    exact = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert fma(a, b, c).tolist() == exact
    with np.errstate(invalid="ignore"):
        assert np.isnan(fma(np.array([np.inf]), np.array([0.0]), np.array([1.0]))).all()
        assert fma(np.array([np.inf]), np.array([1.0]), np.array([1.0])).tolist() == [np.inf]


def test_a_barrier_of_a_warp_orders_no_other_warp():
    """Threads of two warps exchange: between them it takes a barrier of all."""
    sync = "call void @llvm.nvvm.bar.warp.sync(i32 -1)\n"
    declared = HEAD.replace("define ptx", "declare void @llvm.nvvm.bar.warp.sync(i32)\ndefine ptx")
    x, y = torch.arange(float(N)), torch.zeros(N)
    program = Program(declared + LOAD + PUT + sync + GET + STORE + "ret void\n}\n", n_threads=N, n_shared=4 * N)
    with pytest.raises(Fault, match="is read after another warp wrote it"):
        program.launch(1, (x, y), read=[x], written=[y])


LANES = """
declare i32 @llvm.nvvm.shfl.sync.bfly.i32(i32, i32, i32, i32)
declare i32 @llvm.amdgcn.readlane.i32(i32, i32)
declare i32 @llvm.amdgcn.update.dpp.i32(i32, i32, i32 immarg, i32 immarg, i32 immarg, i1 immarg)
define ptx"""


def lanes(call: str, warp_size: int, body: str = "{}") -> list[int]:
    """What each thread gets from a call; %t is its number and %hundred 100 more."""
    x, y = torch.zeros(1), torch.zeros(N)
    body = body.format(f"%got = call i32 @llvm.{call}\n%w = uitofp i32 %got to float\n{STORE}")
    text = HEAD.replace("define ptx", LANES) + "%hundred = add i32 %t, 100\n" + body + "ret void\n}\n"
    Program(text, n_threads=N, warp_size=warp_size).launch(1, (x, y), read=[x], written=[y])
    return [int(value) for value in y]


BUTTERFLY = "nvvm.shfl.sync.bfly.i32(i32 -1, i32 %t, i32 4, i32 31)"
READ_LANE = "amdgcn.readlane.i32(i32 %t, i32 5)"
MOVED = "amdgcn.update.dpp.i32(i32 %hundred, i32 %t, i32 {}, i32 {}, i32 {}, i1 {})"
ALL = range(N)


@pytest.mark.parametrize(
    ("call", "warp_size", "expected"),
    [
        (BUTTERFLY, 32, [t ^ 4 for t in ALL]),
        (READ_LANE, 64, [5] * N),
        (READ_LANE, 32, [5] * 32 + [37] * 32),
        # Without a lane to take from: 0 with bound_control, else the old value.
        (MOVED.format(0x111, 15, 15, "true"), 64, [t - 1 if t % 16 >= 1 else 0 for t in ALL]),
        (MOVED.format(0x118, 15, 15, "false"), 64, [t - 8 if t % 16 >= 8 else t + 100 for t in ALL]),
        (MOVED.format(0x104, 15, 15, "true"), 64, [t + 4 if t % 16 < 12 else 0 for t in ALL]),
        (MOVED.format(0x128, 15, 15, "true"), 64, [t ^ 8 for t in ALL]),
        (MOVED.format(0x121, 15, 15, "true"), 64, [t - 1 if t % 16 else t + 15 for t in ALL]),
        (MOVED.format(0x4E, 15, 15, "true"), 64, [t ^ 2 for t in ALL]),
        (MOVED.format(0xB1, 15, 15, "true"), 64, [t ^ 1 for t in ALL]),
        # The last lane of the row before in rows 1 and 3, and of the first half in the second.
        (MOVED.format(0x142, 10, 15, "true"), 64, [t // 16 * 16 - 1 if t // 16 % 2 else t + 100 for t in ALL]),
        (MOVED.format(0x143, 12, 15, "true"), 64, [31 if t >= 32 else t + 100 for t in ALL]),
        # Banks of four lanes that are masked out keep the old value.
        (MOVED.format(0x114, 15, 10, "false"), 64, [t - 4 if t // 4 % 2 else t + 100 for t in ALL]),
    ],
    ids=str,
)
def test_lanes_see_each_others_values(call, warp_size, expected):
    assert lanes(call, warp_size) == expected


@pytest.mark.parametrize(
    ("call", "warp_size", "what"),
    [
        (BUTTERFLY, 32, "shfl.sync"),
        (READ_LANE, 64, "readlane"),
        (MOVED.format(0x111, 15, 15, "true"), 64, "update.dpp"),
    ],
)
def test_lanes_that_part_before_they_do_are_a_fault(call, warp_size, what):
    parted = "%early = icmp ult i32 %t, 7\nbr i1 %early, label %some, label %all\nsome:\n{}br label %all\nall:\n"
    with pytest.raises(Fault, match=f"some threads of a warp come to {what}, and others do not"):
        lanes(call, warp_size, parted)
    # Whole warps may part.
    assert lanes(BUTTERFLY, 32, parted.replace("7", "32"))[:32] == [t ^ 4 for t in range(32)]


def test_what_a_predicate_keeps_from_being_loaded_is_not_zero():
    code = (
        "%some = icmp ult i32 %t, 7\n"
        '%r = call i32 asm sideeffect "@$2 ld.global.b32 $0, [ $1 + 0 ];", "=r,l,b"'
        "(ptr addrspace(1) %from, i1 %some)\n%w = bitcast i32 %r to float\n"
    )
    x = torch.arange(1.0, 8.0)
    found = run(code + STORE, x)
    assert torch.equal(found[:7], x)
    assert (found[7:] != 0).all()

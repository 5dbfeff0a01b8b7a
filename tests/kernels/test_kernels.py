"""The traversal in every backend: which elements it touches, and that all backends agree."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl  # noqa: F401  the interpreter looks for it beside a kernel
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from kernels import launch, multi_tensor, rules, table
from tests.conftest import device_of

BLOCK = multi_tensor.CHUNK_SIZE
SENTINEL = 12345.0


def padded(values: torch.Tensor, offset: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of a flat tensor as a view `offset` elements into a buffer of sentinels; returns both."""
    buffer = torch.full((offset + len(values) + 64,), SENTINEL, dtype=values.dtype, device=device)
    view = buffer[offset : offset + len(values)]
    view.copy_(values)
    return view, buffer


@pytest.mark.parametrize(
    ("n", "offset"),
    [
        (0, 0),  # no element at all
        (1, 0),
        (BLOCK - 1, 0),  # one short of a block: masked
        (BLOCK, 0),  # exactly the unmasked path
        (BLOCK + 1, 0),  # one element in a second block
        (2 * BLOCK, 4),  # 16-byte aligned view
        (2 * BLOCK, 1),  # misaligned: full blocks must take the masked path
        (2 * BLOCK + 7, 3),
    ],
)
def test_update_touches_its_elements_and_no_others(backend, n, offset):
    device = device_of(backend)
    p, buffer = padded(torch.linspace(-1, 1, n), offset, device)
    p.requires_grad_()
    optimizer = optim.Adam([p], lr=0.1, backend=backend)
    p.grad, grad_buffer = padded(torch.ones(n), offset, device)
    optimizer.step()
    # Adam's first step with a constant gradient moves every element by lr.
    torch.testing.assert_close(p.detach().cpu(), torch.linspace(-1, 1, n) - 0.1)
    for whole in (buffer, grad_buffer):
        outside = torch.cat([whole[:offset], whole[offset + n :]])
        assert (outside == SENTINEL).all()
    assert (p.grad == 1).all()


@pytest.mark.gpu_too
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree(dtype):
    """bfloat16 bit by bit, float32 to the rounding that contraction into fused multiply-add changes."""
    results = {}
    for backend in ("triton", "cpu", "eager"):
        device = device_of(backend)
        generator = torch.Generator().manual_seed(0)
        params = [
            torch.randn(n, generator=generator).to(dtype).to(device).requires_grad_() for n in (3, BLOCK, BLOCK + 5)
        ]
        optimizer = optim.AdamW(params, lr=0.01, weight_decay=0.1, backend=backend)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(dtype).to(device)
            optimizer.step()
        results[backend] = torch.cat([p.detach().flatten().cpu() for p in params]).float()
    if dtype == torch.bfloat16:
        # An update that falls within a float32 rounding of a tie may go either way.
        assert ((results["cpu"] != results["triton"]).float().mean() < 1e-3).item()
        assert ((results["eager"] != results["triton"]).float().mean() < 1e-3).item()
    else:
        torch.testing.assert_close(results["cpu"], results["triton"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(results["eager"], results["triton"], rtol=1e-6, atol=1e-7)


def test_several_threads_leave_the_bits_of_one():
    pytest.importorskip("kernels.cpu")
    start, of_torch = torch.linspace(-1, 1, 2**15 + 5), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            p = start.clone().requires_grad_()
            p.grad = torch.cos(100 * start)
            optim.SGD([p], lr=0.1, backend="cpu").step()
            results.append(p.detach())
    finally:
        torch.set_num_threads(of_torch)
    assert torch.equal(*results)
    assert (results[0] != start).all()


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_cpu_bfloat16_store_rounds_as_torch_does(bits):
    storage = pytest.importorskip("kernels.cpu_storage")
    x = np.array(bits, dtype=np.uint32).view(np.float32)
    stored = np.zeros(len(x), dtype=np.uint16)
    for i, value in enumerate(x):
        storage.store_bfloat16(stored, i, value, np.uint32(0))
    ours = torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    expected = torch.from_numpy(x).bfloat16()
    nan = expected.isnan()
    assert (ours.isnan() == nan).all()
    assert (ours[~nan].view(torch.int16) == expected[~nan].view(torch.int16)).all()


@pytest.mark.gpu_too
def test_kernel_bfloat16_rounds_ties_infinities_and_nans_as_torch_does():
    device = device_of("triton")
    special = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF])
    x = torch.from_numpy(special.astype(np.uint32).view(np.float32))
    p = torch.zeros(len(x), dtype=torch.bfloat16, device=device, requires_grad=True)
    p.grad = torch.zeros_like(p)

    # A rule that stores what its state holds, so that any bit pattern can be put through the cast.
    rule = rules.Rule("store", rules.adam.coefficients, store_state, rules.adam.hyper, ("value",))
    entry = table.Entry(p, (x.to(device),), torch.zeros((), device=device))
    made = table.build(rule, [entry], p.grad.dtype, multi_tensor.CHUNK_SIZE)
    made.set_hyper([(1.0, 0.0, 0.9, 0.999, 1.0, 0.0, 0.0)])
    launch.launcher(made)([p.grad], None, None)
    expected = x.bfloat16()
    assert (p.detach().cpu().isnan() == expected.isnan()).all()
    kept = ~expected.isnan()
    assert (p.detach().cpu()[kept] == expected[kept]).all()


@triton.jit
def store_state(p, grad, state, coefficients):
    (value,) = state
    return value, (value,)


def test_chunks_cover_every_element_once():
    params = [torch.zeros(shape) for shape in ((0,), (5,), (4, 100), (2, 3000))]
    # A group has one number of lanes; here each entry is a group of its own.
    entries = [
        table.Entry(p, (p, p), torch.zeros(lanes), lanes=lanes, group=group)
        for group, (p, lanes) in enumerate(zip(params, (1, 1, 4, 2), strict=True))
    ]
    made = table.build(rules.adam, entries, torch.float32, chunk_size=64)
    covered = {}
    for row, index in zip(made.chunk_row.tolist(), made.chunk_index.tolist(), strict=True):
        n = int(made.uploads.hosts[0][row, table.N_ELEMENTS])
        elements = range(index * 64, min(n, index * 64 + 64))
        assert len(elements) > 0
        covered.setdefault(row, []).extend(elements)
    sizes = made.uploads.hosts[0][:, table.N_ELEMENTS].tolist()
    assert sizes == [0, 5, 100, 100, 100, 100, 3000, 3000]
    for row, n in enumerate(sizes):
        assert sorted(covered.get(row, [])) == list(range(n))


def test_offsets_beyond_two_to_the_31_elements_are_64_bit():
    # 2^31 float32 would not fit here, so the table is looked at instead of run.
    n = 2**31 + 4096
    p = torch.empty(1).expand(n)
    entry = table.Entry(p, (p, p), torch.zeros(()))
    made = table.build(rules.adam, [entry], torch.float32, chunk_size=2**20)
    last = made.chunk_index.max().item()
    assert last * 2**20 < n <= (last + 1) * 2**20
    assert made.uploads.hosts[0][0, table.N_ELEMENTS].item() == n


def test_gradients_are_pointed_at_again_only_when_one_has_moved(monkeypatch):
    p = torch.zeros(8, requires_grad=True)
    optimizer = optim.Adam([p], backend="eager")
    built = []
    monkeypatch.setattr(table, "build", lambda *args, _build=table.build: built.append(1) or _build(*args))
    made = table.build(rules.adam, [table.Entry(p.detach(), (p.detach(),) * 2, torch.zeros(()))], p.dtype, 64)
    first, second = torch.ones(8), torch.ones(8)
    made.point_at([first])
    assert made.rows[0, table.GRAD] == first.data_ptr()
    made.rows[0, table.GRAD] = -1
    made.point_at([first])
    assert made.rows[0, table.GRAD] == -1  # nothing was uploaded
    made.point_at([second])
    assert made.rows[0, table.GRAD] == second.data_ptr()
    built.clear()
    for _ in range(3):
        p.grad = torch.ones(8)
        optimizer.step()
    assert len(built) == 1  # the table itself is laid out once


STEP = """
import torch, optim
p = torch.zeros(3, requires_grad=True); p.grad = torch.ones(3)
optim.Adam([p], lr=0.5).step(); print(p.tolist())
"""


@pytest.mark.slow
def test_rules_serve_the_cpu_where_triton_is_missing():
    script = "import sys; sys.modules['triton'] = None\n" + STEP
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[-0.5, -0.5, -0.5]"


def test_without_numba_cpu_tensors_are_updated_eagerly_and_it_is_said():
    script = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'numba' else find(name, *a)\n"
        "sys.modules['numba'] = None\n" + STEP
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[-0.5, -0.5, -0.5]"
    assert done.stderr.count("Numba is not installed") == 1

"""What tensors of 16 bits hold after a step: the exact result, rounded once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from kernels import multi_tensor
from tests.conftest import device_of
from tests.optim import papers, papers_sums
from tests.oracle import make_params

BLOCK = multi_tensor.CHUNK_SIZE


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=["state float32", "state bfloat16"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str
)
def test_dtypes_store_what_float64_would_to_half_a_digit(backend, dtype, state_dtype):
    """One step from states that all dtypes can hold: what is stored is the exact result rounded once."""
    p = make_params(((BLOCK + 9,),), dtype, device_of(backend))[0]
    q = p.detach().double().cpu().requires_grad_()
    optimizer, oracle = (
        optim.AdamW([p], lr=0.05, state_dtype=state_dtype, backend=backend),
        torch.optim.AdamW([q], lr=0.05),
    )
    generator = torch.Generator().manual_seed(1)
    p.grad = torch.randn(p.shape, generator=generator).to(p.device, dtype)
    q.grad = p.grad.double().cpu()
    optimizer.step()
    oracle.step()
    for ours, exact, kind in [
        (p.detach(), q.detach(), dtype),
        *[(optimizer.state[p][name], oracle.state[q][name], state_dtype) for name in ("exp_avg", "exp_avg_sq")],
    ]:
        assert ours.dtype == kind
        eps = torch.finfo(kind).eps if kind != torch.float32 else 8 * torch.finfo(kind).eps
        error = (ours.double().cpu() - exact).abs()
        # Half a unit in the last place is at most eps / 2 of the value, plus float32's own rounding of it.
        assert (error <= 0.5001 * eps * exact.abs() + 1e-7 + torch.finfo(kind).smallest_normal).all()


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_cpu_float16_is_stored_as_torch_does(bits):
    storage = pytest.importorskip("kernels.cpu_storage")
    x = np.array(bits, dtype=np.uint32).view(np.float32)
    # Half the examples at random, half scaled into the range of float16, subnormal numbers included.
    with np.errstate(all="ignore"):
        x = np.concatenate([x, np.sign(x) * np.exp2(-26 + 43 * (np.array(bits) / 2**32)).astype(np.float32)]).astype(
            np.float32
        )
    stored = np.zeros(len(x), dtype=np.uint16)
    for i, value in enumerate(x):
        storage.store_float16(stored, i, value, np.uint32(0))
    ours, expected = torch.from_numpy(stored.view(np.int16)).view(torch.float16), torch.from_numpy(x).half()
    nan = expected.isnan()
    assert (ours.isnan() == nan).all()
    assert (ours[~nan].view(torch.int16) == expected[~nan].view(torch.int16)).all()


def test_cpu_float16_is_loaded_as_torch_does_for_every_number():
    storage = pytest.importorskip("kernels.cpu_storage")
    halves = np.arange(2**16, dtype=np.uint16)
    loaded = torch.tensor([storage.load_float16(halves, i) for i in range(2**16)])
    expected = torch.from_numpy(halves.view(np.int16)).view(torch.float16).float()
    assert torch.equal(loaded.nan_to_num(1234.5), expected.nan_to_num(1234.5))
    assert torch.equal(loaded.isnan(), expected.isnan())


TORCH_LACKS = ("Lion", "Signum", "LaProp", "Adan", "AdEMAMix", "AdamWScheduleFree", *papers_sums.OF)
"""ADOPT is left out: its first step moves nothing."""
LARGE_STEPS = {"Adadelta": 2000.0, "SGD": 1.0, "LARS": 500.0, "Prodigy": 5e5}
"""Learning rates that move weights by more than their dtypes' digits; 0.5 does for the others."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(
    "name",
    [
        "Adam",
        # Each takes Numba two compilations of two seconds.
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("SGD", "Adadelta", "Adagrad", "AdamW", "Muon", "NAdam", "RAdam", "RMSprop", *TORCH_LACKS)
        ),
    ],
)
def test_half_precision(backend, name, dtype):
    """A step stores the exact result rounded once, in every class."""
    p = make_params(((33, 32) if name == "Muon" else (BLOCK + 9,),), dtype, device_of(backend))[0]
    q = p.detach().double().cpu().requires_grad_()
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    p.grad, q.grad, before = grad.to(p.device), grad.double(), q.detach().clone()
    lr = LARGE_STEPS.get(name, 0.5)
    getattr(optim, name)([p], lr=lr, backend=backend).step()
    if name in TORCH_LACKS:
        q = {**papers.OF, **papers_sums.OF}[name](before, grad.double(), {}, 1, lr=lr)
    else:
        getattr(torch.optim, name)([q], lr=lr).step()
    ours, exact = p.detach().double().cpu(), q.detach()
    # Half a unit in the last place, and what float32 has rounded before.
    bound = 0.5001 * torch.finfo(dtype).eps * exact.abs() + 2e-6 * (1 + exact.abs()) + torch.finfo(dtype).tiny
    assert ((ours - exact).abs() <= bound).all()
    assert (ours != before).float().mean() > 0.95

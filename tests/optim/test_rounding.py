"""Stochastic rounding to bfloat16: unbiased, the same in every backend, and worth its while."""

import numpy as np
import pytest
import torch
import triton.language as tl  # noqa: F401  the interpreter looks for it beside a rule

import optim
from kernels import multi_tensor
from tests.conftest import device_of
from tests.oracle import make_params, train

BLOCK = multi_tensor.CHUNK_SIZE


def rounded(values: torch.Tensor, backend: str, steps: int = 1, seed: int = 0, parameter: int = 0) -> torch.Tensor:
    """What a step that adds values to zeros stores, for each of so many steps: `[steps, n]`."""
    device = device_of(backend)
    others = [torch.zeros(1, device=device, requires_grad=True) for _ in range(parameter)]
    p = torch.zeros(len(values), dtype=torch.bfloat16, device=device, requires_grad=True)
    optimizer = optim.SGD([*others, p], lr=1.0, rounding="stochastic", seed=seed, backend=backend)
    p.grad = torch.zeros_like(p)
    stored = []
    for _ in range(steps):
        # -lr * grad of a bfloat16 gradient is exact; weight decay of a float32 strength makes the digits to be rounded.
        with torch.no_grad():
            p.fill_(1.0)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        optimizer.param_groups[0]["lr"] = 1.0
        p.grad = torch.zeros_like(p)
        optimizer.param_groups[0]["weight_decay"] = -(values[0].item() - 1.0)
        optimizer.step()
        stored.append(p.detach().float().cpu())
    return torch.stack(stored)


def test_it_is_unbiased_over_elements_and_over_steps(backend):
    ulp = 2.0**-7  # of bfloat16 in [1, 2)
    for share in (0.0, 0.013, 0.5, 0.9):
        n = 8192 if backend == "triton" else 65536
        stored = rounded(torch.full((n,), 1.0 + share * ulp), backend, steps=3)
        assert set(stored.unique().tolist()) <= {1.0, 1.0 + ulp}
        up = (stored > 1.0).double()
        # Five standard deviations of a binomial share, and the 2^-16 of a noise of 16 bits.
        bound = 5 * np.sqrt(share * (1 - share) / n) + 2**-15
        assert (up.mean(1) - share).abs().max() <= bound
    # At one element, over steps: neither stuck nor alternating.
    few = rounded(torch.full((64,), 1.0 + 0.5 * ulp), backend, steps=40 if backend == "triton" else 400)
    up = (few > 1.0).double()
    assert (up.mean(0) - 0.5).abs().max() < 5 * np.sqrt(0.25 / len(up))
    changes = (up[1:] != up[:-1]).double().mean()
    assert abs(changes - 0.5) < 0.05


def test_noise_differs_by_seed_and_parameter_and_repeats_otherwise():
    values = torch.full((4096,), 1.0 + 2.0**-8)
    first = rounded(values, "cpu")
    assert torch.equal(first, rounded(values, "cpu"))
    for other in (rounded(values, "cpu", seed=1), rounded(values, "cpu", parameter=1)):
        # Independent coins agree half of the time.
        assert abs((first == other).float().mean() - 0.5) < 0.05


@pytest.mark.gpu_too
@pytest.mark.slow
def test_all_backends_round_alike_bit_by_bit_whatever_their_blocks():
    """Blocks are of 1024 elements in Triton, of 16384 in Numba, and the eager backend has none."""
    results = {}
    for backend in ("triton", "cpu", "eager"):
        params = make_params(((3,), (BLOCK + 5,), (2, 17000)), torch.bfloat16, device_of(backend))
        options = {"lr": 1e-3, "momentum": 0.9, "state_dtype": torch.bfloat16}
        optimizer = optim.SGD(params, **options, rounding="stochastic", seed=7, backend=backend)
        train(optimizer, params, 2)
        tensors = [t for p in params for t in (p.detach(), optimizer.state[p]["momentum_buffer"])]
        results[backend] = torch.cat([t.flatten().cpu().view(torch.int16) for t in tensors])
    # Contraction into fused multiply-add moves a float32 by a last bit, which changes one rounding in 2^16.
    for backend in ("cpu", "eager"):
        assert (results[backend] != results["triton"]).float().mean() < 1e-3


def test_lanes_share_the_noise_of_a_run_on_its_own():
    start = make_params(((500,),), torch.bfloat16)[0].detach()
    lr = torch.tensor([1e-3, 1e-2], dtype=torch.float64)
    stacked = start.expand(2, 500).clone().requires_grad_()
    optimizer = optim.Adam([stacked], lr=lr, rounding="stochastic", seed=3)
    alone = [start.clone().requires_grad_() for _ in range(2)]
    solo = [optim.Adam([p], lr=value.item(), rounding="stochastic", seed=3) for p, value in zip(alone, lr, strict=True)]
    for step in range(5):
        grad = torch.randn(500, generator=torch.Generator().manual_seed(step)).bfloat16()
        stacked.grad = grad.expand(2, 500).clone()
        optimizer.step()
        for p, one in zip(alone, solo, strict=True):
            p.grad = grad.clone()
            one.step()
    assert torch.equal(stacked.detach(), torch.stack([p.detach() for p in alone]))


def test_a_resumed_run_goes_on_with_the_noise_it_would_have_had():
    def optimizer_of(params):
        return optim.Adam(params, lr=1e-3, rounding="stochastic", seed=5)

    straight, moved = make_params(((300,),), torch.bfloat16), make_params(((300,),), torch.bfloat16)
    train(optimizer_of(straight), straight, 6)
    first = optimizer_of(moved)
    train(first, moved, 3)
    resumed = [p.detach().clone().requires_grad_() for p in moved]
    second = optimizer_of(resumed)
    second.load_state_dict(first.state_dict())
    train(second, resumed, 3, first_seed=3)
    assert torch.equal(straight[0], resumed[0])


def learning_rate(hyper, step):
    return hyper


def descend(p, grad, state, coefficients):
    return p - coefficients[0] * grad, state


def test_nan_and_infinity_are_kept(backend):
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, 3.3895e38])
    p = special.bfloat16().to(device_of(backend)).requires_grad_()
    p.grad = torch.zeros_like(p)
    optim.from_rule(descend, learning_rate, defaults={"lr": 1.0})([p], rounding="stochastic", backend=backend).step()
    assert torch.equal(p.detach().cpu().nan_to_num(7.0), special.bfloat16().nan_to_num(7.0))
    assert p.detach().isnan().tolist() == [True] + [False] * 6


def test_positions_beyond_two_to_the_32_elements_have_noise_of_their_own():
    # 2^32 bfloat16 would fit nowhere here, so the arithmetic is tried on positions alone.
    from kernels import eager

    key = torch.tensor([[12345]])
    low, far = torch.arange(1000), torch.arange(1000) + 2**32

    def noise(element):
        high = (element >> 32) * 0x9E3779B9
        return eager.mix((element & eager.MASK) ^ eager.mix((key + high) & eager.MASK)) & 0xFFFF

    assert ((noise(low) == noise(far)).float().mean()) < 0.01


def test_a_bfloat16_run_with_a_small_learning_rate_stands_still_to_nearest_and_learns_stochastically():
    """Steps of 1e-5 are less than half a unit in the last place of weights around 1, 2^-8."""
    target = torch.linspace(0.98, 1.02, 4096)

    def loss_after(steps: int, **options) -> float:
        p = torch.full((4096,), 1.25, dtype=torch.bfloat16, requires_grad=True)
        optimizer = optim.Adam([p], lr=1e-5, **options)
        for _ in range(steps):
            p.grad = p.detach() - target.bfloat16()
            optimizer.step()
        return ((p.detach().float() - target) ** 2).mean().item()

    start = loss_after(0)
    assert loss_after(3000, rounding="nearest") == start
    # 3000 steps of 1e-5 are 0.03 of the way of 0.25.
    expected = ((1.25 - 0.03 - target) ** 2).mean().item()
    assert loss_after(3000, rounding="stochastic") == pytest.approx(expected, rel=0.01)

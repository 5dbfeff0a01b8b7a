"""Classes whose rules have sums: over the borders of pieces, tensors and lanes; see `test_papers` for all else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from kernels import lookup
from kernels.config import Choice, CpuConfig
from kernels.pieces import PIECE
from tests.conftest import device_of
from tests.optim.descents import INTERPRETED_SLOWLY, SHAPES, descend, followed, gradient, start_of
from tests.oracle import assert_same_updates, make_params

OPTIONS = {
    "LAMB": {"lr": 0.02, "weight_decay": 0.1},
    "LARS": {"weight_decay": 0.1, "trust_coefficient": 0.02},
    "StableAdamW": {"lr": 0.02, "weight_decay": 0.1},
    "AdamMini": {"lr": 0.02, "weight_decay": 0.1},
    "CautiousAdamW": {"lr": 0.02, "weight_decay": 0.1},
    "CautiousLion": {"lr": 0.02, "weight_decay": 0.1},
}
ALL = {**OPTIONS, "Prodigy": {"d0": 1e-2, "weight_decay": 0.1}}
PRODIGIES = [
    {"d0": 1e-2},
    {"d0": 1e-2, "weight_decay": 0.1, "growth_rate": 1.3, "use_bias_correction": True},
    {"d0": 1e-2, "weight_decay": 0.1, "decouple": False, "lr": 0.5, "safeguard_warmup": True},
    {"d0": 1e-2, "betas": (0.8, 0.99), "beta3": 0.9, "d_coef": 2.0, "maximize": True},
]
STEPS = 10
RTOL = 3e-6

every_class = pytest.mark.parametrize(("name", "options"), ALL.items(), ids=ALL)


@INTERPRETED_SLOWLY
@pytest.mark.parametrize(
    ("name", "options"), [*OPTIONS.items(), *(("Prodigy", options) for options in PRODIGIES)], ids=str
)
def test_totals_are_those_of_whole_tensors(backend, name, options):
    ours = make_params(SHAPES, device=device_of(backend))
    before = start_of(ours)
    # The moves of fewer steps of Prodigy have too few digits.
    steps = 4 if backend == "triton" and name != "Prodigy" else STEPS
    expected = followed(name, ours, range(steps), **options)
    descend(getattr(optim, name)(ours, **options, backend=backend), ours, range(steps))
    # p0 - p has the digits that p has moved by.
    assert_same_updates(ours, expected, before, steps, RTOL if name != "Prodigy" else 1e-5)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([*ALL]),
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=4),
    lanes=st.integers(1, 3),
)
def test_any_shapes_and_lanes(name, shapes, lanes):
    if lanes > 1:
        shapes = [(lanes, *shape) for shape in shapes]
    ours, options = make_params(shapes), ALL[name]
    before = start_of(ours)
    lrs = [options.get("lr", 1.0) * (k + 1) / lanes for k in range(lanes)]
    lr = torch.tensor(lrs, dtype=torch.float64) if lanes > 1 else lrs[0]
    optimizer = getattr(optim, name)(ours, **{**options, "lr": lr}, backend="eager")
    descend(optimizer, ours, range(3))
    for k in range(lanes):
        own = k if lanes > 1 else ...
        lane = None if lanes == 1 else k
        expected = followed(name, ours_at(before), range(3), lane, **{**options, "lr": lrs[k]})
        assert_same_updates([p[own] for p in ours], expected, [p[own] for p in before], 3, 1e-5)


def ours_at(start: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return float32 parameters of these values."""
    return [p.float() for p in start]


@INTERPRETED_SLOWLY
@every_class
def test_64_lanes_have_the_bits_of_one(backend, name, options):
    # Triton's interpreter runs one program after the other.
    n = 8 if backend == "triton" else 64
    many, some = make_params([(n, 9), (n, PIECE // 2 + 1)], device=device_of(backend)), (0, n // 4 + 1, n - 1)
    alone = [[p[k].detach().clone().requires_grad_() for p in many] for k in some]
    lr = options.get("lr", 1.0)
    optimizer = getattr(optim, name)(
        many, **{**options, "lr": torch.full((n,), lr, dtype=torch.float64)}, backend=backend
    )
    descend(optimizer, many, range(3))
    for k, one in zip(some, alone, strict=True):
        single = getattr(optim, name)(one, **{**options, "lr": lr}, backend=backend)
        for step in range(3):
            for i, (p, whole) in enumerate(zip(one, many, strict=True)):
                p.grad = gradient(whole, i, step)[k].to(p.device, p.dtype)
            single.step()
        assert all(torch.equal(p, whole[k]) for p, whole in zip(one, many, strict=True))


@every_class
def test_neither_chunks_nor_threads_change_a_bit_on_the_cpu(monkeypatch, name, options):
    pytest.importorskip("numba", reason="the cpu backend needs Numba")
    stored, of_torch = [], torch.get_num_threads()
    try:
        for threads, chunk_size in ((1, 1024), (2, 4096), (3, 2**15)):
            torch.set_num_threads(threads)
            config = CpuConfig(chunk_size=chunk_size, threads=threads)
            monkeypatch.setattr(lookup, "choose_on_cpu", lambda *_, config=config: Choice(config, "test", "asked for"))
            params = make_params(((3,), (PIECE + 1,), (3, 20011)))
            descend(getattr(optim, name)(params, **options, backend="cpu"), params, range(3))
            stored.append(torch.cat([p.detach().flatten() for p in params]))
    finally:
        torch.set_num_threads(of_torch)
    assert all(torch.equal(stored[0], other) for other in stored)


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_a_norm_of_zero_leaves_the_ratio_at_one(backend, name):
    still, flat = (torch.zeros(5, device=device_of(backend), requires_grad=True) for _ in range(2))
    with torch.no_grad():
        flat.fill_(2.0)
    options = {"lr": 0.1, "weight_decay": 0.0}
    optimizer = getattr(optim, name)([still, flat], **options, backend=backend)
    still.grad, flat.grad = torch.full_like(still, 3.0), torch.zeros_like(flat)
    optimizer.step()
    # Without a ratio LAMB moves by lr, as Adam does, and LARS by lr times the gradient.
    torch.testing.assert_close(still.detach(), torch.full_like(still, -0.1 if name == "LAMB" else -0.3))
    assert (flat == 2.0).all()


def test_masks_do_not_underflow(backend):
    (p,) = make_params(((4,),), device=device_of(backend))
    optimizer, start = optim.CautiousLion([p], lr=0.5, backend=backend), p.detach().clone()
    p.grad = torch.full_like(p, 1e-30)
    optimizer.step()
    torch.testing.assert_close(start - p.detach(), torch.full_like(p, 0.5))


@every_class
def test_a_nan_reaches_every_parameter_that_its_total_does(name, options):
    """NaN in a gradient is seen, not dropped by a comparison."""
    params = make_params(((5,), (6,)))
    optimizer = getattr(optim, name)(params, **options, backend="eager")
    descend(optimizer, params, range(2))
    params[0].grad = torch.full_like(params[0], math.nan)
    optimizer.step()
    assert params[0].isnan().all()
    assert params[1].isfinite().all()


@every_class
def test_gradients_are_clipped_before_anything_else(name, options):
    ours, theirs = (make_params(((5,), (3, 4)), torch.float64) for _ in range(2))
    first = getattr(optim, name)(ours, **options, max_grad_norm=0.5, backend="eager")
    second = getattr(optim, name)(theirs, **options, backend="eager")
    start = start_of(ours)
    for step in range(4):
        descend(first, ours, range(step, step + 1))
        for i, p in enumerate(theirs):
            p.grad = gradient(p, i, step)
        assert torch.nn.utils.clip_grad_norm_(theirs, 0.5) > 1.0
        second.step()
    assert_same_updates(ours, theirs, start, 4, 1e-6)  # scalars are float32


def test_adam_mini_keeps_one_second_moment_for_each_lane_of_each_tensor():
    params = make_params(((3, 7), (3, 2, 2)))
    optimizer = optim.AdamMini(params, lr=torch.tensor([0.1, 0.2, 0.3]), betas=(0.9, 0.99), backend="eager")
    descend(optimizer, params, range(1))
    for i, p in enumerate(params):
        square = gradient(p, i, 0).reshape(3, -1).square().mean(1)
        torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"].double(), 0.01 * square, rtol=1e-6, atol=0)


P = torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LAMB", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ("LAMB", {"betas": (0.9, 0.9, 0.9)}, "Invalid betas: .* .2 values"),
        ("LARS", {"trust_coefficient": -0.1}, "Invalid trust_coefficient value: -0.1"),
        ("LARS", {"momentum": 1.0}, "Invalid momentum value: 1.0"),
        ("StableAdamW", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ("AdamMini", {"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ("CautiousLion", {"lr": -1.0}, "Invalid learning rate: -1.0"),
        ("Prodigy", {"d0": 0.0}, "Invalid d0 value: 0.0"),
        ("Prodigy", {"eps": 0.0}, "Invalid epsilon value: 0.0"),
        ("Prodigy", {"beta3": 1.0}, "Invalid beta3 value: 1.0"),
        ("Prodigy", {"growth_rate": torch.tensor([1.0, -2.0])}, "Invalid growth_rate value: -2.0"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)([P], **options)

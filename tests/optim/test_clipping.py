"""`max_grad_norm` is `clip_grad_norm_` before the step, lane by lane, and leaves the gradients as they are."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_

import optim
from kernels import cpu, rules
from kernels import table as tables
from kernels.rule import clipping
from tests.conftest import device_of

SHAPES = ((3, 5), (2047,), (2048,), (2049,), (70, 100), (0,), ())


def parameters(shapes=SHAPES, dtypes=(torch.float32,), device="cpu") -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [torch.nn.Parameter(p.to(device, dtypes[i % len(dtypes)])) for i, p in enumerate(made)]


def give_gradients(params, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.device, p.dtype)


def in_float64(params, classes, max_norm: float, steps, scale=1.0, **options) -> list[torch.Tensor]:
    """What torch makes of it."""
    oracle = [torch.nn.Parameter(p.detach().double().cpu()) for p in params]
    optimizer = classes(oracle, **options)
    for step in steps:
        give_gradients(params, step, scale)
        for p, q in zip(params, oracle, strict=True):
            assert p.grad is not None
            q.grad = p.grad.double().cpu()
        clip_grad_norm_(oracle, max_norm)
        optimizer.step()
    return [q.detach() for q in oracle]


@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e4, math.inf])
@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
def test_a_step_is_that_of_clipped_gradients(backend, name, max_norm):
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    params = parameters(device=device_of(backend))
    start = [p.detach().double().cpu() for p in params]
    expected = in_float64(params, getattr(torch.optim, name), max_norm, range(4), **options)
    optimizer = getattr(optim, name)(params, **options, max_grad_norm=max_norm, backend=backend)
    for step in range(4):
        give_gradients(params, step)
        before = [p.grad.clone() for p in params if p.grad is not None]
        optimizer.step()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before, strict=True) if p.grad is not None)
    for p, q, p0 in zip(params, expected, start, strict=True):
        torch.testing.assert_close(p.detach().double().cpu() - p0, q - p0, rtol=2e-5, atol=2e-6)


CLASSES = [name for name in optim.__all__ if name != "from_rule"]


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_clips(name):
    """A step is one with gradients that were clipped before."""
    ours, other = parameters(((6, 5), (40, 30))), parameters(((6, 5), (40, 30)))
    clipping = getattr(optim, name)(ours, max_grad_norm=0.3, backend="eager")
    plain = getattr(optim, name)(other, backend="eager")
    start = [p.detach().clone() for p in ours]
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(other, step)
        clip_grad_norm_(other, 0.3)
        clipping.step()
        plain.step()
    for p, q, p0 in zip(ours, other, start, strict=True):
        assert (q != p0).any()
        rtol = 2e-2 if name == "Muon" else 1e-3  # Muon multiplies in bfloat16.
        torch.testing.assert_close(p.detach() - p0, q.detach() - p0, rtol=rtol, atol=2e-6 if name != "Muon" else 1e-4)


def test_parameters_of_several_dtypes_and_tied_ones_have_one_norm(backend):
    """Their updates are several launches."""
    params = parameters(SHAPES, (torch.float32, torch.bfloat16), device_of(backend))
    params.append(torch.nn.Parameter(params[0].detach().view(-1)[:4]))
    start = [p.detach().double().cpu() for p in params]
    give_gradients(params, 0)
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in params if p.grad is not None))
    optimizer = optim.SGD(params, lr=1.0, max_grad_norm=0.5 * norm, backend=backend)
    optimizer.step()
    for p, p0 in zip(params[1:-1], start[1:-1], strict=True):
        assert p.grad is not None
        expected = p0 - 0.5 * p.grad.double().cpu()
        rtol, atol = (2**-7, 2**-8) if p.dtype == torch.bfloat16 else (1e-6, 1e-6)
        torch.testing.assert_close(p.detach().double().cpu(), expected, rtol=rtol, atol=atol)


def test_lanes_are_clipped_each_by_its_own_norm_and_have_the_bits_of_a_run_alone(backend):
    norms, device = torch.tensor([0.0, 0.1, 3.0, math.inf]), device_of(backend)
    stacked = parameters(((4, 70, 33), (4, 7), (4,)), device=device)
    alone = [[torch.nn.Parameter(p[k].detach().clone()) for p in stacked] for k in range(4)]
    optimizer = optim.AdamW(stacked, lr=torch.full((4,), 0.1), max_grad_norm=norms, backend=backend)
    others = [
        optim.AdamW(params, lr=0.1, max_grad_norm=norm, backend=backend)
        for params, norm in zip(alone, norms.tolist(), strict=True)
    ]
    for step in range(3):
        give_gradients(stacked, step)
        for k, params in enumerate(alone):
            for p, q in zip(stacked, params, strict=True):
                assert p.grad is not None
                q.grad = p.grad[k].clone()
            others[k].step()
        optimizer.step()
    for k, params in enumerate(alone):
        assert all(torch.equal(p[k], q) for p, q in zip(stacked, params, strict=True)), k


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_does_what_torch_does(backend, value):
    """An infinite one makes every other gradient 0, NaN makes all of them NaN."""
    ours, theirs = parameters(((3,), (5,)), device=device_of(backend)), parameters(((3,), (5,)))
    for params in (ours, theirs):
        give_gradients(params, 0)
        assert params[0].grad is not None
        params[0].grad[1] = value
    optim.Adam(ours, lr=0.1, max_grad_norm=1.0, backend=backend).step()
    clip_grad_norm_(theirs, 1.0)
    torch.optim.Adam(theirs, lr=0.1).step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), equal_nan=True)


def test_a_scaler_is_taken_off_first_and_may_skip(backend):
    params = parameters(((40,), (3,)), device=device_of(backend))
    other = copy.deepcopy(params)
    optimizer = optim.Adam(params, lr=0.1, max_grad_norm=0.7, fused=True, backend=backend)
    plain = optim.Adam(other, lr=0.1, max_grad_norm=0.7, backend=backend)
    device = params[0].device
    for step in range(3):
        give_gradients(params, step, 1024.0)
        give_gradients(other, step)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0, device=device), torch.zeros(1, device=device)
        optimizer.step()
        plain.step()
        before = [p.detach().clone() for p in params]
        optimizer.found_inf = torch.ones(1, device=device)
        optimizer.step()
        assert all(map(torch.equal, params, before))
    assert all(map(torch.equal, params, other))
    assert optimizer.state[params[0]]["step"].item() == 3


def test_groups_without_it_are_neither_clipped_nor_counted(backend):
    params = parameters(((4,), (5,), (6,)), device=device_of(backend))
    start = [p.detach().clone() for p in params]
    groups = [{"params": params[:1], "max_grad_norm": 0.5}, {"params": params[1:2]}]
    groups += [{"params": params[2:], "max_grad_norm": 0.25}]
    optimizer = optim.SGD(groups, lr=1.0, backend=backend)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = [(p0 - p.detach())[0].item() for p0, p in zip(start, params, strict=True)]
    assert moved == pytest.approx([0.5 / math.sqrt(10), 1.0, 0.25 / math.sqrt(10)], rel=1e-5)


def test_saved_states_keep_it_and_torchs_leave_it(backend):
    params = parameters(((4,),), device=device_of(backend))
    theirs = torch.optim.AdamW(params, lr=0.1)
    give_gradients(params, 0)
    theirs.step()
    ours = optim.AdamW(params, lr=0.1, max_grad_norm=0.5, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["max_grad_norm"] == 0.5
    other = optim.AdamW(params, lr=0.1, max_grad_norm=0.1, backend=backend)
    other.load_state_dict(ours.state_dict())
    assert other.param_groups[0]["max_grad_norm"] == 0.5
    assert "max_grad_norm" not in optim.AdamW(params).state_dict()["param_groups"][0]


@pytest.mark.parametrize("value", [-1.0, math.nan, torch.tensor([1.0, -0.5])])
def test_norms_below_0_are_refused(value):
    with pytest.raises(ValueError, match=r"Invalid max_grad_norm value: (-1|nan|-0\.5)"):
        optim.Adam([torch.nn.Parameter(torch.zeros(2, 3))], max_grad_norm=value)


def test_groups_of_different_numbers_of_lanes_are_refused_before_anything_moves():
    first, second = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4, 3))

    def groups() -> list[dict]:
        return [{"params": [first], "lr": torch.ones(2)}, {"params": [second], "lr": torch.ones(4)}]

    with pytest.raises(
        ValueError, match=r"max_grad_norm .*: groups must have as many lanes as each other, not \[2, 4\]"
    ):
        optim.Adam(groups(), max_grad_norm=1.0)
    optimizer = optim.Adam(groups())
    for group in optimizer.param_groups:
        group["max_grad_norm"] = 1.0
    first.grad, second.grad = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.raises(ValueError, match="as many lanes"):
        optimizer.step()
    assert not first.any()
    assert not optimizer.state[first]


def test_it_works_where_tensors_have_no_memory():
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(2))]
        optimizer = optim.AdamW(params, max_grad_norm=1.0)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.state[params[0]]["exp_avg"].shape == (4, 3)


def test_in_a_mode_a_step_is_the_same():
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    params, other = parameters(), parameters()
    for own in (params, other):
        give_gradients(own, 0)
    optim.Adam(params, lr=0.1, max_grad_norm=0.3).step()
    with Mode():
        optim.Adam(other, lr=0.1, max_grad_norm=0.3).step()
    for p, q in zip(params, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=5),
    chunks=st.lists(st.sampled_from([256, 1024, 8192, 65536]), min_size=2, max_size=2, unique=True),
    threads=st.integers(1, 3),
)
def test_bits_do_not_depend_on_chunks_or_threads(sizes, chunks, threads):
    """On the CPU. On a GPU only the update has a configuration: see the tests of compiled kernels."""
    results = []
    before = torch.get_num_threads()
    for chunk, n_threads in zip(chunks, (threads, 1), strict=True):
        params = parameters([(n,) for n in sizes])
        give_gradients(params, 0)
        entries = [tables.Entry(p.detach(), (), torch.zeros(())) for p in params]
        table = tables.build(clipping(rules.sgd), entries, torch.float32, chunk, piles=8)
        table.set_hyper([(1.0, *[0.1 if name == "lr" else 0.0 for name in rules.sgd.hyper], 0.5)])
        torch.set_num_threads(n_threads)
        try:
            cpu.launcher(table)([p.grad for p in params if p.grad is not None], None, None)
        finally:
            torch.set_num_threads(before)
        results.append([p.detach() for p in params])
    for one, other in pairwise(results):
        assert all(map(torch.equal, one, other))

"""Adam and AdamW against `torch.optim` in float64: updates, states, options, errors."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optim
from kernels import multi_tensor
from tests.conftest import device_of
from tests.optim.adam import assert_same_updates, train
from tests.oracle import make_params

BLOCK = multi_tensor.CHUNK_SIZE
SHAPES = ((3,), (0,), (), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (7, 5, 3))
"""Small, empty, a single number, and around the border of a block."""

OPTIONS = (
    {},
    {"lr": 0.1, "betas": (0.5, 0.9999), "eps": 1e-3, "weight_decay": 0.1},
    {"betas": (0.0, 0.0), "maximize": True},
    {"lr": 0.0, "weight_decay": 0.5},
    {"betas": (0.99, 0.9), "eps": 0.0, "lr": 3.0},
)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_step_moves_parameters_as_torch_does_in_float64(backend, name, options):
    steps = 5  # odd: with betas of 0 an element takes equal steps to either side and could come back
    ours = make_params(SHAPES, device=device_of(backend))
    reference = [p.detach().double().cpu().requires_grad_() for p in ours]
    before = [p.detach().clone() for p in reference]
    train(getattr(optim, name)(ours, **options, backend=backend), ours, steps, torch.float32)
    train(getattr(torch.optim, name)(reference, **options), reference, steps, torch.float32)
    assert_same_updates(ours, reference, before, steps, options.get("lr", 1e-3))
    if options.get("lr", 1) > 0:
        assert all((p.detach().double().cpu() != p0).all() for p, p0 in zip(ours, before, strict=True) if p.numel())


@pytest.mark.slow
def test_states_follow_torch_over_many_steps_at_large_beta2(backend):
    """Coefficients formed in float32 would be off by 1.7e-4 here."""
    steps, betas = 60 if backend == "triton" else 300, (0.9, 0.9999)
    ours = make_params([(50,)], device=device_of(backend))
    reference = [p.detach().double().cpu().requires_grad_() for p in ours]
    mine, oracle = optim.Adam(ours, betas=betas, backend=backend), torch.optim.Adam(reference, betas=betas)
    train(mine, ours, steps, torch.float32)
    train(oracle, reference, steps, torch.float32)
    for name in ("exp_avg", "exp_avg_sq"):
        got, expected = mine.state[ours[0]][name].double().cpu(), oracle.state[reference[0]][name]
        torch.testing.assert_close(got, expected, rtol=3e-6, atol=1e-7)
    assert mine.state[ours[0]]["step"].item() == steps


def test_bfloat16_parameters_round_once_and_keep_float32_states(backend):
    ours = make_params([(BLOCK + 9,)], torch.bfloat16, device_of(backend))
    before = ours[0].detach().double().cpu()
    reference = [before.clone().requires_grad_()]
    mine, oracle = optim.Adam(ours, lr=0.05, backend=backend), torch.optim.Adam(reference, lr=0.05)
    train(mine, ours, 1, torch.bfloat16)
    train(oracle, reference, 1, torch.bfloat16)
    state = mine.state[ours[0]]
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq", "step")} == {torch.float32}
    # Nearest rounding to a significand of 8 bits: at most 2^-8 of the exact result away from it.
    error = (ours[0].detach().double().cpu() - reference[0].detach()).abs()
    assert (error <= 2.0**-8 * 1.0001 * reference[0].detach().abs().clamp_min(2.0**-126)).all()
    assert (ours[0].detach().double().cpu() != before).float().mean() > 0.9


def test_float64_on_the_cpu_is_float64():
    ours, reference = make_params([(100,)], torch.float64), make_params([(100,)], torch.float64)
    train(optim.Adam(ours, weight_decay=0.1), ours, 20, torch.float64)
    train(torch.optim.Adam(reference, weight_decay=0.1), reference, 20, torch.float64)
    torch.testing.assert_close(ours[0], reference[0], rtol=1e-13, atol=1e-14)


def test_groups_have_options_of_their_own_and_can_be_added_later(backend):
    device = device_of(backend)
    ours = make_params([(10,), (20,), (30,)], device=device)
    reference = [p.detach().double().cpu().requires_grad_() for p in ours]
    before = [p.detach().clone() for p in reference]

    def build(module, params, **extra):
        groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:2], "betas": (0.5, 0.9), "weight_decay": 0.3}]
        return module.Adam(groups, eps=1e-4, **extra)

    mine, oracle = build(optim, ours, backend=backend), build(torch.optim, reference)
    for optimizer, params in ((mine, ours), (oracle, reference)):
        train(optimizer, params[:2], 2, torch.float32)
        optimizer.add_param_group({"params": params[2:], "lr": 0.02, "maximize": True})
        train(optimizer, params, 3, torch.float32)
    assert_same_updates(ours, reference, before, 5, 0.1)
    assert [int(mine.state[p]["step"]) for p in ours] == [5, 5, 3]


def test_missing_gradients_are_passed_over_and_keep_their_own_step_count(backend):
    ours = make_params([(10,), (20,)], device=device_of(backend))
    reference = [p.detach().double().cpu().requires_grad_() for p in ours]
    before = [p.detach().clone() for p in reference]
    for optimizer, params in ((optim.Adam(ours, backend=backend), ours), (torch.optim.Adam(reference), reference)):
        train(optimizer, params, 1, torch.float32)
        params[0].grad = None
        optimizer.step()
        train(optimizer, params, 2, torch.float32, first_seed=7)
    assert_same_updates(ours, reference, before, 4, 1e-3)


def test_non_contiguous_gradients_are_read_in_order(backend):
    device = device_of(backend)
    ours = make_params([(6, 4)], device=device)
    reference = [p.detach().double().cpu().requires_grad_() for p in ours]
    before = [p.detach().clone() for p in reference]
    grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).to(device)
    ours[0].grad, reference[0].grad = grad.T, grad.T.double().cpu()
    optim.Adam(ours, backend=backend).step()
    torch.optim.Adam(reference).step()
    assert_same_updates(ours, reference, before, 1, 1e-3)


def test_schedulers_and_tensor_learning_rates_take_effect(backend):
    device = device_of(backend)
    for lr in (0.1, torch.tensor(0.1)):
        ours = make_params([(10,)], device=device)
        reference = [p.detach().double().cpu().requires_grad_() for p in ours]
        before = [p.detach().clone() for p in reference]
        for optimizer, params in (
            (optim.Adam(ours, lr=copy.copy(lr), backend=backend), ours),
            (torch.optim.Adam(reference, lr=0.1), reference),
        ):
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            for seed in range(4):
                train(optimizer, params, 1, torch.float32, first_seed=seed)
                scheduler.step()
        assert_same_updates(ours, reference, before, 4, 0.1)


def test_closure_is_evaluated_with_gradients_and_its_loss_returned():
    p = torch.tensor([2.0], requires_grad=True)
    optimizer = optim.Adam([p], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss is not None
    assert loss.item() == 4.0
    assert p.item() == pytest.approx(1.5)


@pytest.mark.parametrize("way", ["torch to ours", "ours to torch", "pickle", "deepcopy"])
def test_state_moves_between_optimizers_without_a_break(way):
    straight, moved = make_params([(40,), (3, 3)]), make_params([(40,), (3, 3)])
    first = (torch.optim if way == "torch to ours" else optim).Adam(moved, lr=0.01, weight_decay=0.1)
    train(first, moved, 5, torch.float32)
    if way == "pickle":
        params, second = pickle.loads(pickle.dumps((moved, first)))
    elif way == "deepcopy":
        params, second = copy.deepcopy((moved, first))
    else:
        params = [p.detach().clone().requires_grad_() for p in moved]
        # Other values than the saved ones: they have to come with the state.
        second = (torch.optim if way == "ours to torch" else optim).Adam(params, lr=5.0, betas=(0.1, 0.1))
        second.load_state_dict(first.state_dict())
    train(second, params, 5, torch.float32, first_seed=5)
    train(torch.optim.Adam(straight, lr=0.01, weight_decay=0.1), straight, 10, torch.float32)
    for p, q in zip(params, straight, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_loaded_states_of_bfloat16_parameters_stay_float32():
    params = make_params([(40,)], torch.bfloat16)
    optimizer = optim.Adam(params)
    train(optimizer, params, 3, torch.bfloat16)
    other = optim.Adam(params)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[params[0]]["exp_avg"], optimizer.state[params[0]]["exp_avg"])


def test_states_of_another_shape_or_lane_count_are_refused_by_sizes():
    saved = make_params([(4, 6)])
    optimizer = optim.Adam(saved, lr=torch.full((4,), 0.1))
    train(optimizer, saved, 2, torch.float32)
    for shape, lr, message in (
        ((2, 12), 0.1, r"parameter 0 of shape \[2, 12\]: exp_avg of its state has shape \[4, 6\]"),
        ((2, 6), torch.full((2,), 0.1), r"parameter 0 of shape \[2, 6\] has 2 lanes, and step of its state 4"),
        ((4, 7), torch.full((4,), 0.1), r"shape \[4, 7\]: exp_avg of its state has shape \[4, 6\]"),
    ):
        params = make_params([shape])
        other = optim.Adam(params, lr=lr)
        state = optimizer.state_dict()
        state["param_groups"][0]["lr"] = lr
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            train(other, params, 1, torch.float32)


def test_clearing_the_state_starts_over():
    a, b = make_params([(5,)]), make_params([(5,)])
    optimizer = optim.Adam(a)
    train(optimizer, a, 3, torch.float32)
    optimizer.state.clear()
    with torch.no_grad():
        a[0].copy_(b[0])
    train(optimizer, a, 2, torch.float32)
    train(optim.Adam(b), b, 2, torch.float32)
    assert torch.equal(a[0], b[0])


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=5),
    lr=st.floats(0, 10),
    # A small beta2 forgets a large gradient that exp_avg remembers: steps of any length, and errors with them.
    betas=st.tuples(st.floats(0, 0.9999), st.floats(0.5, 0.9999)),
    eps=st.floats(1e-12, 1),
    weight_decay=st.floats(0, 0.1),
    maximize=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_list_of_tensors_and_options_updates_as_torch_does(shapes, lr, betas, eps, weight_decay, maximize):
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
    ours = make_params(shapes)
    reference = [p.detach().double().requires_grad_() for p in ours]
    before = [p.detach().clone() for p in reference]
    train(optim.AdamW(ours, **options), ours, 3, torch.float32)
    train(torch.optim.AdamW(reference, **options), reference, 3, torch.float32)
    assert_same_updates(ours, reference, before, 3, 3 * lr)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"lr": float("nan")},
    ],
    ids=str,
)
def test_values_out_of_range_raise_what_torch_raises(options):
    p = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(ValueError, match="Invalid") as ours:
        optim.Adam(p, **options)
    if not np.isnan(options.get("lr", 0)):  # torch accepts a learning rate of NaN
        with pytest.raises(ValueError, match="Invalid") as theirs:
            torch.optim.Adam(p, **options)
        assert str(ours.value) == str(theirs.value)


def test_unfit_tensors_are_refused_by_name_and_nothing_moves():
    good = torch.ones(3, requires_grad=True)
    good.grad = torch.ones(3)
    cases = [
        (
            torch.ones(2, dtype=torch.float64).requires_grad_(),
            TypeError,
            "parameter 1 of shape.*takes float32",
        ),
        (torch.ones(1).expand(3).requires_grad_(), RuntimeError, r"parameter 1 of shape \[3\]: several elements share"),
    ]
    for bad, error, message in cases:
        bad.grad = torch.ones_like(bad)
        with pytest.raises(error, match=message):
            optim.Adam([good, bad], backend="triton").step()
    sparse = torch.nn.Embedding(4, 2, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"not support sparse gradients.*parameter 1"):
        optim.Adam([good, sparse.weight]).step()
    assert torch.equal(good.detach(), torch.ones(3))

"""Prodigy's d: one for all tensors, whatever each of them misses."""

import copy

import pytest
import torch

import optim
from tests.conftest import device_of
from tests.optim import papers_sums
from tests.optim.descents import INTERPRETED_SLOWLY, SHAPES, descend, followed, gradient, start_of
from tests.oracle import assert_same_updates, make_params


def d_of(optimizer: optim.Prodigy) -> list[float]:
    return [float(state["d"]) for state in optimizer.state.values()]


@INTERPRETED_SLOWLY
def test_prodigy_finds_one_d_for_all_tensors(backend):
    params = make_params(SHAPES, device=device_of(backend))
    # Of two dtypes: two launches share the sums.
    params[0] = params[0].detach().bfloat16().requires_grad_()
    optimizer, state = optim.Prodigy(params, d0=1e-3, backend=backend), {}
    found = start_of(params)
    for step in range(6):
        grads = [gradient(p, i, step) for i, p in enumerate(params)]
        found = papers_sums.prodigy(found, grads, state, d0=1e-3)
        descend(optimizer, params, range(step, step + 1))
        found[0] = params[0].detach().double().cpu()  # as it is stored
    assert len(set(d_of(optimizer))) == 1
    assert state["d"] > 5e-3
    assert d_of(optimizer)[0] == pytest.approx(state["d"], rel=1e-3)


def test_prodigy_waits_for_a_gradient_and_for_a_learning_rate(backend):
    params = make_params(((5,), (2, 3)), device=device_of(backend))
    optimizer = optim.Prodigy(params, d0=1e-2, weight_decay=0.5, backend=backend)
    start = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    descend(optimizer, params, range(2))
    assert all(torch.equal(p, q) for p, q in zip(params, start, strict=True))
    assert all(float(optimizer.state[p]["k"]) == 0 for p in params)
    optimizer.param_groups[0]["lr"] = 1.0
    expected = followed("Prodigy", params, range(5), d0=1e-2, weight_decay=0.5)
    before = start_of(params)
    descend(optimizer, params, range(5))
    assert_same_updates(params, expected, before, 5, 1e-5)


@INTERPRETED_SLOWLY
def test_groups_of_prodigy_share_d_and_rest_without_a_learning_rate(backend):
    """One never has one, one loses it for good, and in two steps none has."""
    params = make_params(((5,), (6,), (7,)), device=device_of(backend))
    before, state, found = start_of(params), {}, start_of(params)
    groups = [{"params": params[:1], "weight_decay": 0.2}, {"params": params[1:2]}, {"params": params[2:]}]
    optimizer = optim.Prodigy(groups, d0=1e-2, backend=backend)
    for step in range(12):
        lrs = [0.0, 0.0, 0.0] if step in (6, 7) else [1.0, 0.0, 0.5 if step < 9 else 0.0]
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        grads = [gradient(p, i, step) for i, p in enumerate(params)]
        found = papers_sums.prodigy(found, grads, state, lr=lrs, weight_decay=[0.2, 0.0, 0.0], d0=1e-2)
        descend(optimizer, params, range(step, step + 1))
    assert torch.equal(params[1].double().cpu(), before[1])
    assert_same_updates(params[::2], found[::2], before[::2], 12, 1e-5)
    assert len(set(d_of(optimizer))) == 1
    assert d_of(optimizer)[0] == pytest.approx(state["d"], rel=1e-4)
    assert float(optimizer.state[params[1]]["k"]) == state["k"] == 10


@pytest.mark.parametrize("backend", ["cpu", "eager"], indirect=True)
def test_a_parameter_that_missed_steps_takes_d_from_the_others(backend):
    """Of the three one rests for a while, and one gets its first gradient late."""
    params = make_params(((50,), (60,), (70,)))
    before, state, found = start_of(params), {}, start_of(params)
    optimizer = optim.Prodigy(params, d0=1e-2, backend=backend)
    for step in range(9):
        without = {0: (2,), 1: (0, 2)}.get(step // 3, ())
        grads = [None if i in without else gradient(p, i, step) for i, p in enumerate(params)]
        found = papers_sums.prodigy(found, grads, state, d0=1e-2)
        descend(optimizer, params, range(step, step + 1), without)
        if step == 4:  # The one that counts the newest d is found in a checkpoint, too.
            saved, optimizer = optimizer.state_dict(), optim.Prodigy(params, d0=1e-2, backend=backend)
            optimizer.load_state_dict(copy.deepcopy(saved))
    assert len(set(d_of(optimizer))) == 1
    assert d_of(optimizer)[0] == pytest.approx(state["d"], rel=1e-4)
    assert_same_updates(params, found, before, 9, 1e-5)


def test_prodigy_keeps_its_distance_where_a_scaler_skips_a_step(backend):
    ours, others = (make_params(((40,), (3,)), device=device_of(backend)) for _ in range(2))
    first, second = (optim.Prodigy(params, d0=1e-2, backend=backend) for params in (ours, others))
    descend(first, ours, range(4))
    for step in range(4):
        second.found_inf = torch.ones(1, device=device_of(backend))
        descend(second, others, range(9, 10))
        second.found_inf = torch.zeros(1, device=device_of(backend))
        descend(second, others, range(step, step + 1))
    assert all(torch.equal(p, q) for p, q in zip(ours, others, strict=True))
    assert d_of(first) == d_of(second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_state_of_prodigy_goes_on_with_the_same_bits(tmp_path, dtype):
    straight, moved = (make_params(((40,), (3, 3), ()), dtype) for _ in range(2))
    descend(optim.Prodigy(straight, backend="eager"), straight, range(8))
    first = optim.Prodigy(moved, backend="eager")
    descend(first, moved, range(4))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = optim.Prodigy(moved, lr=5.0, d0=1.0, backend="eager")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    descend(second, moved, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(straight, moved, strict=True))
    assert min(d_of(second)) > 1e-6


P = torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize("option", [{"d0": 1e-3}, {"betas": (0.9, 0.99)}, {"beta3": 0.5}, {"d_coef": 2.0}], ids=str)
def test_groups_of_prodigy_that_would_find_another_d_are_refused(option):
    q, (name, value) = torch.zeros(3, requires_grad=True), *option.items()
    with pytest.raises(ValueError, match=f"{name} of Prodigy must be the same in all groups"):
        optim.Prodigy([{"params": [P]}, {"params": [q], **option}])
    optimizer = optim.Prodigy([P], **option)
    with pytest.raises(ValueError, match=f"{name} of Prodigy must be the same"):
        optimizer.add_param_group({"params": [q], name: 0.25 if name != "betas" else (0.5, 0.5)})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q], "lr": 0.0, name: value})

"""What every optimizer here promises of its steps, for Muon, whose step is two launches around products of matrices."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import optim
from optim.muon import newton_schulz
from tests.conftest import device_of
from tests.optim import papers
from tests.optim.muon import make
from tests.oracle import assert_same_updates, make_params, train

NS = (3.4445, -4.7750, 2.0315), 5, 1e-7


def test_matrices_of_any_layout_and_gradients_that_move_step_as_contiguous_ones(backend):
    """Lying column by column, with gaps, and stacked with gaps; the gradients lie in another order."""
    start = make_params([(6, 4), (6, 4), (4, 6), (2, 5, 3)], device=device_of(backend))
    start = [p.detach() for p in start]
    results = []
    for plain in (True, False):
        columns, stacked = start[0].T.contiguous().T, start[3].permute(2, 0, 1).contiguous().permute(1, 2, 0)
        gaps = torch.zeros(6, 8, device=start[0].device)
        gaps[:, ::2] = start[1]
        params = [columns, gaps[:, ::2], start[2].clone(), stacked]
        params = [(p.contiguous() if plain else p).detach().requires_grad_() for p in params]
        lanes = {"params": params[3:], "lr": torch.tensor([0.05, 0.1])}
        optimizer = make([{"params": params[:3]}, lanes], backend=backend, weight_decay=0.3)
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                grad = torch.randn(p.shape, generator=generator).to(p.device)
                p.grad = grad if plain else grad.mT.contiguous().mT
            optimizer.step()
        results.append([p.detach().contiguous() for p in params])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-3, atol=2e-3)
        assert p.isfinite().all()
    assert all((p - q).norm() > 0.1 for p, q in zip(results[0], start, strict=True))


def test_missing_gradients_closures_and_frozen_parameters():
    params = make_params([(3, 4), (4, 3), (3, 4)])
    optimizer, start = make(params), [p.detach().clone() for p in params]
    params[0].grad, params[1].grad = torch.ones(3, 4), torch.ones(4, 3)
    assert optimizer.step(lambda: 7.0) == 7.0
    params[1].grad, params[2].grad = None, torch.ones(3, 4)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 1, 1]
    assert not any(torch.equal(p, q) for p, q in zip(params, start, strict=True))
    for p in params:
        p.grad = None
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 1, 1]


@pytest.mark.parametrize("way", ["file", "pickle", "deepcopy"])
def test_training_goes_on_with_the_same_bits(way):
    results = []
    for moves in (False, True):
        params = make_params([(6, 4), (4, 6), (5,)], torch.bfloat16)
        groups = [{"params": params[:2], "ns_steps": 4}, {"params": params[2:], "use_muon": False}]
        optimizer = make(groups, rounding="stochastic", state_dtype=torch.bfloat16, maximize=True)
        train(optimizer, params, 3)
        if moves and way == "file":
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = make([{"params": params[:2]}, {"params": params[2:], "use_muon": False}])
            optimizer.rounding = "stochastic"
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        elif moves:
            move = copy.deepcopy if way == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
            params, optimizer = move((params, optimizer))
        train(optimizer, params, 3, first_seed=3)
        results.append([p.detach() for p in params])
    assert all(map(torch.equal, *results))


def test_a_copy_keeps_the_dtype_of_products():
    (p,) = make_params([(3, 4)])
    optimizer = copy.deepcopy(make([p], ns_dtype=torch.float64))
    assert optimizer.ns_dtype == torch.float64


def test_what_changes_between_steps_takes_effect(backend):
    params = make_params([(6, 4), (4, 6)], device=device_of(backend))
    optimizer, states = make(params, ns_dtype=torch.float32, backend=backend), [{}, {}]
    before = [p.detach().double().cpu() for p in params]
    expected, options = before, dict[str, Any](lr=0.05)
    changes = ({}, {"ns_steps": 2}, {"ns_coefficients": (2.0, -1.5, 0.5)}, {"adjust_lr_fn": "match_rms_adamw"})
    for step, change in enumerate((*changes, {"nesterov": False}, {"lr": 0.2, "weight_decay": 0.0, "eps": 30.0})):
        options |= change
        optimizer.param_groups[0].update(change)
        train(optimizer, params, 1, first_seed=step)
        generator = torch.Generator().manual_seed(step)
        grads = [torch.randn(p.shape, generator=generator).double() for p in params]
        steps = zip(expected, grads, states, strict=True)
        expected = [papers.muon(p, grad, state, step + 1, **options) for p, grad, state in steps]
    assert_same_updates(params, expected, before, 6, 1e-5)


def test_bfloat16_matrices_are_rounded_once_and_keep_a_float32_state(backend):
    """After torch's class they would have been rounded twice, and without nesterov their momentum scaled in place."""
    (p,) = make_params([(33, 32)], torch.bfloat16, device_of(backend))
    optimizer, momentum = make([p], lr=0.5, nesterov=False, backend=backend), torch.zeros(33, 32)
    for step in range(3):
        before = p.detach().double().cpu()
        grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
        momentum = 0.95 * momentum + 0.05 * grad.float()
        p.grad = grad.to(p.device)
        optimizer.step()
        ratio = (33 / 32) ** 0.5
        exact = (1 - 0.05) * before - 0.5 * ratio * newton_schulz(momentum, *NS).double()
        error = (p.detach().double().cpu() - exact).abs()
        # Half a unit in the last place, and what another rounding of the momentum to bfloat16 changes.
        assert (error <= 0.5001 * 2.0**-7 * exact.abs() + 2e-3).all()
    assert optimizer.state[p]["momentum_buffer"].dtype == torch.float32


def test_stochastic_rounding_is_unbiased_and_differs_from_step_to_step(backend):
    """Steps of a hundredth of the last digit add up."""
    p = torch.full((32, 32), 1.0, dtype=torch.bfloat16, device=device_of(backend)).requires_grad_()
    options = {"lr": 2.0**-12, "weight_decay": 0.0, "backend": backend}
    optimizer = make([p], **options, rounding="stochastic", seed=3)
    grad = torch.eye(32).bfloat16().to(p.device)
    for _ in range(32):
        p.grad = grad.clone()
        optimizer.step()
    diagonal = p.detach().float().diagonal()
    assert (diagonal < 1).float().mean() > 0.5  # with the same noise in each step only a few would ever move
    moved = 1.0 - diagonal.mean().item()
    expected = 32 * 2.0**-12 * newton_schulz(torch.eye(32), *NS).float().diagonal().mean().item()
    assert moved == pytest.approx(expected, rel=0.5)
    assert (p.detach().float() + torch.diag(torch.ones(32, device=p.device)) > 0.999).all()


def test_a_scaler_divides_skips_and_unscales(backend):
    device = device_of(backend)
    results = []
    for scale in (None, 8.0):
        params = make_params([(4, 3), (3, 4)], device=device)
        optimizer = make(params, backend=backend)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(device) * (scale or 1.0)
            before = [p.detach().clone() for p in params]
            if scale is not None:
                optimizer.grad_scale = torch.full((), scale, device=device)
                optimizer.found_inf = torch.ones((), device=device)
                optimizer.step()
                assert all(map(torch.equal, params, before))
                optimizer.found_inf = torch.zeros((), device=device)
            optimizer.step()
        results.append([p.detach() for p in params])
        assert optimizer.state[params[0]]["step"].item() == 3
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("watched", [False, True])
def test_gradients_are_clipped_by_the_norm_of_both_groups(backend, watched):
    results = []
    for own in (True, False):
        params = make_params([(4, 3), (3, 4), (5,)], device=device_of(backend))
        groups = [{"params": params[:2]}, {"params": params[2:], "use_muon": False}]
        optimizer = make(groups, maximize=True, backend=backend, max_grad_norm=0.5 if own else None)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = (step + 1) * torch.randn(p.shape, generator=generator).to(p.device)
            if not own:
                torch.nn.utils.clip_grad_norm_(params, 0.5)
            with FlopCounterMode(display=False) if watched else torch.enable_grad():
                optimizer.step()
        results.append([*(p.detach() for p in params), *(optimizer.state[p]["momentum_buffer"] for p in params[:2])])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)
    assert results[0][-1].norm() < 0.5


def test_each_lane_is_clipped_by_its_own_norm():
    results = []
    for largest in (torch.tensor([0.1, 1e9]), None):
        (p,) = make_params([(2, 4, 3)])
        optimizer = make([p], lr=torch.tensor([0.1, 0.2]), max_grad_norm=largest)
        train(optimizer, [p], 2)
        results.append(optimizer.state[p]["momentum_buffer"])
    assert results[0][0].norm() < 0.1 < results[1][0].norm()
    assert torch.equal(results[0][1], results[1][1])


def test_tied_matrices_are_updated_in_turn_as_in_torch():
    results = []
    for owner, extra in ((optim, {"backend": "eager"}), (torch.optim, {})):
        whole = torch.linspace(-1, 1, 40, dtype=torch.float64).view(8, 5)
        params = [whole[:6].detach().requires_grad_(), whole[2:].detach().requires_grad_()]
        train(owner.Muon(params, lr=0.1, **extra), params, 3)
        results.append(whole)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_empty_matrices_do_nothing(backend):
    params = make_params([(0, 3), (3, 0), (2, 2)], device=device_of(backend))
    train(make(params, backend=backend), params, 2)
    assert params[2].isfinite().all()

"""Steps of lanes: each does what a run of its own would, whatever happens in the others."""

import pytest
import torch

import optim
from kernels import multi_tensor
from tests.conftest import device_of
from tests.optim.adam import assert_same_updates, train
from tests.oracle import make_params

BLOCK = multi_tensor.CHUNK_SIZE


def test_lanes_continue_from_the_state_of_a_single_configuration():
    single, lanes = make_params([(3, 5)]), make_params([(3, 5)])
    first = optim.Adam(single, lr=0.1)
    train(first, single, 2, torch.float32)
    second = optim.Adam(lanes, lr=torch.full((3,), 0.1, dtype=torch.float64))
    state = first.state_dict()
    state["param_groups"][0]["lr"] = second.param_groups[0]["lr"]
    second.load_state_dict(state)
    with torch.no_grad():
        lanes[0].copy_(single[0])
    for optimizer, params in ((first, single), (second, lanes)):
        train(optimizer, params, 2, torch.float32, first_seed=2)
    assert torch.equal(single[0], lanes[0])
    assert second.state[lanes[0]]["step"].tolist() == [4, 4, 4]


def test_each_lane_follows_its_own_hyperparameters(backend):
    device = device_of(backend)
    lanes, steps = 5, 4
    lr = torch.tensor([1e-3, 1e-2, 0.1, 1.0, 0.0])
    beta1, beta2 = torch.tensor([0.9, 0.0, 0.5, 0.99, 0.9]), torch.tensor([0.999, 0.9, 0.9999, 0.0, 0.99])
    eps, decay = torch.tensor([1e-8, 1e-3, 1e-8, 1.0, 1e-8]), torch.tensor([0.0, 0.1, 0.0, 0.5, 1.0])
    ours = make_params([(lanes, BLOCK + 3), (lanes,), (lanes, 2, 3), (lanes, 0)], device=device)
    before = [p.detach().double().cpu() for p in ours]
    options = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    train(optim.AdamW(ours, **options, backend=backend), ours, steps, torch.float32)
    for k in range(lanes):
        # A lane's gradients are slices of the stacked ones.
        alone = [p0.clone().requires_grad_() for p0 in before]
        betas = (beta1[k].item(), beta2[k].item())
        solo = torch.optim.AdamW(alone, lr=lr[k].item(), betas=betas, eps=eps[k].item(), weight_decay=decay[k].item())
        train(solo, alone, steps, torch.float32)
        assert_same_updates([p[k] for p in ours], [p[k] for p in alone], [p[k] for p in before], steps, lr[k].item())


def test_a_lane_of_nan_leaves_the_bits_of_its_neighbours(backend):
    device = device_of(backend)
    lr = torch.tensor([0.01, 0.02, 0.03])

    def trained(poison: float) -> torch.Tensor:
        params = make_params([(3, BLOCK + 3)], device=device)
        optimizer = optim.Adam(params, lr=lr, backend=backend)
        for seed in range(4):
            params[0].grad = torch.randn(params[0].shape, generator=torch.Generator().manual_seed(seed)).to(device)
            if seed == 1:
                params[0].grad[1] = poison
            optimizer.step()
        return params[0].detach().cpu()

    healthy = trained(0.5)
    for poison in (float("nan"), float("inf")):
        sick = trained(poison)
        assert sick[1].isnan().all()
        assert torch.equal(sick[[0, 2]], healthy[[0, 2]])


def test_lanes_of_equal_values_equal_a_single_value_bitwise():
    a, b = make_params([(4, 30)]), make_params([(4, 30)])
    train(optim.Adam(a, lr=torch.full((4,), 0.01, dtype=torch.float64)), a, 3, torch.float32)
    train(optim.Adam(b, lr=0.01), b, 3, torch.float32)
    assert torch.equal(a[0], b[0])


def test_lanes_that_do_not_fit_are_refused_by_name_and_sizes():
    p = torch.zeros(3, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"it has 4, so parameter 0 must be stacked \[4, ...\]; its shape is \[3, 4\]"):
        optim.Adam([p], lr=torch.ones(4))
    with pytest.raises(ValueError, match="lr has 3, beta2 has 2"):
        optim.Adam([p], lr=torch.ones(3), betas=(0.9, torch.tensor([0.9, 0.99])))
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        optim.Adam([p], lr=torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="Invalid backend: 'gpu'"):
        optim.Adam([p], backend="gpu")
    with pytest.raises(ValueError, match=r"lr is on meta, and a parameter of shape \[3, 4\] on cpu"):
        optim.Adam([p], lr=torch.ones(3, device="meta"))

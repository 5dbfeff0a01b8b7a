"""What only a GPU can show: alignment, big tensors, devices, and a sweep that runs the Triton kernel."""

import numpy as np
import pytest
import torch

import optim
from experiments import sweep

pytestmark = pytest.mark.gpu


def test_large_tensors_move_as_torch_fused_moves_them():
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.randn(2**24 + 12345, device="cuda", generator=generator, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    start = a.detach().clone()
    ours, theirs = optim.AdamW([a], lr=0.01), torch.optim.AdamW([b], lr=0.01, fused=True)
    for _ in range(3):
        a.grad = torch.randn(a.shape, device="cuda", generator=generator)
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a.detach() - start, b.detach() - start, rtol=1e-4, atol=1e-6)
    assert (a.detach() != start).all()


def test_misaligned_views_do_not_fault_and_leave_their_surroundings():
    buffer = torch.full((5001,), 7.0, device="cuda")
    p = buffer[1:4099].requires_grad_()
    p.grad = torch.ones(4099, device="cuda")[1:]
    optim.Adam([p], lr=0.5).step()
    torch.cuda.synchronize()
    assert (buffer[:1] == 7).all()
    assert (buffer[4099:] == 7).all()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 6.5))


def test_hyperparameters_on_the_device_and_on_the_cpu_give_the_same_bits():
    results = []
    for device in ("cpu", "cuda"):
        p = torch.zeros(3, 2000, device="cuda", requires_grad=True)
        optimizer = optim.Adam([p], lr=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, device=device))
        for seed in range(3):
            p.grad = torch.randn(p.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
            optimizer.step()
        results.append(p.detach().clone())
    assert torch.equal(*results)


def test_parameters_on_both_devices_share_an_optimizer():
    params = [torch.zeros(10, requires_grad=True), torch.zeros(10, device="cuda", requires_grad=True)]
    optimizer = optim.Adam(params, lr=0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in params:
        torch.testing.assert_close(p.detach().cpu(), torch.full((10,), -0.5))


def test_a_sweep_on_the_gpu_ends_where_the_cpu_ends():
    options = {"lr": [1e-3, 1e-2], "beta2": [0.99, 0.999], "seeds": 2, "steps": 50, "progress": False}
    gpu, cpu = (sweep.sweep("regression", device=device, **options) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(gpu.runs.eval_loss, cpu.runs.eval_loss, rtol=0.02)
    assert gpu.provenance["device"]["name"] == torch.cuda.get_device_name()

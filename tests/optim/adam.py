"""What the tests of Adam share: steps with gradients of a given dtype, and how far from float64 counts as equal."""

import torch


def train(optimizer: torch.optim.Optimizer, params: list[torch.Tensor], steps: int, grad_dtype, first_seed=0) -> None:
    """Steps with gradients that depend on the step alone, whatever the dtype of the parameters."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(first_seed + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(grad_dtype).to(p.device, p.dtype)
        optimizer.step()


def assert_same_updates(ours, reference, before, steps: int, lr: float) -> None:
    """Every element has moved as far as in float64, up to what float32 parameters of its size can hold."""
    for p, q, p0 in zip(ours, reference, before, strict=True):
        moved, expected = p.detach().double().cpu() - p0, q.detach() - p0
        bound = steps * 2e-7 * (p0.abs() + q.detach().abs()) + 3e-6 * steps * lr + 1e-7 * expected.abs()
        assert ((moved - expected).abs() <= bound).all()

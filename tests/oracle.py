"""What the optimizer tests share: parameters, gradients, and how far from the oracle counts as equal."""

import torch


def make_params(shapes, dtype=torch.float32, device="cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).to(device).requires_grad_() for shape in shapes]


def train(optimizer: torch.optim.Optimizer, params: list[torch.Tensor], steps: int, first_seed: int = 0) -> None:
    """Steps with gradients that are the same numbers for parameters of any dtype."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(first_seed + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
        optimizer.step()


def assert_same_updates(ours, reference, before, steps: int, rtol: float) -> None:
    """Every element has moved as in float64: to rtol of the tensor's largest move, and to what its dtype can hold."""
    for p, q, p0 in zip(ours, reference, before, strict=True):
        moved, expected = p.detach().double().cpu() - p0, q.detach() - p0
        if not p.numel():
            continue
        assert expected.abs().max() > 0
        held = steps * torch.finfo(p.dtype).eps * (p0.abs() + q.detach().abs())
        assert ((moved - expected).abs() <= held + rtol * steps * expected.abs().max()).all(), (
            (moved - expected).abs().max()
        )

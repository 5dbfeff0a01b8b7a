"""What the tests of compressed states share: codes and steps in float64, by formulas of their own."""

import torch

BLOCK = 256
LARGEST = {"exp_avg": 127, "exp_avg_sq": 255}


def in_blocks(x: torch.Tensor, lanes: int = 1) -> torch.Tensor:
    """View a tensor without gaps as `[lanes, n_blocks, BLOCK]`, in the order of memory, filled up with zeros."""
    flat = x.as_strided((x.numel(),), (1,)).reshape(lanes, -1)
    padded = torch.zeros(lanes, -(-flat.shape[1] // BLOCK) * BLOCK, dtype=x.dtype)
    padded[:, : flat.shape[1]] = flat
    return padded.view(lanes, -1, BLOCK)


def decoded(name: str, state: dict, lanes: int = 1) -> torch.Tensor:
    """Return the numbers, float64 `[lanes, n_blocks, BLOCK]`, that a state's codes and scales stand for."""
    codes, scale = state[name].cpu(), state[f"{name}_scale"].cpu().double().view(lanes, -1, 1)
    root = in_blocks(codes.double(), lanes) / LARGEST[name]
    return root.sign() * root**4 * scale


def check_codes(name: str, state: dict, exact: torch.Tensor, lanes: int = 1) -> None:
    """Assert that codes and scales are the nearest to the exact numbers, float64 `[lanes, n_blocks, BLOCK]`."""
    scale = exact.abs().amax(-1, keepdim=True)
    stored = state[f"{name}_scale"].cpu().double().view(scale.shape)
    torch.testing.assert_close(stored, scale, rtol=1e-5, atol=0)
    wanted = exact.sign() * LARGEST[name] * (exact.abs() / scale.clamp_min(1e-300)) ** 0.25
    codes = in_blocks(state[name].cpu().double(), lanes)
    # To nearest, and 2.9e-4 that each of two roots may be off.
    off = (codes - wanted).abs() - 5.8e-4 * wanted.abs()
    kept = (codes == 1) & (wanted > 0) & (wanted < 0.5) & (name == "exp_avg_sq")
    assert (kept | (off <= 0.501)).all(), off.max()
    if name == "exp_avg_sq":
        assert ((codes > 0) == (exact > 0)).all()


def exact_step(name: str, p: torch.Tensor, grad: torch.Tensor, states: list[torch.Tensor], step: int, options: dict):
    """Return the change of p and the new states of a class of `optim`; all float64, states of any shape like grad's."""
    lr, decay = options["lr"], options.get("weight_decay", 0.0)
    if name == "Lion":
        (m,), (beta1, beta2) = states, options["betas"]
        return -lr * (decay * p + (beta1 * m + (1 - beta1) * grad).sign()), [beta2 * m + (1 - beta2) * grad]
    (m, v), (beta1, beta2) = states, options["betas"]
    m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
    denominator = (v / (1 - beta2**step)).sqrt() + options["eps"]
    return -lr * (decay * p + m / (1 - beta1**step) / denominator), [m, v]

"""Multilayer perceptrons as stacks of lanes: every parameter is `[lanes, ...]`, with one forward pass for all.

A lane computes what the ordinary `torch.nn` model computes with the same seed, from which its initial weights come.

Activations are `[lanes, features, batch]`: a weight `[lanes, out, in]` multiplies from the left, and a matrix product
gives its gradient in the layout of the weight.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from experiments.tasks.model import Model, exactly
from kernels.config import cpu_name

# torch.compile calls this product on the CPU; it is not public, so a version of torch may lack it.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
USES_ONEDNN = HAS_ONEDNN and "AMD" in cpu_name()
"""Whether the first layer calls oneDNN: MKL, which torch.bmm calls, takes a fifth longer there on AMD processors."""


def mlp(*widths: int, name: str = "mlp", dropout: float = 0.0) -> Model:
    """Return linear layers with ReLU and dropout between them; two widths make a linear model."""

    def build() -> nn.Sequential:
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return (Masked if dropout else nn.Sequential)(*layers[:-1])

    title = f"{name} {'-'.join(map(str, widths))}" + f" dropout {exactly(dropout)}" * bool(dropout)
    return Model(title, widths, build, mlp_forward, dropout=dropout)


class Masked(nn.Sequential):
    """An nn.Sequential that multiplies the output of each ReLU by a mask `[width, batch]`, if it is given masks."""

    def forward(self, x: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        remaining = iter(masks)
        for layer in self:
            x = layer(x)
            if masks and isinstance(layer, nn.ReLU):
                x = x * next(remaining).T
        return x


class SharedProduct(torch.autograd.Function):
    """weight `[n_inputs, rows, features]` times x `[n_inputs, batch, features]`, plus bias, by oneDNN in float32.

    Returns `[n_inputs * rows, batch]`; bias is `[n_inputs * rows, 1]`.
    """

    @staticmethod
    def forward(ctx, weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return onednn_products(weight, x).add_(bias)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        n_inputs, batch, features = x.shape
        stacked = grad.contiguous().view(n_inputs, -1, batch)
        weight_grad = onednn_products(stacked, x.mT.contiguous()).view(n_inputs, -1, features)
        return weight_grad, grad.sum(dim=1, keepdim=True), None


def onednn_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return each matrix of a `[i, m, k]` times the transposed one of b `[i, n, k]`, stacked: `[i * m, n]`."""
    product = torch.ops.mkldnn._linear_pointwise
    # One matrix at a time, on all threads: a few large ones divide badly among threads. A single product is not copied.
    products = [product(a_i, b_i, None, "none", [], None) for a_i, b_i in zip(a, b, strict=True)]
    return products[0] if len(products) == 1 else torch.cat(products)


def first_layer(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the outputs of the first layer in memory of their own, to be viewed as `[lanes, out, batch]`.

    Lanes that share an input are rows of one large matrix; x is never copied.
    """
    n_inputs, _, features = x.shape
    stacked = weight.view(n_inputs, -1, features)
    if USES_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32:
        return SharedProduct.apply(stacked, bias.view(-1, 1), x)
    return torch.baddbmm(bias.view(n_inputs, -1, 1), stacked, x.transpose(1, 2))


def mlp_forward(params: Sequence[torch.Tensor], x: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
    """Apply linear layers with ReLU between them.

    Args:
        params: weight `[lanes, out, in]` and bias `[lanes, out]` of each layer in turn.
        masks: `[n_inputs, width, batch]` for each hidden layer, or none at all.
    """
    lanes, batch = len(params[0]), x.shape[1]
    hidden = first_layer(params[0], params[1], x)
    for layer, (weight, bias) in enumerate(zip(params[2::2], params[3::2], strict=True)):
        # ReLU comes before the view: in place on a view, autograd would copy the gradient twice.
        hidden = hidden.relu_().view(lanes, -1, batch)
        if masks:
            hidden = (hidden.unflatten(0, (len(x), -1)) * masks[layer].unsqueeze(1)).flatten(0, 1)
        hidden = linear(weight, bias, hidden)
    return hidden.view(lanes, -1, batch)


def linear(weight: torch.Tensor, bias: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return `[lanes, out, batch]` from weight `[lanes, out, in]`, bias `[lanes, out]`, hidden `[lanes, in, batch]`."""
    return torch.baddbmm(bias.unsqueeze(2), weight, hidden)

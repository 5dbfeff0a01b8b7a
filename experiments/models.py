"""Models as stacks of lanes: every parameter `[lanes, ...]`, one forward pass for all.

A lane computes what the ordinary `torch.nn` model beside it computes with the same seed; the
model in `torch.nn` is where a lane's initial weights come from.

Activations are `[lanes, features, batch]`: a weight `[lanes, out, in]` then multiplies from the
left, and its gradient comes out of a matrix product in the layout that it has to have.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

# What torch.compile calls on the CPU; not public, hence the question.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@dataclass(frozen=True)
class Model:
    """A network that can be trained alone or stacked.

    Attributes:
        name: as in tables, for example "mlp 784-32-32-10".
        widths: features of every layer, input first.
        build: makes the ordinary module, initialised from torch's global generator.
    """

    name: str
    widths: tuple[int, ...]
    build: Callable[[], nn.Sequential]

    @property
    def n_params(self) -> int:
        return sum(a * b + b for a, b in zip(self.widths, self.widths[1:], strict=False))


def mlp(*widths: int, name: str = "mlp") -> Model:
    """Linear layers with ReLU between them; two widths make a linear model."""

    def build() -> nn.Sequential:
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return Model(f"{name} {'-'.join(map(str, widths))}", widths, build)


def stack(model: Model, seeds: Sequence[int], n_configs: int, dtype=torch.float32, device="cpu") -> list[torch.Tensor]:
    """Leaves `[len(seeds) * n_configs, ...]`, seed by seed: all lanes of a seed begin with the same weights.

    Torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        alone = []
        for seed in seeds:
            torch.manual_seed(seed)
            alone.append([p.detach().to(dtype) for p in model.build().parameters()])
    return [
        torch.stack(of_seeds).repeat_interleave(n_configs, dim=0).to(device).requires_grad_()
        for of_seeds in zip(*alone, strict=True)
    ]


class SharedProduct(torch.autograd.Function):
    """weight `[n_inputs, rows, features]` times inputs `[n_inputs, batch, features]`, float32 on the CPU, by oneDNN.

    torch.bmm goes to MKL, which on AMD processors takes a fifth longer for these shapes.
    """

    @staticmethod
    def forward(ctx, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return onednn_products(weight, x)  # [n_inputs * rows, batch]

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        n_inputs, batch, features = x.shape
        stacked = grad.contiguous().view(n_inputs, -1, batch)
        return onednn_products(stacked, x.mT.contiguous()).view(n_inputs, -1, features), None


def onednn_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Each a `[m, k]` of a stack times the transpose of its b `[n, k]`, one below the other."""
    product = torch.ops.mkldnn._linear_pointwise
    # One matrix at a time, on all threads: a few large ones divide badly among them. One alone is not copied.
    products = [product(a_i, b_i, None, "none", [], None) for a_i, b_i in zip(a, b, strict=True)]
    return products[0] if len(products) == 1 else torch.cat(products)


def first_layer(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`[lanes, out, batch]`: lanes that share an input are rows of one large matrix. x is never copied."""
    lanes, width, features = weight.shape
    n_inputs, batch, _ = x.shape
    stacked = weight.view(n_inputs, -1, features)
    if HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32:
        return SharedProduct.apply(stacked, x).view(lanes, width, batch).add_(bias.unsqueeze(2))
    return torch.baddbmm(bias.view(n_inputs, -1, 1), stacked, x.transpose(1, 2)).view(lanes, width, batch)


def forward(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Outputs `[lanes, n_out, batch]` of stacked linear layers with ReLU between them.

    Args:
        params: weight `[lanes, out, in]` and bias `[lanes, out]` of each layer in turn.
        x: `[n_inputs, batch, features]`; lanes are divided evenly among the inputs, in order, so
            that x[0] is what the first lanes / n_inputs lanes see. It is never copied.
    """
    hidden = first_layer(params[0], params[1], x)
    for weight, bias in zip(params[2::2], params[3::2], strict=True):
        hidden = torch.baddbmm(bias.unsqueeze(2), weight, hidden.relu_())
    return hidden

"""Models as stacks of lanes: every parameter `[lanes, ...]`, one forward pass for all.

A lane computes what the ordinary `torch.nn` model beside it computes with the same seed; the
model in `torch.nn` is where a lane's initial weights come from.

Activations are `[lanes, features, batch]`: a weight `[lanes, out, in]` then multiplies from the
left, and its gradient comes out of a matrix product in the layout that it has to have.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

# What torch.compile calls on the CPU; not public, hence the question.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Model:
    """A network that can be trained alone or stacked.

    Attributes:
        name: as in tables, for example "mlp 784-32-32-10".
        widths: numbers that an example has in every activation, input first.
        build: makes the ordinary module, initialised from torch's global generator.
        forward: outputs `[lanes, n_out, batch]` from the module's parameters, each `[lanes, ...]`, and
            inputs `[n_inputs, batch, features]`. Lanes are divided evenly among the inputs, in order, so
            that x[0] is what the first lanes / n_inputs lanes see. The module and `forward` also take the
            masks of dropout, if there are any.
        at_once: how many lanes `forward` holds the larger activations of, on the CPU; None for all.
        dropout: probability with which a hidden activation is dropped in training.
        bound: parameters are clamped to [-bound, bound] after every step; None leaves them.
    """

    name: str
    widths: tuple[int, ...]
    build: Callable[[], nn.Module]
    forward: Forward
    at_once: int | None = None
    dropout: float = 0.0
    bound: float | None = None

    @cached_property
    def n_params(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in self.build().parameters())

    @torch.no_grad()
    def project_(self, params: Iterable[torch.Tensor]) -> None:
        """Bring parameters back, in place, to where the model's `bound` has them."""
        if self.bound is not None:
            for p in params:
                p.clamp_(-self.bound, self.bound)

    def masks(self, seed: int, step: int, batch_size: int) -> list[torch.Tensor]:
        """What hidden activations are multiplied by in a step, float32 `[width, batch_size]` for each hidden layer.

        0 or 1 / (1 - dropout), by seed, step and layer alone: not by the configuration, the device or other lanes.
        """
        if not self.dropout:
            return []
        masks = []
        for layer, width in enumerate(self.widths[1:-1]):
            # A generator that counts: any step can be drawn without those before it.
            random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, layer, step]))
            kept = random.random((width, batch_size), dtype=np.float32) >= self.dropout
            masks.append(torch.from_numpy(kept / np.float32(1 - self.dropout)))
        return masks


def mlp(*widths: int, name: str = "mlp", dropout: float = 0.0) -> Model:
    """Linear layers with ReLU, and dropout, between them; two widths make a linear model."""

    def build() -> nn.Sequential:
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return (Masked if dropout else nn.Sequential)(*layers[:-1])

    title = f"{name} {'-'.join(map(str, widths))}" + f" dropout {dropout:g}" * bool(dropout)
    return Model(title, widths, build, mlp_forward, dropout=dropout)


class Masked(nn.Sequential):
    """An nn.Sequential that multiplies what each ReLU returns by a mask `[width, batch]`, if it is given masks."""

    def forward(self, x: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        remaining = iter(masks)
        for layer in self:
            x = layer(x)
            if masks and isinstance(layer, nn.ReLU):
                x = x * next(remaining).T
        return x


def stack(model: Model, seeds: Sequence[int], n_configs: int, dtype=torch.float32, device="cpu") -> list[torch.Tensor]:
    """Leaves `[len(seeds) * n_configs, ...]`, seed by seed: all lanes of a seed begin with the same weights.

    Torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        alone = []
        for seed in seeds:
            # The CPU's alone: the generators of GPUs stay as they were.
            torch.default_generator.manual_seed(seed)
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


def mlp_forward(params: Sequence[torch.Tensor], x: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
    """Linear layers with ReLU between them: weight `[lanes, out, in]` and bias `[lanes, out]` of each in turn.

    masks: `[n_inputs, width, batch]` for each hidden layer, or none at all.
    """
    hidden = first_layer(params[0], params[1], x)
    for layer, (weight, bias) in enumerate(zip(params[2::2], params[3::2], strict=True)):
        hidden = hidden.relu_()
        if masks:
            hidden = (hidden.unflatten(0, (len(x), -1)) * masks[layer].unsqueeze(1)).flatten(0, 1)
        hidden = linear(weight, bias, hidden)
    return hidden


def linear(weight: torch.Tensor, bias: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`[lanes, out, batch]` from weight `[lanes, out, in]`, bias `[lanes, out]` and hidden `[lanes, in, batch]`."""
    return torch.baddbmm(bias.unsqueeze(2), weight, hidden)


def in_tiles(forward: Forward, at_once: int) -> Forward:
    """The forward pass of a `Model` out of one for lanes that share their input, a few of which go through at a time.

    On the CPU, where tensors above 32 MiB are mapped and page-faulted anew each time, and smaller ones stay in the
    cache for the next operation. A GPU takes all lanes of an input at once.
    """

    def tiled(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        lanes = len(params[0]) // len(x)
        size = at_once if x.device.type == "cpu" else lanes
        sizes = [min(size, lanes - done) for done in range(0, lanes, size)]
        tiles = zip(*(p.split(sizes * len(x)) for p in params), strict=True)
        inputs = (x_i for x_i in x for _ in sizes)
        return torch.cat([forward(tile, x_i) for tile, x_i in zip(tiles, inputs, strict=True)])

    return tiled

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


def forward(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Outputs `[lanes, n_out, batch]` of stacked linear layers with ReLU between them.

    Args:
        params: weight `[lanes, out, in]` and bias `[lanes, out]` of each layer in turn.
        x: `[n_inputs, batch, features]`; lanes are divided evenly among the inputs, in order, so
            that x[0] is what the first lanes / n_inputs lanes see. It is never copied.
    """
    weight, bias = params[:2]
    lanes, width, _ = weight.shape
    n_inputs, batch, _ = x.shape
    # Lanes that share an input are rows of one large matrix.
    hidden = torch.baddbmm(bias.view(n_inputs, -1, 1), weight.view(n_inputs, -1, x.shape[2]), x.transpose(1, 2))
    hidden = hidden.view(lanes, width, batch)
    for weight, bias in zip(params[2::2], params[3::2], strict=True):
        hidden = torch.baddbmm(bias.unsqueeze(2), weight, hidden.relu_())
    return hidden

"""The type of all models, as stacks of lanes: every parameter is `[lanes, ...]`, with one forward pass for all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Model:
    """A network that can be trained alone or stacked.

    Attributes:
        name: as shown in tables, for example "mlp 784-32-32-10".
        widths: size of an example in every activation, input first.
        build: returns the ordinary module, initialised from torch's global generator.
        forward: returns the outputs `[lanes, n_out, batch]`, from the module's parameters, each `[lanes, ...]`, and
            inputs `[n_inputs, batch, features]`. The lanes are divided evenly among the inputs, in order: the first
            lanes / n_inputs lanes see x[0]. The module and `forward` also take the masks of dropout, if there are any.
        at_once: number of lanes whose larger activations `forward` holds at a time on the CPU; None for all.
        dropout: probability that a hidden activation is dropped in training.
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
        """Clamp parameters, in place, to the model's `bound`, if it has one."""
        if self.bound is not None:
            for p in params:
                p.clamp_(-self.bound, self.bound)

    def masks(self, seed: int, step: int, batch_size: int) -> list[torch.Tensor]:
        """Draw the factors of the hidden activations in a step, float32 `[width, batch_size]` for each hidden layer.

        Each is 0 or 1 / (1 - dropout). They depend on seed, step and layer alone, not on the configuration, the device
        or other lanes.
        """
        if not self.dropout:
            return []
        masks = []
        for layer, width in enumerate(self.widths[1:-1]):
            # A counter-based generator draws any step without drawing the earlier ones.
            random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, layer, step]))
            kept = random.random((width, batch_size), dtype=np.float32) >= self.dropout
            masks.append(torch.from_numpy(kept / np.float32(1 - self.dropout)))
        return masks


def stack(model: Model, seeds: Sequence[int], n_configs: int, dtype=torch.float32, device="cpu") -> list[torch.Tensor]:
    """Return parameters `[len(seeds) * n_configs, ...]`, seed by seed; all lanes of a seed begin with the same weights.

    Torch's global generator does not change.
    """
    with torch.random.fork_rng(devices=[]):
        alone = []
        for seed in seeds:
            # Seed the CPU's generator alone, so that those of GPUs do not change.
            torch.default_generator.manual_seed(seed)
            alone.append([p.detach().to(dtype) for p in model.build().parameters()])
    return [
        torch.stack(of_seeds).repeat_interleave(n_configs, dim=0).to(device).requires_grad_()
        for of_seeds in zip(*alone, strict=True)
    ]


def in_tiles(forward: Forward, at_once: int) -> Forward:
    """Return the forward pass of a `Model`, made from one for lanes that share their input, `at_once` lanes at a time.

    The CPU maps tensors above 32 MiB anew each time, with page faults, and keeps smaller ones in the cache for the next
    operation. A GPU takes all lanes of an input at once.
    """

    def tiled(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        lanes = len(params[0]) // len(x)
        size = at_once if x.device.type == "cpu" else lanes
        sizes = [min(size, lanes - done) for done in range(0, lanes, size)]
        tiles = zip(*(p.split(sizes * len(x)) for p in params), strict=True)
        inputs = (x_i for x_i in x for _ in sizes)
        return torch.cat([forward(tile, x_i) for tile, x_i in zip(tiles, inputs, strict=True)])

    return tiled

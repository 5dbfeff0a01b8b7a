"""The type of all models, as stacks of lanes: every parameter is `[lanes, ...]`, with one forward pass for all."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.tasks import losses

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
        grain: number of lanes by which memory grows, where several are computed together; see `sweeps.memory`.
        dropout: probability that a hidden activation is dropped in training.
        bound: parameters are clamped to [-bound, bound] after every step; None leaves them.
        capturable: whether a step can be one CUDA graph, because its Python code need not run again.
    """

    capturable: ClassVar[bool] = True

    name: str
    widths: tuple[int, ...]
    build: Callable[[], nn.Module]
    forward: Forward
    at_once: int | None = None
    grain: int = 1
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

    def losses(
        self,
        params: Sequence[torch.Tensor],
        others: Sequence[torch.Tensor],
        x: torch.Tensor,
        y: torch.Tensor,
        *masks: torch.Tensor,
    ) -> torch.Tensor:
        """Return the losses of a training step, `[lanes]`; `others` is empty. masks: of `draws`, one more dimension."""
        return losses.losses(self.forward(params, x, *masks), y)

    def measure(
        self, params: Sequence[torch.Tensor], others: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return sums over the examples of a batch `[1, batch, ...]`, `[lanes]` each: loss, and accuracy of classes."""
        output = self.forward(params, x)
        sums = {"loss": losses.losses(output, y).double() * x.shape[1]}
        return sums if y.is_floating_point() else {**sums, "accuracy": losses.correct(output, y)}

    def loss_alone(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        """Return the loss of the ordinary module on a batch `[batch, ...]`. masks: of `draws`, for its training."""
        output = module(x, *masks)
        if not y.shape[-1]:
            return output.mean()
        return F.mse_loss(output, y) if y.is_floating_point() else F.cross_entropy(output, y)

    def draws(self, seed: int, step: int, batch_size: int) -> list[torch.Tensor]:
        """Draw the masks of dropout in a step, float32 `[width, batch_size]` for each hidden layer.

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


def exactly(value: float) -> str:
    """Return a number as the name of a model has it: different numbers are different words."""
    return repr(float(value)).removesuffix(".0")


class Built(Protocol):
    """A model of this or another kind; see `any_module`."""

    @property
    def build(self) -> Callable[[], nn.Module]: ...


def stack(model: Built, seeds: Sequence[int], n_configs: int, dtype=torch.float32, device="cpu") -> list[torch.Tensor]:
    """Return parameters `[len(seeds) * n_configs, ...]`, seed by seed; all lanes of a seed begin with the same weights.

    Torch's global generator does not change.
    """
    params = stacked(model.build, trained, seeds, n_configs, dtype, device)
    return [p.requires_grad_() for p in params]


def stack_others(
    model: Built, seeds: Sequence[int], n_configs: int, dtype=torch.float32, device="cpu"
) -> list[torch.Tensor]:
    """Return, in the same way, what a module holds beside trained parameters: frozen ones, and buffers."""
    return stacked(model.build, others, seeds, n_configs, dtype, device)


def trained(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters of a module that are trained, by name; tied ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def others(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the frozen parameters and the buffers of a module, by name."""
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    return frozen | dict(module.named_buffers())


def stacked(
    build: Callable[[], nn.Module],
    of: Callable[[nn.Module], dict[str, torch.Tensor]],
    seeds: Sequence[int],
    n_configs: int,
    dtype: torch.dtype,
    device: str | torch.device,
) -> list[torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        alone = []
        for seed in seeds:
            # Seed the CPU's generator alone, so that those of GPUs do not change.
            torch.default_generator.manual_seed(seed)
            alone.append([t.detach().to(dtype) if t.is_floating_point() else t for t in of(build()).values()])
    return [
        torch.stack(of_seeds).repeat_interleave(n_configs, dim=0).to(device) for of_seeds in zip(*alone, strict=True)
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

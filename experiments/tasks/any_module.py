"""Lanes of any nn.Module: `torch.func.functional_call` under `torch.vmap` over stacked parameters and buffers.

A module that vmap cannot take, because it branches on its data or calls `.item()`, is called lane by lane instead.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.tasks.model import Model, others, trained

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class AnyModule:
    """A module with its loss and metrics, for lanes.

    Attributes:
        name: as shown in tables.
        build: returns the module, initialised from torch's global generator.
        loss: takes the module's output and the targets of a batch, and returns the mean loss, a scalar.
        metrics: further such functions by name, for evaluations; each a mean over the examples.
        by_vmap: whether all lanes are computed at once; else one after the other.
        is_random: whether a training step draws random numbers, as dropout does. Lanes of one seed then draw the same,
            by seed and step alone.
        told: a sentence about what vmap cannot do with the module; "" if it can.
        widths: size of an example in every activation, input first, as far as layers and gradients show.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Loss
    metrics: Mapping[str, Loss]
    by_vmap: bool = True
    is_random: bool = False
    told: str = ""
    widths: tuple[int, ...] = ()

    @cached_property
    def modules(self) -> dict[bool, nn.Module]:
        """The module in training mode and in evaluation mode, by whether it is trained. Their weights are not used."""
        with torch.random.fork_rng(devices=[]):
            # Copies, for a user's function may return the same module each time.
            return {training: copy.deepcopy(self.build()).train(training) for training in (True, False)}

    def __getstate__(self) -> dict:
        """Leave the modules out: they are made anew, and some kinds cannot be pickled."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @cached_property
    def n_params(self) -> int:
        return sum(p.numel() for p in trained(self.modules[True]).values())

    @cached_property
    def names(self) -> list[str]:
        """The names of trained parameters, and then of what else the module holds."""
        # Of a module that was never called: functional_call changes the order of tied ones.
        with torch.random.fork_rng(devices=[]):
            module = self.build()
        return [*trained(module), *others(module)]

    @property
    def functions(self) -> dict[str, Loss]:
        """What an evaluation computes, by name: the loss first."""
        return {"loss": self.loss, **self.metrics}

    def losses(
        self,
        params: Sequence[torch.Tensor],
        others: Sequence[torch.Tensor],
        x: torch.Tensor,
        y: torch.Tensor,
        *numbers: torch.Tensor,
    ) -> torch.Tensor:
        """Return the losses of a training step, `[lanes]`; buffers change in place, as those of BatchNorm do.

        Args:
            params, others: `[lanes, ...]` each, of `model.stack` and `model.stack_others`.
            x, y: `[n_inputs, batch, ...]`; the lanes are divided evenly among the inputs, in order.
            numbers: of `draws`, one more dimension.
        """
        return self.over_lanes(self.loss_of_lane(training=True), [*params, *others], x, y, *numbers)

    def loss_of_lane(self, training: bool) -> Callable:
        """Return a function of a lane's tensors by name, x and y that returns the loss."""
        module, others_ = self.modules[training], list(others(self.modules[training]))

        def one(tensors: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            before = {name: tensors[name] for name in others_}
            loss = self.loss(functional_call(module, tensors, (x,)), y)
            for name, t in before.items():
                if tensors[name] is not t:  # assigned, not changed in place
                    t.copy_(tensors[name].detach())
            return loss

        return one

    def measure(
        self, params: Sequence[torch.Tensor], others: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return sums over the examples of a batch `[1, batch, ...]`, in evaluation mode: loss and metrics."""
        functions, module = self.functions, self.modules[False]

        def one(tensors: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            output = functional_call(module, tensors, (x,))
            return torch.stack([function(output, y).double() * len(x) for function in functions.values()])

        with torch.no_grad():
            # What draws in evaluations, too, draws the same in each.
            measured = self.over_lanes(one, [*params, *others], x, y, torch.zeros(1, 1, x.shape[1], dtype=torch.int64))
        return dict(zip(functions, measured.unbind(1), strict=True))

    def loss_alone(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor, *numbers: torch.Tensor) -> torch.Tensor:
        """Return the loss of the ordinary module on a batch `[batch, ...]`. numbers: of `draws`, for its training."""
        with drawing(numbers[0], x.device) if numbers else contextlib.nullcontext():
            return self.loss(module(x), y)

    def project_(self, params: Iterable[torch.Tensor]) -> None:
        """Do nothing: no parameter has a bound."""

    @property
    def capturable(self) -> bool:
        """Whether a step can be one CUDA graph: it seeds no generator, and all lanes are computed at once."""
        return self.by_vmap and not self.is_random

    @property
    def grain(self) -> int:
        """The number of lanes by which memory grows; see `Model.grain`."""
        return 1

    @property
    def at_once(self) -> int | None:
        return None if self.by_vmap else 1

    def over_lanes(
        self, one: Callable, tensors: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor, *numbers: torch.Tensor
    ) -> torch.Tensor:
        """Return `one(tensors by name, x, y)` of every lane, `[lanes, ...]`."""
        n_inputs, names, results = len(x), self.names, []
        n_each = len(tensors[0]) // n_inputs
        with plain_attention():
            if self.by_vmap and not numbers and n_inputs > n_each:
                # Not one vmap in the other: torch's rule for mse_loss is wrong there.
                own = (t.repeat_interleave(n_each, dim=0) for t in (x, y))
                return torch.vmap(one, randomness="same")(dict(zip(names, tensors, strict=True)), *own)
            groups = zip(*(t.chunk(n_inputs) if self.by_vmap else t.unbind() for t in tensors), strict=True)
            groups = [dict(zip(names, group, strict=True)) for group in groups]
            call = torch.vmap(one, (0, None, None), randomness="same") if self.by_vmap else one
            for i, group in enumerate(groups):
                i = i * n_inputs // len(groups)
                with drawing(numbers[0][i], x.device) if numbers else contextlib.nullcontext():
                    results.append(call(group, x[i], y[i]))
        return torch.cat(results) if self.by_vmap else torch.stack(results)

    def draws(self, seed: int, step: int, batch_size: int) -> list[torch.Tensor]:
        """Return what a step of the lanes of a seed draws from: int64 `[1, batch_size]`, or nothing.

        The first one of a batch seeds torch's generators for it, so that each part of an accumulated batch has its own.
        """
        if not self.is_random:
            return []
        return [numbers_of(seed, step, batch_size)]


def numbers_of(seed: int, step: int, batch_size: int) -> torch.Tensor:
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))
    return torch.from_numpy(random.integers(2**62, size=(1, batch_size)))


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Have torch compute attention by matrix products: vmap has no rule for the other ways, and loops over lanes."""
    fast, fused = torch.backends.mha.get_fastpath_enabled(), F.scaled_dot_product_attention
    torch.backends.mha.set_fastpath_enabled(False)
    # nn.MultiheadAttention, too, takes it from there.
    F.scaled_dot_product_attention = functools.partial(attention, fused)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        F.scaled_dot_product_attention = fused
        torch.backends.mha.set_fastpath_enabled(fast)


def attention(
    fused: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return scaled dot product attention, `[..., queries, width]`; the arguments are torch's, after its function.

    Torch's own matrix products search every row of the softmax for one that is masked entirely, which takes longer than
    the softmax. Only a mask that is given can do that.
    """
    if attn_mask is not None or enable_gqa:
        options = {"scale": scale, "enable_gqa": enable_gqa}
        return fused(query, key, value, attn_mask, dropout_p, is_causal, **options)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value


@contextlib.contextmanager
def drawing(numbers: torch.Tensor, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of the device by the first of these numbers; restore them after that."""
    is_cuda, seed = device.type == "cuda", int(numbers.flatten()[0])
    with torch.random.fork_rng(devices=[device] if is_cuda else []):
        # torch.manual_seed would seed those of all GPUs.
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            torch.cuda.manual_seed(seed)
        yield


AnyModel = Model | AnyModule
"""What a population trains: both have the same small interface."""

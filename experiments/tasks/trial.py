"""A trial of a user's module: whether it works at all, what its lanes need, and whether they equal single runs."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from experiments.common.errors import OptionError, first_line
from experiments.common.values import shown
from experiments.tasks.any_module import AnyModule, drawing, numbers_of, plain_attention
from experiments.tasks.model import others, stack, stack_others, trained

EXAMPLES = 8
"""At most so many examples are tried."""


def tried(model: AnyModule, x: torch.Tensor, y: torch.Tensor) -> AnyModule:
    """Return the model with what two lanes and a few examples `[n, ...]` tell about it; see the fields of `AnyModule`.

    Raises: OptionError, one sentence, if its module, loss or a metric does not work on them.
    """
    x, y = x[:EXAMPLES], y[:EXAMPLES]
    model = replace(model, is_random=is_random(model, x, y), widths=widths(model, x))
    expected = [torch.stack(of_both) for of_both in zip(*(alone(model, seed, x, y) for seed in (0, 1)), strict=True)]
    if not (expected[0] > 0).all():
        raise OptionError(
            f"the loss of {model.name} must start above 0, not at {expected[0].min():g}: figures are in log, and a "
            "run has diverged at a hundred times its first loss: add a constant"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = difference(model, x, y, expected)
    if reason:
        model = replace(model, by_vmap=False)
        if other := difference(model, x, y, expected):
            raise OptionError(f"the model of {model.name} cannot be trained as lanes ({other})")
        told = f"lanes of {model.name} are computed one after the other, because torch.vmap cannot take them ({reason})"
        return replace(model, told=told)
    slow = {str(one.message).partition("batching rule for ")[2].partition(". ")[0] for one in caught} - {""}
    if slow:
        return replace(model, told=f"torch.vmap has no rule for {', '.join(sorted(slow))} and loops over lanes there")
    # A copy, whose modules have not been called.
    return replace(model)


def difference(model: AnyModule, x: torch.Tensor, y: torch.Tensor, expected: list[torch.Tensor]) -> str:
    """Return what keeps lanes from computing what single runs do; "" if nothing does."""
    try:
        # Lanes that share an input, and those that do not, are called in different ways.
        for n_configs in (1, 2):
            pairs = zip(together(model, n_configs, x, y), expected, strict=True)
            if not all(close(found, alone.repeat_interleave(n_configs, 0)) for found, alone in pairs):
                return "its results would differ from those of single runs"
    # Whatever the code of a user's module raises.
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def is_random(model: AnyModule, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Return whether an ordinary training step draws random numbers. Raises: OptionError if the step does not work."""
    with torch.random.fork_rng(devices=[]):
        module = copy.deepcopy(calling(f"the model of {model.name}", model.build))
        if not isinstance(module, nn.Module) or not any(p.requires_grad for p in module.parameters()):
            raise OptionError(f"the model of {model.name} must be an nn.Module to be trained, not {shown(module)}")
        before = torch.get_rng_state()
        loss = loss_of(model, module.train(), x, y)
        if not loss.requires_grad:
            raise OptionError(f"the loss of {model.name} must depend on the parameters, and it does not")
        return not torch.equal(before, torch.get_rng_state())


def widths(model: AnyModule, x: torch.Tensor) -> tuple[int, ...]:
    """Return the sizes of an example in the input, the outputs of all layers, and what is kept for the gradients."""
    found = [x[0].numel(), 1]

    def note(n_elements: int) -> None:
        found.append(max(1, n_elements // len(x)))

    def note_outputs(_layer: nn.Module, _inputs: tuple, output: Any) -> None:
        for t in tree_leaves(output):
            if isinstance(t, torch.Tensor):
                note(t.numel())

    def note_kept(t: torch.Tensor) -> torch.Tensor:
        # Such as the weights of attention, which no layer returns.
        if t.untyped_storage().data_ptr() not in own:
            note(t.untyped_storage().nbytes() // t.element_size())
        return t

    with torch.random.fork_rng(devices=[]):
        module = copy.deepcopy(model.build())
        x = x.clone()  # which may be a part of all the data
        own = {t.untyped_storage().data_ptr() for t in (x, *module.parameters(), *module.buffers())}
        for layer in module.modules():
            layer.register_forward_hook(note_outputs)
        with plain_attention(), torch.autograd.graph.saved_tensors_hooks(note_kept, lambda t: t):
            module(x)
    return tuple(found)


def alone(model: AnyModule, seed: int, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Return what a single run computes: loss, gradients, and then measures. Raises: OptionError if it does not work.

    A module that draws is in evaluation mode, because the memory layout decides which element gets which number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = copy.deepcopy(model.build()).train(not model.is_random)
        with drawing(numbers_of(seed, 1, len(x)), x.device):
            loss, params = loss_of(model, module, x, y), list(trained(module).values())
        grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        with torch.no_grad(), drawing(torch.zeros(1, dtype=torch.int64), x.device):
            output = module.eval()(x)
            measures = [scalar(f"the {name} of {model.name}", one, output, y) for name, one in model.functions.items()]
    # Buffers show whether statistics are kept.
    kept = [t.double() for t in others(module).values()]
    return [loss.detach(), *grads, *kept, *(one.double() * len(x) for one in measures)]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def together(model: AnyModule, n_configs: int, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Return what `alone` computes for the seeds 0 and 1, for so many lanes of each."""
    params, kept = stack(model, [0, 1], n_configs), stack_others(model, [0, 1], n_configs)
    x, y = x.expand(2, *x.shape), y.expand(2, *y.shape)
    numbers = torch.stack([numbers_of(seed, 1, x.shape[1]) for seed in (0, 1)])
    drawn = [numbers] if model.is_random else []
    if model.is_random:
        model.losses(params, [t.clone() for t in kept], x, y, numbers).sum().backward()
    losses = model.over_lanes(model.loss_of_lane(training=not model.is_random), [*params, *kept], x, y, *drawn)
    grads = torch.autograd.grad(losses.sum(), params, allow_unused=True, materialize_grads=True)
    measures = model.measure(params, kept, x[:1], y[:1])
    return [losses.detach(), *grads, *(t.double() for t in kept), *measures.values()]


def loss_of(model: AnyModule, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    output = calling(f"the model of {model.name}", lambda: module(x))
    return scalar(f"the loss of {model.name}", model.loss, output, y)


def scalar(what: str, function: Callable, output: Any, target: torch.Tensor) -> torch.Tensor:
    """Return a loss or a metric of a batch. Raises: OptionError if it is not a tensor without dimensions."""
    found = calling(what, lambda: function(output, target))
    if not isinstance(found, torch.Tensor) or found.shape or not found.is_floating_point():
        given = f"{found.dtype} of shape {[*found.shape]}" if isinstance(found, torch.Tensor) else shown(found)
        raise OptionError(
            f"{what} must be a floating-point tensor without dimensions, the mean over a batch, not {given}"
        )
    return found


def calling(what: str, call: Callable[[], Any]) -> Any:
    """Call what a user wrote. Raises: OptionError instead of whatever it raises."""
    try:
        return call()
    except Exception as error:
        raise OptionError(
            f"{what} does not work on its training data ({type(error).__name__}: {first_line(error)})"
        ) from error

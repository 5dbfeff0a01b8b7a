"""Ordinary training of one configuration, with an `nn.Sequential` and one of torch's optimizers.

Populations are compared with it: for equality in the tests, for speed in the benchmarks.
"""

import copy
import inspect
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from experiments.common.errors import OptionError
from experiments.tasks.any_module import AnyModel
from experiments.tasks.problems import Problem
from experiments.training import optimizers, population, schedules


def class_of(name: str) -> type[torch.optim.Optimizer]:
    """Return torch's class of an optimizer. Raises: OptionError if torch has none."""
    found = optimizers.resolve(name).alone
    if found is None:
        accepted = ", ".join(name for name, entry in optimizers.OPTIMIZERS.items() if entry.alone)
        raise OptionError(f"--compare-alone accepts optimizers that torch has ({accepted}), not {name}")
    return found


def make(problem: Problem, config: dict, seed: int = 0, optimizer: str = "adam", dtype=torch.float32, device="cpu"):
    """Return a module with the initial weights of the seed, and torch's optimizer of it, fused if possible.

    Args:
        config: a value for each axis that the optimizer has; other axes are ignored.
        optimizer: a name in `optimizers.OPTIMIZERS` that torch has as well.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # A copy, for a user's function may return the same module each time.
        module = copy.deepcopy(problem.model.build()).to(device, dtype)
    torchs = class_of(optimizer)
    # Not every torch fuses Adagrad on a GPU.
    elsewhere = torchs is torch.optim.Adagrad and device != "cpu"
    fuses = "fused" in inspect.signature(torchs).parameters and not elsewhere
    options = optimizers.arguments(optimizers.resolve(optimizer), config)
    if fuses:
        options["fused"] = True
    max_norm = options.pop("max_grad_norm", None)
    made = torchs(module.parameters(), **options)
    if max_norm is not None:
        made.register_step_pre_hook(lambda *_: clip_(module, max_norm))
    return module, made


def clip_(module: nn.Module, max_norm: float) -> None:
    """Scale the gradients of a module down to this norm, as our optimizers do within a step."""
    nn.utils.clip_grad_norm_(module.parameters(), max_norm)


def step_(
    model: AnyModel,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    draws: Sequence[torch.Tensor] = (),
    accumulate: int = 1,
) -> torch.Tensor:
    """Take one training step of a model's ordinary module on a batch, in `accumulate` equal parts; return its loss.

    draws: of `Model.draws`.
    """
    optimizer.zero_grad()
    if accumulate == 1:
        # The usual code, because benchmarks time it: accumulation would cost 5 % of a small network's step.
        loss = model.loss_alone(module, x, y, *draws)
        loss.backward()
    else:
        parts = zip(
            *(t.chunk(accumulate) for t in (x, y)), *(drawn.chunk(accumulate, 1) for drawn in draws), strict=True
        )
        losses = []
        for x_part, y_part, *of_part in parts:
            loss = model.loss_alone(module, x_part, y_part, *of_part)
            (loss / accumulate).backward()
            losses.append(loss.detach())
        loss = torch.stack(losses).mean()
    optimizer.step()
    return loss.detach()


def train(
    problem: Problem,
    config: dict,
    seed: int,
    steps: int,
    batch_size: int = 128,
    accumulate: int = 1,
    schedule: str = "constant",
    warmup: int = 0,
    **options,
):
    """Train one run as a lane of a population is trained; return the module and the losses of its steps, `[steps]`."""
    module, optimizer = make(problem, config, seed, **options)
    # Torch's scheduler sets the lr of the first step at once, and after each step that of the next.
    schedule_ = LambdaLR(optimizer, lambda done: schedules.factor(schedule, min(done + 1, steps), steps, warmup))
    first = next(module.parameters())
    x, y, _, _ = population.tensors(problem, first.device, first.dtype)
    per_step = batch_size * accumulate
    batches = population.batch_indices(len(x), per_step, seed, problem.data.in_order)
    losses = []
    for step, index in zip(range(1, steps + 1), batches, strict=False):
        draws = population.placed(problem.model.draws(seed, step, per_step), first.device, first.dtype)
        losses.append(step_(problem.model, module, optimizer, x[index], y[index], draws, accumulate))
        problem.model.project_(module.parameters())
        schedule_.step()
    return module, torch.stack(losses)


def seconds_of_one_run(
    problem: Problem,
    config: dict,
    steps: int,
    evaluations: int,
    batch_size: int,
    sample: int,
    accumulate: int = 1,
    **options,
) -> float:
    """Estimate the seconds of one run from `sample` measured steps and one evaluation. options: as of `make`."""
    module, optimizer = make(problem, config, **options)
    first = next(module.parameters())
    x, y, x_eval, y_eval = population.tensors(problem, first.device)
    per_step = batch_size * accumulate
    batches = population.batch_indices(len(x), per_step, seed=0)

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def train_sample() -> None:
        for step, index in zip(range(1, sample + 1), batches, strict=False):
            draws = population.placed(problem.model.draws(0, step, per_step), first.device, first.dtype)
            step_(problem.model, module, optimizer, x[index], y[index], draws, accumulate)

    train_sample()
    step = seconds(train_sample) / sample
    module.eval()
    with torch.no_grad():
        evaluation = seconds(lambda: problem.model.loss_alone(module, x_eval, y_eval))
    return steps * step + (evaluations + 1) * evaluation

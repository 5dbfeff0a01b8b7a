"""Training a population: many configurations of one problem as lanes of stacked models."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from experiments.common import ambient
from experiments.tasks.any_module import AnyModel
from experiments.tasks.problems import Problem
from experiments.training import cuda_graph, evaluation, schedules
from experiments.training import lanes as lanes_
from experiments.training.batches import batch_indices, draws_of, placed, tensors, upload
from experiments.training.diagnostics import Diagnostics
from optim.base import RuleOptimizer

DIVERGED = 100.0
"""A run has diverged at the first step whose training loss is not finite or exceeds this many times the loss of its
first step."""


def step_(
    params: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    draws: Sequence[torch.Tensor] = (),
    *,
    model: AnyModel,
    others: Sequence[torch.Tensor] = (),
    accumulate: int = 1,
) -> torch.Tensor:
    """Take one training step of all lanes on their batches `[n_seeds, batch, ...]`; return their losses, `[lanes]`.

    On a GPU the gradients keep their memory, as a CUDA graph needs.

    Args:
        draws: of `draws_of`.
        others: what the module holds beside trained parameters; buffers change in place.
        accumulate: number of equal parts of the batch that go through the model one after the other.
    """
    optimizer.zero_grad(set_to_none=not x.is_cuda)
    parts = zip(
        *(t.chunk(accumulate, 1) for t in (x, y)), *(drawn.chunk(accumulate, 2) for drawn in draws), strict=True
    )
    losses = []
    for x_part, y_part, *of_part in parts:
        loss = model.losses(params, others, x_part, y_part, *of_part)
        # From a sum: torch imports a library of symbols, for half a second, to look at a gradient that it is given.
        (loss.sum() / accumulate).backward()
        losses.append(loss.detach())
    optimizer.step()
    return torch.stack(losses).mean(dim=0)


def train(
    problem: Problem, configs: pd.DataFrame, seeds: Sequence[int], **options
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train as `train_lanes` does, and return the runs as `summarise_lanes` does, and the curves."""
    runs, curves = train_lanes(problem, configs, seeds, **options)
    return summarise_lanes(runs, curves), curves


@ambient.pinned()
def train_lanes(
    problem: Problem,
    configs: pd.DataFrame,
    seeds: Sequence[int],
    *,
    optimizer: str = "adam",
    steps: int,
    batch_size: int = 128,
    accumulate: int = 1,
    schedule: str = "constant",
    warmup: int = 0,
    evaluations: int = 8,
    eval_examples: int | None = None,
    diagnostics: bool = False,
    keep_diverged: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int], None] = lambda step: None,
    due: Callable[[bool], bool] = lambda evaluated: False,
    keep: Callable[[dict], object] = lambda state: None,
    resume: dict | None = None,
    on_points: Callable[[list[dict], torch.Tensor], object] = lambda points, diverged_at: None,
    until: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every configuration with every seed, all together; lanes are ordered seed by seed.

    Args:
        configs: one row each, and a column for each axis; see `optimizers.axes`. Other columns are ignored, and words
            are the same in all rows.
        optimizer: a name in `optimizers.OPTIMIZERS` or a "module:Class".
        batch_size, accumulate: a step's gradient is the mean over `accumulate` batches of this size, which are drawn
            from the data as one large batch.
        schedule, warmup: schedule of lr, for every lane; see `schedules.factor`.
        eval_examples: number of examples of every evaluation but the last; None takes all. See `evaluation.subset`.
        diagnostics: whether curves also have the columns of `Diagnostics.values`. Training has the same bits.
        keep_diverged: whether lanes that have diverged are trained to the end. Otherwise their curves end with the next
            evaluation, and the population shrinks when at least one lane in `lanes.FEWEST` is dead. The others go on
            as before, to last bits, which depend on the number of lanes.
        on_step: called after each step with the number of steps done, and once at the start if a state is resumed.
        due, keep: after each step but the last, `keep` gets the state of the training if `due` returns True, which is
            told whether the step was evaluated. The state holds the tensors themselves, which the next step changes.
        resume: a state that `keep` got, of the same configurations and seeds in the same order, and the same options.
            Training continues after its step, to the same bits on the same device. Or of `lanes.gathered`.
        until: a step with an evaluation, after which to stop; None is the last. Unless it is the last, or all lanes
            are dead, `keep` gets the state after it.
        on_points: called after each evaluation, and once at the start if a state is resumed, with all evaluations so
            far: the columns of curves in dictionaries, each value one number or one for each `lane`; and with the step
            at which each lane has diverged, int64 `[lanes]` on the CPU, 0 if it has not.
    Returns: runs, one row per lane (configuration, seed, diverged_step), and curves, one row per lane and evaluation
        (losses, accuracies, seconds); both are numbered by the column `lane`. Seconds exclude evaluation and the time
        of `keep`, and include those of the training that was resumed; run_seconds are a lane's share of them.
        `curves.attrs["compile_seconds"]` is by how much the first step (of each process, if resumed) took longer than
        the median of the next ones.
    """
    # Nothing that an earlier training has left in the modules of a model goes on.
    problem = replace(problem, model=replace(problem.model))
    runs = pd.concat([configs.assign(seed=seed) for seed in seeds], ignore_index=True)
    x, y, x_eval, y_eval = tensors(problem, device, dtype)
    chosen = slice(None) if eval_examples is None else evaluation.subset(problem.data.y_eval, eval_examples).to(device)
    x_some, y_some = x_eval[chosen], y_eval[chosen]
    per_step = batch_size * accumulate
    batches = zip(*(batch_indices(len(x), per_step, seed, problem.data.in_order) for seed in seeds), strict=True)
    # A user's class may keep its lr anywhere, as long as no schedule has to change it.
    is_scheduled = (schedule, warmup) != ("constant", 0)

    # Values that differ between steps are in tensors, which a captured step reads anew each time.
    index = torch.zeros(len(seeds), per_step, dtype=torch.int64, device=device)
    draws = placed(draws_of(problem.model, seeds, 1, per_step), device, dtype)
    factor = torch.ones((), dtype=torch.float64, device=device)
    current = torch.zeros((), dtype=torch.int64, device=device)
    evaluate_at = evaluation.evaluation_steps(steps, evaluations)
    points, seconds, since, done = [], 0.0, 0, 0
    # Of all lanes, also those that have left: the step at which they diverged, and their share of the seconds.
    reached = torch.zeros(len(runs), dtype=torch.int64)
    share, shared = torch.zeros(len(runs), dtype=torch.float64), 0.0
    first_steps, compiled_before = [], resume.get("compile_seconds", 0.0) if resume else 0.0

    def compile_seconds() -> float:
        return compiled_before + max(0.0, first_steps[0] - np.median(first_steps[1:] or first_steps).item())

    def begin(numbers: np.ndarray, state: dict | None = None) -> tuple:
        """Return these lanes, from their state if there is one, what observes them, and what takes a step of theirs."""
        of = lanes_.begin(problem, optimizer, runs.drop(columns="seed"), seeds, numbers, dtype, device)
        lrs = [group["lr"].clone() for group in of.optimizer.param_groups] if is_scheduled else []
        observed = Diagnostics(problem, of.params, evaluate_at) if diagnostics else None
        if state:
            lanes_.load(of, state)
            if observed:
                observed.resume(state["diagnostics"])

        def advance() -> None:
            for group, lr in zip(of.optimizer.param_groups, lrs, strict=False):
                torch.mul(lr, factor, out=group["lr"])
            options = {"model": problem.model, "others": of.others, "accumulate": accumulate}
            loss = step_(of.params, of.optimizer, x[index], y[index], draws, **options)
            problem.model.project_(of.params)
            current.add_(1)
            of.loss_limit.copy_(torch.where(current == 1, DIVERGED * loss, of.loss_limit))
            diverges = (of.diverged_at == 0) & ~(loss <= of.loss_limit)
            of.diverged_at.copy_(torch.where(diverges, current, of.diverged_at))
            of.loss_sum.add_(loss)

        # A graph would run the Python code of a user's class, such as counting its steps, only once.
        captures = isinstance(of.optimizer, RuleOptimizer) and problem.model.capturable
        return of, observed, cuda_graph.replayed(advance, device) if captures else advance

    def state_of_lanes() -> dict:
        return {**lanes_.state_of(lanes), "diagnostics": observed.sums if observed else {}}

    def feed(step: int) -> None:
        upload(index, torch.stack(next(batches)))
        for target, drawn in zip(draws, draws_of(problem.model, seeds, step, per_step), strict=True):
            upload(target, drawn)
        factor.fill_(schedules.factor(schedule, step, steps, warmup))

    def record(step: int) -> None:
        nonlocal shared
        evaluated = (x_eval, y_eval) if step == steps else (x_some, y_some)
        with evaluation.averaged(lanes.optimizer, lanes.params):
            means = evaluation.evaluate(problem, lanes.params, *evaluated, lanes.others)
            diagnosed = observed.values(step, *evaluated, lanes.others) if observed else {}
        means.setdefault("accuracy", torch.full_like(lanes.loss_sum, math.nan))
        train_loss = lanes.loss_sum / since if since else torch.full_like(lanes.loss_sum, math.nan)
        values = {"train_loss": train_loss, **{f"eval_{name}": mean for name, mean in means.items()}, **diagnosed}
        share[lanes.numbers] += (seconds - shared) / len(lanes.numbers)
        shared = seconds
        # Of a lane that has diverged this is the last evaluation, though it may go on to keep a seed's place.
        was = torch.from_numpy(lanes.numbers)
        here = (reached[was] == 0) | torch.tensor(keep_diverged)
        reached[was] = lanes.diverged_at.cpu()
        point = {"lane": was[here], **{name: value.cpu()[here] for name, value in values.items()}}
        point |= {"step": step, "epoch": step / (len(x) // per_step), "seconds": seconds}
        points.append({**point, "run_seconds": share[was[here]]})
        on_points(points, reached)

    state = resume["lanes"] if resume else None
    lanes, observed, take = begin(state["numbers"].numpy() if state else np.arange(len(runs)), state)
    if resume:
        points, seconds, since, done = (resume[name] for name in ("points", "seconds", "since", "step"))
        reached, share, shared = resume["reached"].clone(), resume["run_seconds"].clone(), resume["shared"]
        for _ in range(done):
            next(batches)
        current.fill_(done)
        on_step(done)
        on_points(points, reached)
    else:
        record(0)
    started = time.perf_counter()
    end = until or steps
    for step in range(done + 1, end + 1):
        before = time.perf_counter()
        feed(step)
        if observed:
            observed.before(step)
        take()
        if observed:
            observed.after(step)
        if step <= done + 9:
            first_steps.append(time.perf_counter() - before)
        since += 1
        evaluates = step in evaluate_at
        keeps = step < steps and (step == end or due(evaluates))
        if evaluates or keeps:
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - started
            if evaluates:
                record(step)
                lanes.loss_sum.zero_()
                since = 0
                if step < end and not keep_diverged:
                    left = lanes_.remaining((lanes.diverged_at > 0).cpu().numpy(), len(seeds))
                    if not len(left):
                        break
                    if lanes_.FEWEST * (len(lanes.numbers) - len(left)) >= len(lanes.numbers):
                        lanes, observed, take = begin(lanes.numbers[left], lanes_.joined([state_of_lanes()], [left]))
            if keeps:
                state = {"step": step, "since": since, "lanes": state_of_lanes(), "points": points}
                state |= {"reached": reached, "run_seconds": share, "shared": shared, "seconds": seconds}
                keep({**state, "compile_seconds": compile_seconds()})
            started = time.perf_counter()
        on_step(step)

    curves = pd.concat([pd.DataFrame({k: np.asarray(v) for k, v in p.items()}) for p in points], ignore_index=True)
    curves.attrs["compile_seconds"] = compile_seconds()
    runs.insert(0, "lane", np.arange(len(runs)))
    runs["diverged_step"] = pd.array(reached.numpy(), dtype="Int64")
    runs.loc[reached.numpy() == 0, "diverged_step"] = pd.NA
    return runs, curves


def summarise_lanes(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with their status, and their final and best losses and accuracies: one row per lane, in order.

    Args:
        runs: any columns, among them lane; the last is diverged_step, NA where a run has not diverged.
        curves: one row per lane and evaluation, steps ascending.
    """
    runs = runs.copy()
    runs.insert(len(runs.columns) - 1, "status", np.where(runs["diverged_step"].notna(), "diverged", "ok"))
    by_lane = curves.groupby("lane")
    first, last, low, high = by_lane.first(), by_lane.nth(-1).set_index("lane"), by_lane.agg("min"), by_lane.agg("max")
    for column in ("train_loss", "eval_loss"):
        runs[column], runs[f"best_{column}"] = last[column].to_numpy(), low[column].to_numpy()
    runs["eval_accuracy"] = last["eval_accuracy"].to_numpy()
    runs["best_eval_accuracy"] = high["eval_accuracy"].to_numpy()
    runs["initial_eval_loss"] = first["eval_loss"].to_numpy()
    for column in curves:
        if column.startswith("eval_") and column not in runs:
            runs[column] = last[column].to_numpy()
    return runs

"""Variants of a problem, by those options of a run that change its model or its training examples."""

import copy
from dataclasses import replace

import torch
from torch import nn

from experiments.common.errors import OptionError
from experiments.tasks import own, problems
from experiments.tasks.model import exactly
from experiments.tasks.problems import Problem
from experiments.training import blocks, evaluation


def variant(
    problem: Problem, model: str | None, *, n_train: int | None = None, init_scale: float = 1.0, **options
) -> Problem:
    """Return the problem with a part of its training examples, other initial weights, or a model of other options.

    Args:
        model: of a built-in task, as for `make`.
        n_train: number of training examples, of each class as many as its share, always the same.
        init_scale: factor of all initial weights of two or more dimensions; biases and gains stay.
        options: those of `make` that the model has; the others are ignored.
    Raises: OptionError.
    """
    if options and not own.is_own(problem.task):
        _, task, chosen = problems.chosen_task(problem.task, model, **options)
        problem = replace(problem, model=task.model(chosen, problem.data))
    if init_scale != 1:
        build = problem.model.build
        if all(p.ndim < 2 for p in blocks.shapes(problem.model)):
            raise OptionError(f"--init-scale goes with models that have weights, not with {problem.model.name}")
        title = f"{problem.model.name} init x{exactly(init_scale)}"
        problem = replace(problem, model=replace(problem.model, name=title, build=lambda: scaled(build(), init_scale)))
    if n_train is not None:
        of = problem.data
        if n_train > len(of.x_train) or of.in_order:
            most = "none" if of.in_order else f"at most the {len(of.x_train)}"
            raise OptionError(f"--n-train accepts {most} of the training examples of {of.name}, not {n_train}")
        chosen = evaluation.subset(of.y_train, n_train)
        problem = replace(problem, data=replace(of, x_train=of.x_train[chosen], y_train=of.y_train[chosen]))
    return problem


def scaled(module: nn.Module, factor: float) -> nn.Module:
    """Return a copy of the module with its weights of two or more dimensions multiplied."""
    # A user's function may return the same module each time.
    module = copy.deepcopy(module)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.mul_(factor)
    return module

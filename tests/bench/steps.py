"""Parameters for the steps that tests of benchmarks take."""

import torch

from experiments.bench import step_time
from experiments.bench.implementations import OptimizerCase
from experiments.bench.step_plan import Group

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPES = [(40, 3), (17,)]


def with_grads(shapes, dtype, device=CPU) -> list[torch.nn.Parameter]:
    return step_time.make_tensors(Group(OptimizerCase("Adam", {}, dtype), "", shapes), dtype, device, seed=0)

"""Stages that tests make up, and a `make gpu` that runs them as if there were a GPU."""

from pathlib import Path

import torch

from experiments import gpu
from experiments.common.processes import Stage
from tests.kernels.devices import H100


def stage(name: str, script: str, limit: float = 30, page: str | None = None, *arguments: str) -> Stage:
    return Stage(name, ["-c", script, *arguments], page, (f"{name}.png",), limit)


def pretended(replace, out: Path, stages: list[Stage]) -> None:
    """Have `gpu.main` run these stages, as if there were a GPU. replace: as `setattr`."""

    def check_options(args):
        args.out = out
        return torch.device("cpu")

    replace(gpu, "device_facts", lambda device: H100)
    replace(gpu, "check_options", check_options)
    replace(gpu, "stages", lambda out, budget, tests: stages)

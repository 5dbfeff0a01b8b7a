"""Training in several processes on CPU (gloo), and in one that sees the whole batch."""

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

import optim

N_RANKS, TIMEOUT = 2, 120
RECIPES = {
    "AdamW": {"lr": 0.05, "weight_decay": 0.1},
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
}


def make_model(dtype=torch.float64, seed=0) -> torch.nn.Sequential:
    """7 rows and 3 rows make shards of unequal sizes; 1 row leaves the second rank with nothing."""
    torch.manual_seed(seed)
    layers = torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
    return torch.nn.Sequential(*layers).to(dtype)


def make(module, name: str, model: torch.nn.Module, **options) -> torch.optim.Optimizer:
    # Every rule that a process compiles takes it two seconds, so only one does.
    backend = {"backend": "eager"} if module is optim and name == "SGD" else {}
    return getattr(module, name)(model.parameters(), **(RECIPES[name] | options), **backend)


def train(model, optimizer, steps: range, rank: int | None = None, clip: float | None = None) -> None:
    """On the rank's half of each step's batch, or on all of it."""
    for step in steps:
        x = torch.randn(4 * N_RANKS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        x = x if rank is None else x.chunk(N_RANKS)[rank]
        optimizer.zero_grad()
        (model(x.to(next(model.parameters()).dtype)) - x.sum(1, keepdim=True)).square().mean().backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def alone(name: str, steps: int, clip: float | None = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """What one process makes of it with torch's optimizer."""
    model = make_model()
    optimizer = make(torch.optim, name, model)
    train(model, optimizer, range(steps), clip=clip)
    return model, optimizer


def sharded(model: torch.nn.Sequential, **options) -> torch.nn.Sequential:
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(model, reference, rtol=1e-11) -> None:
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(full(p), full(q), rtol=rtol, atol=rtol / 10)


def launch(folder: Path, *workers: Callable[[int, Path], None]) -> None:
    """Call each `worker(rank, folder)` in every process; fail if one of them does, or if they hang."""
    context = start_processes(member, (workers, folder), N_RANKS, join=False, start_method="spawn")
    assert context
    deadline = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"The processes hang: {workers}"
    finally:
        for process in context.processes:
            # torch makes the list of None, and fills it in.
            process.kill()  # pyright: ignore[reportAttributeAccessIssue]


def member(rank: int, workers: tuple[Callable[[int, Path], None], ...], folder: Path) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # What the machine's name resolves to need not be reachable.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = FileStore(str(folder / "store"), N_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=N_RANKS, timeout=timedelta(seconds=TIMEOUT))
    for worker in workers:
        worker(rank, folder)
    dist.destroy_process_group()

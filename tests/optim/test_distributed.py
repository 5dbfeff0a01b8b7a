"""Two processes on CPU (gloo) end where one ends that sees the whole batch: DDP, FSDP2, ZeRO, tensors in parallel,
and checkpoints between them."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import optim
from optim import memory
from tests.optim.ranks import (
    N_RANKS,
    RECIPES,
    alone,
    assert_same,
    full,
    launch,
    make,
    make_model,
    sharded,
    train,
)

CLASSES = [name for name in optim.__all__ if name not in ("from_rule", "Muon")]  # Muon has tests of its own
ONE_PROCESS = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit:UserWarning")


def replicate(rank: int, folder: Path) -> None:
    for name, view in itertools.product(RECIPES, (False, True)):
        model = DistributedDataParallel(make_model(), gradient_as_bucket_view=view)
        train(model, make(optim, name, model), range(5), rank)
        assert_same(model, alone(name, 5)[0])
        for p in model.parameters():
            copies = [torch.empty_like(p) for _ in range(N_RANKS)]
            dist.all_gather(copies, p.detach())
            assert torch.equal(*copies)


def shard(rank: int, folder: Path) -> None:
    for name in RECIPES:
        model = sharded(make_model())
        optimizer = make(optim, name, model)
        train(model, optimizer, range(5), rank, clip=0.3)
        reference, oracle = alone(name, 5, clip=0.3)
        assert_same(model, reference)
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            for key, expected in oracle.state[q].items():
                state = optimizer.state[p][key]
                assert isinstance(state, DTensor) == (key != "step")
                torch.testing.assert_close(full(state), expected, rtol=1e-10, atol=1e-13)
        if rank == 1:
            assert [memory.local(p).numel() for p in model[4].parameters()] == [0, 0]


@pytest.mark.slow
def test_ddp_and_fsdp_end_where_one_process_ends(tmp_path):
    launch(tmp_path, replicate, shard)


def shard_in_mixed_precision(rank: int, folder: Path) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    models = [sharded(make_model(torch.float32), mp_policy=policy) for _ in range(2)]
    for model, module in zip(models, (optim, torch.optim), strict=True):
        train(model, make(module, "AdamW", model), range(5), rank)
    assert_same(*models, rtol=1e-5)


def move_shards(rank: int, folder: Path) -> None:
    """Addresses of local tensors change while the DTensors stay the objects that they are."""
    model = sharded(make_model())
    optimizer = make(optim, "AdamW", model)
    train(model, optimizer, range(3), rank)
    kept = []
    for p in model.parameters():
        assert isinstance(p, DTensor)
        assert p.grad is not None
        kept.append((p._local_tensor, p._local_tensor.clone()))
        p._local_tensor = p._local_tensor.clone()
        p.grad = p.grad.clone()
    optimizer.step()
    for p, (old, before) in zip(model.parameters(), kept, strict=True):
        assert torch.equal(old, before)
        assert (memory.local(p) != before).all()


def tensors_in_parallel(rank: int, folder: Path) -> None:
    """Each process has a part of the sums that are the gradients of a norm over a sharded sequence."""
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Sequential(torch.nn.LayerNorm(6)) for _ in range(2))
    ours = parallelize_module(ours, init_device_mesh("cpu", (N_RANKS,)), {"0": SequenceParallel()})
    for norm, module in ((ours, optim), (theirs, torch.optim)):
        optimizer = module.AdamW(norm.parameters(), lr=0.1, eps=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            full(norm(x if norm is theirs else x.chunk(N_RANKS, dim=1)[rank])).pow(3).sum().backward()
            optimizer.step()
    assert_same(ours, theirs, rtol=1e-5)


def split_states(rank: int, folder: Path) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    reference, _ = alone("AdamW", 6)
    for view in (False, True):
        model = DistributedDataParallel(make_model())
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=optim.AdamW, parameters_as_bucket_view=view, **RECIPES["AdamW"]
        )
        train(model, optimizer, range(3), rank)
        optimizer.consolidate_state_dict(to=0)
        if rank == 0:
            single = make_model(seed=1)
            single.load_state_dict(model.module.state_dict())
            other = torch.optim.AdamW(single.parameters(), lr=9.0)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            train(single, other, range(3, 6))
            assert_same(single, reference)
        train(model, optimizer, range(3, 6), rank)
        assert_same(model, reference)


def save(rank: int, folder: Path) -> None:
    """Sharded, from either optimizer to either."""
    reference, _ = alone("AdamW", 6)
    for saved, loaded in ((optim, optim), (optim, torch.optim), (torch.optim, optim)):
        checkpoint = folder / f"{saved.__name__}-{loaded.__name__}"
        first = sharded(make_model())
        first_optimizer = make(saved, "AdamW", first)
        train(first, first_optimizer, range(3), rank)
        parts = get_state_dict(first, first_optimizer)
        save_checkpoint({"model": parts[0], "optimizer": parts[1]}, checkpoint_id=checkpoint)

        model = sharded(make_model(seed=1))
        optimizer = make(loaded, "AdamW", model, lr=9.0, betas=(0.1, 0.1))
        load(model, optimizer, checkpoint)
        train(model, optimizer, range(3, 6), rank)
        assert_same(model, reference)


def gather(rank: int, folder: Path) -> None:
    """The first process has all the states, and hands them out again."""
    first, model = sharded(make_model()), sharded(make_model(seed=1))
    first_optimizer, optimizer = make(optim, "AdamW", first), make(optim, "AdamW", model, lr=9.0)
    train(first, first_optimizer, range(3), rank)
    parts = get_state_dict(first, first_optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    assert bool(parts[1]) == (rank == 0)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, parts[0], options=options)
    set_optimizer_state_dict(model, optimizer, parts[1], options=options)
    train(model, optimizer, range(3, 6), rank)
    assert_same(model, alone("AdamW", 6)[0])


def load(model, optimizer, checkpoint: Path, **options) -> None:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    load_checkpoint({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=checkpoint, **options)
    set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)


@pytest.mark.slow
@ONE_PROCESS
def test_sharded_states_move_and_are_saved(tmp_path):
    launch(tmp_path, shard_in_mixed_precision, move_shards, tensors_in_parallel, split_states, save, gather)
    # What two processes saved, one loads.
    model = make_model(seed=1)
    optimizer = make(optim, "AdamW", model, lr=9.0)
    load(model, optimizer, tmp_path / "optim-optim", no_dist=True)
    train(model, optimizer, range(3, 6))
    assert_same(model, alone("AdamW", 6)[0])


@ONE_PROCESS
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("saved", "loaded"), [(optim, optim), (optim, torch.optim), (torch.optim, optim)])
def test_a_distributed_checkpoint_of_one_process_continues(name, saved, loaded, tmp_path):
    first, model = make_model(), make_model(seed=1)
    first_optimizer = make(saved, name, first)
    train(first, first_optimizer, range(3))
    parts = get_state_dict(first, first_optimizer)
    save_checkpoint({"model": parts[0], "optimizer": parts[1]}, checkpoint_id=tmp_path, no_dist=True)
    optimizer = make(loaded, name, model, lr=9.0)
    # torch.optim.SGD keeps no step, which ours then does without.
    load(model, optimizer, tmp_path, planner=DefaultLoadPlanner(allow_partial_load=name == "SGD"), no_dist=True)
    train(model, optimizer, range(3, 6))
    assert_same(model, alone(name, 6)[0])


@pytest.mark.parametrize("name", CLASSES)
def test_states_are_saved_as_weights_only(name, tmp_path):
    options = {"lr": torch.tensor(0.01, dtype=torch.float64), "backend": "eager"}
    options |= {"momentum": 0.9} if name == "SGD" else {}
    straight, first, second = make_model(), make_model(), make_model(seed=1)
    train(straight, getattr(optim, name)(straight.parameters(), **options), range(6))
    optimizer = getattr(optim, name)(first.parameters(), **options)
    train(first, optimizer, range(3))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["model"])
    optimizer = getattr(optim, name)(second.parameters(), backend="eager")
    optimizer.load_state_dict(state["optimizer"])
    train(second, optimizer, range(3, 6))
    assert_same(second, straight, rtol=0.0)

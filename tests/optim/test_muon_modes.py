"""Muon where something else drives or watches its step: modes, fake tensors, the compiler, CUDA graphs, DTensors."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.utils.flop_counter import FlopCounterMode

import optim
from kernels import table as tables
from tests.conftest import device_of
from tests.optim.muon import make
from tests.oracle import make_params, train


def test_a_step_that_a_mode_watches_changes_no_value():
    results = []
    for watched in (False, True):
        params = make_params([(6, 4), (2, 4, 6), (3,)])
        groups = [{"params": params[:1]}, {"params": params[1:2], "lr": torch.tensor([0.1, 0.2])}]
        optimizer = make([*groups, {"params": params[2:], "use_muon": False}], adjust_lr_fn="match_rms_adamw")
        for step in range(4):
            with FlopCounterMode(display=False) if watched and step % 2 else torch.enable_grad():
                train(optimizer, params, 1, first_seed=step)
        assert {v.item() for v in optimizer.state[params[1]]["step"]} == {4}
        results.append([p.detach() for p in params])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_steps_on_tensors_without_memory_make_the_states_that_torch_would(device):
    found = []
    for owner in (optim, torch.optim):
        with FakeTensorMode() if device == "cpu" else torch.enable_grad():
            weight = torch.nn.Linear(4, 3, device=device).weight
            optimizer = owner.Muon([weight], lr=0.1)
            for _ in range(2):
                weight.grad = torch.ones_like(weight)
                optimizer.step()
            state = optimizer.state[weight]["momentum_buffer"]
            found.append((state.shape, state.dtype, state.device.type))
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_compiled_step_is_the_same():
    results = []
    for compiles in (False, True):
        torch._dynamo.reset()
        (p,) = make_params([(6, 4)])
        optimizer = make([p])
        step = torch.compile(optimizer.step, backend="eager") if compiles else optimizer.step
        for seed in range(3):
            p.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
            step()
        results.append(p.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", ["triton", "cpu"], indirect=True)
def test_a_captured_step_moves_no_table_and_keeps_its_memory(backend, monkeypatch):
    params = make_params([(6, 4), (4, 6)], device=device_of(backend))
    optimizer = make(params, backend=backend, lr=torch.tensor(0.05))
    grads = [torch.linspace(-1, 1, 24, device=p.device).view_as(p).sin() for p in params]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer.step()
    (part,) = optimizer._parts
    rows, start = part.table.rows._version, [p.detach().clone() for p in params]
    pinned = []
    pin = tables.Table.pin
    monkeypatch.setattr(tables, "capturing", lambda device: True)
    monkeypatch.setattr(tables.Table, "pin", lambda self, *args: (pin(self, *args), pinned.append(self))[0])
    grads[0].mul_(2.0)
    optimizer.step()
    assert optimizer._parts == [part]
    assert part.table.rows._version == rows
    assert not any(map(torch.equal, params, start))
    kept = {storage.data_ptr() for table in pinned for storage in table.pinned}
    states = [optimizer.state[p][name] for p in params for name in ("momentum_buffer", "step")]
    assert {t.untyped_storage().data_ptr() for t in (*params, *states, *grads)} <= kept
    params[0].grad = grads[0].clone()
    with pytest.raises(RuntimeError, match="A gradient has moved since the last step"):
        optimizer.step()


def test_an_optimizer_that_is_dropped_is_freed_at_once():
    (p,) = make_params([(3, 4)])
    optimizer = make([p])
    train(optimizer, [p], 2)
    dropped = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert dropped() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_dtensor_is_refused_by_name():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        weight, bias = (DTensor.from_local(torch.ones(shape), mesh, [Replicate()]) for shape in ((3, 4), (3,)))
        with pytest.raises(TypeError, match=r"Muon does not support DTensors.*: parameter 0 of shape \[3, 4\]"):
            make([weight.requires_grad_()])
        make([{"params": [bias.requires_grad_()], "use_muon": False}])
    finally:
        dist.destroy_process_group()

"""The host's share of a step: on which tensors it is timed, what is counted, and what is left out."""

import math

import pytest
import torch

import optim
from experiments.bench import (
    host_time,
    networks,
)


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("ResNet-50", 161, 25_557_032),
        ("GPT-2 small", 148, 124_439_808),
        ("ViT-B/16", 152, 86_567_656),
        ("GPT-2 medium", 292, 354_823_168),
        ("MNIST MLP", 6, 118_282),
    ],
)
def test_shapes_are_as_many_and_as_large_as_the_networks(name, tensors, parameters):
    listed = networks.LISTS[name]()
    assert len(listed) == tensors
    assert sum(math.prod(shape) for shape in listed) == parameters
    assert [p.ndim for p in host_time.tiny(name)] == [len(shape) for shape in listed]


@pytest.mark.parametrize("moves", [False, True])
def test_steps_write_a_table_only_if_gradients_have_moved(moves):
    params = host_time.tiny("ResNet-50")
    host_time.move_grads(params)
    optimizer = optim.AdamW(params)
    optimizer.step()
    counts = {"uploads": 0, "builds": 0}
    host_time.counted(optimizer, lambda: host_time.median_step_seconds(optimizer, params, moves, steps=4), counts)
    # The untimed step counts too.
    assert counts == {"uploads": 5 if moves else 0, "builds": 0}


def test_builds_are_counted():
    params = host_time.tiny("ResNet-50")
    host_time.move_grads(params)
    optimizer = optim.AdamW(params)
    counts = {"uploads": 0, "builds": 0}
    host_time.counted(optimizer, lambda: optimizer.step() or 0.0, counts)
    assert counts["builds"] == 1
    assert counts["uploads"] > 0


def test_moved_gradients_are_elsewhere_and_shaped_alike():
    params = host_time.tiny("GPT-2 small")
    host_time.move_grads(params)
    old = [p.grad for p in params]
    host_time.move_grads(params)
    for p, grad in zip(params, old, strict=True):
        assert p.grad is not None
        assert grad is not None
        assert p.grad.data_ptr() != grad.data_ptr()
        assert p.grad.shape == p.shape


def test_steps_without_device_work_change_nothing():
    params = host_time.tiny("ResNet-50")
    host_time.move_grads(params)
    ours, theirs = optim.AdamW(params), torch.optim.AdamW(params, fused=True)
    ours.step()
    theirs.step()
    before = [p.detach().clone() for p in params]
    host_time.drop_launches_(ours)
    ours.step()
    with host_time.torch_without_device_work():
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    theirs.step()
    assert not torch.equal(params[0], before[0])


@pytest.mark.parametrize("device_work", [False, True])
def test_host_comparison_neither_writes_nor_builds_while_gradients_stay(device_work):
    row = host_time.compare("ResNet-50", device_work, rounds=2)
    assert (row["uploads"], row["builds"]) == (0, 0)
    assert row["tensors"] == 161
    for where in ("stay", "move"):
        low, middle, high = (row[f"ours / torch, gradients {where}{end}"] for end in (", low", "", ", high"))
        assert 0 < low <= middle <= high
        assert row[f"ours / torch, gradients {where}, level"] == 0.5
    # The range of two rounds says nothing about all of an interval.
    assert row["at most 1/3 if gradients"] == "-"

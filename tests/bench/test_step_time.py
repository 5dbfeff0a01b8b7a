"""What is timed together, for how long, and what is left out; and what the numbers of a row are."""

import math
import time

import pandas as pd
import pytest
import torch

from experiments.bench import (
    contenders,
    step_plan,
    step_time,
)
from experiments.bench.cases import CASES, CUDA_SIZES, SIZES
from experiments.bench.implementations import IMPLEMENTATIONS, OptimizerCase
from experiments.bench.step_plan import FLOAT32, Group
from tests.bench.steps import CPU, GPU


def test_operations_are_counted_in_the_rule_itself():
    # p - lr * (grad + weight_decay * p) in whatever form: a handful, and more with momentum.
    plain, momentum = (
        step_time.flops_of(OptimizerCase("SGD", arguments).rule) for arguments in ({}, {"momentum": 0.9})
    )
    assert 3 <= plain < momentum < 12
    assert 12 <= step_time.flops_of(OptimizerCase("Adam", {}).rule) <= 25


def test_fused_steps_of_classes_without_any_are_left_out_and_the_default_is_the_baseline():
    group = Group(OptimizerCase("NAdam", {}), "2^6", [(64,)])
    rows, left_out = step_time.compare(group, CPU, 3, ["torch fused", "ours", "torch for-loop"])
    assert [row["implementation"] for row in rows] == ["ours", "torch for-loop"]
    assert {row["baseline"] for row in rows} == {"torch for-loop"}
    assert "fused" in left_out["torch fused"]


def test_16_bit_parameters_are_compared_with_float32_too():
    names = ["torch fused", "ours", "ours, stochastic"]
    rows, _ = step_time.compare(Group(CASES[1], "2^8", [(256,)]), CPU, 4, names)
    by_name = {row["implementation"]: row for row in rows}
    assert list(by_name) == ["torch fused", "ours", FLOAT32, "ours, stochastic"]
    stochastic = by_name["ours, stochastic"]
    assert stochastic["bytes"] * 2 == by_name[FLOAT32]["bytes"] == 28 * 256
    for what in ("step: baseline / this", f"step: {FLOAT32} / this"):
        assert stochastic[f"{what}, low"] <= stochastic[what] <= stochastic[f"{what}, high"]
        assert stochastic[f"{what}, verdict"] in ("faster", "same", "slower", "ambiguous")
    assert f"step: {FLOAT32} / this" not in by_name[FLOAT32]


def test_ratios_are_formed_within_each_round():
    # The machine is ten times slower in every other round, and ours takes half of torch's time in each.
    speeds = pd.Series([1.0, 10.0] * 10)
    seconds = pd.DataFrame(
        {("copy", "step"): 1e-3 * speeds, ("torch fused", "step"): 4e-3 * speeds, ("ours", "step"): 2e-3 * speeds}
    )
    timed = [
        contenders.Contender(name, [print], moved)
        for name, moved in (("copy", 8e6), ("torch fused", 28e6), ("ours", 28e6))
    ]
    fused, ours = step_time.make_rows(Group(CASES[0], "2^20", [(2**20,)]), timed, seconds, CPU)
    assert [ours[f"step: baseline / this{end}"] for end in ("", ", low", ", high")] == pytest.approx([2, 2, 2])
    assert ours["step: baseline / this, verdict"] == "faster"
    assert "step: baseline / this" not in fused
    # 14 GB/s by 8 GB/s, and 1.4 by 0.8.
    assert ours["share of copy"] == pytest.approx(1.75)
    assert (ours["step us, p20"], ours["step us, p80"]) == pytest.approx((2000, 20000))


def test_a_time_that_half_of_the_rounds_lack_is_unknown():
    known = step_time.interval("x", pd.Series([1.0, math.nan, 1.0]))
    assert known == {"x": 1.0, "x, low": 1.0, "x, high": 1.0, "x, level": 0.5}
    assert all(map(math.isnan, step_time.interval("x", pd.Series([1.0, math.nan, math.nan])).values()))


def test_contenders_that_do_not_fit_into_memory_are_left_out_from_the_end(monkeypatch):
    group, names = Group(CASES[0], "2^20", [(2**20,)]), ["torch fused", "ours", "torch foreach", "torch for-loop"]
    everything = step_plan.needed_bytes([step_plan.Wanted(n, n, CASES[0]) for n in names], [2**20], 1)
    # Parameters, gradients, four times two states, a copy of 28 bytes, and two temporary tensors twice.
    assert everything == 2**20 * (8 + 4 * 8 + 28 + 2 * 8)
    monkeypatch.setattr(step_plan, "free_bytes", lambda device: everything - 1)
    wanted, _, left_out = step_plan.plan(group, names, CPU, compile=False)
    assert [side.label for side in wanted] == names[:3]
    assert left_out["torch for-loop"].startswith("memory: ")
    monkeypatch.setattr(step_plan, "free_bytes", lambda device: 2**20)
    with pytest.raises(step_plan.NotEnoughMemory, match="GiB are free"):
        step_plan.plan(group, names, CPU, compile=False)


def test_running_out_of_memory_leaves_one_contender_out(monkeypatch):
    def fail(case, params):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setitem(IMPLEMENTATIONS, "ours", IMPLEMENTATIONS["ours"]._replace(make=fail))
    rows, left_out = step_time.compare(Group(CASES[0], "2^6", [(64,)]), CPU, 3, ["torch fused", "ours"])
    assert [row["implementation"] for row in rows] == ["torch fused"]
    assert left_out == {"ours": "out of memory"}


def test_rounds_end_at_the_deadline_but_not_before_a_few():
    group = Group(CASES[0], "2^6", [(64,)])
    rows, _ = step_time.compare(group, CPU, 50, ["ours"], deadline=time.monotonic())
    assert contenders.LEAST_ROUNDS <= rows[0]["rounds"] < 50


def test_the_most_telling_groups_come_first():
    sizes = {size: SIZES[size] for size in CUDA_SIZES}
    groups = step_time.groups(GPU, sizes, CASES)
    assert str(groups[0]) == "Adam float32 2^27"
    assert {"2^10", "2^28", "2^30"} <= {group.size for group in groups}
    assert torch.float64 not in {group.case.dtype for group in groups}


class Device:
    """A device whose time and whose host's time are numbers, in place of `gpu_timing`."""

    def __init__(self, device_seconds: float, host_seconds: float):
        self.device_seconds, self.host_seconds, self.asked = device_seconds, host_seconds, []

    def queued_seconds(self, calls, device, host_seconds):
        self.asked.append(host_seconds)
        return None if host_seconds < self.host_seconds * len(calls) else self.device_seconds * len(calls)


def test_device_time_allows_the_host_more_after_it_was_late(monkeypatch):
    gpu = Device(device_seconds=1e-5, host_seconds=3e-3)
    monkeypatch.setattr(contenders, "gpu_timing", gpu)
    side = contenders.Contender("ours", [print], 28.0, host_seconds=1e-3)
    found = [contenders.device_seconds(side, [print] * 4, GPU) for _ in range(4)]
    assert [math.isnan(seconds) for seconds in found] == [True, True, False, False]
    assert found[2] == pytest.approx(1e-5)
    assert gpu.asked == pytest.approx([4e-3, 8e-3, 16e-3, 16e-3])


def test_device_time_is_given_up_where_the_host_is_far_too_slow(monkeypatch):
    gpu = Device(device_seconds=1e-5, host_seconds=math.inf)
    monkeypatch.setattr(contenders, "gpu_timing", gpu)
    side = contenders.Contender("torch for-loop", [print], 28.0, host_seconds=0.04)
    assert all(math.isnan(contenders.device_seconds(side, [print], GPU)) for _ in range(10))
    assert len(gpu.asked) == 2

"""The benchmarks' arithmetic, what they count, and the benchmarks themselves at their smallest."""

import math
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

import optim
from experiments import bench_host, bench_step, bench_sweep, models, shapes, throughput, timing


def test_sides_are_timed_in_turn_and_slow_ones_take_longer():
    calls = []
    sides = {
        "quick": lambda: calls.append("quick"),
        "slow": lambda: calls.append("slow") or time.sleep(0.01),
    }
    seconds = timing.time_in_turn(sides, 5, lambda: None)
    assert calls == ["quick", "quick", "slow", "slow"] * 5
    assert list(seconds.columns) == ["quick", "slow"]
    assert (seconds["slow"] >= 0.01).all()
    assert (seconds["quick"] < seconds["slow"]).all()


def test_median_interval_covers_the_median_of_a_known_sample():
    values = pd.Series(np.random.default_rng(0).normal(10, 1, 400))
    median, low, high = timing.median_interval(values)
    assert median == np.median(values)
    # The median of 400 normal values has a standard error of 1.2533 / 20.
    assert 9.7 < low < median < high < 10.3
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.35)


@pytest.mark.parametrize(
    ("ratio", "spread", "expected"),
    [
        (2.0, 0.1, "faster"),
        (0.5, 0.1, "slower"),
        (1.0, 0.02, "same"),
        # Noise that leaves both open, and a median at the mark itself.
        (1.0, 2.0, "unclear"),
        (1.05, 0.05, "unclear"),
    ],
)
def test_verdict_is_right_for_sides_of_known_ratio(ratio, spread, expected):
    ratios = pd.Series(ratio + spread * np.random.default_rng(0).normal(size=100))
    _, low, high = timing.median_interval(ratios)
    assert timing.verdict(low, high) == expected


def test_markdown_table_shows_an_interval_in_the_cell_of_its_median():
    row = {"size": "2^16", "ms": 0.123456, "ratio": 1.0, "ratio, low": 0.9, "ratio, high": 1.1, "builds": 0}
    *_, line = timing.markdown_table([row]).splitlines()
    assert line == "| 2^16 | 0.123 | 1.00 [0.90, 1.10] | 0 |"


def test_step_work_counts_every_matrix_product_and_every_byte_of_the_update():
    model = models.mlp(784, 32, 32, 10)
    flops, update_bytes = bench_sweep.step_work(model, lanes=3)
    forward = 784 * 32 + 32 * 32 + 32 * 10
    backward = forward + (32 * 32 + 32 * 10)
    assert flops == 2 * bench_sweep.BATCH * 3 * (forward + backward)
    assert update_bytes == 7 * 4 * 3 * sum(p.numel() for p in model.build().parameters())


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [("ResNet-50", 161, 25_557_032), ("GPT-2 small", 148, 124_439_808), ("ViT-B/16", 152, 86_567_656)],
)
def test_shapes_are_as_many_and_as_large_as_the_networks(name, tensors, parameters):
    listed = shapes.LISTS[name]()
    assert len(listed) == tensors
    assert sum(math.prod(shape) for shape in listed) == parameters
    assert [p.ndim for p in bench_host.tiny(name)] == [len(shape) for shape in listed]


@pytest.mark.parametrize(
    ("name", "arguments", "dtype", "bytes_of_element"),
    [
        ("SGD", {}, torch.float32, 12),
        ("SGD", {"momentum": 0.9}, torch.float32, 20),
        ("AdamW", {}, torch.float32, 28),
        ("AdamW", {}, torch.bfloat16, 14),
        ("Adadelta", {}, torch.float32, 28),
    ],
)
def test_step_bytes_are_those_of_parameters_gradients_and_states(name, arguments, dtype, bytes_of_element):
    case = next(case for case in bench_step.CASES if case[:2] == (name, arguments) and case.dtype == dtype)
    for optimizer in bench_step.make(case, [(5, 3), (7,)]).values():
        assert bench_step.step_bytes(optimizer) == bytes_of_element * 22


@pytest.mark.parametrize("case", bench_step.CASES, ids=lambda case: f"{case.label} {case.dtype}")
def test_both_sides_of_a_step_do_the_same_work(case):
    optimizers = bench_step.make(case, [(40, 3), (17,)])
    before, after = {}, {}
    for side, optimizer in optimizers.items():
        params = optimizer.param_groups[0]["params"]
        before[side] = [p.detach().clone() for p in params]
        for _ in range(3):
            optimizer.step()
        after[side] = [p.detach() for p in params]
    for i in range(2):
        ours, theirs = ((after[side][i] - before[side][i]).float() for side in ("ours", "torch"))
        assert theirs.abs().max() > 0
        # torch's bfloat16 kernels round in between: a few units in the last of 8 places, of parameters of order 1.
        rtol, atol = (0, 3e-2) if case.dtype == torch.bfloat16 else (1e-3, 2e-6)
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_every_class_of_torch_is_timed():
    names = {name for name in optim.__all__ if hasattr(torch.optim, name)}
    assert {case.name for case in bench_step.CASES} == names


@pytest.mark.parametrize("moves", [False, True])
def test_steps_write_a_table_only_if_gradients_have_moved(moves):
    params = bench_host.tiny("ResNet-50")
    bench_host.move_grads(params)
    optimizer = optim.AdamW(params)
    optimizer.step()
    counts = {"uploads": 0, "builds": 0}
    bench_host.counted(optimizer, lambda: bench_host.side(optimizer, params, moves, steps=4), counts)
    # The untimed step counts too.
    assert counts == {"uploads": 5 if moves else 0, "builds": 0}


def test_builds_are_counted():
    params = bench_host.tiny("ResNet-50")
    bench_host.move_grads(params)
    optimizer = optim.AdamW(params)
    counts = {"uploads": 0, "builds": 0}
    bench_host.counted(optimizer, lambda: optimizer.step() or 0.0, counts)
    assert counts["builds"] == 1
    assert counts["uploads"] > 0


def test_moved_gradients_are_elsewhere_and_shaped_alike():
    params = bench_host.tiny("GPT-2 small")
    bench_host.move_grads(params)
    old = [p.grad.data_ptr() for p in params]
    bench_host.move_grads(params)
    assert all(p.grad.data_ptr() != address for p, address in zip(params, old, strict=True))
    assert [p.grad.shape for p in params] == [p.shape for p in params]


def test_steps_without_device_work_change_nothing():
    params = bench_host.tiny("ResNet-50")
    bench_host.move_grads(params)
    ours, theirs = optim.AdamW(params), torch.optim.AdamW(params, fused=True)
    ours.step()
    theirs.step()
    before = [p.detach().clone() for p in params]
    bench_host.drop_launches_(ours)
    ours.step()
    with bench_host.torch_without_device_work():
        theirs.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    theirs.step()
    assert not torch.equal(params[0], before[0])


@pytest.mark.parametrize("device_work", [False, True])
def test_host_comparison_neither_writes_nor_builds_while_gradients_stay(device_work):
    row = bench_host.compare("ResNet-50", device_work, rounds=2)
    assert (row["uploads"], row["builds"]) == (0, 0)
    assert row["tensors"] == 161
    for where in ("stay", "move"):
        low, middle, high = (row[f"ours / torch, gradients {where}{end}"] for end in (", low", "", ", high"))
        assert 0 < low <= middle <= high


def test_step_writes_its_table(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["step", "--rounds", "3", "--only", "SGD", "--sizes", "2^16", "--out", str(out)]
    assert throughput.main(arguments) == 0
    table = pd.read_csv(out / "throughput_step.csv")
    assert table["class"].tolist() == ["SGD", "SGD momentum=0.9"]
    assert table["MB"].tolist() == pytest.approx([12 * 2**16 / 1e6, 20 * 2**16 / 1e6])
    assert (table["torch / ours, low"] <= table["torch / ours"]).all()
    assert (table["torch / ours"] <= table["torch / ours, high"]).all()
    assert table["ours GB/s"].to_numpy() == pytest.approx(table["MB"] / table["ours ms"])
    assert set(table["verdict"]) <= {"faster", "same", "slower", "unclear"}
    assert (out / "throughput_step.md").read_text().strip() == capsys.readouterr().out.strip()
    assert sorted(path.name for path in out.iterdir()) == ["throughput_step.csv", "throughput_step.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--rounds", "2"], "--rounds accepts whole numbers from 3, not 2"),
        (["host", "--rounds", "0"], "--rounds accepts whole numbers from 3, not 0"),
        (["step", "--threads", "0"], "--threads accepts whole numbers from 1 to"),
        (["step", "--only", "Adam", "Lion"], "--only accepts Adam, AdamW, NAdam"),
        (["step", "--sizes", "2^17"], "--sizes accepts 2^16, 2^20, 2^22, 2^24, ResNet-50, not '2^17'"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_in_one_sentence(arguments, message, tmp_path, capsys):
    assert throughput.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_line_writes_the_table_of_hosts(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.throughput", "host", "--rounds", "3", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    table = pd.read_csv(out / "throughput_host.csv")
    assert table["list"].tolist() == list(shapes.LISTS) * 2
    assert (table[["uploads", "builds"]] == 0).all(axis=None)
    assert (out / "throughput_host.md").read_text().strip() == done.stdout.strip()


@pytest.mark.slow
def test_command_line_writes_its_table(mnist_folder, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.throughput", "sweep", "--rounds", "3", "--data-dir", mnist_folder]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=True)
    table = pd.read_csv(out / "throughput_sweep.csv")
    assert table["K"].tolist() == [128, 32]
    for name in ("speed-up over one after the other", "update / torch's flat fused update", "share of roofline"):
        assert (table[f"{name}, low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}, high"]).all()
        assert (table[name] > 0).all()
        assert name in done.stdout
    assert (out / "throughput_sweep.md").read_text().strip() == done.stdout.strip()

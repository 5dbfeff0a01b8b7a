"""Steps on a GPU: on one that is pretended, all of the way through the code, and on one that is here."""

import time

import pandas as pd
import pytest
import torch

from experiments import throughput
from experiments.bench import gpu_timing, implementations, measurements, step_time
from experiments.bench.cases import CASES
from experiments.bench.step_plan import FLOAT32, Group
from experiments.common import preflight
from tests import pretended as gpus
from tests.bench.steps import CPU, GPU, SHAPES, with_grads


@pytest.fixture
def pretended(monkeypatch, h100):
    """A GPU whose tensors lie on the CPU: all of the way through the code, and nothing about time."""

    def queued_seconds(calls, device, host_seconds):
        started = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - started

    real = step_time.make_tensors
    monkeypatch.setattr(step_time, "make_tensors", lambda group, dtype, device, seed: real(group, dtype, CPU, seed))
    monkeypatch.setattr(gpu_timing, "copies", lambda device, n_bytes, copies=gpu_timing.copies: copies(CPU, n_bytes))
    monkeypatch.setattr(gpu_timing, "queued_seconds", queued_seconds)
    monkeypatch.setattr(gpu_timing, "graph_of", lambda calls, device: lambda: [call() for call in calls])
    monkeypatch.setattr(gpu_timing, "event_seconds", lambda call, device: queued_seconds([call], device, 0))
    monkeypatch.setattr(measurements, "matrix_rate", lambda device: 5e13)
    monkeypatch.setattr(preflight, "launch", lambda device: None)
    # So little L2 that two sets of tensors exceed it.
    gpus.put_in(monkeypatch, gpus.H100._replace(L2_cache_size=gpu_timing.SMALLEST_SET // gpu_timing.L2_MULTIPLE))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**35, 2**36))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def check_rows_of_a_gpu(table: pd.DataFrame) -> None:
    """What rows of `ours` and `torch fused` must hold wherever they were measured."""
    for column in ("step us", "host us", "kernel us", "graph us"):
        assert (table[column] > 0).all()
    assert (table["host us"] <= table["step us"]).all()
    assert set(map(str, table["note"])) <= {"", "nan"}
    assert (table["sets"] > 1).all()
    assert (table["warm us"] > 0).all()
    others = table["implementation"] != "torch fused"
    assert table.loc[others, "kernel: baseline / this, verdict"].notna().all()
    assert table.loc[others, "step: baseline / this, verdict"].notna().all()


@pytest.mark.usefixtures("pretended")
def test_every_step_of_the_way_is_gone_on_a_pretended_gpu(tmp_path, capsys):
    command = ["step", "--rounds", "3", "--only", "AdamW", "--sizes", "2^10", "2^11"]
    names = ["torch fused", "ours", "ours, stochastic", "torch foreach"]
    assert throughput.main([*command, "--implementations", *names, "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "throughput_step.csv")
    assert set(table["dtype"]) == {"float32", "bfloat16"}
    captured = table["implementation"] != "torch foreach"
    check_rows_of_a_gpu(table.loc[captured])
    assert table.loc[~captured, "graph us"].isna().all()
    assert (table.loc[table["dtype"] != "float32", "implementation"] == FLOAT32).sum() == 2
    text = (tmp_path / "throughput_step.md").read_text()
    assert "- graph: the device's time" in text
    assert "NVIDIA H100 80GB HBM3" in text


@pytest.mark.usefixtures("pretended")
def test_no_graph_leaves_its_column_empty_and_says_so(monkeypatch):
    def refuse(calls, device):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(gpu_timing, "graph_of", refuse)
    rows, _ = step_time.compare(Group(CASES[0], "2^10", [(2**10,)]), GPU, 3, ["torch fused", "ours"])
    assert {row["note"] for row in rows} == {"no graph: operation not permitted when stream is capturing"}
    assert not any("graph us" in row for row in rows)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_steps_on_a_gpu_have_all_four_times(case):
    group = Group(case, "2^20", [(2**20,)])
    rows, _ = step_time.compare(group, GPU, 5, ["torch fused", "ours", "ours, stochastic"])
    table = pd.DataFrame(rows)
    check_rows_of_a_gpu(table)
    # A step that the device has to itself takes no longer than one that the host waits for.
    assert (table["kernel us"] < table["step us"]).all()
    assert (table["graph us"] < 1.5 * table["kernel us"]).all()
    assert (table["share of copy"] < 1.5).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch fused", "ours"])
def test_a_replayed_step_does_what_a_step_does(name):
    results = []
    for replayed in (True, False):
        params = with_grads(SHAPES, torch.float32, GPU)
        optimizer = implementations.make(name, CASES[0], params)
        if replayed:
            gpu_timing.graph_of([implementations.capturable(optimizer)], GPU)()
        else:
            optimizer.step()
            optimizer.step()
        results.append([p.detach().clone() for p in params])
    for p, q in zip(*results, strict=True):
        assert torch.equal(p, q)


@pytest.mark.slow  # `make gpu` runs both as stages of their own.
@pytest.mark.gpu
@pytest.mark.parametrize("command", ["step --only Adam --sizes 2^10 2^20", "models --only Adam --sizes ResNet-50"])
def test_commands_on_a_gpu_write_tables_and_figures(command, tmp_path, capsys):
    assert throughput.main([*command.split(), "--rounds", "5", "--budget", "60", "--out", str(tmp_path)]) == 0
    what = command.split()[0]
    table = pd.read_csv(tmp_path / f"throughput_{what}.csv")
    assert {"torch fused", "ours", "torch foreach", "torch for-loop"} <= set(table["implementation"])
    assert (table["kernel us"].notna() | (table["implementation"] == "torch for-loop")).all()
    assert "- host: until" in (tmp_path / f"throughput_{what}.md").read_text()
    assert list(tmp_path.glob("*.png"))


@pytest.mark.slow
@pytest.mark.gpu
def test_a_compiled_step_is_timed_if_asked_for():
    group = Group(CASES[0], "2^24", [(2**24,)])
    rows, left_out = step_time.compare(group, GPU, 3, ["torch fused", "torch compiled"], compile=True)
    assert [row["implementation"] for row in rows] == ["torch fused", "torch compiled"], left_out

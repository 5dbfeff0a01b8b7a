"""Steps of every implementation: what is timed together, what it moves, what the rows and figures say."""

import itertools
import math
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import optim
from experiments import throughput
from experiments.bench import contenders, gpu_timing, implementations, measurements, step_plan, step_report, step_time
from experiments.bench.cases import CASES, CUDA_SIZES, SIZES
from experiments.bench.implementations import IMPLEMENTATIONS, OptimizerCase
from experiments.bench.step_plan import FLOAT32, Group
from experiments.common import preflight
from tests import pretended as gpus

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_CPU = [name for name, known in IMPLEMENTATIONS.items() if "cpu" in known.devices and not known.compiles]
SHAPES = [(40, 3), (17,)]


def with_grads(shapes, dtype, device=CPU) -> list[torch.nn.Parameter]:
    return step_time.make_tensors(Group(OptimizerCase("Adam", {}, dtype), "", shapes), dtype, device, seed=0)


QUICK = [case for case in CASES if case.name == "Adam"]
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in QUICK]


@pytest.mark.parametrize("case", [*QUICK, *SLOW], ids=lambda case: f"{case.label} {case.dtype}")
def test_all_implementations_of_a_case_do_the_same_work(case):
    moved = {}
    for name in ON_CPU:
        if implementations.missing(name, case, CPU, compile=False):
            continue
        params = with_grads(SHAPES, case.dtype)
        before = [p.detach().clone() for p in params]
        try:
            optimizer = implementations.make(name, case, params)
        except RuntimeError:
            assert name == "torch fused"
            continue
        for _ in range(3):
            optimizer.step()
        moved[name] = [(p.detach() - q).float() for p, q in zip(params, before, strict=True)]
    assert {"ours", "ours eager", "torch foreach", "torch for-loop"} <= set(moved)
    # 16-bit parameters of order 1 round in between: a few units in the last of 8 or 11 places.
    rtol, atol = (0, 3e-2) if case.dtype.itemsize == 2 else (1e-3, 2e-6)
    for name, updates in moved.items():
        wide = name == "ours, bfloat16 states"
        for ours, theirs in zip(updates, moved["torch for-loop"], strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=2e-2 if wide else rtol, atol=1e-4 if wide else atol)


@pytest.mark.parametrize(
    ("name", "case", "bytes_of_element"),
    [
        ("ours", OptimizerCase("SGD", {}), 12),
        ("ours", OptimizerCase("SGD", {"momentum": 0.9}), 20),
        ("torch fused", OptimizerCase("Adam", {}), 28),
        ("ours", OptimizerCase("Adam", {}), 28),
        ("ours, bfloat16 states", OptimizerCase("Adam", {}), 20),
        ("ours", OptimizerCase("AdamW", {}, torch.bfloat16), 14),
        ("ours, stochastic", OptimizerCase("AdamW", {}, torch.bfloat16), 14),
        ("ours, float32 states", OptimizerCase("AdamW", {}, torch.bfloat16), 22),
        ("ours", OptimizerCase("Adam", {}, torch.float16), 22),
        ("torch fused", OptimizerCase("Adam", {}, torch.float16), 14),
        ("ours", OptimizerCase("Adadelta", {}), 28),
        ("ours", OptimizerCase("Adam", {}, torch.float64), 56),
    ],
)
def test_bytes_of_a_step_are_those_of_its_tensors(name, case, bytes_of_element):
    assert implementations.step_bytes(name, case, [120, 17]) == bytes_of_element * 137
    params = with_grads(SHAPES, case.dtype)
    optimizer = implementations.make(name, case, params)
    states = [v for p in params for v in optimizer.state[p].values() if torch.is_tensor(v) and v.shape == p.shape]
    moved = sum(t.nbytes for p in params for t in (p, p, p.grad) if t is not None) + sum(
        2 * state.nbytes for state in states
    )
    assert moved == bytes_of_element * 137


def test_states_of_8_bits_are_a_byte_and_a_scale_except_in_small_tensors():
    case, small, large = OptimizerCase("Adam", {}), [4095], [4096]
    assert implementations.step_bytes("bitsandbytes 8-bit", case, small) == 28 * 4095
    # Two states, each read and written: 16 scales of 4 bytes.
    assert implementations.step_bytes("bitsandbytes 8-bit", case, large) == (12 + 4) * 4096 + 4 * 16 * 4
    # torchao takes only whole blocks of 256.
    assert implementations.step_bytes("torchao 8-bit", case, [4097]) == 28 * 4097


def test_operations_are_counted_in_the_rule_itself():
    # p - lr * (grad + weight_decay * p) in whatever form: a handful, and more with momentum.
    plain, momentum = (
        step_time.flops_of(OptimizerCase("SGD", arguments).rule) for arguments in ({}, {"momentum": 0.9})
    )
    assert 3 <= plain < momentum < 12
    assert 12 <= step_time.flops_of(OptimizerCase("Adam", {}).rule) <= 25


def test_every_class_of_torch_is_timed():
    assert {case.name for case in CASES} == {name for name in optim.__all__ if hasattr(torch.optim, name)}


@pytest.mark.parametrize("name", list(IMPLEMENTATIONS))
def test_what_cannot_be_had_says_why_in_a_line(name, monkeypatch):
    for module in ("apex", "transformer_engine", "bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, module, None)
    if name.split()[0] in ("apex", "Transformer", "bitsandbytes", "torchao"):
        assert implementations.missing(name, OptimizerCase("Adam", {}), CPU, compile=True) == "only on cuda"
        with pytest.raises(RuntimeError, match=r"^[^\n]*(apex|transformer_engine|bitsandbytes|torchao)[^\n]*$"):
            implementations.make(name, OptimizerCase("Adam", {}), with_grads(SHAPES, torch.float32))


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


def gpu_rows(sizes=range(10, 31, 4), bandwidth=3e12) -> list[dict]:
    """Rows as a GPU gives them, by a model of one."""
    rows = []
    for case, power in itertools.product(CASES[:2], sizes):
        group, n = Group(case, f"2^{power}", [(2**power,)]), 2**power
        names = ["copy", "torch fused", "ours", "torch foreach"]
        moved = [28 * n] + [implementations.step_bytes(name, case, [n]) for name in names[1:]]
        seconds = {}
        for name, moves in zip(names, moved, strict=True):
            device = 2e-6 + moves / bandwidth * (3 if name == "torch foreach" else 1)
            seconds[name, "kernel"] = [device, 1.01 * device, math.nan, device] * 2
            if name != "copy":
                seconds |= {(name, "host"): [1e-4] * 8, (name, "step"): [max(1e-4, device) + 1e-5] * 8}
                seconds |= {(name, "warm"): [device / 2] * 8} if power < 22 else {}
        timed = [contenders.Contender(name, [print], moves) for name, moves in zip(names, moved, strict=True)]
        found = step_time.make_rows(group, timed, pd.DataFrame(seconds), GPU)
        rows += [row | {"sets": 1, "set bytes": 16 * n, "l2 bytes": 50 * 2**20} for row in found]
    return rows


@pytest.fixture
def h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")


def test_rows_of_a_gpu_are_judged_by_the_device_and_by_the_wall(h100):
    row = next(row for row in gpu_rows() if (row["implementation"], row["size"]) == ("torch foreach", "2^30"))
    assert row["kernel: baseline / this, verdict"] == row["step: baseline / this, verdict"] == "slower"
    assert row["share of copy"] == pytest.approx(1 / 3, rel=0.02)
    assert row["datasheet GB/s"] == 3350
    assert row["share of datasheet"] == pytest.approx(1 / 3 * 3000 / 3350, rel=0.02)
    assert row["GB/s"] == pytest.approx(row["bytes"] / row["kernel us"] / 1e3)


def test_report_of_a_gpu_defines_its_times_and_says_what_is_missing(h100):
    missing = [("torch compiled", "Adam float32 2^10", "takes minutes"), ("", "Adam float32 2^30", "needs 90 GiB")]
    text = step_report.markdown(gpu_rows(), missing, "# Steps", "us", "On cuda:0.")
    header = next(line for line in text.splitlines() if line.startswith("| class"))
    for column in (
        "step us",
        "host us",
        "kernel us",
        "warm GB/s",
        "of copy",
        "of datasheet",
        "kernel: baseline: verdict",
    ):
        assert f"| {column} |" in header
    for line in (
        "- kernel: the device's time",
        "- Adam float32 2^30: needs 90 GiB.",
        "- torch compiled (Adam float32 2^10)",
    ):
        assert line in text
    assert "nan" not in text


def lines_of(figure: Figure) -> dict[str, np.ndarray]:
    """Return the points [n, 2] of each line of the first panel, by its label."""
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[0].get_lines()}


def test_bandwidth_shows_the_copy_the_data_sheet_and_where_the_l2_is_full(h100):
    figure = step_report.bandwidth(gpu_rows(), "H100")
    assert figure is not None
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Adam, float32", "Adam, bfloat16"]
    lines = lines_of(figure)
    assert lines["copy, as large a working set"][-1, 1] == pytest.approx(3000, rel=0.02)
    assert lines["data sheet"][0, 1] == 3350
    assert lines["our tensors fill the L2"][0, 0] == 50 * 2**20 / 16
    # The L2's own line ends where one set of tensors exceeds it.
    assert np.isfinite(lines["ours, tensors in the L2"][:, 1]).tolist() == [True] * 3 + [False] * 3
    assert step_report.bandwidth([row for row in gpu_rows() if row["size"] == "2^10"], "H100") is None


def test_roofline_is_as_high_as_copy_and_matrix_product_allow(h100):
    figure = step_report.roofline(gpu_rows(), "H100", matrix_rate=5e13)
    assert figure is not None
    lines = {label.split(",")[0]: points for label, points in lines_of(figure).items()}
    assert lines["copy bandwidth"][:, 1].max() == 5e4
    copies = {row["size"]: row["copy GB/s"] for row in gpu_rows()}
    assert all(r <= 1.02 * x * copies["2^30"] for x, r in lines["ours"])


def test_models_draws_every_network_in_every_panel():
    rows = []
    for case in CASES[:2]:
        for size, n in (("MNIST MLP", 118282), ("ResNet-50", 25557032)):
            seconds = pd.DataFrame({("copy", "step"): [1e-3] * 4, ("ours", "step"): [2e-3] * 4})
            timed = [contenders.Contender(name, [print], 28 * n) for name in ("copy", "ours")]
            rows += step_time.make_rows(Group(case, size, [(n,)]), timed, seconds, CPU)
    figure = step_report.models(rows, "a CPU")
    for ax in figure.axes:
        assert [label.get_text() for label in ax.get_yticklabels()] == ["MNIST MLP", "ResNet-50"]


def test_step_writes_table_report_and_figures(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["step", "--device", "cpu", "--rounds", "3", "--only", "SGD", "--sizes", "2^10", "2^12"]
    assert throughput.main([*command, "--implementations", "torch fused", "ours", "--out", str(out)]) == 0
    table = pd.read_csv(out / "throughput_step.csv")
    assert table["class"].unique().tolist() == ["SGD", "SGD momentum=0.9"]
    assert table["implementation"].tolist() == ["torch fused", "ours"] * 4
    assert table["bytes"].tolist() == [n * size for n in (12, 20) for size in (2**10, 2**10, 2**12, 2**12)]
    assert table["GB/s"].to_numpy() == pytest.approx(table["bytes"] / table["step us"] / 1e3)
    for name in ("step us", "share of copy"):
        assert (table[f"{name}, low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}, high"]).all()
    assert set(table["step: baseline / this, verdict"].dropna()) <= {"faster", "same", "slower", "ambiguous"}
    text = (out / "throughput_step.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "no GPU was timed" in text
    names = [
        "throughput_step.csv",
        "throughput_step.md",
        "throughput_step_bandwidth.png",
        "throughput_step_roofline.png",
    ]
    assert sorted(path.name for path in out.iterdir()) == names


def test_models_writes_milliseconds_and_a_figure(tmp_path):
    command = [
        "models",
        "--device",
        "cpu",
        "--rounds",
        "3",
        "--only",
        "Adam",
        "--sizes",
        "MNIST MLP",
        "--out",
        str(tmp_path),
    ]
    assert throughput.main([*command, "--implementations", "torch fused", "ours"]) == 0
    table = pd.read_csv(tmp_path / "throughput_models.csv")
    assert table["dtype"].tolist() == ["float32"] * 2 + ["bfloat16"] * 3
    assert set(table["elements"]) == {118_282}
    assert "| step ms |" in (tmp_path / "throughput_models.md").read_text()
    assert (tmp_path / "throughput_models.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (KeyboardInterrupt, 130),
        pytest.param(RuntimeError("CUDA error\nmore"), 1, marks=pytest.mark.slow),
        pytest.param(None, 0, marks=pytest.mark.slow),
    ],
)
def test_what_was_measured_is_kept_when_time_is_up_or_somebody_stops_it(stop, code, tmp_path, monkeypatch, capsys):
    real, files = step_time.compare, []

    def compare(group, *options):
        files.append(sorted(path.name for path in tmp_path.iterdir()))
        if group.size == "2^11":
            if stop:
                raise stop
            monkeypatch.setattr(time, "monotonic", lambda: math.inf)
        return real(group, *options)

    monkeypatch.setattr(step_time, "compare", compare)
    command = ["step", "--device", "cpu", "--rounds", "3", "--only", "SGD", "--sizes", "2^10", "2^11", "2^12"]
    options = ["--implementations", "ours", "--budget", "1000", "--out", str(tmp_path)]
    assert throughput.main([*command, *options]) == code
    # The first row was in its file before the second was timed.
    assert files[:2] == [[], ["throughput_step.csv"]]
    text = (tmp_path / "throughput_step.md").read_text()
    reasons = {130: "SGD momentum=0.9 float32 2^12: interrupted", 1: "SGD momentum=0.9 float32 2^11: CUDA error."}
    assert reasons.get(code, "SGD momentum=0.9 float32 2^12: the budget of 1000 s was spent") in text
    sizes = pd.read_csv(tmp_path / "throughput_step.csv").query("`class` == 'SGD'")["size"].tolist()
    assert sizes == {130: ["2^10"], 1: ["2^10", "2^12"], 0: ["2^10", "2^11"]}[code]


def test_nothing_is_written_where_nothing_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_plan, "free_bytes", lambda device: 0)
    command = ["step", "--device", "cpu", "--rounds", "3", "--only", "SGD", "--sizes", "2^10", "--out", str(tmp_path)]
    assert throughput.main(command) == 0
    out = capsys.readouterr().out
    assert "- SGD float32 2^10: needs" in out
    assert "- SGD momentum=0.9 float32 2^10: needs" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--rounds", "2"], "--rounds accepts whole numbers from 3, not 2"),
        (["host", "--rounds", "0"], "--rounds accepts whole numbers from 3, not 0"),
        (["step", "--threads", "0"], "--threads accepts whole numbers from 1 to"),
        (["step", "--only", "Adam", "Lion"], "--only accepts Adam, AdamW, NAdam"),
        (["step", "--sizes", "2^31"], "not '2^31'"),
        (["models", "--only", "SGD"], "--only accepts Adam, AdamW, not 'SGD'"),
        (
            ["models", "--sizes", "2^10"],
            "--sizes accepts ResNet-50, GPT-2 small, ViT-B/16, GPT-2 medium,",
        ),
        (["step", "--implementations", "theirs"], "--implementations accepts torch fused, ours"),
        (["step", "--budget", "0"], "--budget accepts seconds above 0, not 0"),
        (["step", "--device", "tpu"], "--device accepts auto, cpu, cuda or cuda:N, not 'tpu'"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_in_one_sentence(arguments, message, tmp_path, capsys):
    assert throughput.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["step", "models", "sweep"])
def test_the_interpreter_is_never_timed(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert throughput.main([command, "--out", str(tmp_path / "out")]) == 2
    assert "the interpreter is never timed" in capsys.readouterr().err


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


def test_a_fused_step_is_capturable_only_while_it_is_captured(monkeypatch):
    optimizer, seen = torch.optim.Adam(with_grads(SHAPES, torch.float32), fused=True), []
    monkeypatch.setattr(optimizer, "step", lambda: seen.append(optimizer.param_groups[0]["capturable"]))
    for capturing in (False, True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        implementations.capturable(optimizer)()
    assert seen == [False, True, False]
    assert not optimizer.param_groups[0]["capturable"]


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

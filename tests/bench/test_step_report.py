"""What page and figures say of rows that a model of a GPU has given."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.bench import (
    contenders,
    implementations,
    step_report,
    step_time,
)
from experiments.bench.cases import CASES
from experiments.bench.step_plan import Group
from tests.bench.steps import CPU, GPU


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

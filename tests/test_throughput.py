"""The benchmarks themselves at their smallest: what they write, keep and refuse."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from experiments import throughput
from experiments.bench import networks, step_plan, step_time


@pytest.mark.slow
def test_command_line_writes_the_table_of_hosts(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "experiments.throughput", "host", "--rounds", "3", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    table = pd.read_csv(out / "throughput_host.csv")
    assert table["list"].tolist() == list(networks.LISTS) * 2
    assert (table[["uploads", "builds"]] == 0).all(axis=None)
    assert (out / "throughput_host.md").read_text().strip() == done.stdout.strip()


@pytest.mark.slow
def test_command_line_writes_its_table(mnist_folder, tmp_path):
    out = tmp_path / "out"
    # Two steps a round instead of sixty.
    script = (
        "import sys; from experiments import throughput; from experiments.bench import population_time\n"
        "population_time.STEPS['cpu'] = 2\n"
        "sys.exit(throughput.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "sweep", "--rounds", "3", "--data-dir", mnist_folder]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=True)
    table = pd.read_csv(out / "throughput_sweep.csv")
    assert table["K"].tolist() == [128, 32, 32, 32, 128, 32, 32]
    assert table["share of roofline"].notna().tolist() == [True, True, *[False] * 5]
    peers = [f"speed-up over {name}" for name in ("jax", "torch.func", "torch.func compiled")]
    for name in (
        "speed-up over one after the other",
        "update / torch's flat fused update",
        "share of roofline",
        *peers,
    ):
        known = table[table[name].notna()]
        assert (known[f"{name}, low"] <= known[name]).all()
        assert (known[name] <= known[f"{name}, high"]).all()
        assert (known[name] > 0).all()
        assert name in done.stdout
    assert (out / "throughput_sweep.md").read_text().strip() == done.stdout.strip()


HANGS = """
import sys, time
from experiments import throughput
from experiments.bench import population_time, step_time
module = population_time if sys.argv[1] == "sweep" else step_time
compare, calls = module.compare, []

def hang(*arguments, **options):
    calls.append(arguments)
    if len(calls) == (3 if sys.argv[1] == "step" else 2):
        print("hangs", flush=True)
        time.sleep(100)
    return compare(*arguments, **options)

module.compare = hang
population_time.SIZES = {"cpu": (("mlp", 2, 8), ("mlp", 3, 8))}
sys.exit(throughput.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        ("step --only SGD --implementations ours --sizes 2^10 2^12 2^14", ["bandwidth", "roofline"]),
        ("models --only Adam --sizes 'MNIST MLP'", [""]),
        ("sweep --no-download", []),
    ],
)
def test_what_is_interrupted_ends_with_page_table_and_figures(arguments, figures, tmp_path):
    words = [*shlex.split(arguments), "--device", "cpu", "--rounds", "3", "--out", str(tmp_path)]
    command = [sys.executable, "-c", HANGS, *words]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env={**os.environ, "PYTHONPATH": "."}) as process:
        assert process.stdout
        assert process.stdout.readline() == "hangs\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        if figures:
            time.sleep(0.3)
            # It draws now, and has to go on.
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    stem = f"throughput_{words[0]}"
    names = [f"{stem}.csv", f"{stem}.md", *(f"{stem}{'_' * bool(end)}{end}.png" for end in figures)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "nterrupted" in (tmp_path / f"{stem}.md").read_text()


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
        (["command", "--rounds", "2"], "--rounds accepts whole numbers from 3, not 2"),
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


@pytest.mark.parametrize("command", ["step", "models", "sweep", "command"])
def test_the_interpreter_is_never_timed(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert throughput.main([command, "--out", str(tmp_path / "out")]) == 2
    assert "the interpreter is never timed" in capsys.readouterr().err

"""`make gpu` without a GPU: what it says then; and with stages of our own, how it runs them and what it keeps."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import autotune, gpu, throughput
from experiments.gpu import Stage
from tests.test_registry import H100

WRITES = "import sys; open(sys.argv[1], 'w').write('# Title\\n\\n## Part\\n\\ntext\\n'); print('last words')"
FAILS = "import sys; print('what went wrong'); sys.exit(3)"
STOPS = """
import sys, time
print("up", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1], "w").write("# What was known")
    sys.exit(130)
"""
IGNORES = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"


def stage(name: str, script: str, limit: float = 30, page: str | None = None, *arguments: str) -> Stage:
    return Stage(name, ["-c", script, *arguments], page, (f"{name}.png",), limit)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path):
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "TRITON_INTERPRET", "MAKEFLAGS")}
    environment = {**clean, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    done = subprocess.run(["make", "gpu"], cwd=gpu.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "python -m experiments.gpu: there is no GPU here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--budget", "0"], ["--limit", "nan"]])
def test_bad_options_are_named(arguments, capsys):
    assert gpu.main(arguments) == 2
    assert capsys.readouterr().err.endswith(f"{arguments[0]} accepts seconds above 0, not {arguments[1]}\n")


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Run stages of the test's own, as if there were a GPU; returns a function of the stages and further options."""
    monkeypatch.setattr(gpu, "device_facts", lambda device: H100)
    monkeypatch.setattr(gpu, "GRACE", 2.0)

    def check(args):
        args.out = tmp_path / "out"
        return torch.device("cpu")

    def run(stages, *arguments):
        monkeypatch.setattr(gpu, "check", check)
        monkeypatch.setattr(gpu, "stages", lambda out, budget, tests: stages)
        return gpu.main([*arguments])

    return run


def test_stages_fail_and_hang_alone_and_the_report_says_how_each_ended(pretend, tmp_path):
    out = tmp_path / "out"
    started = time.monotonic()
    code = pretend(
        [
            stage("writes", WRITES, 30, "page.md", str(out / "page.md")),
            stage("fails", FAILS),
            stage("stops", STOPS, 3, "late.md", str(out / "late.md")),
            stage("ignores", IGNORES, 1),
            stage("writes again", WRITES, 30, "page.md", str(out / "page.md")),
        ]
    )
    assert time.monotonic() - started < 30
    assert code == 1
    # Pages have become parts of the report.
    assert sorted(path.name for path in out.iterdir()) == ["report.md"]
    text = (out / "report.md").read_text()
    assert text.startswith("# NVIDIA H100 80GB HBM3\n")
    for line in ("| writes | done |", "| fails | failed |", "| stops | cut short |", "| ignores | cut short |"):
        assert line in text
    assert text.count("## Title\n\n### Part\n\ntext") == 2
    assert "    what went wrong" in text
    assert "## What was known" in text
    assert "last words" not in text
    assert "png" not in text


def test_what_the_limit_leaves_no_time_for_is_left_out_and_named(pretend, tmp_path):
    slow = "import time; time.sleep(3)"
    assert pretend([stage("first", slow), stage("second", slow)], "--limit", "4") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| first | done |" in text
    assert "| second | left out, the limit was reached |" in text


def test_tables_become_one_in_which_a_later_run_replaces_its_rows(tmp_path):
    for name, values in (("steps", [1]), ("networks", [2, 3]), ("steps", [4])):
        table = tmp_path / f"{name}.csv"
        pd.DataFrame({"size": values, **({"host us": values} if name == "networks" else {})}).to_csv(table, index=False)
        gpu.take_rows(Stage(name, [], None, (), 1, table.name), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["throughput.csv"]
    found = pd.read_csv(tmp_path / "throughput.csv")
    assert found["stage"].tolist() == ["networks", "networks", "steps"]
    assert found["size"].tolist() == [2, 3, 4]
    assert found["host us"].isna().tolist() == [False, False, True]


def test_the_report_is_written_after_every_stage(pretend, tmp_path):
    report = tmp_path / "out" / "report.md"
    sees = f"assert '| one | done |' in open({str(report)!r}).read()"
    assert pretend([stage("one", "pass"), stage("two", sees)]) == 0


def test_the_stages_run_what_exists_and_write_at_most_eight_files(tmp_path):
    stages = gpu.stages(tmp_path, 240.0, tests=True)
    assert [each.name for each in stages] == ["tests", "tuning", "steps", "networks", "populations"]
    assert sum(each.limit for each in stages) < 560
    assert {os.path.basename(path) for path in gpu.gpu_tests()} >= {"test_gpu.py", "test_search.py", "test_cuda.py"}
    parsers = {"experiments.autotune": autotune.parser(), "experiments.throughput": throughput.parser()}
    for each in stages[1:]:
        # What is no option of the module would end the test.
        _, module, *arguments = each.command
        assert Path(parsers[module].parse_args(arguments).out) == tmp_path
    kept = {f for each in stages for f in each.figures}
    assert len(kept | {gpu.REPORT, gpu.ROWS, f"{H100.slug}.json", "search.csv"}) == 8

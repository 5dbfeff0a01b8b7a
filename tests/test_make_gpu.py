"""`make gpu` without a GPU: what it says then; and with stages of our own, how it runs them and what it keeps."""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import autotune, gpu, throughput
from experiments.common import preflight, processes
from experiments.common.processes import Stage
from tests import conftest
from tests.kernels.devices import H100
from tests.stages import pretended, stage

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path):
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "TRITON_INTERPRET", "MAKEFLAGS")}
    environment = {**clean, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    done = subprocess.run(["make", "gpu"], cwd=processes.ROOT, env=environment, capture_output=True, text=True)
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
    """A function of stages of the test's own and further options, which runs them as if there were a GPU."""
    monkeypatch.setattr(processes, "GRACE", 1.0)

    def run(stages, *arguments):
        pretended(monkeypatch.setattr, tmp_path / "out", stages)
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
            stage("ignores", IGNORES, 2),
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


def test_what_an_earlier_run_has_left_is_not_taken_for_this_ones(pretend, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("page.md", "rows.csv", "fails.png"):
        (out / name).write_text("of an earlier run")
        os.utime(out / name, (1, 1))
    # In this run a figure is drawn, and then something fails.
    draws = f"open({str(out / 'draws.png')!r}, 'w').close(); raise SystemExit(1)"
    fails = stage("fails", FAILS, 30, "page.md")._replace(rows="rows.csv")
    assert pretend([fails, stage("draws", draws)]) == 1
    text = (out / "report.md").read_text()
    assert "of an earlier run" not in text
    assert "(fails.png)" not in text
    assert "![draws](draws.png)" in text
    assert sorted(path.name for path in out.iterdir()) == ["draws.png", "fails.png", "report.md"]


def test_what_the_limit_leaves_no_time_for_is_left_out_and_named(pretend, tmp_path):
    slow = "import time; time.sleep(1)"
    # Of which the last one is kept for what is cut short.
    assert pretend([stage("first", slow), stage("second", slow)], "--limit", "3") == 0
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
    assert {os.path.basename(path) for path in gpu.gpu_tests()} >= {"test_gpu.py", "test_search.py", "test_cuda.py"}
    parsers = {"experiments.autotune": autotune.parser(), "experiments.throughput": throughput.parser()}
    for each in stages[1:]:
        # What is no option of the module would end the test.
        _, module, *arguments = each.command
        assert Path(parsers[module].parse_args(arguments).out) == tmp_path
    kept = {f for each in stages for f in each.figures}
    assert len(kept | {gpu.REPORT, gpu.ROWS, f"{H100.slug}.json", "search.csv"}) == 8


TESTS = """
import signal, time
import pytest
pytestmark = pytest.mark.gpu
def test_passes(): pass
def test_fails(): assert 1 == 2
def test_hangs():
    DEAF
    print("hangs")
    time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [False, True])
def test_tests_that_are_cut_short_tell_which_have_passed_and_failed(deaf, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 5.0)
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)" if deaf else ""
    (tmp_path / "test_three.py").write_text(TESTS.replace("DEAF", ignore))
    monkeypatch.setattr(gpu, "gpu_tests", lambda: [str(tmp_path / "test_three.py")])
    made = processes.run(gpu.stages(tmp_path, 1.0, tests=True)[0], 12.0, gpu.surroundings(tmp_path))
    assert made.ended == "cut short"
    assert re.search(r"test_three.py \.\s*(\[ *\d+%\]\s*)?F", made.tail)
    if not deaf:
        assert "FAILED" in made.tail
        assert re.search(r"1 failed, 1 passed.* in ", made.tail)


def test_limits_budgets_and_the_kernel_before_them_add_up_to_nine_minutes(tmp_path):
    args = gpu.parser().parse_args([])
    stages = gpu.stages(tmp_path, args.budget, args.tests)
    assert preflight.LIMIT + sum(each.limit for each in stages) <= args.limit == gpu.LIMIT
    # Python starts before, and what cannot be killed is waited for; lent machines end a command after ten minutes.
    assert gpu.LIMIT + processes.REAP < 540
    for each in stages:
        # A budget leaves time to start, to end what is being measured, and to draw, before and after an interrupt.
        budget = float(each.command[each.command.index("--budget") + 1]) if "--budget" in each.command else 0.0
        assert budget + 2 * processes.GRACE <= each.limit


def test_quick_tests_are_what_make_gpu_runs(tmp_path):
    command = gpu.stages(tmp_path, 1.0, tests=True)[0].command
    assert command[command.index("pytest") + 1 :][:2] == ["-m", "gpu and not slow"]
    # Where a package of the tests is missing, the others run.
    assert "--continue-on-collection-errors" in command


def test_a_test_that_gets_triton_is_among_those_of_a_gpu(backend, request):
    assert conftest.has_cuda_tensors(request.node) == (backend == "triton")
    marked = request.node.get_closest_marker("gpu") is not None
    assert marked == (backend == "triton" and torch.cuda.is_available())


def test_every_test_that_asks_where_triton_runs_is_among_those_of_a_gpu():
    for path in (processes.ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and "device_of" in names:
                marks = " ".join(map(ast.unparse, node.decorator_list))
                arguments = [argument.arg for argument in node.args.args]
                assert "backend" in arguments or "gpu_too" in marks, f"{path.name}: {node.name}"


PRETENDS = """
import torch
import torch.testing._internal.common_optimizers  # asks for a GPU of its own accord
torch.cuda.is_available = lambda: True
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_what_matters_most_on_a_gpu_comes_first(tmp_path):
    (tmp_path / "pretends.py").write_text(PRETENDS)
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    stage, *_ = gpu.stages(tmp_path, 1.0, tests=True)
    listed = gpu.gpu_tests()
    assert stage.command[-len(listed) :] == listed
    # All files, so that one which is not listed is seen.
    options = stage.command[: -len(listed)]
    command = [sys.executable, *options, "tests", "-p", "pretends", "--collect-only", "-q"]
    environment = {**clean, "PYTHONPATH": os.pathsep.join([str(processes.ROOT), str(tmp_path)])}
    done = subprocess.run(command, cwd=processes.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    names = [line for line in done.stdout.splitlines() if "::" in line]
    files = [Path(name.split("::")[0]).stem.removeprefix("test_") for name in names]
    assert set(files) <= {Path(path).stem.removeprefix("test_") for path in listed}
    assert {"family", "kernels", "memory", "rounding", "optim", "launch_config", "gpu", "cuda"} <= set(files)
    assert files[0] == "kernels"
    last_of = {name: max(i for i, file in enumerate(files) if file == name) for name in set(files)}
    assert max(last_of[name] for name in ("kernels", "memory", "rounding")) < files.index("cuda") < len(files) - 10
    others = [i for i, name in enumerate(names) if "triton" in name and "Adadelta" in name]
    assert others
    assert min(others) > last_of["gpu_steps"]
    assert not any(re.search(r"\b(cpu|eager)\b", name.partition("[")[2]) for name in names)

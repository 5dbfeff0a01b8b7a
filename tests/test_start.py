"""Commands start at once: what takes long to import is imported where it is needed."""

import json
import subprocess
import sys

import pytest

import experiments
import kernels
from experiments import options
from experiments.training import optimizers
from experiments.training.axes import AXES
from kernels.commands import commands
from tests.pages import ROOT

# torch itself imports tqdm, but not its bars.
SLOW = {
    "pandas",
    "scipy",
    "matplotlib",
    "tqdm.auto",
    "tqdm.asyncio",
    "pyarrow",
    "numba",
    "markdown_it",
    "ray",
    "sklearn",
    "rich",
}
TO_DRAW = {"matplotlib", "scipy.stats", "markdown_it", "sklearn"}
COMMANDS = [name for package in (experiments, kernels) for name in commands(package.__name__)]
NAME_RULES = ("experiments.autotune", "kernels.codegen")
"""Commands that list the rules, which Triton has a hand in."""
RUN = """
import contextlib, io, json, re, runpy, sys

def run(module, *words):
    sys.argv, text = [module, *words], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as ended:
            found.append((" ".join(sys.argv), ended.code, [*sys.modules]))
    return text.getvalue()

asked, found = json.loads(sys.argv[1]), []
for words in asked:
    shown = run(*words)
    subcommands = re.search(r"{([a-z,]+)} [.]{3}$", shown, re.MULTILINE) if words[1:] == ["--help"] else None
    for subcommand in subcommands[1].split(",") if subcommands else []:
        run(words[0], subcommand, "--help")
print(json.dumps(found))
"""
"""Runs commands; of those that only show help, also each subcommand."""


def run(asked: list[list[str]]) -> list[tuple[str, int, set[str]]]:
    """Run commands in one fresh process; return each with its exit code and all modules imported by then."""
    command = [sys.executable, "-c", RUN, json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [(words, code, set(modules)) for words, code, modules in json.loads(done.stdout)]


def test_help_imports_nothing_that_takes_long(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    found = run([[name, "--help"] for name in sorted(COMMANDS, key=NAME_RULES.__contains__)])
    assert {words for words, _, _ in found} > {"experiments.autotune tune --help", "experiments.throughput step --help"}
    for words, code, modules in found:
        assert code == 0, words
        assert not modules & SLOW, words
        assert words.startswith(NAME_RULES) or not modules & {"triton", "optim"}, words


@pytest.mark.parametrize("axis", AXES)
def test_help_names_the_default_of_an_optimizer(axis):
    assert optimizers.axes(optimizers.OPTIMIZERS[options.EXAMPLES[axis]])[axis].default == AXES[axis]


def test_a_command_that_is_refused_imports_nothing_to_draw_with(tmp_path):
    (tmp_path / "file").touch()
    refused = [
        "experiments.sweep mnist --lr none --out {}/out",
        "experiments.rounding --lr none --out {}/out",
        "experiments.throughput step --only none --out {}/out",
        "experiments.autotune --rule none --out {}/out",
        "experiments.autotune show {}/none.json",
        "experiments.autotune diff {}/none.json {}/none.json",
        "kernels.codegen none",
        # From here on with pandas.
        "experiments.sweep regression --model none --out {}/out",
        "experiments.sweep regression --lr 1e-3 --steps 2 --out {}",
        "experiments.report {}/none",
        "experiments.watch {}/none",
        "experiments.export {}/none --to csv",
        "experiments.export {}/none --to none",
    ]
    for words, code, modules in run([words.replace("{}", str(tmp_path)).split() for words in refused]):
        assert code == 2, words
        assert not modules & (TO_DRAW | {"scipy", "numba", "ray"}), words
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_dry_run_imports_nothing_to_draw_with():
    ((_, code, modules),) = run([["experiments.sweep", "regression", "--lr", "1e-3", "--steps", "2", "--dry-run"]])
    assert code == 0
    # Numba imports scipy.linalg.
    assert not modules & (TO_DRAW | {"ray"})


def test_sweep_is_imported_without_what_it_trains_and_draws_with():
    code = "import sys; from experiments.sweep import sweep; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not SLOW & {*done.stdout.split()}

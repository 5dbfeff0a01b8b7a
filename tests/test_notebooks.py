"""Are the notebooks committed without outputs, and do they run from top to bottom, wherever they are started?"""

import ast
import builtins
import importlib
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from experiments.common import run_info

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [
    "01_quickstart",
    "02_anatomy_of_a_kernel",
    "03_sweep_explorer",
    "04_autotune_your_gpu",
    "05_invent_an_optimizer",
    "06_your_own_problem",
]
SECONDS = 90
"""That a notebook may take on two cores."""

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code(notebook: NotebookNode) -> list[str]:
    """The Python of every cell, without what IPython reads: its magics."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return ["\n".join(line for line in cell.splitlines() if not line.startswith("%")) for cell in cells]


def test_all_are_there_and_their_readme_names_them():
    assert [path.stem for path in PATHS] == NAMES
    readme = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((\w+)\.ipynb\)", readme) == NAMES


@each
def test_a_notebook_is_valid_and_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.keys() == {"kernelspec"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        # Names, which a diff shows; Jupyter's own are eight random digits.
        assert re.fullmatch(r"[a-z][a-z0-9-]*", cell.id)
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def hook() -> list[str]:
    """The command of the pre-commit hook."""
    (command,) = re.findall(r"entry: \.venv/bin/(nbstripout.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    return [sys.executable, "-m", *shlex.split(command)]


def test_the_hook_strips_what_running_adds_and_nothing_else(tmp_path):
    pytest.importorskip("nbstripout", reason="needs nbstripout")
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["language_info"] = {"name": "python", "version": "3.11.2"}
        notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = 7
                cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
                cell.outputs = [nbformat.v4.new_output("stream", text="done")]
        nbformat.write(notebook, tmp_path / path.name)
    copies = [tmp_path / path.name for path in PATHS]
    subprocess.run([*hook(), *copies], check=True)
    assert [copy.read_text() for copy in copies] == [path.read_text() for path in PATHS]


@each
def test_a_notebook_imports_what_there_is(path):
    pytest.importorskip("IPython", reason="needs IPython")
    for node in ast.walk(ast.parse("\n".join(code(nbformat.read(path, as_version=4))))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


@each
def test_a_notebook_holds_no_reusable_code(path):
    """Kernels, rules and a problem are what 02, 05 and 06 are about; all else is in packages."""
    nodes = [n for cell in code(nbformat.read(path, as_version=4)) for n in ast.walk(ast.parse(cell))]
    defined = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    assert not [n for n in defined if isinstance(n, ast.ClassDef)]
    assert not defined or path.stem[:2] in ("02", "05", "06")
    # Where the packages are is pip's business.
    assert not [n for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n) in ("sys.path", "os.chdir")]


def test_results_say_which_notebook_made_them(monkeypatch):
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/01_quickstart.ipynb")
    assert run_info.command_line() == "notebook notebooks/01_quickstart.ipynb"


def cpu_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def executed(path: Path, folder: Path) -> NotebookNode:
    """A notebook after all of its cells, run in another folder, without anything of this process or of its user."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"ADAM_SANDBOX_TUNED": str(folder / "tuned"), "IPYTHONDIR": str(folder / "ipython")}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute(env=environment)
    return notebook


def outputs(notebook: NotebookNode) -> tuple[str, str, int]:
    """All text (of tables, as HTML), what was written to stderr, and the number of pictures."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [output.text for output in found if output.output_type == "stream"]
    data = [output.data for output in found if "data" in output]
    texts += [part for one in data for kind, part in one.items() if kind in ("text/plain", "text/html")]
    errors = "".join(output.text for output in found if output.output_type == "stream" and output.name == "stderr")
    return "\n".join(texts), errors, sum("image/png" in one for one in data)


SHOWN = {
    "01_quickstart": (3, ["100 runs on MNIST", "eval_accuracy"]),
    "02_anatomy_of_a_kernel": (
        2,
        ["ld.global.v4.b32", "largest difference", "kernel, simulated", "28 bytes", "MachineCode(", "the rule:"],
    ),
    "03_sweep_explorer": (1, ['alt="convergence"', "no/such/folder is no folder", "15 of 135 runs"]),
    "04_autotune_your_gpu": (1, ["1024x8", "narrow access", "NVIDIA H100 80GB HBM3"]),
    "05_invent_an_optimizer": (2, ["largest difference", "after 200 steps", "main:Cautious"]),
    "06_your_own_problem": (2, ["42 runs", "batch size"]),
}
"""How many pictures a notebook shows at least, and words of its output."""


@pytest.mark.slow
@each
def test_a_notebook_runs_from_any_folder_within_its_time(path, tmp_path):
    before = cpu_seconds()
    notebook = executed(path, tmp_path)
    spent = cpu_seconds() - before
    text, errors, pictures = outputs(notebook)
    least, words = SHOWN[path.stem]
    assert pictures >= least
    assert [word for word in words if word not in text] == []
    assert re.search(r"There is no CUDA GPU here|On .*GiB", text)
    # No warnings, but that small digits stand in where MNIST cannot be had.
    assert [line for line in errors.splitlines() if not line.startswith("WARNING: MNIST-5k")] == []
    # What two cores can do in that time; other processes may share them, so that a clock would say less.
    assert spent < 2 * SECONDS

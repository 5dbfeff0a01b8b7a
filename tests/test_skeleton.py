"""The packages are this repository's, and its folders are the ones agreed on."""

import ast
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

import experiments
import kernels
import optim

ROOT = Path(__file__).parent.parent


def test_packages_are_imported_from_this_repository():
    # Hugging Face publishes a package that is named `kernels` too.
    for package in (kernels, optim, experiments):
        assert Path(str(package.__file__)).parent == ROOT / package.__name__


def test_top_level_folders_are_exactly_the_agreed_ones():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert folders == {"kernels", "optim", "experiments", "notebooks", "tests", "results"}


def imports(script: ast.Module) -> list[tuple[str, str]]:
    """Each name that a script imports from a module of ours."""
    nodes = [one for one in ast.walk(script) if isinstance(one, ast.ImportFrom) and one.module]
    found = [(str(one.module), alias.name) for one in nodes for alias in one.names]
    return [one for one in found if one[0].partition(".")[0] in ("experiments", "kernels", "optim", "tests")]


def test_scripts_in_tests_import_what_there_is():
    """To linters, what a test runs in a process of its own is a string; that test may be slow, or need a GPU or Ray."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        nodes = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        for text in (text for text in nodes if isinstance(text, str) and "import " in text):
            with suppress(SyntaxError):  # a sentence
                found += [(path.name, *one) for one in imports(ast.parse(text))]
    assert len(found) > 10
    for path, module, name in found:
        spec = find_spec(module)
        assert spec, f"{path} has a script that imports from {module}, and there is no such module"
        within = spec.submodule_search_locations and find_spec(f"{module}.{name}")
        assert within or re.search(rf"\b{name}\b", Path(str(spec.origin)).read_text()), (
            f"{path} has a script that imports {name} from {module}, which has no such name"
        )


PYNVML = """
import warnings
warnings.warn("The pynvml package is deprecated. Please install nvidia-ml-py instead.", FutureWarning, stacklevel=2)
"""


@pytest.mark.slow
def test_tests_run_where_the_package_pynvml_is_installed(tmp_path):
    (tmp_path / "pynvml.py").write_text(PYNVML)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", __file__],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stdout + done.stderr

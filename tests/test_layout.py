"""Folders import in one direction: common <- tasks <- training; trackers <- sweeps; reports; papers; bench <- tune.

Tests lie in folders like the ones of what they test, in short files that share what they need through helpers.
"""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
EXPERIMENTS = TESTS.parent / "experiments"
MAY_IMPORT = {
    "common": set(),
    "tasks": {"common"},
    "training": {"common", "tasks"},
    "trackers": {"common", "training"},
    "sweeps": {"common", "tasks", "training", "trackers"},
    "reports": {"common", "tasks", "training"},
    "papers": {"common", "tasks", "training", "sweeps", "reports"},
    "bench": {"common", "tasks", "training"},
    "tune": {"common", "tasks", "training", "bench"},
}


def imported(path: Path) -> set[str]:
    """The names of experiments that a file imports, at its top or inside functions, as `folder.module.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("experiments.") for name in found if name.startswith("experiments.")}


def modules_of_tests(path: Path) -> set[str]:
    """The modules of tests that a file imports, be it in a script for another process, which no linter reads."""
    found = re.findall(r"^ *(?:from|import) (tests[.\w]*)(?: import (\w+))?", path.read_text(), re.MULTILINE)
    folders = {module for module, _ in found if (TESTS.parent / module.replace(".", "/")).is_dir()}
    return {f"{module}.{name}" if module in folders else module for module, name in found}


def test_every_folder_has_its_place():
    assert {path.parent.name for path in EXPERIMENTS.glob("*/*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_only_what_they_may(folder):
    modules = list((EXPERIMENTS / folder).glob("*.py"))
    assert len(modules) > 2
    for path in modules:
        others = {name.partition(".")[0] for name in imported(path)} - {folder}
        assert others <= MAY_IMPORT[folder], path


def test_no_modules_import_each_other_in_a_circle():
    names = {path: ".".join(path.relative_to(EXPERIMENTS).with_suffix("").parts) for path in EXPERIMENTS.rglob("*.py")}
    needs = {}
    for path, name in names.items():
        # What is imported may be a module, or a name in one.
        needs[name] = {module for one in imported(path) for module in (one, one.rpartition(".")[0])} & set(
            names.values()
        )
    while leaves := {name for name, others in needs.items() if not others}:
        needs = {name: others - leaves for name, others in needs.items() if name not in leaves}
    assert not needs


def test_every_folder_of_tests_mirrors_one_of_the_code():
    folders = {path.parent for path in TESTS.rglob("*.py")} - {TESTS}
    assert {folder.relative_to(TESTS).as_posix() for folder in folders} == {"kernels", "optim", *MAY_IMPORT}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_no_test_file_has_more_than_300_lines():
    assert [path for path in TESTS.rglob("*.py") if len(path.read_text().splitlines()) > 300] == []


def test_no_test_file_imports_from_another():
    for path in TESTS.rglob("*.py"):
        # A script for another process may need what its own file has.
        own = ".".join(path.relative_to(TESTS.parent).with_suffix("").parts)
        others = modules_of_tests(path) - {own}
        assert not any(module.rpartition(".")[2].startswith("test_") for module in others), path


def test_what_is_imported_from_tests_exists():
    for path in TESTS.rglob("*.py"):
        for module in modules_of_tests(path):
            assert find_spec(module), f"{path}: {module}"

"""Folders import in one direction: common <- tasks <- training <- {sweeps, reports, bench}, and bench <- tune."""

import ast
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
MAY_IMPORT = {
    "common": set(),
    "tasks": {"common"},
    "training": {"common", "tasks"},
    "sweeps": {"common", "tasks", "training"},
    "reports": {"common", "tasks", "training"},
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

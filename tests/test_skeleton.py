"""The packages are this repository's, and its folders are the ones agreed on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
import kernels
import optim

ROOT = Path(__file__).parent.parent


def test_packages_are_imported_from_this_repository():
    # Hugging Face publishes a package that is named `kernels` too.
    for package in (kernels, optim, experiments):
        assert Path(package.__file__).parent == ROOT / package.__name__


def test_top_level_folders_are_exactly_the_agreed_ones():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert folders == {"kernels", "optim", "experiments", "notebooks", "tests", "results"}


def test_every_row_of_the_readme_tables_is_in_a_file_of_the_gallery():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    evidence = "\n".join(path.read_text() for path in (ROOT / "results/gallery").rglob("*.md"))
    assert len(rows) > 3
    for row in rows:
        assert row in evidence


def test_every_path_that_the_readme_links_exists():
    for path in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).exists(), path


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

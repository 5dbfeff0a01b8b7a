"""What an installation holds is what the repository does, and everything says the same version."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import experiments
import kernels
import optim

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "optim", "experiments")


def declared() -> str:
    """The version in pyproject.toml, the one place that has it."""
    return re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]


def test_versions_agree():
    assert kernels.__version__ == optim.__version__ == experiments.__version__ == version("adam-sandbox")
    assert re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [declared()]
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == declared()


def test_a_checkout_that_is_not_installed_imports(tmp_path):
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    # -I and -S: no installed packages, so that there is no metadata; kernels itself imports none.
    code = "import sys; sys.path.insert(0, '.'); import kernels; print(kernels.__version__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("unknown\n", "")


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_packages_but_their_pages(tmp_path):
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {name for name in tracked.stdout.splitlines() if not name.endswith(".md")}
    source = tmp_path / "source"
    for name in (*files, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"adam_sandbox-{declared()}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.partition("/")[0] in PACKAGES}
    assert held == files
    assert {f"{package}/py.typed" for package in PACKAGES} <= held

"""Where everything is installed, a test that is skipped for another reason than a GPU's or MNIST's absence fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = """
import pytest
@pytest.mark.skipif(True, reason="needs two GPUs")
def test_gpu(): pass
@pytest.mark.skipif(True, reason="MNIST_DIR names no folder")
def test_mnist(): pass
@pytest.mark.skipif(True, reason="needs Chromium or Chrome")
def test_mark(): pass
def test_inside(): pytest.importorskip("no_such_module", reason="needs no_such_module")
@pytest.fixture
def missing(): pytest.skip("nothing here")
def test_fixture(missing): pass
@pytest.mark.xfail
def test_expected(): assert False
def test_passes(): pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "refused"), [("", set()), ("1", {"test_mark", "test_inside", "test_fixture", "test_module.py"})]
)
def test_skips_fail_only_where_that_is_asked_for(asked, refused, tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_examples.py").write_text(EXAMPLES)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    command = [sys.executable, "-m", "pytest", "-rfE", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "-n", "1"]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "ADAM_SANDBOX_NO_SKIPS": asked, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == bool(refused), done.stdout + done.stderr
    found = re.findall(r"^(?:FAILED|ERROR) \S*?(test_\w+(?:\.py)?)(?: - .*)?$", done.stdout, re.MULTILINE)
    assert set(found) == refused, done.stdout
    assert "needs Chromium or Chrome" in done.stdout or not refused
    assert re.search(r"1 passed, .*1 xfailed", done.stdout)

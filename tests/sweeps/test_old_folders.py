"""A results folder of an older version opens, draws and goes on; the same sweep gives the same numbers."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from experiments import report, sweep
from experiments.reports import writer
from experiments.sweeps import reading
from tests.tables import without_seconds

WRITTEN = Path(__file__).parents[1] / "data/sweep-before-folders"
"""Written at commit 13201bf, before the modules of experiments were divided into folders."""


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(WRITTEN, tmp_path / "before"))


@pytest.mark.slow
def test_a_folder_of_before_is_drawn(folder):
    assert report.main([str(folder)]) == 0
    assert {"report.html", "report.md", "summary.csv", "convergence.png"} <= {path.name for path in folder.iterdir()}


def test_the_same_sweep_gives_the_same_numbers_and_goes_on_in_the_folder(folder, monkeypatch):
    monkeypatch.setattr(writer, "write", lambda *_: [])
    before, command = reading.load(folder), json.loads((folder / "provenance.json").read_text())["command"]
    words = command.split()[3:-2]
    assert sweep.main([*words, "--device", "cpu", "--out", str(folder)]) == 0
    after = reading.load(folder)
    for old, new in ((before.runs, after.runs), (without_seconds(before.curves), after.curves)):
        # Another processor, or version of a library, rounds sums differently; on the same one the bits are the same.
        pd.testing.assert_frame_equal(old, new.loc[:, list(old.columns)], rtol=1e-4)
    assert before.provenance["sweep"] == after.provenance["sweep"]
    # What was trained before is still there.
    assert len(list((folder / "parts").glob("*.parquet"))) == 2

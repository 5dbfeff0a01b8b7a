"""`experiments.load`: a results folder as DataFrames in one line."""

import shutil

import pandas as pd
import pytest

import experiments
from experiments.common.errors import OptionError
from experiments.sweeps import results
from tests.pages import ROOT

STUDIES = [ROOT / "results/gallery" / name for name in ("demo/regression", "optimizers")]


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_load_returns_what_the_files_hold(folder):
    runs, curves, provenance, summary = found = experiments.load(folder)
    assert found.runs is runs
    pd.testing.assert_frame_equal(runs, pd.read_parquet(folder / "runs.parquet"))
    pd.testing.assert_frame_equal(curves, pd.read_parquet(folder / "curves.parquet"))
    assert provenance["command"].startswith("python -m experiments.")
    pd.testing.assert_frame_equal(summary, pd.read_csv(folder / "summary.csv"), check_dtype=False)


@pytest.mark.slow
def test_load_gives_the_finished_runs_of_a_sweep_that_goes_on(tmp_path):
    from tests.sweeps.small import train

    folder = tmp_path / "first"
    whole = train(folder, lr=[1e-3])
    asked = pd.concat([whole.runs, whole.runs.assign(seed=7)])
    parts = [*(folder / results.PARTS).glob("*.parquet")]
    keys = [key for path in parts for key in pd.read_parquet(path)["key"].unique()]
    table = asked.loc[:, "data":"seed"].assign(key=[*keys, *(f"none {i}" for i in range(len(whole.runs)))])
    results.begin(folder, table, {"git": {}})
    found = experiments.load(str(folder))
    assert found.provenance["unfinished"] == {"finished": len(whole.runs), "of": 2 * len(whole.runs)}
    assert len(found.runs) == len(whole.runs)
    assert len(found.summary) == 2


@pytest.mark.parametrize("lost", ["runs.parquet", "curves.parquet", "provenance.json"])
def test_load_names_the_file_that_is_missing(lost, tmp_path):
    shutil.copytree(STUDIES[0], tmp_path / "copy")
    (tmp_path / "copy" / lost).unlink()
    with pytest.raises(OptionError, match=r"copy.* (holds no results: .*|does not exist)$"):
        experiments.load(tmp_path / "copy")

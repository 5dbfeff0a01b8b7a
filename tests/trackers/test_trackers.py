"""Do trackers get every run of a sweep with its configuration, results and curves, as their own libraries read them?"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import export
from experiments.trackers import records
from tests.pages import ROOT
from tests.reports import artificial
from tests.trackers.reading import READERS

HOSTILE = '<img src=x onerror="alert(1)">/../../x: 100% ü'
SAFE = {"eval_a b": "eval_a_b", "eval_a/b": "eval_a_b_2"}
LARGEST = sys.float_info.max


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Make a results folder, of two runs that diverge, one to infinity, and of names that could do harm."""
    folder = tmp_path_factory.mktemp("results") / f"a study of {HOSTILE.replace('/', '-')}"
    folder.mkdir()
    runs, curves = artificial.sweep(2, lr=[1e-3, 1.0], beta1=[0.0, 0.9], points=4)
    runs["optimizer"] = HOSTILE
    curves["eval_a b"], curves["eval_a/b"] = 0.5, np.arange(len(curves)) / 3
    ends = curves["run_id"].isin(runs.loc[runs["status"] == "diverged", "run_id"].iloc[:1]) & (curves["step"] == 3000)
    assert ends.sum() == 1
    curves.loc[ends, "eval_loss"] = np.inf
    runs.to_parquet(folder / "runs.parquet", index=False)
    curves.to_parquet(folder / "curves.parquet", index=False)
    provenance = artificial.PROVENANCE | {"started": "2026-01-02T03:04:05+00:00"}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def exported(study: Path, to: str, out: Path) -> Path:
    command = [sys.executable, "-m", "experiments.export", str(study), "--to", to, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"written: {out}\n")
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return out


def expected(curve: pd.DataFrame, infinite: float) -> dict[tuple[str, int], float]:
    """What is known of a run: all values but those that are NaN, of which the loss after divergence is one to see."""
    found = {}
    for row in curve.drop(columns="run_id").to_dict("records"):
        step = int(row.pop("step"))
        for name, value in row.items():
            if name == "eval_loss" or not math.isnan(value):
                found[SAFE.get(name, name), step] = infinite if value == math.inf else value
    return found


@pytest.mark.slow
# MLflow's own use of SQLAlchemy 2.1.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
@pytest.mark.parametrize("to", READERS)
def test_a_tracker_reads_back_every_run(to, study, tmp_path):
    pytest.importorskip(to.removesuffix("-offline"), reason=f"needs the library of {to}")
    runs, curves = (pd.read_parquet(study / f"{name}.parquet") for name in ("runs", "curves"))
    out = exported(study, to, tmp_path / "100% of 'a b'?c#d" / "here")
    found = READERS[to](out, records.study_name(study))
    assert len(found) == len(runs) == 8
    # What TensorBoard draws is float32, and MLflow's database has no infinity.
    close, infinite = 1e-6 if to == "tensorboard" else 0.0, LARGEST if to == "mlflow" else math.inf
    for row, (name, read) in zip(runs.to_dict("records"), sorted(found.items()), strict=True):
        assert name.startswith(f"{row['run_id']:05d}-_img_src_x_onerror")
        wanted = expected(curves.loc[curves["run_id"] == row["run_id"]], infinite)
        assert read.values.keys() == wanted.keys()
        assert [*map(read.values.get, wanted)] == pytest.approx([*wanted.values()], rel=close, abs=0, nan_ok=True)
        for axis in ("lr", "beta1", "eps", "seed"):
            assert float(read.config[axis]) == row[axis]
        assert read.config["optimizer"] == HOSTILE
        assert "momentum" not in read.config
        assert read.results["status"] == row["status"]
        reached = None if pd.isna(row["diverged_step"]) else row["diverged_step"]
        assert (None if reached is None else float(read.results["diverged_step"])) == reached


def test_csv_has_every_digit(study, tmp_path):
    out = export.export(study, "csv", tmp_path / "tables")
    assert {path.name for path in out.iterdir()} == {"runs.csv", "curves.csv", "summary.csv", "provenance.json"}
    for name in ("runs", "curves"):
        read = pd.read_csv(out / f"{name}.csv")
        table = pd.read_parquet(study / f"{name}.parquet")
        table = table.astype({"diverged_step": "float64"}) if name == "runs" else table
        pd.testing.assert_frame_equal(read, table, rtol=1e-15, atol=0, check_dtype=False)
    assert json.loads((out / "provenance.json").read_text())["started"] == "2026-01-02T03:04:05+00:00"

"""Is an export refused in a sentence, with nothing written, unless it can be done as asked?"""

import os
import shutil
import subprocess
import sys

import pytest

from experiments import export
from experiments.trackers import csv_tables
from tests.pages import ROOT

STUDY = ROOT / "results/gallery/demo/regression"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{study}"], "--to needs one of tensorboard, wandb-offline, mlflow, trackio or csv"),
        (
            ["{study}", "--to", "x"],
            "--to accepts tensorboard, wandb-offline, mlflow, trackio or csv, not 'x'",
        ),
        (["{tmp}", "--to", "csv"], "{tmp} holds no results: a sweep with --out {tmp} that has ended writes them"),
        (["{tmp}/none", "--to", "csv"], "{tmp}/none is no folder"),
        (["{tmp}/half", "--to", "csv"], "{tmp}/half/curves.parquet does not exist"),
        (["{tmp}/damaged", "--to", "csv"], "{tmp}/damaged/runs.parquet cannot be read ("),
        (
            ["{study}", "--to", "csv", "--out", "{tmp}"],
            "--out accepts a new or empty folder, and {tmp} has files",
        ),
        (["{study}", "--to", "csv", "--out", "{tmp}/file"], "--out accepts a folder, and {tmp}/file is none"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(words, told, tmp_path, capsys):
    for name in ("half", "damaged"):
        shutil.copytree(STUDY, tmp_path / name)
    (tmp_path / "half/curves.parquet").unlink()
    (tmp_path / "damaged/runs.parquet").write_bytes(b"PAR1")
    (tmp_path / "file").touch()
    before, names = sorted(tmp_path.rglob("*")), {"study": STUDY, "tmp": tmp_path}
    assert export.main([word.format(**names) for word in words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"python -m experiments.export: {told.format(**names)}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", [name for name in export.TRACKERS if name != "csv"])
def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(to, tmp_path, capsys, monkeypatch):
    # None of them is found, but a folder of its name, such as wandb leaves behind, is.
    for name in ("tensorboard", "wandb", "mlflow", "trackio", "sqlalchemy", "alembic"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / "here" / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "here")])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    extra = export.TRACKERS[to].extra
    assert export.main([str(STUDY), "--to", to, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told == f"python -m experiments.export: --to {to} needs the extra {extra}: pip install -e '.[{extra}]'\n"
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fails(out, study, final):
        (out / "runs.csv").write_text("half")
        raise ZeroDivisionError

    monkeypatch.setattr(csv_tables, "write", fails)
    with pytest.raises(ZeroDivisionError):
        export.export(STUDY, "csv", tmp_path / "new" / "deeper")
    assert not os.listdir(tmp_path)


def test_the_command_names_the_folder_and_how_to_look_at_it(tmp_path, capsys):
    shutil.copytree(STUDY, tmp_path / "a study")
    assert export.main([str(tmp_path / "a study"), "--to", "csv"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"written: {tmp_path}/a study/csv"
    assert {path.name for path in (tmp_path / "a study/csv").iterdir()} > {"runs.csv", "curves.csv", "summary.csv"}
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    look = second.removeprefix("look at it with: ")
    shown = subprocess.run(look, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert "[108 rows" in shown.stdout, shown.stderr

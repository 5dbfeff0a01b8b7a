"""Does a report show what is in its folder, and is a folder that holds none refused in a sentence?"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments import report
from experiments.reports import aggregation, grid_figures, writer
from tests.reports.artificial import GRID, PROVENANCE, sweep

TABLES = "runs.parquet", "curves.parquet", "provenance.json"
FIGURES = ["target", "convergence", "wall_clock", "importance", "sensitivity_lr", "sensitivity_beta1"]
FIGURES += ["heatmap_lr_beta1"]
PICTURES = {f"{name}.png" for name in FIGURES}
FILES = {"summary.csv", "report.md", "report.html", *PICTURES, *(f"{name}.pdf" for name in FIGURES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a results folder as a sweep leaves it."""
    folder = tmp_path_factory.mktemp("results")
    runs, curves = sweep(2, lr=GRID["lr"], beta1=GRID["beta1"])
    runs.to_parquet(folder / "runs.parquet", index=False)
    curves.to_parquet(folder / "curves.parquet", index=False)
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE))
    paths = writer.write(folder, runs, curves, PROVENANCE)
    assert {path.name for path in paths} == FILES
    return folder


def test_report_names_origin_and_only_files_that_exist(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((\S+?)\)", text)
    assert set(links) == PICTURES | {"summary.csv"}
    assert all((folder / link).read_bytes()[:4] == b"\x89PNG" for link in PICTURES)
    assert all((folder / f"{name}.pdf").read_bytes()[:4] == b"%PDF" for name in FIGURES)
    for words in (PROVENANCE["command"], "**Not all of MNIST.**", "0123abc (with", "Some CPU", "torch 2.11.0", "99 s"):
        assert words in text
    assert f"sensitivity: {aggregation.lr_sensitivity(pd.read_parquet(folder / 'runs.parquet')):.3g}" in text
    assert len(re.findall(r"^\| \d+ \|", text, re.MULTILINE)) == 10
    assert len(pd.read_csv(folder / "summary.csv")) == 15


def test_write_changes_nothing_if_a_figure_fails(tmp_path, monkeypatch):
    (tmp_path / "convergence.png").write_text("the old one")
    monkeypatch.setattr(grid_figures, "sensitivity", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.write(tmp_path, *sweep(lr=[1e-3, 1e-2]), {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old one"]


@pytest.mark.slow
def test_a_report_ranks_its_configurations_once(tmp_path, monkeypatch):
    counted, aggregate = [], aggregation.aggregate
    monkeypatch.setattr(aggregation, "aggregate", lambda *args: counted.append(1) or aggregate(*args))
    runs, curves = sweep(2, lr=[1e-3, 1e-2])
    both = pd.concat([runs, runs.assign(optimizer="adamw", run_id=runs["run_id"] + len(runs))], ignore_index=True)
    more = curves.assign(run_id=curves["run_id"] + len(runs))
    writer.write(tmp_path, both, pd.concat([curves, more], ignore_index=True), {})
    assert len(counted) == 1


def command(folder):
    words, root = [sys.executable, "-m", "experiments.report", str(folder)], Path(__file__).parents[1]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.slow
def test_command_draws_again_from_the_tables(folder, tmp_path):
    for table in TABLES:
        shutil.copy(folder / table, tmp_path)
    done = command(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(str(tmp_path / name) in done.stdout for name in FILES)
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in FILES)


@pytest.mark.slow
def test_a_folder_older_than_an_axis_is_drawn_as_before(folder, tmp_path):
    for table in TABLES:
        shutil.copy(folder / table, tmp_path)
    pd.read_parquet(folder / "runs.parquet").drop(columns="momentum").to_parquet(tmp_path / "runs.parquet", index=False)
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_bytes() == (folder / "report.md").read_bytes()


@pytest.mark.parametrize(
    ("words", "name", "inches"),
    [
        (["heatmap", "--x", "beta1", "--y", "lr", "--width", "86mm"], "heatmap_beta1_lr_86mm.pdf", 86 / 25.4),
        (["sensitivity", "--x", "lr", "--width", "3.4 in", "--format", "svg"], "sensitivity_lr_3.4in.svg", 3.4),
        (["convergence", "--out", "{}/one.png", "--width", "245pt"], "one.png", 245 / 72),
    ],
)
def test_one_figure_has_the_width_of_a_column(folder, tmp_path, capsys, words, name, inches):
    for table in TABLES:
        shutil.copy(folder / table, tmp_path)
    assert report.main([str(tmp_path), "--figure", *(word.format(tmp_path) for word in words)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {*TABLES, name}
    content = (tmp_path / name).read_bytes()
    sizes = {
        "pdf": lambda: float(re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ", content)[1]) / 72,  # type: ignore[index]
        "svg": lambda: float(re.search(rb'<svg[^>]* width="([\d.]+)pt"', content)[1]) / 72,  # type: ignore[index]
        "png": lambda: int.from_bytes(content[16:20], "big") / 300,
    }
    assert sizes[name[-3:]]() == pytest.approx(inches, abs=0.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--figure", "pie"],
            "--figure accepts one of target, convergence, wall_clock, importance, sensitivity, ",
        ),
        (
            ["--figure", "heatmap", "--x", "lr"],
            "--figure heatmap needs --y, an axis of adam that varies, ",
        ),
        (
            ["--figure", "heatmap", "--x", "lr", "--y", "eps"],
            "--y accepts an axis of adam that varies, one of ",
        ),
        (["--figure", "heatmap", "--x", "lr", "--y", "lr"], "--y accepts another axis than --x"),
        (
            ["--figure", "convergence", "--width", "3.4"],
            "--width accepts a width with its unit, as 3.4in, 8.6cm, ",
        ),
        (["--figure", "convergence", "--width", "9km"], "--width accepts a width with its unit"),
        (["--figure", "convergence", "--format", "gif"], "--format accepts one of pdf, png, svg, not 'gif'"),
        (["--figure", "convergence", "--out", "a.jpg"], "--out accepts a name that ends in .pdf"),
        (["--figure", "convergence", "--x", "lr"], "--x goes with --figure sensitivity or heatmap, not convergence"),
        (["--figure", "sensitivity", "--x", "lr", "--optimizer", "sgd"], "--optimizer accepts one of adam, not 'sgd'"),
        (["--width", "3in"], "--width goes with --figure"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_in_a_sentence(folder, capsys, words, said):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert report.main([str(folder), *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"python -m experiments.report: {said}")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_command_without_tables_fails_in_one_sentence(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"python -m experiments.report: {tmp_path} holds no results: a sweep with --out ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.parquet", b"PAR1 not a table"),
        ("runs.parquet", sweep()[0].head(0).to_parquet()),
        ("curves.parquet", b""),
        ("curves.parquet", pd.DataFrame({"step": [0]}).to_parquet()),
        ("provenance.json", b"{"),
        ("provenance.json", b"\xff\xfe"),
    ],
)
def test_command_names_the_file_that_cannot_be_read(folder, tmp_path, capsys, name, content):
    for table in TABLES:
        shutil.copy(folder / table, tmp_path)
    (tmp_path / name).write_bytes(content)
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error
    assert error.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 3

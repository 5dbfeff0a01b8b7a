"""Does a comparison show what several folders hold, say what it rests on, and refuse what cannot be compared?"""

import json
import re
import shutil
from itertools import combinations
from math import comb

import html5lib
import numpy as np
import pandas as pd
import pytest

from experiments import compare, explorer, sweep
from experiments.common.errors import OptionError
from experiments.reports import aggregation, pairing, studies, studies_page
from experiments.sweeps import reading, results
from tests.explored import find, leaf, written
from tests.reports.artificial import sweep as artificial

GRID = {"lr": [1e-3, 1e-2], "beta1": [0.0, 0.9], "seeds": 3, "steps": 12, "batch_size": 64, "evaluations": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Make real sweeps: of two grids, another optimizer, another batch size, and another task."""
    root = tmp_path_factory.mktemp("studies")
    written(root / "first", **GRID)
    written(root / "wider", **{**GRID, "lr": [1e-3, 1e-2, 1e-1], "seeds": 2})
    written(root / "sgd", **{**GRID, "optimizer": "sgd", "beta1": None, "lr": [1e-2, 1e-1]})
    written(root / "batch", **{**GRID, "batch_size": 32})
    written(root / "width", **{**GRID, "hidden": 8})
    results_of = sweep.sweep("function", model="rosenbrock", lr=[1e-3], steps=5, progress=False)
    (root / "other").mkdir()
    results.save(root / "other", *results_of)
    return root


def found(root, *names) -> list[studies.Study]:
    return compare.load([root / name for name in names])


def lowest(study: studies.Study) -> pd.DataFrame:
    """The runs of the configuration with the lowest median loss, by plain pandas."""
    groups = study.runs.groupby(["lr", "beta1"], dropna=False)
    best = groups["eval_loss"].median().idxmin()
    return groups.get_group(best).set_index("seed")


def compared(root, *names) -> dict:
    runs = studies.joined(found(root, *names))[0]
    rows = pairing.rivals(runs, aggregation.ranked(runs), found(root, *names))
    assert len(rows) == 1
    return rows[0]


def test_joined_studies_have_every_run_once_with_its_curve(root):
    first, wider, sgd = loaded = found(root, "first", "wider", "sgd")
    runs, curves, _ = studies.joined(loaded)
    assert len(runs) == len(runs["run_id"].unique()) == sum(len(one.runs) for one in loaded)
    assert runs["optimizer"].unique().tolist() == ["adam (first)", "adam (wider)", "sgd (sgd)"]
    for place, one in enumerate((first, wider, sgd)):
        own = runs.loc[runs["study"] == place]
        np.testing.assert_array_equal(own["eval_loss"], one.runs["eval_loss"])
        ends = curves.sort_values("step").groupby("run_id")["eval_loss"].last()
        np.testing.assert_array_equal(ends.loc[own["run_id"]], own["eval_loss"])


def test_an_axis_that_a_study_lacks_has_the_value_of_its_option(tmp_path):
    options = {"lr": [1e-2], "steps": 5, "evaluations": 1}
    written(tmp_path / "axis", **options, axes={"batch_size": [16, 32]})
    written(tmp_path / "option", **options, batch_size=8)
    runs = studies.joined(found(tmp_path, "axis", "option"))[0]
    assert runs["batch_size"].tolist() == [16, 32, 8]
    assert aggregation.varied_axes(runs) == ["batch_size"]


def test_runs_with_the_same_batches_are_paired_by_seed(root):
    first, sgd = found(root, "first", "sgd")
    a, b = (lowest(one)["eval_loss"] for one in (first, sgd))
    sign = 1 if a.median() < b.median() else -1
    row = compared(root, "first", "sgd")
    assert row["basis"] == ([0, 1, 2], "3 seeds in both: the same batches and initial weights")
    assert row["median"] == pytest.approx(sign * (b - a).median(), rel=1e-12)
    assert (row["low"], row["high"]) == pytest.approx(sorted(sign * (b - a))[:: len(a) - 1], rel=1e-12)
    assert (row["n"], row["level"]) == (3, 0.75)


def test_seeds_of_one_study_alone_are_left_out_of_pairs(root):
    row = compared(root, "first", "wider")
    assert row["basis"].seeds == [0, 1]
    assert (row["n"], row["basis"].text[:20]) == (2, "2 seeds in both, of ")


def test_models_that_differ_share_batches_alone(root):
    assert compared(root, "first", "width")["basis"].text == "3 seeds in both: the same batches, other initial weights"
    # Losses before training of other examples tell nothing about weights.
    loaded = found(root, "first", "sgd")
    loaded[1].options["eval_examples"] = 20
    ours, theirs = (lowest(one).reset_index().assign(study=place) for place, one in enumerate(loaded))
    assert pairing.basis(ours, theirs, loaded).text == "3 seeds in both: the same batches"


def test_other_batches_are_compared_in_all_pairs(root):
    first, batch = found(root, "first", "batch")
    a, b = lowest(first)["eval_loss"].to_numpy(), lowest(batch)["eval_loss"].to_numpy()
    ours, theirs = (a, b) if np.median(a) < np.median(b) else (b, a)
    pairs = [other - own for own in ours for other in theirs]
    row = compared(root, "first", "batch")
    assert row["basis"] == ([], "all pairs of 3 and 3 seeds: other batches (they differ in batch size)")
    assert row["median"] == pytest.approx(np.median(pairs), rel=1e-12)
    assert (row["low"], row["high"]) == pytest.approx((min(pairs), max(pairs)), rel=1e-12)
    # All 20 orders of three and three values are as likely, and two of them put the shift outside.
    assert row["level"] == pytest.approx(0.9)
    assert (row["ahead"], row["n"]) == (sum(d > 0 for d in pairs), 9)


def test_runs_that_two_studies_share_are_counted_and_compared(root):
    first, wider, batch, sgd = found(root, "first", "wider", "batch", "sgd")
    both = first.runs.merge(wider.runs, on=["lr", "beta1", "seed"])
    assert len(both) == 8
    equal = int((both["eval_loss_x"] == both["eval_loss_y"]).sum())
    text = pairing.repeated(first, wider)
    assert text.startswith("8 runs of first are in wider, too, with the same configuration, seed and batches: ")
    assert f"{equal} of them ended with equal losses" in text
    assert pairing.repeated(first, batch) == pairing.repeated(first, sgd) == ""


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 7)])
def test_levels_of_unpaired_intervals_are_those_of_mann_and_whitney(n, m):
    # U of every order of n + m values, by counting.
    counts = np.zeros(n * m + 1)
    for places in combinations(range(n + m), m):
        counts[sum(place - i for i, place in enumerate(places))] += 1
    levels = 1 - 2 * np.cumsum(counts / comb(n + m, m))[: len(pairing.levels(n, m))]
    np.testing.assert_allclose(pairing.levels(n, m), levels, rtol=1e-12, atol=1e-12)


def test_an_unpaired_interval_contains_the_shift_as_often_as_it_says():
    rng, hits, n, m = np.random.default_rng(0), 0, 6, 5
    level = pairing.levels(n, m)[pairing.rank(n, m) - 1]
    for _ in range(4000):
        low, high = pairing.shift(rng.exponential(size=n), rng.exponential(size=m) + 0.7)
        hits += low <= 0.7 <= high
    assert 0.95 <= level < 0.98
    assert abs(hits / 4000 - level) < 4 * np.sqrt(level * (1 - level) / 4000)


def test_a_page_lists_differences_before_results(root, tmp_path, capsys):
    assert (
        compare.main([*(str(root / name) for name in ("first", "sgd", "batch")), "--out", str(tmp_path / "out")]) == 0
    )
    out = tmp_path / "out"
    text = (out / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^##? (.+)", text, re.MULTILINE)[:3] == [
        "first, sgd, batch: 3 studies of teacher regression",
        "Differences",
        "What came out",
    ]
    assert "| optimizers | adam | sgd | adam |" in text
    assert "| batch_size | 64 | 64 | 32 |" in text
    assert "| model |" not in text
    assert {path.name for path in out.iterdir()} == {*json.loads((out / "compare.json").read_text())["files"]}
    assert set(re.findall(r"\]\((\S+?)\)", text)) == {p.name for p in out.glob("*.png")} | {"summary.csv"}
    summary = pd.read_csv(out / "summary.csv")
    # Four configurations of Adam in two studies, two of SGD; the best by plain pandas.
    assert len(summary) == 10
    best = {one.name: lowest(one)["eval_loss"].median() for one in found(root, "first", "sgd", "batch")}
    assert summary["eval_loss_median"].iloc[0] == pytest.approx(min(best.values()), rel=1e-12)
    assert summary["optimizer"].iloc[0].endswith(f"({min(best, key=lambda name: best[name])})")
    assert str(out / "report.html") in capsys.readouterr().out


def test_a_halved_study_is_told_from_a_full_one(root, tmp_path):
    written(tmp_path / "halved", **GRID, halving=2)
    both = compare.load([tmp_path / "halved", root / "first"])
    every = studies_page.tables(both)
    text = studies_page.page(every, {})
    assert "| halving | 2 | no |" in text
    assert "Halving has stopped 9 of 12 runs of halved (at steps 4 to 8): their losses are those when it did." in text
    assert "12 runs of halved are in first, too" in text
    assert re.search("[0-3] of the 3 that ran to the end in both ended with equal losses.*; 9 were stopped", text)
    assert "stopped, all runs" in text
    assert "| 9 of 12 |" in text
    (row,) = pairing.rivals(every.runs, every.summary, both)
    assert row["n"] == 3
    # Both have the same winner, to last bits.
    assert abs(row["median"]) < 1e-6


@pytest.mark.slow
def test_winners_on_fresh_seeds_are_compared_if_every_study_has_them(root, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(root / "first", tmp_path / name)
        path = tmp_path / name / "provenance.json"
        provenance = json.loads(path.read_text())
        runs = pd.read_parquet(root / "first/runs.parquet").query("lr == 0.01 and beta1 == 0.9")
        again = runs.assign(seed=runs["seed"] + 3, eval_loss=runs["eval_loss"] * (1 if name == "one" else 2))
        provenance["confirmed"] = {"seeds": [3, 4, 5], "runs": json.loads(str(again.to_json(orient="records")))}
        path.write_text(json.dumps(provenance))
    compare.compare([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8").partition("## Confirmation")[2]
    assert re.search(r"^\| 1 \| adam \(one\)", text, re.MULTILINE)
    assert "| 3 of 3 seeds | 3 seeds in both: the same batches and initial weights |" in text
    compare.compare([tmp_path / "one", root / "first"], tmp_path / "out")
    assert "## Confirmation" not in (tmp_path / "out/report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_comparison_again_leaves_no_files_of_the_one_before(root, tmp_path):
    out = tmp_path / "out"
    compare.compare([root / "first", root / "wider"], out)
    (out / "mine.txt").write_text("kept")
    assert (out / "heatmap_lr_beta1.png").exists()
    compare.compare([root / "sgd", root / "wider"], out)
    assert not list(out.glob("heatmap*"))
    assert (out / "mine.txt").read_text() == "kept"


def refused(words, out, capsys) -> str:
    before = sorted(out.parent.rglob("*"))
    assert compare.main([*map(str, words), "--out", str(out)]) == 2
    printed, error = capsys.readouterr()
    assert (printed, error.count("\n")) == ("", 1)
    assert sorted(out.parent.rglob("*")) == before
    assert error.startswith("python -m experiments.compare: ")
    return error


def test_studies_of_other_tasks_are_refused(root, tmp_path, capsys):
    error = refused([root / "first", root / "other"], tmp_path / "out", capsys)
    assert "FOLDER accepts sweeps of one task and its data, and first holds regression on teacher regression" in error
    assert "but other function on " in error


def test_folders_that_hold_no_ended_sweep_are_refused(root, tmp_path, capsys):
    first, out = root / "first", tmp_path / "out"
    empty, torn, half = tmp_path / "empty", tmp_path / "torn", tmp_path / "half"
    empty.mkdir()
    shutil.copytree(first, torn)
    (torn / "curves.parquet").write_bytes((first / "curves.parquet").read_bytes()[:-9])
    shutil.copytree(first, half)
    provenance = json.loads((half / "provenance.json").read_text())
    provenance["unfinished"] = {"finished": 12, "of": 30}
    (half / "provenance.json").write_text(json.dumps(provenance))
    assert "empty holds no results" in refused([first, empty], out, capsys)
    assert "curves.parquet is damaged" in refused([first, torn], out, capsys)
    assert "sweeps that have ended, and 12 of 30 runs of" in refused([first, half], out, capsys)
    assert "none is no folder" in refused([first, tmp_path / "none"], out, capsys)
    assert "at least two sweeps" in refused([first], out, capsys)
    assert "first is given twice" in refused([first, f"{first}/../first"], out, capsys)
    assert "--target accepts a loss where nothing" in refused([first, root / "sgd", "--target", "95%"], out, capsys)


def test_a_folder_of_a_sweep_is_never_written_to(root, tmp_path, capsys):
    shutil.copytree(root / "first", tmp_path / "first")
    error = refused([root / "first", root / "sgd"], tmp_path / "first", capsys)
    assert "--out accepts a new or empty folder, or one of an earlier comparison" in error


def test_names_are_the_shortest_that_differ(tmp_path):
    (tmp_path / "a/x").mkdir(parents=True)
    (tmp_path / "b/x").mkdir(parents=True)
    assert studies.names_of([tmp_path / "a/x", tmp_path / "b"]) == ["x", "b"]
    assert studies.names_of([tmp_path / "a/x", tmp_path / "b/x"]) == ["a/x", "b/x"]
    long = studies.names_of([tmp_path / ("n" * 200), tmp_path / "two\nlines"])
    assert len(long[0]) == studies.LONGEST
    assert long[1] == "two lines"
    assert len({*studies.names_of([tmp_path / f"{'n' * 90}{i}{'m' * 90}" for i in range(3)])}) == 3


def test_an_older_folder_without_steps_is_joined(tmp_path):
    runs, curves = artificial(2, lr=[1e-3, 1e-2])
    old = studies.Study("old", tmp_path, runs, curves, {})
    new = studies.Study("new", tmp_path, runs.assign(steps=3000), curves, {"loss_name": "evaluation loss"})
    steps = studies.joined([old, new])[0]["steps"]
    assert steps.tolist() == [3000] * len(steps)


def test_joined_folders_are_one_sweep_for_the_explorer(root):
    one = compare.load_all([root / "first", root / "sgd"])
    pd.testing.assert_frame_equal(compare.load_all(root / "first").runs, reading.load(root / "first").runs)
    assert set(one.runs["optimizer"]) == {"adam (first)", "sgd (sgd)"}
    with pytest.raises(OptionError, match=r"one task and its data"):
        compare.load_all([root / "first", root / "other"])


def test_the_explorer_shows_several_folders(root):
    pytest.importorskip("ipywidgets", reason="needs ipywidgets")
    box = explorer.controls([root / "first", root / "sgd"], root)
    chooser = find(box, "optimizer")
    assert {name for name, _ in chooser.options} == {"adam (first)", "sgd (sgd)", "all"}
    assert find(box, "results").label == "first, sgd"
    chooser.value = "sgd (sgd)"
    assert "sgd (sgd); held: nothing. 6 of 18 runs." in leaf(box).value
    chooser.value = None
    rows = next(html5lib.parse(leaf(box).value, namespaceHTMLElements=False).iter("tbody"))
    assert {row[1].text for row in rows} == {"adam (first)", "sgd (sgd)"}
    assert "data:image/png" in leaf(box).value
    assert "one task and its data" in explorer.static([root / "first", root / "other"])["text/html"]

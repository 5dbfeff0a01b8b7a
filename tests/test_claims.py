"""The command that tries claims: what it lists, refuses, writes, and how it goes on."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments import claims, report
from experiments.papers.claim import Claim, Measured
from experiments.papers.every import CLAIMS
from experiments.papers.verdicts import Region

LARGER = "loss at lr 1e-3 less that at lr 1e-2"


def measure(runs, steps=20):
    options = {"lr": [1e-3, 1e-2], "steps": steps, "evaluations": 1}
    found = runs.sweep("lrs", "regression", **options).runs
    # The same once more trains nothing.
    assert runs.sweep("lrs", "regression", **options).runs.equals(found)
    loss = found.pivot_table(index="seed", columns="lr", values="eval_loss")
    return Measured({LARGER: (loss[1e-3] - loss[1e-2]).to_numpy()}, {"loss": loss}, ["A note."])


SMALL = Claim(
    name="small",
    says="A larger lr is faster.",
    source="nobody",
    setup="Twenty steps.",
    confirms="it is",
    refutes="it is not",
    effects={LARGER: Region(low=0.0)},
    measure=measure,
    draw=lambda measured: Figure(),
    full={"steps": 30},
)


@pytest.fixture
def small(monkeypatch) -> Claim:
    monkeypatch.setitem(CLAIMS, SMALL.name, SMALL)
    return SMALL


def verdict_in(folder: Path) -> dict:
    return json.loads((folder / "verdict.json").read_text())


def test_all_are_listed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert claims.main([]) == 0
    text = capsys.readouterr().out
    for name, claim in CLAIMS.items():
        assert f"\n{name}\n" in f"\n{text}"
        assert claim.says in text
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_claim_lists_the_known_ones(capsys, tmp_path):
    assert claims.main(["stability-edge", "stability", "--out", str(tmp_path / "new")]) == 2
    text = capsys.readouterr().err
    assert text == f"python -m experiments.claims: CLAIM accepts all or {', '.join(CLAIMS)}, not 'stability'\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words", [["--seeds", "0"], ["--seeds", "ten"], ["--data-dir", "/nowhere"], ["--out", __file__]]
)
def test_a_bad_option_is_one_sentence(words, capsys, tmp_path):
    assert claims.main(["article-mnist", "--out", str(tmp_path / "new"), *words]) == 2
    text = capsys.readouterr().err
    assert re.match(rf"python -m experiments.claims: {words[0]} (accepts|takes) ", text)
    assert text.count("\n") == 1


def test_a_page_that_is_not_ours_stays(capsys, tmp_path, small):
    (tmp_path / "README.md").write_text("# Mine\n")
    assert claims.main(["small", "--out", str(tmp_path)]) == 2
    assert "README.md is another page" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"verdict": "confirmed"}'])
def test_a_damaged_verdict_is_named_before_anything_is_trained(damage, capsys, tmp_path, small):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/verdict.json").write_text(damage)
    assert claims.main(["small", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}/old/verdict.json holds no verdict" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_verdict_its_page_and_what_is_kept(capsys, tmp_path, small, trained):
    assert claims.main(["small", "--seeds", "3", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "small: undecided" in text
    assert f"{LARGER}: about 6 seeds would decide" in text
    # More seeds train what is missing, and the page follows.
    assert claims.main(["small", "small", "--out", str(tmp_path)]) == 0
    assert trained == [6, 14]
    found = verdict_in(tmp_path / "small")
    assert found["verdict"] == "confirmed"
    assert found["effects"][LARGER]["outcome"]["n"] == 10
    assert claims.main(["small", "--full", "--out", str(tmp_path)]) == 0
    assert trained[2:] == [20]
    written = (tmp_path / "README.md").read_text()
    assert [line for line in written.splitlines() if line.startswith("## ")] == ["## small", "## small-full"]
    for said in (
        "A larger lr is faster.",
        "Twenty steps.",
        "**confirmed**",
        "- A note.",
        "small/claim.png",
        "at least 0",
    ):
        assert said in written
    # They are parts of a claim, no studies of their own.
    assert report.studies_below(tmp_path) == []
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"claim.png", "claim-sweeps", "verdict.json"}


def test_other_runs_are_refused_unless_they_may_go(capsys, tmp_path, small, trained):
    assert claims.main(["small", "--seeds", "1", "--out", str(tmp_path)]) == 0
    found = tmp_path / "small/claim-sweeps/lrs/provenance.json"
    about = json.loads(found.read_text())
    about["sweep"]["evaluations"] = 5
    found.write_text(json.dumps(about))
    before = verdict_in(tmp_path / "small")
    assert claims.main(["small", "--seeds", "1", "--out", str(tmp_path)]) == 2
    assert "which --fresh removes" in capsys.readouterr().err
    assert verdict_in(tmp_path / "small") == before
    assert claims.main(["small", "--seeds", "1", "--fresh", "--out", str(tmp_path)]) == 0
    assert json.loads(found.read_text())["sweep"]["evaluations"] == 1
    assert trained == [2, 2]


def test_a_sample_that_is_no_number_is_an_error(tmp_path, monkeypatch):
    broken = replace(SMALL, measure=lambda runs: Measured({LARGER: [math.nan]}, {}))
    monkeypatch.setitem(CLAIMS, "small", broken)
    with pytest.raises(ValueError, match="none of them NaN"):
        claims.main(["small", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_claim_goes_on(tmp_path):
    command = [sys.executable, "-m", "experiments.claims", "stability-edge", "--out", str(tmp_path)]
    second = tmp_path / "stability-edge/claim-sweeps/homogeneous/provenance.json"
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not second.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert not (tmp_path / "stability-edge/verdict.json").exists()
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "stability-edge: confirmed" in done.stdout
    # Bars are of sweeps that train.
    assert "homogeneous quadratic: 400 runs" in done.stderr
    assert "heterogeneous quadratic" not in done.stderr
    # The time of both calls.
    taken = sum(json.loads(path.read_text())["seconds"]["total"] for path in tmp_path.rglob("provenance.json"))
    assert verdict_in(tmp_path / "stability-edge")["seconds"] > taken

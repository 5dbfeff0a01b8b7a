"""Does a dry run measure what it does not know, say so, and keep it?"""

import os
import re

import pytest

from experiments import sweep
from kernels.files import keep

WORDS = ["regression", "--lr", "1e-3", "1e-2", "--steps", "20", "--dry-run"]
MEASURES = "measuring 8 steps of 2 lanes of adam ...\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of timings in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adam-sandbox" / "timings"


def test_a_dry_run_measures_once_and_says_when(cache, capsys, trained):
    assert sweep.main(WORDS) == 0
    first = capsys.readouterr()
    assert first.err == MEASURES
    assert re.search(r"^estimated time +\d+ s, \d+% of it evaluations, measured now$", first.out, re.MULTILINE)
    assert trained == [1, 2]
    # Neither another length nor other values of as many lanes have to be measured.
    for words in (
        WORDS,
        [*WORDS, "--steps", "30"],
        ["regression", "--lr", "1e-4", "1e-1", "--steps", "9", "--dry-run"],
    ):
        assert sweep.main(words) == 0
        again = capsys.readouterr()
        assert again.err == ""
        assert re.search(
            r"^estimated time +\d+ s, \d+% of it evaluations, measured on \d{4}-\d\d-\d\d$", again.out, re.MULTILINE
        )
    assert trained == [1, 2]


@pytest.mark.parametrize(
    "other",
    [["--batch-size", "64"], ["--seeds", "2"], ["--model", "linear"], ["--optimizer", "sgd"], ["--diagnostics"]],
)
def test_what_a_step_depends_on_is_measured_anew(cache, capsys, other):
    assert sweep.main(WORDS) == 0
    assert sweep.main([*WORDS, *other]) == 0
    assert capsys.readouterr().err.count("measuring") == 2
    assert len([*cache.iterdir()]) == 2


def test_an_estimate_may_be_measured_in_part(cache, capsys):
    assert sweep.main(WORDS) == 0
    assert sweep.main([*WORDS, "--optimizer", "adam", "sgd"]) == 0
    printed = capsys.readouterr()
    assert printed.err == MEASURES + MEASURES.replace("adam", "sgd")
    assert re.search(r", measured on [\d-]+ and now$", printed.out, re.MULTILINE)


@pytest.mark.parametrize("damage", ["cut", "emptied", "foreign", "negative", "a folder"])
def test_a_damaged_timing_is_measured_anew(cache, capsys, damage):
    assert sweep.main(WORDS) == 0
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-40])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "foreign":
        keep(path, b'{"per_step": 1}')
    elif damage == "negative":
        keep(path, b'[-1.0, 1.0, "2026-01-01"]')
    else:
        path.unlink()
        path.mkdir()
    capsys.readouterr()
    assert sweep.main(WORDS) == 0
    printed = capsys.readouterr()
    assert printed.err == MEASURES
    assert "measured now" in printed.out


def test_without_a_cache_every_dry_run_measures(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    for _ in range(2):
        assert sweep.main(WORDS) == 0
        assert capsys.readouterr().err == MEASURES

"""Does a sweep end when its time is over, say what is finished, and go on where it stopped?"""

import pytest

from experiments import sweep
from experiments.common import values
from experiments.common.errors import OptionError
from experiments.sweeps import cost, reading
from tests.conftest import spy_on_training
from tests.sweeps.small import assert_same, train

pytestmark = pytest.mark.usefixtures("no_figures")
MOMENT = 1e-9
"""A budget that is over at the first evaluation."""


@pytest.mark.parametrize("halving", [None, 2])
def test_each_call_trains_to_the_next_evaluation_and_the_last_has_the_same_bits(halving, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: 6)
    options = {"steps": 12, "evaluations": 4, "halving": halving}
    whole, sizes = train(None, **options), spy_on_training(monkeypatch)
    found = train(tmp_path, **options, time_budget=MOMENT)
    so_far = []
    while "unfinished" in found.provenance:
        so_far.append((found.provenance["unfinished"]["finished"], len(found.runs)))
        assert found.provenance["unfinished"]["of"] == 12
        assert len(so_far) < 20
        found = train(tmp_path, **options, time_budget=MOMENT)
    # Two chunks to each of four evaluations; or both to the first, and the best half of them on to the others.
    assert sizes == ([6] * 8 if halving is None else [6, 6, 6, 4, 4])
    assert so_far == ([(0, 0)] * 3 + [(6, 6)] * 4 if halving is None else [(0, 6), (0, 12), (6, 12), (8, 12)])
    assert_same(found, whole)
    assert_same(reading.load(tmp_path), whole)
    assert not [*tmp_path.rglob("*.pt"), *tmp_path.rglob("*.state")]


def test_a_sweep_without_a_folder_returns_what_is_finished(monkeypatch):
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: 6)
    found = train(None, time_budget=MOMENT, evaluations=1)
    assert found.provenance["unfinished"] == {"finished": 6, "of": 12}
    assert len(found.runs) == 6
    assert train(None, time_budget=MOMENT).runs.empty


def test_the_command_says_that_its_time_is_over_and_goes_on_with_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: 3)
    words = ["regression", "--lr", "1e-3..1e-1:6", "--steps", "8", "--evaluations", "2", "--out", str(tmp_path / "out")]
    assert sweep.main([*words, "--time-budget", "0.000001s"]) == 0
    said = capsys.readouterr().out
    assert "The time budget is over. Unfinished: 0 of 6 runs are finished" in said
    assert not (tmp_path / "out" / "report.md").exists()
    assert sweep.main([*words, "--time-budget", "0.000001s", "--confirm", "2"]) == 0
    said = capsys.readouterr().out
    assert "The time budget is over. Unfinished: 3 of 6 runs are finished" in said
    assert "the ten best configurations" in said
    assert (tmp_path / "out" / "report.md").exists()
    assert sweep.main([*words, "--time-budget", "1h", "--confirm", "2"]) == 0
    said = capsys.readouterr().out
    assert "Unfinished" not in said
    assert "again on 2 fresh seeds" in said
    whole = sweep.sweep("regression", lr="1e-3..1e-1:6", steps=8, evaluations=2, progress=False)
    assert_same(reading.load(tmp_path / "out"), whole)


def test_winners_may_have_to_wait(tmp_path):
    options = {"lr": [1e-2], "beta1": [0.9], "seeds": 1, "evaluations": 1, "time_budget": MOMENT, "confirm": 2}
    found = train(tmp_path, **{**options, "eval_examples": 100})
    assert found.provenance["confirmed"]["seeds"] == [1, 2]  # Their first evaluation was the last.
    found = train(tmp_path / "b", **{**options, "evaluations": 2})
    for _ in range(9):
        if "confirmed" in found.provenance:
            break
        assert found.provenance["unfinished"] in ({"finished": 0, "of": 1}, {"finished": 1, "of": 3})
        found = train(tmp_path / "b", **{**options, "evaluations": 2})
    assert "unfinished" not in found.provenance


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m 5s", 5405), ("0.5h", 1800), (20, 20)]
)
def test_times_are_read_as_people_write_them(given, seconds):
    assert values.taken("--time-budget", given, values.DURATION) == seconds


@pytest.mark.parametrize("given", ["0", "0m", "10 minuts", "-5m", "", "m", "10", "5m1h", "nan", "infs", 0, -1.0, True])
def test_a_budget_of_nothing_or_nonsense_is_refused(given, tmp_path, capsys):
    told = f"--time-budget accepts a time above 0, such as 90s, 10m or 1h30m, not {values.shown(given)}"
    with pytest.raises(OptionError) as refused:
        train(tmp_path / "out", time_budget=given)
    assert str(refused.value) == told
    assert sweep.main(["regression", f"--time-budget={given}", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()

"""Does successive halving train what it should, once, to the results of the full grid, and refuse what it cannot?"""

import numpy as np
import pandas as pd
import pytest

from experiments import sweep
from experiments.common.errors import OptionError
from experiments.reports import aggregation
from experiments.sweeps import cost, plan, reading, rungs
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.ledger import Ledger
from tests.conftest import spy_on_training
from tests.sweeps.small import assert_same, train
from tests.tables import last

pytestmark = pytest.mark.usefixtures("no_figures")
LRS = [1e30, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3]
GRID = {"lr": LRS, "beta1": [0.9], "seeds": 2, "steps": 16, "evaluations": 8, "halving": 2}
"""Rungs are at steps 2, 4 and 8, where 4, 2 and 1 of 8 configurations go on."""


def expected(full: pd.DataFrame, curves: pd.DataFrame, at: tuple[int, ...], eta: int) -> pd.Series:
    """Return the step at which each run of a full grid would be stopped, from its curves, by another way."""
    stops, left = pd.Series(np.nan, full.index), list(full["lr"].unique())
    for step in at:
        here = curves[curves["step"] == step].set_index("run_id")["eval_loss"]
        alive = ~(full["diverged_step"] <= step).fillna(False).astype(bool)
        losses = full["run_id"].map(here).where(alive, np.inf).fillna(np.inf)
        medians = {lr: losses[full["lr"] == lr].median() for lr in left}
        kept = sorted(left, key=lambda lr: medians[lr])[: -(-len(left) // eta)]
        out = full["lr"].isin([lr for lr in left if lr not in kept])
        stops = stops.mask(out & alive & stops.isna(), step)
        left = kept
    return stops


@pytest.fixture(scope="module")
def full():
    """The grid without halving."""
    return train(None, **{**GRID, "halving": None})


@pytest.fixture(scope="module")
def halved():
    return train(None, **GRID)


def test_the_best_of_each_rung_go_on_to_the_results_of_the_full_grid(full, halved):
    runs, stops = halved.runs, expected(full.runs, full.curves, (2, 4, 8), 2)
    np.testing.assert_array_equal(runs["stopped_step"].astype(float), stops)
    assert runs["status"].value_counts().to_dict() == {"stopped": 12, "diverged": 2, "ok": 2}
    reached = full.runs["diverged_step"] <= stops.fillna(16)
    assert runs["diverged_step"].equals(full.runs["diverged_step"].where(reached.fillna(False)))
    assert last(halved.curves, "step").tolist() == stops.fillna(16).where(runs["status"] != "diverged", 2).tolist()
    both = halved.curves.merge(full.curves, on=["run_id", "step"], suffixes=("", "_full"))
    assert len(both) == len(halved.curves)
    for column in ("train_loss", "eval_loss"):
        np.testing.assert_allclose(both[column], both[f"{column}_full"], rtol=2e-6)
    assert (halved.curves.groupby("run_id")[["seconds", "run_seconds"]].diff().dropna() > 0).all(axis=None)


def test_nothing_is_trained_twice_and_states_of_chunks_meet(tmp_path, monkeypatch, full):
    """Cut each stage into chunks of four lanes, whose survivors go on together."""
    monkeypatch.setattr(cost, "lanes_at_once", lambda *_: 4)
    sizes = spy_on_training(monkeypatch)
    halved = train(tmp_path, **GRID)
    assert sizes == [4, 4, 4, 4, 4, 4, 4, 2]
    np.testing.assert_array_equal(
        halved.runs["stopped_step"].astype(float), expected(full.runs, full.curves, (2, 4, 8), 2)
    )
    ok = halved.runs["status"] == "ok"
    np.testing.assert_allclose(halved.runs["eval_loss"][ok], full.runs["eval_loss"][ok], rtol=2e-6)
    assert not list(tmp_path.rglob("*.state"))
    assert_same(reading.load(tmp_path), halved)
    assert_same(train(tmp_path, **GRID), halved)
    assert len(sizes) == 8
    # Of another configuration the whole race is trained, and of the others what they had not reached.
    grown = train(tmp_path, **{**GRID, "lr": [*LRS, 0.05]})
    assert sizes[8:] == [2, 2, 2, 2]
    assert grown.runs.loc[grown.runs["status"] == "ok", "lr"].tolist() == [0.03, 0.05] * 2
    with pytest.raises(OptionError, match=r"holds another sweep \(it differs in halving\)"):
        train(tmp_path, **{**GRID, "halving": None})


def test_stopped_runs_come_after_those_that_went_further_and_before_diverged_ones(halved):
    summary = aggregation.summarise(halved.runs)
    assert summary["stopped_step_median"].fillna(99).tolist() == [99, 8, 4, 4, 2, 2, 2, 99]
    assert summary["n_diverged"].tolist() == [0] * 7 + [2]
    table = aggregation.best_configurations(summary)
    assert table["stopped"].tolist()[:3] == ["-", "at step 8", "at step 4"]
    assert table["diverged"].tolist()[-1] == "2 of 2"
    assert aggregation.ends(halved.runs) == "2 ok, 12 stopped and 2 diverged"
    assert np.isnan(aggregation.lr_sensitivity(halved.runs))


def test_every_optimizer_has_its_own_race_and_runs_of_other_lengths_their_own_rungs():
    options = {**GRID, "optimizer": ["adam", "sgd"], "lr": {"adam": LRS[1:], "sgd": [0.01, 0.1]}, "seeds": 1}
    halved = train(None, **{**options, "steps": None}, axes={"steps": [16, 32]}, batch_size=None)
    assert halved.runs.groupby("optimizer")["status"].apply(lambda of: (of == "ok").sum()).to_dict() == {
        "adam": 2,
        "sgd": 1,
    }
    for _, of in halved.runs[halved.runs["status"] == "stopped"].groupby("steps"):
        assert set(of["stopped_step"]) <= {int(of.loc[:, "steps"].iloc[0]) * k // 8 for k in (1, 2, 4)}


def planned(**options) -> plan.Plan:
    return plan.make_plan(SweepConfig(task="regression", **{**GRID, **options}, device="cpu"))


def test_equal_losses_keep_the_order_of_configurations_and_missing_ones_come_last():
    of = planned(lr=[1.0, 2.0, 3.0, 4.0, 5.0], seeds=2)
    rows = rungs.stage(of, of.runs.assign(run_key=[f"{i:032}" for i in range(10)]), 1)
    losses = [np.nan, 3.0, 1.0, 3.0, 3.0] * 2
    table = pd.DataFrame({"key": rows["key"], "eval_loss": losses, "diverged_step": pd.array([None] * 10, "Int64")})
    table.loc[table.index[2], "diverged_step"] = 1  # One of the two seeds of the best.
    found = rungs.survivors(of, rows, [table], rungs.exponents(of)[0])
    assert found["lr"].tolist() == [2.0, 4.0, 5.0] * 2


REFUSED = [
    ({"halving": 1}, "--halving accepts whole numbers from 2, not 1"),
    ({"halving": "half"}, "--halving accepts whole numbers from 2, not 'half'"),
    ({"lr": [0.1]}, "--halving needs at least two configurations of an optimizer"),
    (
        {"evaluations": 3},
        "--halving 2 of 8 configurations has 3 rungs before the last evaluation, and needs",
    ),
    ({"evaluations": 1, "halving": 4}, "--halving 4 of 8 configurations has 1 rung before the last evaluation"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED)
def test_what_cannot_be_halved_is_refused_before_anything_is_written(options, told, tmp_path, capsys):
    with pytest.raises(OptionError, match=told):
        train(tmp_path / "out", **{**GRID, **options})
    words = [f"--lr={' '.join(map(str, options.get('lr', LRS)))}".split("="), ["--steps", "16"]]
    words += [[f"--{name}", str(value)] for name, value in {"halving": 2, **options}.items() if name != "lr"]
    flat = [word for pair in words for value in pair for word in value.split()]
    assert sweep.main(["regression", *flat, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_halving_saves(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    of = planned()
    steps = rungs.planned(of)
    assert float((steps["runs"] * steps["steps"]).sum()) == 16 * 2 + 8 * 2 + 4 * 4 + 2 * 8
    words = ["regression", "--lr", *map(str, LRS), "--beta1", "0.9", "--seeds", "2", "--steps", "16"]
    assert sweep.main([*words, "--halving", "2", "--dry-run"]) == 0
    said = "4 configurations go on at step 2; 2 configurations go on at step 4; 1 configurations go on at step 8"
    assert said in capsys.readouterr().out


def test_winners_are_confirmed_to_their_end():
    halved = train(None, **{**GRID, "seeds": 1}, confirm=3)
    again = halved.provenance["confirmed"]["runs"]
    assert [run["status"] for run in again] == ["ok"] * 3
    assert {run["lr"] for run in again} == {halved.runs.set_index("status").loc["ok", "lr"]}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_states_between_rungs_take_the_bytes_that_have_to_be_free(optimizer, tmp_path, monkeypatch):
    options, sizes, drop = {**GRID, "lr": LRS[1:6], "beta1": None, "hidden": 100}, [], Ledger.drop_states
    options |= {"optimizer": optimizer}

    def measured(ledger: Ledger) -> None:
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*.state")))
        drop(ledger)

    monkeypatch.setattr(Ledger, "drop_states", measured)
    train(tmp_path, **options)
    needed = rungs.bytes_kept(plan.make_plan(SweepConfig(task="regression", **options)))
    # Of small states the names of tensors and the curves are more.
    assert needed == pytest.approx(max(sizes), rel=0.05)
    usage = cost.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: usage._replace(free=int(needed) - 1))
    with pytest.raises(OptionError, match=r"^--halving accepts as many runs as there is room for: their states"):
        train(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()

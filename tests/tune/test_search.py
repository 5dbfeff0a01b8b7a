"""The search: against a device whose cost is a formula, and on a GPU that is here."""

import os
import signal

import pandas as pd
import pytest
import torch

import optim
from experiments.tune import gpu_machine, race, report, tuner
from experiments.tune.race import FEWEST, LaunchCase, Skipped
from kernels import registry
from kernels.config import Config
from tests.kernels.devices import H100
from tests.tune.fake_gpu import ANCHOR, CASE, PROVENANCE, FakeGPU


def written(found: tuner.TuningResult) -> tuple[dict, dict]:
    """Read versions and entries from the registry file of a search."""
    content = found.file and registry.read_now(found.file)
    assert content
    return content[1:]


@pytest.mark.parametrize(
    "best",
    [Config(512, 4), Config(1024, 4, 4), Config(4096, 16, eviction="evict_first"), Config(256, 2, 4, 3), ANCHOR],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_the_fastest_wins_whatever_noise_drift_and_order_do(best, seed, tmp_path):
    gpu = FakeGPU(best, seed=seed)
    found = gpu.tune([CASE], tmp_path, budget=10.0)
    entry = found.entries[CASE.work.key]
    assert entry["config"] == best
    # Drift moves the median of all times, and no ratio.
    true = gpu.cost(CASE, ANCHOR) / gpu.cost(CASE, best)
    ratio, low, high = entry["default_over_this"]
    assert low <= ratio <= high
    assert abs(ratio - true) < 0.01
    assert entry["copy_share"] == pytest.approx(2.8 / 3, rel=0.12)
    versions, entries = written(found)
    assert entries == found.entries
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__


def test_equals_are_tied_and_the_first_of_them_is_taken_every_time(tmp_path):
    chosen = []
    for seed in range(4):
        found = FakeGPU(Config(2048, 8), seed=seed, step=0.0005).tune([CASE], tmp_path / str(seed), budget=10.0)
        entry = found.entries[CASE.work.key]
        chosen.append(entry["config"])
        assert ANCHOR in (*entry["ties"], entry["config"])
    # One element a thread, for this device does not tell.
    assert set(chosen) == {Config(256, 8)}


def test_a_budget_that_is_too_short_for_anything_names_all_that_is_left_out(tmp_path):
    gpu = FakeGPU(Config(512, 4), noise=0.2)
    cases = [CASE, CASE._replace(bucket=20), CASE._replace(bucket=28)]
    table = tmp_path / "search.csv"
    found = gpu.tune(cases, tmp_path, budget=1e-4, table=table)
    # The default was prepared, and a race with nobody else says nothing.
    assert gpu.prepared == [(CASE, ANCHOR)]
    assert found.entries == {}
    assert not found.interrupted
    n = len(pd.read_csv(table)) - 1
    assert found.notes == [
        f"{CASE.work.key}: for {n - 1} of {n} candidates its share of the budget was too short",
        f"{CASE.work.key} was not recorded: budget after 0 rounds",
        f"The budget was spent before {cases[1].work.key}, {cases[2].work.key}",
    ]


def test_preparation_counts_against_a_cases_share_and_what_is_prepared_races(tmp_path):
    gpu = FakeGPU(Config(512, 4), prepare=1.0)
    cases = [CASE, CASE._replace(bucket=20), CASE._replace(bucket=28)]
    asked = [*gpu.machine().candidates("adam", "float32")[0]]
    in_order = [ANCHOR, *(config for config in asked if config != ANCHOR)]
    table = tmp_path / "search.csv"
    found = gpu.tune(cases, tmp_path, budget=30.0, table=table)
    # The last candidate may begin when its share has a moment left.
    assert gpu.now < 30.0 + 1.0 + 0.1
    for case in cases:
        of_case = [config for asked_of, config in gpu.prepared if asked_of == case]
        assert of_case == in_order[: len(of_case)]
        assert 9 <= len(of_case) <= 11
        entry = found.entries[case.work.key]
        assert entry["unprepared"] == len(asked) - len(of_case)
        assert entry["config"] in of_case
        assert entry["samples"] >= FEWEST
        left_out = f"for {entry['unprepared']} of {len(asked)} candidates its share of the budget was too short"
        assert f"{case.work.key}: {left_out}" in found.notes
    statuses = pd.read_csv(table).groupby("fate").size()
    assert statuses[race.UNPREPARED] == sum(entry["unprepared"] for entry in found.entries.values())
    # What won among a few is not kept for ever: what was compiled then is there now, and all of them race.
    gpu.prepare = 0.0
    again = gpu.tune(cases, tmp_path, budget=30.0)
    assert gpu.raced == [*cases, *cases]
    assert [entry["config"] for entry in again.entries.values()] == [Config(512, 4)] * 3
    assert not any("unprepared" in entry for entry in again.entries.values())
    gpu.tune(cases, tmp_path, budget=30.0)
    assert gpu.raced == [*cases, *cases]


def test_compiling_all_candidates_may_spend_the_budget_and_is_interrupted_as_a_race_is(tmp_path):
    gpu = FakeGPU(Config(512, 4))
    known = gpu.machine()

    def compiled(rule, dtype):
        gpu.now += 20.0
        if gpu.interrupt_at:
            raise KeyboardInterrupt
        return known.candidates(rule, dtype)

    machine = known._replace(candidates=compiled)
    options = {"budget": 10.0, "into": [tmp_path], "clock": gpu.clock, "progress": False}
    cases = [CASE, CASE._replace(bucket=20)]
    found = tuner.tune(machine, cases, **options)
    assert found.notes == [f"The budget was spent before {cases[0].work.key}, {cases[1].work.key}"]
    assert (gpu.raced, gpu.now) == ([], 20.0)
    gpu.interrupt_at = 1
    found = tuner.tune(machine, cases, **options)
    assert found.notes == [f"Interrupted before {CASE.work.key} was measured"]
    assert found.interrupted


def test_an_interrupt_while_a_case_is_written_comes_when_it_is_written(tmp_path):
    gpu, table = FakeGPU(Config(512, 4)), tmp_path / "search.csv"
    machine = gpu.machine()

    def state():
        os.kill(os.getpid(), signal.SIGINT)
        return machine.state()

    cases = [CASE, CASE._replace(bucket=20)]
    options = {"budget": 10.0, "into": [tmp_path], "table": table, "clock": gpu.clock, "progress": False}
    found = tuner.tune(machine._replace(state=state), cases, **options)
    assert found.interrupted
    assert found.notes[-1] == f"Interrupted after {CASE.work.key} was measured"
    assert [*found.entries] == [CASE.work.key]
    assert pd.read_csv(table)["case"].unique().tolist() == [CASE.work.key]
    _, recorded = written(found)
    assert recorded == found.entries


@pytest.mark.parametrize(("at", "recorded"), [(10, False), (2000, True)])
def test_ctrl_c_keeps_what_was_measured(tmp_path, at, recorded):
    gpu = FakeGPU(Config(512, 4), noise=0.05)
    gpu.interrupt_at = at
    table = tmp_path / "search.csv"
    found = gpu.tune([CASE, CASE._replace(bucket=20)], tmp_path, budget=1e9, table=table)
    assert (CASE.work.key in found.entries) == recorded
    assert (tmp_path / f"{H100.slug}.json").exists() == recorded
    assert gpu.raced == [CASE]
    assert found.interrupted
    assert found.notes[-1] == f"Interrupted while {CASE.work.key} was measured"
    rows = pd.read_csv(table)
    assert (rows["fate"] == "chosen").sum() == recorded
    assert rows["ended"].unique().tolist() == ["interrupted"]


def test_what_is_recorded_is_raced_again_only_if_asked_or_if_its_machine_code_has_changed(tmp_path):
    gpu = FakeGPU(Config(512, 4))
    cases = [CASE, CASE._replace(bucket=20)]
    gpu.tune(cases[:1], tmp_path, budget=10.0, table=tmp_path / "search.csv")
    assert gpu.raced == cases[:1]
    assert gpu.tune(cases[:1], tmp_path, budget=10.0).file == tmp_path / f"{H100.slug}.json"
    assert gpu.raced == cases[:1]
    second = gpu.tune(cases, tmp_path, budget=10.0, table=tmp_path / "search.csv")
    assert gpu.raced == cases
    assert len(second.entries) == 2
    assert pd.read_csv(tmp_path / "search.csv")["case"].nunique() == 2
    gpu.tune(cases, tmp_path, budget=10.0, again=True)
    assert gpu.raced == [*cases, *cases]
    gpu.codes[Config(512, 4)] = "other code"
    changed = gpu.tune(cases, tmp_path, budget=10.0)
    assert gpu.raced == [*cases, *cases, *cases]
    assert changed.entries[CASE.work.key]["machine_code"] == "other code"


def test_what_does_not_fit_is_skipped_and_said(tmp_path):
    gpu = FakeGPU(Config(512, 4))
    machine = gpu.machine()

    def sampler(case):
        if case.bucket == 28:
            raise MemoryError("7.5 GB do not fit")
        n_elements, sample = machine.sampler(case)

        def sometimes(config):
            if config == Config(512, 4):
                raise Skipped("out of memory")
            return sample(config)

        return n_elements, sometimes

    cases = [CASE._replace(bucket=28), CASE]
    found = tuner.tune(
        machine._replace(sampler=sampler), cases, budget=10.0, into=[tmp_path], clock=gpu.clock, progress=False
    )
    assert found.notes == [
        f"{cases[0].work.key} was skipped: 7.5 GB do not fit",
        f"{CASE.work.key}: 512x4 was skipped: out of memory",
    ]
    assert list(found.entries) == [CASE.work.key]
    assert found.entries[CASE.work.key]["config"] != Config(512, 4)


# The last two would have left a race as hopeless, after three rounds.
@pytest.mark.parametrize("step", [0.04, 0.2, 0.5])
def test_verify_fails_what_is_slower_than_the_default_and_only_that(step):
    gpu = FakeGPU(ANCHOR, step=step)
    key = CASE.work.key
    verdicts = {
        config: tuner.verify(gpu.machine(), key, {"config": config}, 1.0)["verdict"]
        for config in (Config(512, 4), ANCHOR)
    }
    assert verdicts == {Config(512, 4): "slower", ANCHOR: "the default itself"}
    better = FakeGPU(Config(512, 4))
    assert tuner.verify(better.machine(), key, {"config": Config(512, 4)}, 1.0)["verdict"] == "faster"
    same = FakeGPU(Config(512, 4), step=0.001)
    assert tuner.verify(same.machine(), key, {"config": Config(512, 4)}, 1.0)["verdict"] == "no slower"
    other = key.replace("float32/float32/float32", "float32/bfloat16/float32")
    assert tuner.verify(gpu.machine(), other, {"config": ANCHOR}, 1.0)["verdict"].startswith("not timed: gradients of")


@pytest.mark.gpu
def test_a_search_on_this_gpu_records_what_optimizers_then_use(tmp_path, monkeypatch):
    device = torch.device("cuda", torch.cuda.current_device())
    machine = gpu_machine.machine(device)
    few = {ANCHOR: "a", Config(512, 4): "b", Config(512, 4, 4, 3): "c"}
    machine = machine._replace(candidates=lambda rule, dtype: (few, {}))
    cases = [LaunchCase("adam", "float32", rows, 20) for rows in ("long", "medium", "short")]
    cases.append(LaunchCase("adam", "bfloat16-states", "long", 20, aligned=False))
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path))
    found = tuner.tune(machine, cases, budget=20.0, into=[tmp_path], table=tmp_path / "search.csv", progress=False)
    assert set(found.entries) == {case.work.key for case in cases}, found.notes
    for entry in found.entries.values():
        assert entry["config"] in few
        assert 0 < entry["median_us"] < 1e5
        assert 0.05 < entry["copy_share"] < 2
    p = torch.zeros(2**20, device=device, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = optim.Adam([p])
    optimizer.step()
    (part,) = optimizer._parts
    choice = part.table.choice
    assert choice is not None
    assert choice.level == "exact"
    assert choice.config == found.entries[cases[0].work.key]["config"]
    assert report.write(found, machine.facts, PROVENANCE, tmp_path)

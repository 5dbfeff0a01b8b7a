"""The search: against a device whose cost is a formula and whose fastest configuration is therefore known."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle

import optim
from experiments import autotune
from experiments.tune import gpu_machine, race, report, tuner
from experiments.tune.race import FEWEST, LaunchCase, Machine, Skipped
from kernels import registry, rules
from kernels import table as tables
from kernels.codegen import VARIANTS
from kernels.config import Config, candidates, default
from tests.kernels.compiler import CLEAN
from tests.kernels.devices import H100

ANCHOR = default()
CASE = LaunchCase("adam", "float32", "long", 24)
PROVENANCE = {
    "command": "python -m experiments.autotune",
    "device": {"name": H100.name},
    "git": {"commit": None, "dirty": None},
    "versions": {},
    "started": "2026-01-01T00:00:00",
}


class FakeGPU:
    """Time passes only by what is prepared and measured. Every doubling away from the best configuration costs 4 %.

    prepare: seconds that the first call for a configuration takes.
    """

    def __init__(self, best: Config, noise: float = 0.005, seed: int = 0, step: float = 0.04, prepare: float = 0.0):
        self.best, self.noise, self.step, self.now, self.raced = best, noise, step, 0.0, []
        self.prepare, self.prepared, self.slow_down = prepare, [], 1.0
        self.random, self.codes, self.calls = random.Random(seed), {}, 0
        self.interrupt_at: int | None = None

    def clock(self) -> float:
        return self.now

    def cost(self, case: LaunchCase, config: Config) -> float:
        best = self.best
        apart = abs(np.log2(config.block_size / best.block_size)) + abs(np.log2(config.num_warps / best.num_warps))
        apart += (config.blocks_per_chunk, config.num_stages) != (best.blocks_per_chunk, best.num_stages)
        apart += config.eviction != best.eviction
        return 2**case.bucket * 28 / 2.8e12 * (1 + self.step * apart)

    def measure(self, case: LaunchCase, config: Config) -> float:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        # It gets warmer, and slower, and now and then something gets in the way.
        slower = 1 + 0.1 * np.tanh(self.calls / 500) + (0.3 if self.random.random() < 0.02 else 0)
        seconds = self.slow_down * self.cost(case, config) * slower * self.random.lognormvariate(0, self.noise)
        self.now += seconds
        if (case, config) not in self.prepared:
            self.prepared.append((case, config))
            self.now += self.prepare
        return seconds

    def machine(self) -> Machine:
        def sampler(case):
            self.raced.append(case)
            return 2**case.bucket, lambda config: self.measure(case, config)

        def compiled(rule, dtype):
            kept = {config: self.codes.get(config, "code") for config in candidates() if config.block_size <= 4096}
            return kept, {Config(8192, 16): "spills"}

        state = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 40, "power_w": 300.0, "throttle": []}
        return Machine(H100, compiled, sampler, lambda n_bytes: n_bytes / 3e12, lambda: state)

    def tune(self, cases, into, **options) -> tuner.TuningResult:
        return tuner.tune(self.machine(), cases, into=[into], clock=self.clock, progress=False, **options)


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


def test_a_race_is_over_when_nothing_is_left_to_tell():
    gpu = FakeGPU(Config(512, 4), noise=0.001)
    asked = candidates()
    found = race.race(asked, lambda c: gpu.measure(CASE, c), ANCHOR, budget=1e9, clock=gpu.clock)
    assert found.ended == "decided"
    assert race.ties(found.seconds, ANCHOR) == [Config(512, 4)]
    # The hopeless left first, and they only; the default stayed.
    counts = found.seconds.count()
    assert set(counts) == {race.FIRST_LOOK, FEWEST} == {race.FIRST_LOOK, len(found.seconds)}
    early = {config for config in asked if counts[config] == race.FIRST_LOOK}
    costs = {config: gpu.cost(CASE, config) / gpu.cost(CASE, Config(512, 4)) for config in asked}
    assert max(costs[config] for config in asked if config not in early) < race.HOPELESS + 0.02
    assert min(costs[config] for config in early) > race.HOPELESS - 0.02


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


def test_rounds_that_take_longer_than_they_seemed_to_end_at_twice_the_share(tmp_path):
    gpu = FakeGPU(Config(512, 4))
    few = [ANCHOR, Config(512, 4), Config(256, 2)]

    def sample(config):
        # Another program takes the GPU when all are prepared.
        gpu.slow_down = 1.0 if gpu.calls < 6 else 100.0
        return gpu.measure(CASE, config)

    share = FEWEST * sum(gpu.cost(CASE, config) for config in few) * 1.5
    found = race.race(few, sample, ANCHOR, budget=share, clock=gpu.clock)
    assert found.ended == "budget"
    assert len(found.seconds) == 1
    assert gpu.now < 2 * share + 4 * 100 * gpu.cost(CASE, ANCHOR)
    assert race.entry_of(found, ANCHOR, dict.fromkeys(few, "code"), 1.0, "3.7.1") is None


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


TUNES = """
import sys, time
import torch
from experiments import autotune
from experiments.tune import gpu_machine
from kernels.config import Config
from tests.test_search import FakeGPU, H100
gpu = FakeGPU(Config(512, 4))
machine, measure = gpu.machine(), gpu.measure

def hang(case, config):
    if len(gpu.raced) > 2:
        print("hangs", flush=True)
        time.sleep(100)
    return measure(case, config)

gpu.measure, gpu_machine.machine = hang, lambda device: machine
autotune.gpu, autotune.device_facts = lambda: torch.device("cpu"), lambda device: H100
autotune.preflight.check_gpu = lambda: None
sys.exit(autotune.main(["tune", "--budget", "100", "--out", sys.argv[1], "--into", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_tuning_that_is_interrupted_ends_with_page_tables_and_figure(tmp_path):
    command = [sys.executable, "-c", TUNES, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TRITON_INTERPRET": "0"}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "hangs\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        # It draws now, and has to go on.
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    names = {"search.csv", "search.md", "search.png", f"{H100.slug}.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    text = (tmp_path / "search.md").read_text()
    assert text.count("| 512x4 |") == 2
    assert "- Interrupted while adam/" in text


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


def test_a_gpu_without_free_memory_says_what_did_not_fit(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_machine.gpu_timing, "copies", full)
    monkeypatch.setattr(gpu_machine, "allocate", full)
    with pytest.raises(MemoryError, match=r"a copy of 7.5 GB does not fit into the memory that is left"):
        gpu_machine.copy_seconds(28 * 2**28, torch.device("cpu"))
    with pytest.raises(MemoryError, match=r"7.5 GB do not fit into the memory that is free"):
        gpu_machine.sampler(CASE._replace(bucket=28), torch.device("cpu"))


def test_without_the_default_nothing_is_measured(tmp_path):
    def sample(config):
        raise Skipped("its updates are wrong")

    found = race.race([ANCHOR, Config(512, 4)], sample, ANCHOR, budget=1.0)
    assert found.ended == "nothing ran"
    assert race.entry_of(found, ANCHOR, {}, 1.0, "3.7.1") is None
    assert {row["fate"] for row in race.rows_of(CASE, found, None, {}, ANCHOR)} == {"its updates are wrong"}


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


def test_page_and_figure_say_what_was_found(tmp_path):
    gpu = FakeGPU(Config(512, 4))
    cases = [CASE, *(LaunchCase("adam", "bfloat16-states", "medium", bucket) for bucket in (20, 16))]
    found = gpu.tune(cases, tmp_path, budget=10.0, table=tmp_path / "search.csv")
    text = report.write(found, H100, PROVENANCE, tmp_path)
    assert (tmp_path / "search.md").read_text() == text
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    for case in cases:
        assert f"| {case.work.key} | 512x4 |" in text
    assert text.index("medium/16 ") < text.index("medium/20 ")
    assert "SM 1980 MHz" in text
    table = pd.read_csv(tmp_path / "search.csv")
    drawn = report.search_figure(table, found.entries, H100.name, 32)
    assert drawn is not None
    (*maps, _), (gains,) = (part.axes for part in drawn.subfigs)
    assert [ax.get_title("left") for ax in maps][:2] == ["1 block", "1 block, evict_first"]
    assert [label.get_text() for label in gains.get_yticklabels()] == sorted(found.entries)
    # The frame of the chosen one lies around its cell: a block of 512 at 4 elements a thread.
    boxes = [patch for patch in maps[0].patches if isinstance(patch, Rectangle)]
    (frame,) = [box for box in boxes if box.get_linestyle() == "-"]
    column, row = round(frame.get_x() + 0.45), round(frame.get_y() + 0.45)
    assert maps[0].get_xticklabels()[column].get_text() == "512"
    assert maps[0].get_yticklabels()[row].get_text() == "4"


@pytest.mark.parametrize(
    "case",
    [
        *(LaunchCase("adam", "float32", "long", bucket) for bucket in (18, 20)),
        *(LaunchCase("nadam", "bfloat16-states", "medium", bucket) for bucket in (16, 18, 20)),
        *(LaunchCase("sgd", "bfloat16-stochastic", "short", bucket) for bucket in (12, 16, 20)),
        LaunchCase("lion", "float16", "long", 18, aligned=False),
        LaunchCase("adam", "bfloat16", "short", 13, aligned=False),
    ],
    ids=lambda case: case.work.key,
)
def test_the_tensors_of_a_case_are_what_its_key_says(case):
    entries, grads = gpu_machine.allocate(case, torch.device("cpu"))
    _, _, stochastic = VARIANTS[case.dtype]
    work = tables.work_of(rules.RULES[case.rule], entries, grads[0].dtype, 0 if stochastic else None)
    assert work.key == case.work.key
    assert race.case_of(work.key) == case
    element = sum(t.element_size() for t in (entries[0].p, entries[0].p, grads[0]))
    assert case.bytes_per_element == element + sum(2 * state.element_size() for state in entries[0].states)


def test_every_default_case_can_be_made_and_the_most_telling_comes_first():
    cases = [*race.cases([*rules.RULES], [*VARIANTS], ["short", "medium", "long"], [16, 20, 24, 28], True)]
    assert len(set(cases)) == len(cases)
    assert cases[0].bucket == 24
    assert len({case.work.key for case in cases}) > 0.9 * len(cases)
    for case in cases:
        sizes = gpu_machine.shapes(case.rows, case.bucket)
        total = sum(lanes * size for lanes, size in sizes)
        assert total.bit_length() - 1 == case.bucket


@pytest.mark.gpu_too
@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("aligned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_check_passes_what_the_kernel_does(rule, aligned):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = LaunchCase(rule, "bfloat16-states", "short", 12, aligned)
    for each in (case, case._replace(dtype="float32")):
        gpu_machine.check_update(each, device, Config(4096, 16))  # raises where the kernel differs
        # Of what is compared, parameters have moved, but for what rounding to bfloat16 holds in its place.
        before, after = (
            tensors[:: 1 + len(rules.RULES[rule].states)] for tensors in gpu_machine.expected(each, device)
        )
        moved = torch.cat([(old != new).flatten() for old, new in zip(before, after, strict=True)])
        assert moved.float().mean() > 0.8


@pytest.mark.gpu_too
def test_the_check_fails_what_leaves_one_element_out(monkeypatch):
    launcher = gpu_machine.launch.launcher

    def careless(table):
        last = table.entries[-1].p.view(-1)[-1:]

        def launch(*args):
            before = last.clone()
            launcher(table)(*args)
            last.copy_(before)

        return launch

    monkeypatch.setattr(gpu_machine.launch, "launcher", careless)
    gpu_machine.check_update.cache_clear()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(Skipped, match="its updates are wrong"):
            gpu_machine.check_update(LaunchCase("adam", dtype, "short", 12), device, Config(4096, 16))


FAKE_DRIVER = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime import driver
from kernels import codegen, multi_tensor, rules
from kernels.config import Config

class Driver:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    is_active = lambda self: True

driver.set_active(Driver())
keys, key_of = [], compiler.get_cache_key
compiler.get_cache_key = lambda *args, **more: keys.append(key_of(*args, **more)) or keys[-1]
config = Config(512, 4, 4, 3, "evict_first")
codegen.compile_update(rules.adam, "sm_90", "bfloat16-stochastic", config)
dtypes = torch.bfloat16, torch.bfloat16, torch.float32
constants = multi_tensor.update_constants(rules.adam, *dtypes, True, config)
arguments = [torch.empty(4, dtype=getattr(torch, name)) for name in ("int64", "int32", "int32", "float32", "int32")]
multi_tensor.multi_tensor_kernel.warmup(*arguments, grid=(1,), num_warps=config.num_warps, **constants)
print(len(keys), keys[0] == keys[1])
"""


@pytest.mark.slow
def test_a_launch_finds_what_the_static_analysis_has_compiled():
    done = subprocess.run([sys.executable, "-c", FAKE_DRIVER], capture_output=True, text=True, env=CLEAN)
    assert done.stdout.split() == ["2", "True"], done.stderr


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "there is no GPU here to measure on; tune --dry-run --target ARCH needs none"),
        (["verify"], "there is no GPU here to measure on"),
        (["tune", "--target", "sm_90"], "--target goes with --dry-run"),
        (["--budget", "-3"], "--budget accepts seconds above 0, not -3"),
        (["--budget", "nan"], "--budget accepts seconds above 0, not nan"),
        (["--sizes", "50"], "--sizes accepts whole numbers from 10 to 31, not 50"),
        (["--rows", "wide"], "--rows accepts short, medium, long, not 'wide'"),
        (["--rule", "adamax"], "--rule accepts adam, "),
        (["--dtype", "int8"], "--dtype accepts float32, "),
        (["show", "no-such-gpu"], "there is no file of measured configurations that can be read: no-such-gpu in "),
        (["diff", "a.json", "b.json"], "there is no file of measured configurations that can be read: a.json"),
        (["export", "--to", "/dev/null/x"], "--to accepts a folder that can be written to"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_bad_options_end_with_one_sentence(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert autotune.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_show_diff_and_export_read_and_write_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "PACKAGED", tmp_path / "packaged")
    for folder, best in (("mine", Config(512, 4)), ("theirs", Config(256, 2))):
        FakeGPU(best).tune([CASE, CASE._replace(bucket=20)], tmp_path / folder, budget=10.0)
    assert autotune.main(["show"]) == 0
    shown = capsys.readouterr().out
    assert f"# {H100.name} (sm_90)" in shown
    assert f"| {CASE.work.key} | 512x4 |" in shown
    theirs = tmp_path / "theirs" / f"{H100.slug}.json"
    assert autotune.main(["diff", H100.slug, str(theirs)]) == 0
    assert f"| {CASE.work.key} | 512x4 | 256x2 |" in capsys.readouterr().out
    assert autotune.main(["diff", str(theirs), str(theirs)]) == 0
    assert "The same configurations in all 2 entries." in capsys.readouterr().out
    assert autotune.main(["export", "--to", str(tmp_path / "packaged")]) == 0
    ((_, (_, _, exported)),) = autotune.files_of(str(tmp_path / "packaged" / f"{H100.slug}.json"))
    assert exported[CASE.work.key]["config"] == Config(512, 4)

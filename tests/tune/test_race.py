"""The race between configurations: when it ends, and what is then said."""

from experiments.tune import race
from experiments.tune.race import FEWEST, Skipped
from kernels.config import Config, candidates
from tests.tune.fake_gpu import ANCHOR, CASE, FakeGPU


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
    assert race.entry_of(found, ANCHOR, dict.fromkeys(few, "code"), 1.0, {"triton": "3.7.1"}) is None


def test_without_the_default_nothing_is_measured(tmp_path):
    def sample(config):
        raise Skipped("its updates are wrong")

    found = race.race([ANCHOR, Config(512, 4)], sample, ANCHOR, budget=1.0)
    assert found.ended == "nothing ran"
    assert race.entry_of(found, ANCHOR, {}, 1.0, {"triton": "3.7.1"}) is None
    assert {row["fate"] for row in race.rows_of(CASE, found, None, {}, ANCHOR)} == {"its updates are wrong"}

"""A GPU whose cost is a formula and whose fastest configuration is therefore known."""

import random

import numpy as np

from experiments.tune import tuner
from experiments.tune.race import LaunchCase, Machine
from kernels.config import Config, candidates, default
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
        return Machine(
            H100, compiled, sampler, lambda n_bytes: n_bytes / 3e12, lambda: state, default(), {"triton": "3.7.1"}
        )

    def tune(self, cases, into, **options) -> tuner.TuningResult:
        return tuner.tune(self.machine(), cases, into=[into], clock=self.clock, progress=False, **options)

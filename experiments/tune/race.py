"""Which launch configuration is fastest? A race of all candidates, which the slower ones leave.

Nothing here knows a GPU: a `Machine` is what is asked, and `scratch` has the real one.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.common import intervals
from kernels import rules
from kernels.codegen import VARIANTS
from kernels.config import Config, Device, Work, canonical, default

TIE = 1.01
"""What takes less than this times as long as the fastest is as good."""
HOPELESS = 1.25
"""What took longer than this times the default's or the fastest's time in each of the first rounds leaves then."""
LEVEL = 0.999
"""Of the intervals by which candidates leave: many of them are looked at, again and again."""
FEWEST, LOOK_EVERY, MOST = 12, 4, 400
"""Rounds: the fewest that an entry is made of, between two looks at who may leave, and at most.

The first are enough for an interval of `LEVEL`.
"""
FIRST_LOOK = 3
UNPREPARED = "the case's share of the budget was spent before it was prepared"
"""Why a candidate was not measured that may well be faster."""
SIZES = {"long": range(18, 64), "medium": range(16, 64), "short": range(12, 25)}
"""Of kinds of rows the buckets that are measured, the most telling kind first."""


class Skipped(Exception):
    """A candidate that cannot be measured; its text says why."""


class Case(NamedTuple):
    """One thing to be tuned for: what `kernels.config.Work` says of a launch, with the smallest size of its bucket.

    Attributes:
        rule, dtype: names in `rules.RULES` and `codegen.VARIANTS`.
        bucket: log2 of the number of elements.
    """

    rule: str
    dtype: str
    rows: str
    bucket: int
    aligned: bool = True

    @property
    def work(self) -> Work:
        p_dtype, state_dtype, stochastic = VARIANTS[self.dtype]
        if not rules.RULES[self.rule].states:
            state_dtype = p_dtype
        names = [str(dtype).removeprefix("torch.") for dtype in (p_dtype, p_dtype, state_dtype)]
        rounding = "stochastic" if stochastic else "nearest"
        return Work(self.rule, 2**self.bucket, tuple(names), rounding, self.aligned, self.rows)

    @property
    def bytes_per_element(self) -> int:
        """That a step moves: parameters and states are read and written, gradients are read."""
        p_dtype, state_dtype, _ = VARIANTS[self.dtype]
        return 3 * p_dtype.itemsize + 2 * len(rules.RULES[self.rule].states) * state_dtype.itemsize


class Machine(NamedTuple):
    """What a search asks of a device.

    Attributes:
        facts: see `kernels.config.Device`.
        candidates: (rule, dtype) -> the configurations worth measuring, each with the hash of its machine code, and
            those that are not, each with the reason.
        sampler: case -> number of elements, and a function that measures a step with a configuration, in seconds; the
            first call for a configuration prepares it. Raises: MemoryError; the function raises `Skipped`.
        copy_seconds: n_bytes -> seconds that a copy takes that moves so many. Raises: MemoryError.
        state: what clocks, temperature and power are now.
    """

    facts: Device
    candidates: Callable[[str, str], tuple[dict[Config, str], dict[Config, str]]]
    sampler: Callable[[Case], tuple[int, Callable[[Config], float]]]
    copy_seconds: Callable[[int], float]
    state: Callable[[], dict]


class Race(NamedTuple):
    """What was measured.

    Attributes:
        seconds: [rounds, candidates], NaN in rounds before which a candidate had left.
        skipped: candidates that could not be measured, and why.
        ended: "decided", "budget", "rounds", "interrupted" or "nothing ran".
    """

    seconds: pd.DataFrame
    skipped: dict[Config, str]
    ended: str


def over_leader(seconds: np.ndarray, anchor: int) -> np.ndarray:
    """Times by those of the fastest: whose times by the anchor's in the same round have the smallest median.

    Args:
        seconds: [rounds, candidates], complete; anchor is a column.
    """
    best = np.median(seconds / seconds[:, [anchor]], axis=0).argmin()
    return seconds / seconds[:, [best]]


def race(
    configs: list[Config],
    sample: Callable[[Config], float],
    anchor: Config,
    *,
    budget: float,
    most: int = MOST,
    hopeless: float = HOPELESS,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_look: Callable[[pd.DataFrame], None] = lambda seconds: None,
) -> Race:
    """Measure candidates round after round, each round in random order, until all that are left are equally fast.

    A ratio is formed within each round, so that a device that gets slower is no candidate's fault.

    Args:
        anchor: one of configs, the default, which never leaves.
        budget: seconds, in which candidates are prepared too: the anchor, whatever that takes, then the others in their
            order, as long as there is time to measure those that are prepared in `FEWEST` rounds. If it is misjudged,
            no more than twice as much passes in all. Where the anchor alone is prepared, nothing is measured.
        hopeless: see `HOPELESS`; with infinity every candidate stays for the first rounds.
        on_look: called now and then with all rounds of the candidates that were still there.
    """
    order, skipped, until = random.Random(seed), {}, clock() + budget
    of_a_round, at_most = 0.0, until + budget
    seconds, n_rounds, ended = np.full((most, len(configs)), np.nan), 0, "rounds"
    alive, default_at = [*range(len(configs))], configs.index(anchor)

    def run(i: int) -> float:
        try:
            return sample(configs[i])
        except Skipped as why:
            skipped[configs[i]] = str(why)
            return np.nan

    def stay(condition: np.ndarray) -> list[int]:
        return [i for i, stays in zip(alive, condition, strict=True) if stays or i == default_at]

    try:
        for i in sorted(alive, key=lambda i: i != default_at):
            if i != default_at and clock() + FEWEST * of_a_round >= until:
                skipped[configs[i]] = UNPREPARED
                continue
            # The first run of each prepares it; neither this one nor the next, which tells how long it takes, counts.
            run(i)
            if configs[i] not in skipped:
                started = clock()
                run(i)
                of_a_round += clock() - started
        alone = UNPREPARED in skipped.values() and len(skipped) == len(configs) - 1
        while n_rounds < most and anchor not in skipped and not alone:
            alive = [i for i in alive if configs[i] not in skipped]
            times = {i: run(i) for i in order.sample(alive, len(alive))}
            alive = [i for i in alive if configs[i] not in skipped]
            seconds[n_rounds, alive] = [times[i] for i in alive]
            n_rounds += 1
            measured, at = seconds[:n_rounds, alive], alive.index(default_at) if default_at in alive else None
            if at is None:
                break
            if n_rounds == FIRST_LOOK:
                alive = stay((over_leader(measured, at) <= hopeless).any(axis=0))
            if n_rounds >= FEWEST and n_rounds % LOOK_EVERY == 0:
                on_look(pd.DataFrame(measured, columns=pd.Index([configs[i] for i in alive], dtype=object)))
                low, high = intervals.interval(over_leader(measured, at), LEVEL, axis=0)
                alive = stay(low <= TIE)
                if ((high <= TIE) | (low > TIE)).all():
                    ended = "decided"
                    break
            if clock() > (until if n_rounds >= FEWEST else at_most):
                ended = "budget"
                break
    except KeyboardInterrupt:
        ended = "interrupted"
    if anchor in skipped:
        ended = "nothing ran"
    elif n_rounds == 0 and ended == "rounds":
        ended = "budget"
    return Race(pd.DataFrame(seconds[:n_rounds], columns=pd.Index(configs, dtype=object)), skipped, ended)


def ties(seconds: pd.DataFrame, anchor: Config) -> list[Config]:
    """Which configurations no measurement tells from the fastest: those of full rounds, the fastest among them."""
    full = seconds.dropna(axis=1)
    low, _ = intervals.interval(over_leader(full.to_numpy(), [*full].index(anchor)), axis=0)
    return [config for config, bound in zip(full, low, strict=True) if bound <= TIE]


def entry_of(found: Race, anchor: Config, codes: Mapping[Config, str], copy_seconds: float, triton: str) -> dict | None:
    """The registry's entry (see `kernels.registry`) for what a race has shown; None if it was cut too short to tell."""
    if len(found.seconds) < FEWEST or found.ended == "nothing ran":
        return None
    equal = ties(found.seconds, anchor)
    chosen = canonical(equal)
    times = found.seconds[chosen].to_numpy()
    ratio = (found.seconds[anchor] / found.seconds[chosen]).to_numpy()
    return {
        "config": chosen,
        "ties": sorted((config for config in equal if config != chosen), key=lambda config: config.order),
        "median_us": rounded(np.median(times) * 1e6),
        "interval_us": [rounded(bound * 1e6) for bound in intervals.interval(times)],
        "samples": len(times),
        "copy_share": rounded(copy_seconds / np.median(times)),
        "default_over_this": [rounded(value) for value in (np.median(ratio), *intervals.interval(ratio))],
        "machine_code": codes[chosen],
        "triton": triton,
        **({"unprepared": unprepared(found)} if unprepared(found) else {}),
    }


def unprepared(found: Race) -> int:
    """How many candidates there was no time for: what won may not be the fastest of all."""
    return [*found.skipped.values()].count(UNPREPARED)


def rounded(value: float) -> float:
    """Four significant digits: what is behind them is noise, and would be in every diff."""
    return float(f"{value:.4g}")


def rows_of(case: Case, found: Race, entry: dict | None, dropped: Mapping[Config, str], anchor: Config) -> list[dict]:
    """A row for each candidate: its time, how much longer that is than the chosen one's, and what became of it."""
    chosen = entry and entry["config"]
    rows = []
    for config in [*found.seconds, *dropped]:
        times = found.seconds[config].dropna() if config in found.seconds else pd.Series(dtype=float)
        ratio = (times / found.seconds[chosen].loc[times.index]).to_numpy() if chosen else np.array([])
        low, high = intervals.interval(ratio)
        if config in dropped or config in found.skipped:
            fate = dropped.get(config) or found.skipped[config]
        elif entry is None:
            fate = f"undecided ({found.ended})"
        else:
            fate = "chosen" if config == chosen else "tie" if config in entry["ties"] else "slower"
        rows.append(
            {
                "case": case.work.key,
                "block_size": config.block_size,
                "num_warps": config.num_warps,
                "blocks_per_chunk": config.blocks_per_chunk,
                "num_stages": config.num_stages,
                "eviction": config.eviction,
                "default": config == anchor,
                "rounds": len(times),
                "us": times.median() * 1e6,
                "over_chosen": np.median(ratio) if len(ratio) else np.nan,
                "over_chosen, low": float(low),
                "over_chosen, high": float(high),
                "fate": fate,
                "ended": found.ended,
            }
        )
    return rows


def cases(names: list[str], dtypes: list[str], kinds: list[str], buckets: list[int], unaligned: bool) -> Iterator[Case]:
    """Every case of these rules, dtypes, kinds of rows and sizes, the most telling ones first.

    That is one size of every variant before the next size; sizes two octaves from one that was measured share it.
    """
    # Bandwidth first, then what fits into caches, then the largest.
    order = sorted(buckets, key=lambda bucket: (abs(bucket - 24), -bucket))
    for name in names:
        for bucket in order:
            for kind in (kind for kind in SIZES if kind in kinds):
                # Fewer elements make no such rows, and nobody has a hundred thousand small tensors.
                if bucket in SIZES[kind]:
                    yield from (Case(name, dtype, kind, bucket) for dtype in dtypes)
    if unaligned:
        yield from (Case(name, dtype, "long", 24, aligned=False) for name in names for dtype in dtypes)


def case_of(key: str) -> Case | None:
    """The case of a registry key; None if it is none of ours, whose gradients have the parameters' dtype."""
    rule, *_, alignment, rows, bucket = key.split("/")
    made = (Case(rule, dtype, rows, int(bucket), alignment == "aligned") for dtype in VARIANTS if rule in rules.RULES)
    return next((case for case in made if case.work.key == key), None)


def anchor_of(machine: Machine) -> Config:
    return default(machine.facts.warp_size)

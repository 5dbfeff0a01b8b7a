"""Which launch configuration is fastest? All candidates race, and the slower ones drop out.

This module does not depend on a GPU: it asks a `Machine`, and `gpu_machine` makes the real one.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, SupportsFloat, TypeVar

import numpy as np
import pandas as pd

from experiments.common import intervals
from kernels import rules
from kernels.codegen import VARIANTS
from kernels.config import AnyConfig, Device, Work, canonical

TIE = 1.01
"""A configuration is as good as the fastest if it takes less than this times as long."""
HOPELESS = 1.25
"""A candidate that took longer than this times the fastest's time in each of the first rounds drops out after them."""
LEVEL = 0.999
"""Level of the intervals by which candidates drop out; it is high because many are looked at, again and again."""
FEWEST, LOOK_EVERY, MOST = 12, 4, 400
"""Numbers of rounds: the fewest for an entry, those between two looks at who drops out, and the most.

The fewest are enough for an interval of `LEVEL`.
"""
FIRST_LOOK = 3
UNPREPARED = "the case's share of the budget was spent before it was prepared"
"""The reason recorded for a candidate that was not measured for lack of time; it may be faster than the winner."""
SIZES = {"long": range(18, 64), "medium": range(16, 64), "short": range(12, 25)}
"""The buckets that are measured for each kind of rows, most informative kind first."""


C = TypeVar("C", bound=AnyConfig)


class Skipped(Exception):
    """A candidate that cannot be measured; its text says why."""


class LaunchCase(NamedTuple):
    """A kind of launch to tune for; `work` describes it as optimizers do, with the smallest size of its bucket.

    Attributes:
        rule, dtype: names in `rules.RULES` and `codegen.VARIANTS`.
        rows: kind of rows, a name in `kernels.config.ROWS`.
        bucket: log2 of the number of elements.
        aligned: whether all tensors are aligned.
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
        p_name, state_name = (str(dtype).removeprefix("torch.") for dtype in (p_dtype, state_dtype))
        rounding = "stochastic" if stochastic else "nearest"
        return Work(self.rule, 2**self.bucket, (p_name, p_name, state_name), rounding, self.aligned, self.rows)

    @property
    def bytes_per_element(self) -> int:
        """Return the bytes that a step moves: parameters and states are read and written, gradients are read."""
        p_dtype, state_dtype, _ = VARIANTS[self.dtype]
        return 3 * p_dtype.itemsize + 2 * len(rules.RULES[self.rule].states) * state_dtype.itemsize


class Machine(NamedTuple):
    """The questions that a search asks of a device, whose configurations are all of one class.

    Attributes:
        facts: see `kernels.config.Device`.
        candidates: (rule, dtype) -> the configurations worth measuring, each with the hash of its machine code, and
            all others, each with the reason.
        sampler: case -> number of elements, and a function that measures a step with a configuration, in seconds; the
            first call for a configuration prepares it. Raises: MemoryError; the function raises `Skipped`.
        copy_seconds: n_bytes -> seconds of a copy that reads and writes n_bytes altogether. Raises: MemoryError.
        state: returns clocks, temperature and power.
        default: the configuration that is used where nothing was measured; the anchor of all races.
        compiler: name and version of what compiles the rules.
    """

    facts: Device
    candidates: Callable[[str, str], tuple[dict[Any, str], dict[Any, str]]]
    sampler: Callable[[LaunchCase], tuple[int, Callable[[Any], float]]]
    copy_seconds: Callable[[int], float]
    state: Callable[[], dict]
    default: AnyConfig
    compiler: dict[str, str]


class Race(NamedTuple):
    """The measurements of a race.

    Attributes:
        seconds: [rounds, candidates]; NaN after a candidate has dropped out.
        skipped: the reason for each candidate that could not be measured.
        ended: how the race ended: "decided", "budget", "rounds", "interrupted" or "nothing ran".
    """

    seconds: pd.DataFrame
    skipped: dict[Any, str]
    ended: str


def over_leader(seconds: np.ndarray, anchor: int) -> np.ndarray:
    """Divide all times by the fastest candidate's in the same round.

    The fastest has the smallest median of times divided by the anchor's in the same round.

    Args:
        seconds: [rounds, candidates], without NaN.
        anchor: the anchor's column.
    Returns: ratios, float64 [rounds, candidates].
    """
    best = np.median(seconds / seconds[:, [anchor]], axis=0).argmin()
    return seconds / seconds[:, [best]]


def race(
    configs: Sequence[C],
    sample: Callable[[C], float],
    anchor: C,
    *,
    budget: float,
    most: int = MOST,
    hopeless: float = HOPELESS,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_look: Callable[[pd.DataFrame], None] = lambda seconds: None,
) -> Race:
    """Measure all candidates in every round, in random order, until those that remain are equally fast.

    Ratios are formed within rounds, so a device that gets slower puts no candidate at a disadvantage.

    Args:
        sample: measures a step with a configuration, in seconds; the first call for a configuration prepares it.
        anchor: the default, one of configs; it never drops out.
        budget: seconds, for preparation too. The anchor is prepared whatever that takes, then the others in order, as
            long as there is time to measure all prepared ones in `FEWEST` rounds. If that was misjudged, at most twice
            the budget passes in all. If only the anchor was prepared, nothing is measured.
        most: largest number of rounds.
        hopeless: see `HOPELESS`; with infinity, no candidate drops out in the first rounds.
        seed: of the random order.
        clock: returns the time in seconds.
        on_look: called now and then with all rounds of the remaining candidates.
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
            # The first run prepares a candidate, the second tells how long it takes; neither counts.
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
                alive = stay(over_leader(measured, at).min(axis=0) <= hopeless)
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


def ties(seconds: pd.DataFrame, anchor: AnyConfig) -> list[AnyConfig]:
    """Return the configurations, measured in every round, that cannot be told from the fastest, itself included."""
    full = seconds.dropna(axis=1)
    low, _ = intervals.interval(over_leader(full.to_numpy(), [*full].index(anchor)), axis=0)
    return [config for config, bound in zip(full, low, strict=True) if bound <= TIE]


def entry_of(
    found: Race, anchor: AnyConfig, codes: Mapping[Any, str], copy_seconds: float, compiler: Mapping[str, str]
) -> dict | None:
    """Return a race's entry for `kernels.registry`; None if the race was cut too short to tell."""
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
        **compiler,
        **({"unprepared": unprepared(found)} if unprepared(found) else {}),
    }


def unprepared(found: Race) -> int:
    """Count the candidates that were not measured for lack of time, any of which may be faster than the winner."""
    return [*found.skipped.values()].count(UNPREPARED)


def rounded(value: SupportsFloat) -> float:
    """Round to four significant digits; more are noise, and would show up in every diff."""
    return float(f"{float(value):.4g}")


def rows_of(
    case: LaunchCase, found: Race, entry: dict | None, dropped: Mapping[Any, str], anchor: AnyConfig
) -> list[dict]:
    """Return a row for each candidate: its time, the ratio to the chosen one's, and its status."""
    chosen = entry and entry["config"]
    rows = []
    for config in [*found.seconds, *dropped]:
        times = found.seconds[config].dropna() if config in found.seconds else pd.Series(dtype=float)
        ratio = (times / found.seconds[chosen].loc[times.index]).to_numpy() if chosen else np.array([])
        low, high = intervals.interval(ratio)
        if config in dropped or config in found.skipped:
            status = dropped.get(config) or found.skipped[config]
        elif entry is None:
            status = f"undecided ({found.ended})"
        else:
            status = "chosen" if config == chosen else "tie" if config in entry["ties"] else "slower"
        rows.append(
            {
                "case": case.work.key,
                **asdict(config),
                "default": config == anchor,
                "rounds": len(times),
                "us": times.median() * 1e6,
                "over_chosen": np.median(ratio) if len(ratio) else np.nan,
                "over_chosen, low": float(low),
                "over_chosen, high": float(high),
                "fate": status,
                "ended": found.ended,
            }
        )
    return rows


def cases(
    names: list[str], dtypes: list[str], kinds: list[str], buckets: list[int], unaligned: bool
) -> Iterator[LaunchCase]:
    """Yield every case of these rules, dtypes, kinds of rows and sizes, most informative first.

    One size of every variant comes before the next size, because sizes within two octaves share an entry.
    """
    # First sizes limited by bandwidth, then those that fit into caches, then the largest.
    order = sorted(buckets, key=lambda bucket: (abs(bucket - 24), -bucket))
    for name in names:
        for bucket in order:
            for kind in (kind for kind in SIZES if kind in kinds):
                # Fewer elements do not make such rows, and no network has a hundred thousand small tensors.
                if bucket in SIZES[kind]:
                    yield from (LaunchCase(name, dtype, kind, bucket) for dtype in dtypes)
    if unaligned:
        yield from (LaunchCase(name, dtype, "long", 24, aligned=False) for name in names for dtype in dtypes)


def case_of(key: str) -> LaunchCase | None:
    """Return the case of a registry key; None if no case has it, as with gradients of another dtype than parameters."""
    rule, *_, alignment, rows, bucket = key.split("/")
    made = (
        LaunchCase(rule, dtype, rows, int(bucket), alignment == "aligned") for dtype in VARIANTS if rule in rules.RULES
    )
    return next((case for case in made if case.work.key == key), None)

"""Search for the best configurations, case by case; each result is written at once, to the registry and search.csv."""

import math
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.common import files, intervals
from experiments.common.interrupts import interrupts
from experiments.common.progress import progress_bar
from experiments.tune import race
from experiments.tune.race import LaunchCase, Machine
from kernels import registry
from kernels.config import canonical

TABLE = "search.csv"
RATIO = f"default / recorded [{race.LEVEL:.1%}]"
"""The column in which `verify` shows the median ratio and its interval."""


class TuningResult(NamedTuple):
    """The outcome of a search.

    Attributes:
        entries: the registry entry of each key, measured by this search or before.
        notes: sentences that say what was left out or skipped, and why.
        file: the registry file with the entries; None if no folder could be written to.
        states: the device's state after each case that was measured, by key.
        interrupted: whether Ctrl-C ended it.
    """

    entries: dict[str, dict]
    notes: list[str]
    file: Path | None
    states: dict[str, dict]
    interrupted: bool


def known(machine: Machine, folders: list[Path]) -> dict[str, dict]:
    """Return the device's entries in these folders, of which earlier ones take precedence."""
    found = {}
    for folder in reversed(folders):
        content = registry.read_now(folder / f"{machine.facts.slug}.json")
        found |= content[2] if content and content[0].slug == machine.facts.slug else {}
    return found


def tune(
    machine: Machine,
    cases: Iterable[LaunchCase],
    *,
    budget: float,
    into: list[Path],
    table: Path | None = None,
    again: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = True,
) -> TuningResult:
    """Race the candidates of every case within a budget, and record who won.

    A recorded case is not raced again if its machine code is still the same and no candidate was left out for lack of
    time. Ctrl-C ends the search; everything measured until then is recorded.

    Args:
        budget: seconds for everything, compilation included; each case gets an equal share of the remaining time, in
            which its candidates are also prepared (see `race.race`).
        into: folders for the registry's file; the first that can be written to is used.
        table: CSV to which a row for every candidate is added, replacing rows of the same case.
        again: whether to race recorded cases too.
    """
    cases, until = list(cases), clock() + budget
    entries, notes, states, interrupted = known(machine, into), [], {}, False
    file = next((path for folder in into if (path := folder / f"{machine.facts.slug}.json").exists()), None)
    anchor, versions = machine.default, {**machine.compiler, "torch": version("torch")}
    rows = pd.read_csv(table).to_dict("records") if table and table.exists() else []
    bar, key = progress_bar(cases, unit="case", disable=not progress), "the first case"
    try:
        for i, case in enumerate(bar):
            key = case.work.key
            bar.set_description(key)
            # The first case of a rule and dtype compiles the candidates, which may use up the budget.
            kept, dropped = machine.candidates(case.rule, case.dtype) if clock() < until else ({}, {})
            left = until - clock()
            if left <= 0:
                notes.append(f"The budget was spent before {', '.join(case.work.key for case in cases[i:])}")
                break
            entry, share_until = entries.get(key), clock() + left / (len(cases) - i)
            if entry and not again and not entry.get("unprepared"):
                same_code = kept.get(entry["config"]) == entry.get("machine_code")
                if same_code:
                    continue
            try:
                n_elements, sample = machine.sampler(case)
                # Before the race, because an interrupted race is still recorded.
                copy = machine.copy_seconds(n_elements * case.bytes_per_element)
            except MemoryError as error:
                notes.append(f"{key} was skipped: {error}")
                continue
            found = race.race(
                list(kept),
                sample,
                anchor,
                budget=share_until - clock(),
                clock=clock,
                on_look=lambda seconds: bar.set_postfix_str(standing(seconds, anchor)),
            )
            del sample
            with interrupts():
                entry = race.entry_of(found, anchor, kept, copy, machine.compiler)
                states[key] = machine.state()
                notes += notes_on(key, found, entry)
                if entry:
                    entries[key] = entry
                    file = registry.record(machine.facts, versions, {key: entry}, into)
                if table:
                    rows = [row for row in rows if row["case"] != key]
                    rows += race.rows_of(case, found, entry, dropped, anchor)
                    files.replace(table, lambda path, rows=rows: pd.DataFrame(rows).to_csv(path, index=False))
            if found.ended == "interrupted":
                interrupted = True
                notes.append(f"Interrupted while {key} was measured")
                break
    except KeyboardInterrupt:
        interrupted = True
        notes.append(f"Interrupted {'after' if key in states else 'before'} {key} was measured")
    return TuningResult(entries, notes, file, states, interrupted)


def notes_on(key: str, found: race.Race, entry: dict | None) -> list[str]:
    """Describe a race: candidates skipped and why, how many lacked time, and whether it was not recorded."""
    named = {config: why for config, why in found.skipped.items() if why != race.UNPREPARED}
    notes = [f"{key}: {config.label} was skipped: {why}" for config, why in named.items()]
    if n := race.unprepared(found):
        notes.append(f"{key}: for {n} of {found.seconds.shape[1]} candidates its share of the budget was too short")
    if entry is None:
        notes.append(f"{key} was not recorded: {found.ended} after {len(found.seconds)} rounds")
    return notes


def verify(machine: Machine, key: str, entry: dict, budget: float) -> dict:
    """Race a recorded configuration against the default again; return a row with the ratio of times and a verdict.

    The verdict is "slower" if the whole interval says that the recorded configuration takes more than `race.TIE` times
    as long as the default, "ambiguous" if a part of it does, "no slower" if none of it does, and "faster" if the whole
    interval says that the default takes more than `race.TIE` times as long.
    """
    case, anchor = race.case_of(key), machine.default
    row = {"case": key, "recorded": entry["config"].label}
    if case is None:
        return row | {RATIO: "-", "verdict": "not timed: gradients of another dtype than parameters"}
    if entry["config"] == anchor:
        return row | {RATIO: "-", "verdict": "the default itself"}
    try:
        _, sample = machine.sampler(case)
    except MemoryError as error:
        return row | {RATIO: "-", "verdict": f"not timed: {error}"}
    # Neither drops out as hopeless, so that there are enough rounds to call the recorded one slower.
    found = race.race([anchor, entry["config"]], sample, anchor, budget=budget, hopeless=math.inf)
    if found.skipped or len(found.seconds) < race.FEWEST:
        why = "; ".join(found.skipped.values()) or found.ended
        return row | {RATIO: "-", "verdict": f"not timed: {why}"}
    both = found.seconds.dropna()
    ratio = (both[anchor] / both[entry["config"]]).to_numpy()
    low, high = intervals.interval(ratio, race.LEVEL)
    slower = 1 / race.TIE
    verdict = (
        "faster" if low > race.TIE else "no slower" if low >= slower else "slower" if high < slower else "ambiguous"
    )
    return row | {RATIO: f"{np.median(ratio):.3f} [{low:.3f}, {high:.3f}]", "verdict": verdict}


def standing(seconds: pd.DataFrame, anchor) -> str:
    """Return the best candidate so far, for the progress bar."""
    best = canonical(race.ties(seconds, anchor))
    return f"best {best.label} {seconds[best].median() * 1e6:.4g} us, {seconds.shape[1]} left"

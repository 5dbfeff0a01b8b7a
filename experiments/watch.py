"""Watch a sweep while it trains, from another terminal.

python -m experiments.watch results/first

shows how far it is, how many lanes are alive, the best configuration and the lowest loss so far, and when it will end,
until it ends. It reads what the sweep has written, and never locks or changes it. Exit codes: 0 when the sweep has
ended, 1 when it was interrupted, 2 for a folder that holds no sweep. Into a file or a pipe it writes a line at each
change.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import OptionError
from kernels.commands import command

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, RenderableType

    from experiments.sweeps.results import Sweep
    from experiments.sweeps.watching import State

EVERY, SHARE = 0.5, 10
"""Seconds between two looks at the folder, and how many times that of a look they are, at least."""
BLOCKS, HEIGHT, BARS = " ▁▂▃▄▅▆▇█", 4, 6
"""Characters of the curve, its lines, and how many chunks have a bar of their own."""


def states(folder: Path) -> Iterator[State | None]:
    """Yield how far a sweep is, again and again, until it ends or nobody works at it; None while it has not begun.

    Raises: OptionError if the folder holds no sweep.
    """
    from experiments.sweeps import checkpoints, reading, results, watching

    known: dict[Path, pd.DataFrame] = {}
    while True:
        started = time.monotonic()
        # Asked first: what a process writes before it ends is read.
        owner = checkpoints.owner(folder / results.PARTS)
        state = watching.read(folder, known)
        if state is None:
            try:
                if "unfinished" not in reading.load(folder).provenance:
                    return
            except OptionError:
                if not owner:
                    raise
        yield state
        if not owner and state:
            return
        time.sleep(max(EVERY, SHARE * (time.monotonic() - started)))


def best_of(sweep: Sweep) -> str:
    """Return the best configuration so far, with its loss, in words."""
    from experiments.reports import aggregation

    if sweep.runs.empty:
        return "none yet"
    best = aggregation.ranked(sweep.runs).iloc[0]
    axes = [axis for axis in aggregation.varied_axes(sweep.runs) or ["lr"] if best[axis] == best[axis]]
    found = f"{best['eval_loss_median']:.4g}"
    if best["eval_accuracy_median"] == best["eval_accuracy_median"]:
        found += f", accuracy {best['eval_accuracy_median']:.2%}"
    return f"{found} by {best['optimizer']}, {aggregation.label(best, axes, sweep.runs)}"


def counts_of(state: State) -> str:
    """Return how many runs are finished, and how those ended that are not at work, in words."""
    counts = state.sweep.provenance.get("unfinished", {})
    runs = state.sweep.runs
    n = runs["status"].value_counts() if len(runs) else {}
    ended = "".join(f", {n[status]} {status}" for status in ("stopped", "diverged") if status in n)
    return f"{counts.get('finished', len(runs))} of {counts.get('of', len(runs))} runs finished{ended}"


def place_of(state: State) -> str:
    """Return which chunk is at work, where it is, and how many of its lanes are alive, in words."""
    status = state.chunks["status"].tolist()
    stage = f"stage {state.stage} of {state.stages}, " if state.stages > 1 else ""
    if "running" not in status:
        left = ", those at work are seen when they end" if state.sweep.provenance.get("engine") == "ray" else ""
        return f"{stage}{status.count('finished')} of {len(status)} chunks finished{left}"
    where = f"chunk {status.index('running') + 1} of {len(status)} at step {state.step} of {state.end}"
    return f"{stage}{where}, {state.alive} of {state.lanes} lanes alive"


def time_of(state: State, since: tuple[float, int], is_over: bool) -> tuple[str, str]:
    """Return when a sweep ends or, if that is over, how it has ended, as a name and words."""
    from experiments.reports import aggregation

    after = f"after {state.seconds:.0f} s of training"
    if "unfinished" not in state.sweep.provenance:
        return "ended", f"{aggregation.ends(state.sweep.runs)}, {after}"
    return ("ended early", after) if is_over else ("ends", end_of(state, since))


def end_of(state: State, since: tuple[float, int]) -> str:
    """Return when the sweep will end, in words. since: a time, in seconds since 1970, and the steps done by then."""
    left, seconds, done = state.total - state.done, state.seconds, state.done
    if state.sweep.provenance.get("engine") == "ray":
        # Chunks are trained side by side, and their seconds do not add up.
        seconds, done = state.written - since[0], done - since[1]
    if seconds <= 0 or done <= 0:
        return "not known yet"
    ends = state.written + left * seconds / done
    if ends <= time.time():
        return "soon"
    minutes, rest = divmod(round(ends - time.time()), 60)
    hours, minutes = divmod(minutes, 60)
    words = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"about {datetime.datetime.fromtimestamp(ends):%H:%M:%S}, in {words}"


def curve(values: list[float], width: int) -> list[str]:
    """Return a curve as `HEIGHT` lines of at most so many block characters, on a logarithmic scale if it can be."""
    import numpy as np

    if len(values) == 0:
        return []
    ys = np.array([values[i] for i in np.linspace(0, len(values) - 1, max(1, width)).round().astype(int)])
    if (ys > 0).all():
        ys = np.log(ys)
    span = ys.max() - ys.min()
    heights = np.ones(len(ys)) if span == 0 else 1 + (ys - ys.min()) / span * (8 * HEIGHT - 1)
    rows = range(HEIGHT - 1, -1, -1)
    return ["".join(BLOCKS[int(np.clip(round(h) - 8 * row, 0, 8))] for h in heights) for row in rows]


def bars_of(state: State) -> list[tuple[str, float, str]]:
    """Return a name, a share and a text for each bar: the sweep, and the chunks around that at work."""
    found = [("sweep", state.done / max(1, state.total), counts_of(state))]
    status = state.chunks["status"].tolist()
    at = status.index("running") if "running" in status else status.count("finished")
    first = max(0, min(at - BARS // 2, len(status) - BARS))
    for i in range(first, min(len(status), first + BARS)):
        row = state.chunks.iloc[i]
        told = f"{row['runs']} runs {row['status']}"
        if row["status"] == "running":
            told = f"step {state.step} of {state.end}, {state.alive} of {state.lanes} lanes alive"
        found.append((f"chunk {i + 1}", float(row["share"]), told))
    return found


def screen(
    title: str, state: State | None, since: tuple[float, int], console: Console, is_over: bool = False
) -> RenderableType:
    """Return what a terminal shows. is_over: whether nobody works at the sweep any more."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    heading = Text(title, style="bold")
    if state is None:
        return Group(heading, "The sweep has not begun to train.")
    bars: Any = Table.grid(padding=(0, 1), expand=True)
    bars.add_column(no_wrap=True)
    bars.add_column(ratio=1, min_width=8)
    bars.add_column(justify="right", no_wrap=True)
    bars.add_column(ratio=2)
    for name, share, told in bars_of(state):
        bars.add_row(name, ProgressBar(total=1.0, completed=share), f"{share:.0%}", told)
    facts: Any = Table.grid(padding=(0, 1))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    if state.stages > 1:
        facts.add_row("stage", f"{state.stage} of {state.stages}")
    if "unfinished" in state.sweep.provenance and (len(state.chunks) > BARS or not state.lanes):
        facts.add_row("at work", place_of(state))
    facts.add_row("best so far", Text(best_of(state.sweep)))
    facts.add_row(*time_of(state, since, is_over))
    losses = state.lowest["loss"].tolist()
    shown: list[RenderableType] = [heading, bars, "", facts]
    if len(losses) > 1 and console.encoding.startswith("utf"):
        labels = [f"{losses[0]:.4g}", *[""] * (HEIGHT - 2), f"{losses[-1]:.4g}"]
        room = max(map(len, labels))
        lines = curve(losses, min(len(losses), 60, console.width - room - 1))
        drawn = "\n".join(f"{label:>{room}} {line}" for label, line in zip(labels, lines, strict=False))
        seconds = state.lowest["seconds"].iloc[-1]
        shown += ["", Text(f"lowest loss of a run, over {seconds:.0f} s of training", style="dim"), Text(drawn)]
    return Group(*shown)


def line_of(state: State | None, since: tuple[float, int]) -> str:
    """Return the same in one line."""
    if state is None:
        return "The sweep has not begun to train."
    return f"{counts_of(state)}; {place_of(state)}; best {best_of(state.sweep)}; ends {end_of(state, since)}"


def follow(folder: Path, show: Callable[[State | None, tuple[float, int]], object]) -> State | None:
    """Show the states of a sweep until it ends; return the last one if it was interrupted, else None."""
    from experiments.sweeps import reading

    state, since = None, None
    for state in states(folder):
        if state and since is None:
            since = (state.written, state.done)
        show(state, since or (time.time(), 0))
    try:
        return state if state and "unfinished" in reading.load(folder).provenance else None
    except OptionError:
        return state


def watch(folder: Path) -> int:
    """Show a sweep until it ends, and then its summary; return the exit code. Raises: OptionError."""
    # Unlike Path.is_dir, this returns False for names that no file can have.
    if not os.path.isdir(folder):
        raise OptionError(f"{folder} is no folder")
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(console=console, auto_refresh=False) as live:

            def redraw(state: State | None, since: tuple[float, int]) -> None:
                live.update(screen(str(folder), state, since, console), refresh=True)

            left = follow(folder, redraw)
    else:
        told = ""

        def show(state: State | None, since: tuple[float, int]) -> None:
            nonlocal told
            # The estimate alone is no change.
            if (line := line_of(state, since)).rpartition("; ends")[0] != told.rpartition("; ends")[0] or not told:
                print(line, flush=True)
            told = line

        left = follow(folder, show)
    if left:
        print(f"Nobody works at it any more: {counts_of(left)}; the command of the sweep goes on with the others.")
        return 1
    from experiments.reports import aggregation, markdown
    from experiments.sweeps import reading

    runs = reading.load(folder).runs
    print(f"The sweep has ended: {aggregation.ends(runs)}.\n")
    print(aggregation.console_table(aggregation.summarise(runs)))
    if (runs["status"] == "diverged").any():
        print(f"\n{markdown.DIVERGED}")
    return 0


@command
def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(
        prog="python -m experiments.watch",
        description="Show how far a sweep is, from another terminal, until it ends.",
    )
    cli.add_argument("folder", type=Path, metavar="FOLDER", help="the --out of a sweep, for example results/first")
    args = cli.parse_args(argv)
    try:
        return watch(args.folder)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # It has changed nothing that one would have to know.


if __name__ == "__main__":
    sys.exit(main())

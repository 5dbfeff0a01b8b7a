"""Everything that a GPU's owner can contribute, in one go: `make gpu`.

    python -m experiments.gpu --out results/gallery/my-gpu

runs the tests that need a GPU, tunes launch configurations within a budget, and times steps, networks and populations.
Each stage is a process of its own, so that none takes another down, and stops at its limit. What is known is written
at once: the tuned file, tables, figures, and report.md, which says how each stage ended.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from experiments import origin, store
from experiments.grid import OptionError
from experiments.timing import markdown_table
from experiments.values import SECONDS, checked
from kernels import registry
from kernels.commands import command
from kernels.config import device_facts
from kernels.occupancy import LIMITS

ROOT = Path(__file__).parent.parent
STEP_SIZES = (27, 20, 24, 28, 16, 22, 12)
"""log2 of the elements of one tensor, the most telling first."""
GRACE = 20.0
"""Seconds that a stage has to write what it knows once it was asked to stop."""
REPORT, ROWS = "report.md", "throughput.csv"


class Stage(NamedTuple):
    """One process.

    Attributes:
        command: what follows `python`.
        page: the file that it writes for readers, which becomes a part of the report.
        figures: that the report shows.
        rows: its table, which becomes a part of throughput.csv; None if there is none, or the report holds all of it.
        limit: seconds after which it is interrupted.
    """

    name: str
    command: list[str]
    page: str | None
    figures: tuple[str, ...]
    limit: float
    rows: str | None = None


class Outcome(NamedTuple):
    """How a stage ended: "done", "failed" or "cut short"; what it printed last."""

    stage: Stage
    ended: str
    seconds: float
    tail: str


def gpu_tests() -> list[str]:
    """Files of tests that need a GPU."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def stages(out: Path, budget: float, tests: bool) -> list[Stage]:
    """In order. They take about 9 minutes together if tuning may take 4."""
    module = ["-m", "experiments.throughput"]
    found = [
        Stage("tests", ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *gpu_tests()], None, (), 80),
        Stage(
            "tuning",
            ["-m", "experiments.autotune", "tune", "--budget", f"{budget:g}", "--into", str(out), "--out", str(out)],
            "search.md",
            ("search.png",),
            budget + 40,
        ),
        Stage(
            "steps",
            [
                *module,
                "step",
                "--device",
                "cuda",
                "--only",
                "Adam",
                "--budget",
                "80",
                "--rounds",
                "30",
                "--out",
                str(out),
            ]
            + ["--sizes", *(f"2^{power}" for power in STEP_SIZES)],
            "throughput_step.md",
            ("throughput_step_bandwidth.png", "throughput_step_roofline.png"),
            100,
            "throughput_step.csv",
        ),
        Stage(
            "networks",
            [*module, "models", "--device", "cuda", "--budget", "30", "--rounds", "30", "--out", str(out)],
            "throughput_models.md",
            ("throughput_models.png",),
            45,
            "throughput_models.csv",
        ),
        Stage(
            "populations",
            [*module, "sweep", "--device", "cuda", "--rounds", "20", "--out", str(out)],
            "throughput_sweep.md",
            (),
            40,
        ),
    ]
    return found if tests else found[1:]


def run(stage: Stage, limit: float, environment: dict[str, str]) -> Outcome:
    """Run a stage; interrupt it at its limit, as Ctrl-C would, and kill it if it does not end then."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *stage.command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        # Progress bars are for who watches; where nobody does, errors are for the report.
        stderr=None if sys.stderr.isatty() else subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    ended = None
    try:
        output, _ = process.communicate(timeout=max(1.0, limit))
    except subprocess.TimeoutExpired:
        ended = "cut short"
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    except KeyboardInterrupt:
        # The terminal has interrupted the stage as well.
        output, _ = process.communicate()
        return Outcome(stage, "interrupted", time.monotonic() - started, output)
    return Outcome(
        stage, ended or ("done" if process.returncode == 0 else "failed"), time.monotonic() - started, output
    )


def take_rows(stage: Stage, out: Path) -> None:
    """Move the stage's table into throughput.csv, where it replaces what an earlier run has put there."""
    if stage.rows is None or not (out / stage.rows).exists():
        return
    frames = [pd.read_csv(out / stage.rows)]
    frames[0].insert(0, "stage", stage.name)
    if (out / ROWS).exists():
        earlier = pd.read_csv(out / ROWS)
        frames.insert(0, earlier[earlier["stage"] != stage.name])
    store.replace(out / ROWS, lambda path: pd.concat(frames).to_csv(path, index=False))
    (out / stage.rows).unlink()


def take_page(outcome: Outcome, out: Path) -> str:
    """The stage's part of the report; the page itself is removed, and so is what nobody looks at."""
    stage = outcome.stage
    if stage.page and (out / stage.page).exists():
        text = (out / stage.page).read_text(encoding="utf-8")
        (out / stage.page).unlink()
        text = "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())
    else:
        text = f"## {stage.name.capitalize()}"
    text += "".join(f"\n\n![{stage.name}]({name})" for name in stage.figures if (out / name).exists())
    if stage.name == "tests" or outcome.ended != "done":
        # Progress bars write over their line again and again.
        lines = [line.split("\r")[-1] for line in outcome.tail.splitlines()][-30:]
        text += "\n\n" + "\n".join(f"    {line}" for line in lines)
    for leftover in (*out.glob(".*.lock"), out / "throughput_sweep.csv"):
        leftover.unlink(missing_ok=True)
    return text


def report(device: torch.device, provenance: dict, outcomes: list[Outcome], parts: list[str]) -> str:
    facts = device_facts(device)
    rows = [{"stage": o.stage.name, "ended": o.ended, "seconds": f"{o.seconds:.0f}"} for o in outcomes]
    return "\n\n".join(
        [
            f"# {facts.name}",
            f"    {provenance['command']}",
            f"{origin.machine_line(provenance)}. {facts.arch}, {facts.multiprocessors} multiprocessors, "
            f"{facts.l2_bytes / 2**20:.0f} MiB of L2, memory bus of {facts.bus_bits} bits.",
            markdown_table(rows),
            *parts,
        ]
    )


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m experiments.gpu", description="Test, tune and time this GPU.")
    cli.add_argument("--out", type=Path, metavar="DIR", help="default: $OUT, or results/gallery/ and the GPU's name")
    cli.add_argument("--budget", type=float, default=240.0, metavar="SECONDS", help="of tuning (default %(default)s)")
    cli.add_argument("--limit", type=float, default=530.0, metavar="SECONDS", help="of all (default %(default)s)")
    cli.add_argument("--no-tests", dest="tests", action="store_false", help="leave the tests out")
    return cli


def check(args: argparse.Namespace) -> torch.device:
    """The GPU. Raises: OptionError, one sentence, if there is none or an option cannot be used."""
    vars(args).update(checked(vars(args), {"budget": SECONDS, "limit": SECONDS}))
    if not torch.cuda.is_available():
        raise OptionError("there is no GPU here: everything that this measures needs one")
    device = torch.device("cuda", torch.cuda.current_device())
    facts = device_facts(device)
    if facts.arch not in LIMITS:
        raise OptionError(f"this GPU is a {facts.arch}, and known are {', '.join(LIMITS)}")
    args.out = args.out or Path(os.environ.get("OUT") or ROOT / "results" / "gallery" / facts.slug)
    args.out = store.check_folder(args.out).absolute()
    return device


@command
def main(argv: list[str] | None = None) -> int:
    cli = parser()
    args = cli.parse_args(argv)
    try:
        device = check(args)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    until, provenance = time.monotonic() + args.limit, origin.provenance(str(device))
    args.out.mkdir(parents=True, exist_ok=True)
    # What is tuned here is what is timed after it.
    environment = {**os.environ, registry.VARIABLE: str(args.out), "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)
    # In the background a shell lets programs ignore interrupts, which stages would inherit, and end by.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes, parts = [], []
    for stage in stages(args.out, args.budget, args.tests):
        left = until - time.monotonic()
        if left < GRACE:
            outcomes.append(Outcome(stage, "left out, the limit was reached", 0.0, ""))
        else:
            print(f"{stage.name}: at most {min(stage.limit, left):.0f} s", flush=True)
            outcomes.append(run(stage, min(stage.limit, left), environment))
            take_rows(stage, args.out)
            parts.append(take_page(outcomes[-1], args.out))
        text = report(device, provenance, outcomes, parts)
        store.replace(args.out / REPORT, lambda path, text=text: path.write_text(text + "\n", encoding="utf-8"))
        print(f"{stage.name}: {outcomes[-1].ended} after {outcomes[-1].seconds:.0f} s", flush=True)
        if outcomes[-1].ended == "interrupted":
            return 130
    print(f"{args.out / REPORT}\n\n{report(device, provenance, outcomes, [])}")
    return 1 if any(outcome.ended == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

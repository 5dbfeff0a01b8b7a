"""Measure everything that a GPU's owner can contribute, in one go: `make gpu`.

    python -m experiments.gpu --out results/gallery/my-gpu

runs the tests that need a GPU, tunes launch configurations within a budget, and times steps, networks and populations.
Each stage is a process of its own, so that a crash ends only that stage; at its limit it is stopped with all its child
processes. Results are written at once: the tuned file, tables, figures, and report.md, which says how each stage ended.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import torch

from experiments.common import files, processes, run_info
from experiments.common.errors import OptionError
from experiments.common.processes import ROOT, Outcome, Stage
from experiments.common.tables import markdown_table
from experiments.common.values import SECONDS, checked
from kernels import registry
from kernels.commands import command
from kernels.config import device_facts
from kernels.occupancy import LIMITS

STEP_SIZES = (27, 20, 24, 28, 16, 22, 12)
"""log2 of the number of elements of one tensor, most informative first."""
BUDGET, LIMIT = 180.0, 530.0
"""Seconds for tuning, and for everything together: all stages at their limits, and the kernel that is run first."""
REPORT, ROWS = "report.md", "throughput.csv"
TAIL = {"tests": 100}
"""The most lines of output that the report shows of a stage; 30 for stages not named here."""


def gpu_tests() -> list[str]:
    """Return the test files that use CUDA tensors where there is a GPU; `tests/conftest.py` marks the tests."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in files if re.search(r"mark\.gpu|device_of", path.read_text(encoding="utf-8"))]


def stages(out: Path, budget: float, tests: bool) -> list[Stage]:
    """Return the stages in order. The limit of a stage with a budget leaves time to start, finish and draw figures."""
    pytest = ["-m", "pytest", "-m", "gpu and not slow", "--tb", "short", "--continue-on-collection-errors"]
    tune = ["-m", "experiments.autotune", "tune", "--budget", f"{budget:g}", "--into", str(out)]
    sizes = [f"2^{power}" for power in STEP_SIZES]

    def throughput(what: str, *options: str) -> list[str]:
        return ["-m", "experiments.throughput", what, "--device", "cuda", *options, "--out", str(out)]

    found = [
        Stage("tests", [*pytest, "-p", "no:cacheprovider", *gpu_tests()], None, (), 110),
        Stage("tuning", [*tune, "--out", str(out)], "search.md", ("search.png",), budget + 30),
        Stage(
            "steps",
            throughput("step", "--only", "Adam", "--budget", "45", "--rounds", "30", "--sizes", *sizes),
            "throughput_step.md",
            ("throughput_step_bandwidth.png", "throughput_step_roofline.png"),
            75,
            "throughput_step.csv",
        ),
        Stage(
            "networks",
            throughput("models", "--budget", "20", "--rounds", "30"),
            "throughput_models.md",
            ("throughput_models.png",),
            50,
            "throughput_models.csv",
        ),
        # Behind a firewall that drops packets, a download would wait until the limit.
        Stage("populations", throughput("sweep", "--no-download", "--rounds", "20"), "throughput_sweep.md", (), 45),
    ]
    return found if tests else found[1:]


def take_rows(stage: Stage, out: Path) -> None:
    """Move the rows of the stage's table into throughput.csv, where they replace those of an earlier run."""
    if stage.rows is None or not (out / stage.rows).exists():
        return
    import pandas as pd

    frames = [pd.read_csv(out / stage.rows)]
    frames[0].insert(0, "stage", stage.name)
    if (out / ROWS).exists():
        earlier = pd.read_csv(out / ROWS)
        frames.insert(0, earlier.loc[earlier["stage"] != stage.name])
    files.replace(out / ROWS, lambda path: pd.concat(frames).to_csv(path, index=False))
    (out / stage.rows).unlink()


def clear(stage: Stage, out: Path) -> None:
    """Remove the page and the table of an earlier run that was killed, which would be taken for this run's."""
    for name in (stage.page, stage.rows):
        if name:
            (out / name).unlink(missing_ok=True)


def take_page(outcome: Outcome, out: Path, since: float) -> str:
    """Return the stage's part of the report, and remove its page, lock files and spare table.

    Args:
        since: seconds since the epoch; older figures belong to another run, and are not shown.
    """
    stage = outcome.stage
    if stage.page and (out / stage.page).exists():
        text = (out / stage.page).read_text(encoding="utf-8")
        (out / stage.page).unlink()
        text = "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())
    else:
        text = f"## {stage.name.capitalize()}"
    drawn = [name for name in stage.figures if (out / name).exists() and (out / name).stat().st_mtime >= since]
    text += "".join(f"\n\n![{stage.name}]({name})" for name in drawn)
    if stage.name == "tests" or outcome.ended != "done":
        # Progress bars overwrite their line.
        lines = [line.split("\r")[-1] for line in outcome.tail.splitlines()][-TAIL.get(stage.name, 30) :]
        text += "\n\n" + "\n".join(f"    {line}" for line in lines)
    for leftover in (*out.glob(".*.lock"), out / "throughput_sweep.csv"):
        leftover.unlink(missing_ok=True)
    return text


def markdown(device: torch.device, provenance: dict, outcomes: list[Outcome], parts: list[str]) -> str:
    facts = device_facts(device)
    rows = [{"stage": o.stage.name, "ended": o.ended, "seconds": f"{o.seconds:.0f}"} for o in outcomes]
    return "\n\n".join(
        [
            f"# {facts.name}",
            f"    {provenance['command']}",
            f"{run_info.machine_line(provenance)}. {facts.arch}, {facts.multiprocessors} multiprocessors, "
            f"{facts.l2_bytes / 2**20:.0f} MiB of L2, memory bus of {facts.bus_bits} bits.",
            markdown_table(rows),
            *parts,
        ]
    )


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m experiments.gpu", description="Test, tune and time this GPU.")
    cli.add_argument("--out", type=Path, metavar="DIR", help="default: $OUT, or results/gallery/ and the GPU's name")
    cli.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="of tuning (default %(default)s)")
    cli.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help="of all (default %(default)s)")
    cli.add_argument("--no-tests", dest="tests", action="store_false", help="leave out the tests")
    return cli


def surroundings(out: Path) -> dict[str, str]:
    """Return the environment variables of the stages."""
    # Later stages time the configurations that were tuned here.
    environment = {**os.environ, registry.VARIABLE: str(out), "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return environment


def check_options(args: argparse.Namespace) -> torch.device:
    """Convert the options in place, and return the GPU.

    Raises: OptionError, one sentence, if there is no GPU that runs kernels or an option cannot be used.
    """
    from experiments.common import preflight  # imports Triton

    vars(args).update(checked(vars(args), {"budget": SECONDS, "limit": SECONDS}))
    if not torch.cuda.is_available():
        raise OptionError("there is no GPU here: everything that this measures needs one")
    device = torch.device("cuda", torch.cuda.current_device())
    facts = device_facts(device)
    if facts.arch not in LIMITS:
        raise OptionError(f"this GPU is a {facts.arch}, and known are {', '.join(LIMITS)}")
    args.out = args.out or Path(os.environ.get("OUT") or ROOT / "results" / "gallery" / facts.slug)
    args.out = files.check_folder(args.out).absolute()
    if why := preflight.refusal(surroundings(args.out)):
        raise OptionError(why)
    return device


def run(args: argparse.Namespace, device: torch.device, until: float) -> int:
    """Run the stages within the remaining time, and write the report after each; return the exit code.

    Args:
        until: `time.monotonic()` at which everything must have ended.
    """
    provenance, environment = run_info.provenance(str(device)), surroundings(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes, parts = [], []
    for stage in stages(args.out, args.budget, args.tests):
        left = until - time.monotonic()
        if left < 2 * processes.GRACE:
            outcomes.append(Outcome(stage, "left out, the limit was reached", 0.0, ""))
        else:
            print(f"{stage.name}: at most {min(stage.limit, left):.0f} s", flush=True)
            clear(stage, args.out)
            since = time.time()
            # Progress bars go to the terminal; if there is none, errors go to the report.
            outcomes.append(processes.run(stage, min(stage.limit, left), environment, watched=sys.stderr.isatty()))
            take_rows(stage, args.out)
            parts.append(take_page(outcomes[-1], args.out, since))
        text = markdown(device, provenance, outcomes, parts)
        files.replace(args.out / REPORT, lambda path, text=text: path.write_text(text + "\n", encoding="utf-8"))
        print(f"{stage.name}: {outcomes[-1].ended} after {outcomes[-1].seconds:.0f} s", flush=True)
        if outcomes[-1].ended == "interrupted":
            return 130
    print(f"{args.out / REPORT}\n\n{markdown(device, provenance, outcomes, [])}")
    return 1 if any(outcome.ended == "failed" for outcome in outcomes) else 0


@command
def main(argv: list[str] | None = None) -> int:
    cli, started = parser(), time.monotonic()
    args = cli.parse_args(argv)
    with processes.ended_by_interrupts():
        try:
            device = check_options(args)
        except OptionError as error:
            print(f"{cli.prog}: {error}", file=sys.stderr)
            return 2
        return run(args, device, started + args.limit)


if __name__ == "__main__":
    sys.exit(main())

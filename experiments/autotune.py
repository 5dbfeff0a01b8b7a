"""Which launch configuration suits a GPU, or a CPU?

    python -m experiments.autotune tune --budget 240
    python -m experiments.autotune show
    python -m experiments.autotune diff nvidia-a100-sxm4-40gb nvidia-h100-80gb-hbm3
    python -m experiments.autotune verify
    python -m experiments.autotune export

    python -m experiments.autotune tune --device cpu --rule adam --dtype float32 --sizes 16 20 --budget 60

`tune` races the candidates on buffers of its own, and records the fastest where optimizers look for it. Without a GPU

    python -m experiments.autotune --dry-run --target sm_90

compiles every candidate without running it, and says which are worth measuring (`static_analysis`).
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.common import files, preflight, run_info
from experiments.common.errors import OptionError
from experiments.common.interrupts import interrupts
from experiments.common.tables import markdown_table
from experiments.common.values import SECONDS, taken, whole
from experiments.tune import recorded
from kernels import registry, rules
from kernels.codegen import VARIANTS, check_target, parse_target
from kernels.commands import command
from kernels.config import ROWS, candidates, device_facts
from kernels.occupancy import LIMITS

if TYPE_CHECKING:
    from experiments.tune.race import Machine

BUCKETS = range(10, 32)
SIZES = {"cuda": [16, 20, 24, 28], "cpu": [12, 16, 20, 24]}


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m experiments.autotune", description="Launch configurations.")
    commands = cli.add_subparsers(dest="what", metavar="{tune,show,diff,verify,export}")
    tune = commands.add_parser("tune", help="race the candidates on this device, or only compile them (the default)")
    tune.add_argument("--device", default="cuda", metavar="NAME", help="cuda (the default) or cpu")
    tune.add_argument("--dry-run", action="store_true", help="compile every candidate and measure none")
    tune.add_argument("--target", metavar="ARCH", help=f"of --dry-run: {', '.join(LIMITS)} (default: the GPU here)")
    tune.add_argument("--rule", nargs="+", default=["adam"], metavar="NAME", help=f"{', '.join(rules.RULES)} or all")
    tune.add_argument("--dtype", nargs="+", metavar="NAME", help=f"{', '.join(VARIANTS)} or all")
    tune.add_argument("--rows", nargs="+", default=[*ROWS], metavar="KIND", help=f"{', '.join(ROWS)} (default all)")
    tune.add_argument("--sizes", nargs="+", metavar="LOG2", help="of all elements (default 16 20 24 28, cpu 12 to 24)")
    tune.add_argument("--budget", default=240.0, metavar="SECONDS", help="default %(default)s")
    tune.add_argument("--into", metavar="DIR", help="folder of the tuned file (default: the user's cache)")
    tune.add_argument("--again", action="store_true", help="race what is recorded already, too")
    default = Path("results/autotune")
    tune.add_argument("--out", type=Path, default=default, metavar="DIR", help="tables, figures (default %(default)s)")
    show = commands.add_parser("show", help="print what is recorded")
    one = "a file, or a device's name in files"
    show.add_argument("device", nargs="?", metavar="DEVICE", help=f"{one} (default: all)")
    diff = commands.add_parser("diff", help="print where two files differ")
    diff.add_argument("a", metavar="A", help=one)
    diff.add_argument("b", metavar="B")
    verify = commands.add_parser("verify", help="time what is recorded for this GPU or CPU against the default")
    verify.add_argument("device", nargs="?", metavar="FILE", help="default: where optimizers look")
    verify.add_argument("--device", default="cuda", metavar="NAME", dest="on", help="cuda (the default) or cpu")
    verify.add_argument("--budget", default=240.0, metavar="SECONDS", help="default %(default)s")
    export = commands.add_parser("export", help="copy the user's cache into a folder where it can be reviewed")
    export.add_argument(
        "device", nargs="?", metavar="DEVICE", help="a file, or a device's name in files (default: all)"
    )
    export.add_argument("--to", type=Path, default=registry.PACKAGED, metavar="DIR", help="default %(default)s")
    return cli


def gpu() -> torch.device:
    """Return the current GPU. Raises: OptionError if there is none, or `occupancy.LIMITS` lacks its architecture."""
    if not torch.cuda.is_available():
        raise OptionError(
            "there is no GPU here to measure on; --device cpu tunes the CPU, and --dry-run --target ARCH needs no GPU"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    if device_facts(device).arch not in LIMITS:
        raise OptionError(f"this GPU is a {device_facts(device).arch}, and known are {', '.join(LIMITS)}")
    return device


def device_of(name: str) -> torch.device:
    """Return the device to measure on. Raises: OptionError if it is not there or cannot run a kernel."""
    if named("device", [name], ["cuda", "cpu"]) == ["cuda"]:
        device = gpu()
        preflight.check_gpu()
        return device
    from optim import backends

    if not backends.has_numba():
        raise OptionError("--device cpu tunes what Numba compiles, and Numba is not installed")
    return torch.device("cpu")


def machine_of(device: torch.device) -> Machine:
    # Neither needs what the other does: Numba for the CPU, Triton for a GPU.
    if device.type == "cpu":
        from experiments.tune import cpu_machine

        return cpu_machine.machine()
    from experiments.tune import gpu_machine

    return gpu_machine.machine(device)


def named(option: str, values: list[str], accepted: list[str]) -> list[str]:
    """Return the values, with "all" replaced. Raises: OptionError if one is not accepted."""
    if values == ["all"]:
        return accepted
    if unknown := [value for value in values if value not in accepted]:
        raise OptionError(f"--{option} accepts {', '.join(accepted)}, not {unknown[0]!r}")
    return values


def check_tune(args: argparse.Namespace) -> None:
    """Convert the options in place. Raises: OptionError, one sentence, if one cannot be used."""
    args.rule = named("rule", args.rule, [*rules.RULES])
    named("device", [args.device], ["cuda", "cpu"])
    measured = ["float32"] if args.dry_run else ["float32", "bfloat16-states"]
    args.dtype = named("dtype", args.dtype or measured, [*VARIANTS])
    args.rows = named("rows", args.rows, [*ROWS])
    sizes = args.sizes or SIZES[args.device]
    args.sizes = [taken("--sizes", size, whole(BUCKETS[0], BUCKETS[-1])) for size in sizes]
    args.budget = taken("--budget", args.budget, SECONDS)
    if args.dry_run and args.device == "cpu":
        raise OptionError("--dry-run compiles for a GPU, and does not go with --device cpu")
    if args.device == "cuda" and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise OptionError("TRITON_INTERPRET in the environment replaces the compiler: unset it")
    if args.dry_run:
        if args.target is None and not torch.cuda.is_available():
            raise OptionError(f"--target accepts {', '.join(LIMITS)}, and without a GPU to look at one has to be named")
        args.target = args.target or device_facts(gpu()).arch
        try:
            check_target(args.target)
        except ValueError as error:
            raise OptionError(f"--target {error}") from None
    elif args.target is not None:
        raise OptionError("--target goes with --dry-run: what is measured is the device that is here")
    args.out = files.check_folder(args.out)
    args.into = args.into and files.check_folder(args.into, "--into")


def dry_run(args: argparse.Namespace) -> int:
    """Compile the candidates of each rule and dtype, and write a page, a table and a figure for each."""
    import pandas as pd

    from experiments.common import figure_style
    from experiments.tune import static_analysis

    provenance = run_info.provenance("cpu")
    configs = candidates(parse_target(args.target).warp_size)
    args.out.mkdir(parents=True, exist_ok=True)
    for rule in args.rule:
        for dtype in args.dtype:
            what = rule, args.target, dtype
            rows = static_analysis.judge(static_analysis.compile_all(*what, configs), LIMITS[args.target])
            text = static_analysis.markdown(rows, *what, provenance)
            table = args.out / f"atlas_{args.target}_{rule}_{dtype}.csv"
            files.replace(table, lambda path, rows=rows: pd.DataFrame(rows).to_csv(path, index=False))
            files.replace(
                table.with_suffix(".png"), partial(figure_style.save, static_analysis.candidates_figure(rows, *what))
            )
            files.replace(table.with_suffix(".md"), lambda path, text=text: path.write_text(text, encoding="utf-8"))
            print(text)
    return 0


def tune(args: argparse.Namespace) -> int:
    check_tune(args)
    return dry_run(args) if args.dry_run else measure(args)


def measure(args: argparse.Namespace) -> int:
    """Race the candidates of each case, record the fastest, and write a page, tables and a figure."""
    from experiments.tune import race, report, tuner

    machine = machine_of(device_of(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    found = tuner.tune(
        machine,
        # Alignment matters to no CPU.
        race.cases(args.rule, args.dtype, args.rows, args.sizes, unaligned=args.device == "cuda"),
        budget=args.budget,
        into=[args.into] if args.into else registry.folders()[:-1],
        table=args.out / tuner.TABLE,
        again=args.again,
    )
    with interrupts():
        text = report.write(found, machine.facts, run_info.provenance(args.device), args.out)
    print(text)
    return 130 if found.interrupted else 0


def show(args: argparse.Namespace) -> int:
    return recorded.print_files(recorded.files_of(args.device))


def diff(args: argparse.Namespace) -> int:
    (a_path, (_, _, a)), *_ = recorded.files_of(args.a)
    (b_path, (_, _, b)), *_ = recorded.files_of(args.b)
    rows = recorded.differences(a, b)
    print(f"A: {a_path}\nB: {b_path}\n")
    print(markdown_table(rows) if rows else f"The same configurations in all {len(a)} entries.")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Race each entry against the default; return exit code 1 if the verdict on one is "slower"."""
    args.budget = taken("--budget", args.budget, SECONDS)
    device = device_of(args.on)
    facts = device_facts(device)
    if args.device:
        (_, (_, _, entries)), *_ = recorded.files_of(args.device)
    else:
        _, entries = registry.load().get(facts.slug, (None, {}))
    if not entries:
        raise OptionError(f"nothing was measured on {facts.name} yet, in {recorded.places_text()}")
    rows = raced(device, entries, args.budget)
    print(markdown_table(rows))
    return 1 if any(row["verdict"] == "slower" for row in rows) else 0


def raced(device: torch.device, entries: dict, budget: float) -> list[dict]:
    """Race each entry against the default within a budget in seconds; return a row for each."""
    from experiments.common.progress import progress_bar
    from experiments.tune import tuner

    machine, each = machine_of(device), budget / len(entries)
    return [
        tuner.verify(machine, key, entry, each) for key, entry in progress_bar(sorted(entries.items()), unit="entry")
    ]


def export(args: argparse.Namespace) -> int:
    args.to = files.check_folder(args.to, "--to")
    # The most important file last, so that its entries stay.
    for path, (device, versions, entries) in reversed(recorded.files_of(args.device)):
        if path.parent.resolve() == args.to.resolve():
            continue
        into = args.to / f"{device.slug}.json"
        try:
            registry.write(into, device, versions, entries)
        except OSError as error:
            raise OptionError(f"--to accepts a folder that can be written to: {error}") from None
        print(f"{len(entries)} entries of {path} are in {into}")
    return 0


COMMANDS = {"tune": tune, "show": show, "diff": diff, "verify": verify, "export": export}


@command
def main(argv: list[str] | None = None) -> int:
    cli, argv = parser(), sys.argv[1:] if argv is None else argv
    named_first = argv and (argv[0] in COMMANDS or argv[0] in ("-h", "--help"))
    args = cli.parse_args(argv if named_first else ["tune", *argv])
    try:
        return COMMANDS[args.what](args)
    except OptionError as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""How fast are populations, and steps of the optimizers?

    python -m experiments.throughput sweep --out results/throughput
    python -m experiments.throughput step --out results/throughput
    python -m experiments.throughput host --out results/throughput

Every side of a comparison is timed in turn, round after round, in one process; a figure is the
median over the rounds with a bootstrap 95 % interval, and a ratio is formed within each round.
"""

import argparse
import os
import sys
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from experiments import bench_host, bench_step, bench_sweep, shapes, store
from experiments.data import DataError
from experiments.grid import OptionError
from experiments.plan import resolve_device
from experiments.timing import markdown_table

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER")
"""Environment variables that decide how threads start and wait."""


def heading(title: str) -> str:
    """Title, command as one could type it again, machine."""
    provenance = store.provenance("cpu")
    settings = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return f"""# {title}

    {" ".join([*settings, provenance["command"]])}

{store.machine_line(provenance)}."""


def sweep(args: argparse.Namespace) -> tuple[list[dict], str]:
    """Populations against one run after the other: rows and text."""
    device = resolve_device(args.device)
    rows = [bench_sweep.compare(*size, args.data_dir, device, args.rounds) for size in bench_sweep.SIZES]
    return rows, bench_sweep.markdown(rows, store.provenance(device))


def host(args: argparse.Namespace) -> tuple[list[dict], str]:
    """What a step costs the host: rows and text."""
    bars = tqdm([(name, work) for work in (False, True) for name in shapes.LISTS], unit="list", dynamic_ncols=True)
    rows = [bench_host.compare(name, work, args.rounds) for name, work in bars]
    return (
        rows,
        f"""{heading("What a step costs the host")}

{markdown_table(rows)}

One `step()` of `optim.AdamW` and of `torch.optim.AdamW(fused=True)`, over tensors of which every dimension is cut to
at most 2. Medians over {args.rounds} rounds, each the median of {bench_host.STEPS} steps, with bootstrap 95 % intervals
of the median; all sides were timed in turn in every round. Device work "no": torch's kernels and our launch are
replaced by nothing, all Python and the address table's work are timed. Gradients move: autograd put every one
elsewhere before each step, which is not timed. At most 1/3: all of the interval is. Uploads and builds: how often
tables were written or built in all {args.rounds * (bench_host.STEPS + 1)} steps whose gradients stayed.
""",
    )


def step(args: argparse.Namespace) -> tuple[list[dict], str]:
    """Our steps against torch's: rows and text."""
    cases = [case for case in bench_step.CASES if case.name in args.only]
    bars = tqdm([(case, size) for case in cases for size in args.sizes], unit="size", dynamic_ncols=True)
    rows = [bench_step.compare(case, size, args.rounds) for case, size in bars]
    return (
        rows,
        f"""{heading("Steps against torch's")}

{markdown_table(rows)}

Medians over {args.rounds} rounds, with bootstrap 95 % intervals of the median; all sides were timed in turn in every
round, and tensors allocated anew {bench_step.PLACEMENTS - 1} times in between. The verdict is "faster" if all of the
interval is above 1.05, "slower" if all of it is below 0.95, "same" if all of it is in between, and else "unclear".
torch path: `fused=True`, or what torch does by default where it has none on the CPU.
MB: parameters and states read and written, gradients read. GB/s: this by each side's time, and of a copy with as large
a working set.
""",
    )


CLASSES = list(dict.fromkeys(case.name for case in bench_step.CASES))
SIZES = list(bench_step.SIZES)
COMMANDS = {"sweep": sweep, "host": host, "step": step}


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m experiments.throughput", description="Time populations and steps.")
    commands = cli.add_subparsers(dest="what", required=True, metavar="{sweep,host,step}")
    helps = {
        "sweep": "a population against one run after the other",
        "host": "host time of a step over the tensors of real networks, against torch.optim.AdamW",
        "step": "a step of every class against torch's",
    }
    for name, rounds in {"sweep": 120, "host": 60, "step": 60}.items():
        command = commands.add_parser(name, help=helps[name], description=f"Time {helps[name]}.")
        command.add_argument(
            "--rounds", type=int, default=rounds, metavar="N", help="rounds of timing (default %(default)s)"
        )
        command.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help=f"folder for throughput_{name}.{{csv,md}}"
        )
        if name == "sweep":
            command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
            command.add_argument("--data-dir", metavar="DIR", help="folder with the four IDX files of MNIST")
            continue
        command.add_argument("--threads", type=int, metavar="N", help="threads of both sides (default: torch's own)")
        if name == "step":
            choices = {
                "--only": (CLASSES, "classes to time"),
                "--sizes": (SIZES, "one tensor of so many elements, or those of a network"),
            }
            for option, (names, what) in choices.items():
                text = f"{what}: {', '.join(names)} (default all)"
                command.add_argument(option, nargs="+", default=names, metavar="NAME", help=text)
    return cli


def check(args: argparse.Namespace) -> None:
    """Raise OptionError, one sentence, if an option cannot be used."""
    if args.rounds < 3:
        raise OptionError(f"--rounds accepts whole numbers from 3, not {args.rounds}")
    most = os.cpu_count() or 1
    if getattr(args, "threads", None) is not None and not 1 <= args.threads <= most:
        raise OptionError(f"--threads accepts whole numbers from 1 to {most}, not {args.threads}")
    for option, names in (("only", CLASSES), ("sizes", SIZES)):
        if unknown := [name for name in getattr(args, option, ()) if name not in names]:
            raise OptionError(f"--{option} accepts {', '.join(names)}, not {unknown[0]!r}")
    store.check_folder(args.out)


def main(argv: list[str] | None = None) -> int:
    cli = parser()
    args = cli.parse_args(argv)
    try:
        check(args)
        if getattr(args, "threads", None):
            torch.set_num_threads(args.threads)
        rows, text = COMMANDS[args.what](args)
    except (OptionError, DataError) as error:
        print(f"{cli.prog}: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / f"throughput_{args.what}.csv"
    store.replace(table, lambda path: pd.DataFrame(rows).to_csv(path, index=False))
    store.replace(table.with_suffix(".md"), lambda path: path.write_text(text))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

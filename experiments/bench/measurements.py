"""What `experiments.throughput` measures once its options are checked, and the tables, pages and figures of it."""

import argparse
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from experiments.bench import (
    cases,
    command_time,
    gpu_info,
    gpu_timing,
    halving_time,
    host_time,
    networks,
    population_time,
    step_plan,
    step_report,
    step_time,
)
from experiments.bench.implementations import IMPLEMENTATIONS
from experiments.bench.timing import INTERVALS
from experiments.common import figure_style, files, run_info
from experiments.common.devices import resolve_device
from experiments.common.interrupts import interrupts
from experiments.common.progress import progress_bar
from experiments.common.tables import markdown_table

TITLES = {"step": "Steps of every implementation", "models": "Steps over the parameters of networks"}

SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
"""Environment variables that control how threads start and wait; reports show them with the command."""


def heading(title: str, device: torch.device | str = "cpu") -> str:
    """Return a report's heading: title, the command with `SETTINGS`, and the machine."""
    provenance = run_info.provenance(str(device))
    settings = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return f"""# {title}

    {" ".join([*settings, provenance["command"]])}

{run_info.machine_line(provenance)}."""


def until_interrupted(compare: Callable[..., dict], asked: list[tuple], table: Path) -> tuple[list[dict], list[tuple]]:
    """Compare one after the other until Ctrl-C; write the table after each.

    Args:
        asked: tuples of arguments of `compare`.
        table: CSV file.
    Returns: the rows, and the tuples that were not reached.
    """
    rows = []
    try:
        for one in progress_bar(asked, unit="size"):
            rows.append(compare(*one))
            save(table, rows)
    except KeyboardInterrupt:
        pass
    return rows, asked[len(rows) :]


def interrupted(rest: list[tuple]) -> str:
    """Return a paragraph that names what was not timed; "" if all was."""
    names = "; ".join(" ".join(map(str, one)) for one in rest)
    return f"\nInterrupted: not timed were {names}.\n" if rest else ""


def sweep(args: argparse.Namespace, table: Path) -> tuple[str, list[tuple]]:
    """Time populations against single runs in turn; return the report, "" if empty, and what was not timed."""
    device = resolve_device(args.device)
    compare = partial(
        population_time.compare, data_dir=args.data_dir, device=device, rounds=args.rounds, download=args.download
    )
    rows, rest = until_interrupted(compare, list(population_time.SIZES[torch.device(device).type]), table)
    return population_time.markdown(rows, run_info.provenance(device)) if rows else "", rest


def command(args: argparse.Namespace, table: Path, sweep: Callable) -> tuple[str, list[tuple]]:
    """Time the sweep command against the loop of `throughput sweep`; return the report, "" if empty, and the rest.

    sweep: `experiments.sweep.sweep`.
    """
    device = resolve_device(args.device)
    compare = partial(command_time.compare, sweep=sweep, data_dir=args.data_dir, device=device, rounds=args.rounds)
    rows, rest = until_interrupted(compare, [command_time.SIZE], table)
    title = "The sweep command against its benchmark"
    return command_time.text(heading(title, device), rows[0]) if rows else "", rest


def halving(args: argparse.Namespace, table: Path, sweep: Callable) -> tuple[str, list[tuple]]:
    """Train halved and full sweeps in turn; return the report, "" if empty, and the rounds that were not reached.

    sweep: `experiments.sweep.sweep`.
    """
    device = resolve_device(args.device)
    compare = partial(halving_time.compare, sweep=sweep, data_dir=args.data_dir, device=device)
    rows, rest = until_interrupted(compare, [(number,) for number in range(args.rounds)], table)
    title = "Successive halving, and lanes that have diverged"
    return halving_time.text(heading(title, device), rows) if rows else "", rest


def host(args: argparse.Namespace, table: Path) -> tuple[str, list[tuple]]:
    """Time a step on the host; return the report, "" if empty, and what was not timed."""
    asked = [(name, work) for work in (False, True) for name in networks.LISTS]
    rows, rest = until_interrupted(partial(host_time.compare, rounds=args.rounds), asked, table)
    if not rows:
        return "", rest
    text = f"""{heading("Host time of a step")}

{markdown_table(rows)}

One `step()` of `optim.AdamW` and of `torch.optim.AdamW(fused=True)`, over tensors with every dimension cut to at most
2. Medians over {args.rounds} rounds, each the median of {host_time.STEPS} steps, with
{INTERVALS}.
Both were timed in turn in every round. Device work "no": torch's kernels and our launch are replaced by no-ops; all
Python and the work on the address table are timed. Gradients move: before each step, untimed, autograd allocates every
gradient at another address. States known: the program has read `optimizer.state` or called `state_dict()` and may
change the states, so every step checks them all. At most 1/3: the whole 95 % interval is. Uploads and builds: how often
tables were written or built in all {args.rounds * (host_time.STEPS + 1)} steps whose gradients stayed.
"""
    return text, rest


def step(args: argparse.Namespace, device: torch.device) -> list[step_plan.Group]:
    """Return the groups of command `step`: single tensors, and those of networks."""
    sizes = args.sizes or (cases.CPU_SIZES if device.type == "cpu" else cases.CUDA_SIZES)
    chosen = tuple(case for case in (*cases.CASES, *cases.MORE_CASES) if case.name in args.only)
    return step_time.groups(device, {size: cases.SIZES[size] for size in sizes}, chosen)


def models(args: argparse.Namespace, device: torch.device) -> list[step_plan.Group]:
    """Return the groups of command `models`: the parameters of networks."""
    chosen = tuple(case for case in cases.MODEL_CASES if case.name in args.only)
    return step_time.groups(device, {name: cases.MODELS[name] for name in args.sizes or cases.MODELS}, chosen)


def timed(args: argparse.Namespace, started: float) -> int:
    """Time the groups of `step` or `models`, and write the table after each.

    Args:
        started: `time.monotonic()` from which the budget counts.
    Returns: the exit code: 130 after Ctrl-C, 1 if the device failed, else 0.
    """
    device = torch.device(resolve_device(args.device))
    groups = {"step": step, "models": models}[args.what](args, device)
    title, before, matrix = heading(TITLES[args.what], device), gpu_info.state(device), matrix_rate(device)
    unasked = [name for name in IMPLEMENTATIONS if name not in args.implementations]
    rows, left_out, code = [], [(name, "", "only if it is named: --implementations") for name in unasked], 0
    deadline = started + (args.budget or math.inf)
    table, waiting = args.out / f"throughput_{args.what}.csv", list(groups)
    try:
        for group in progress_bar(groups, unit="size"):
            if time.monotonic() > deadline:
                left_out += [("", str(rest), f"the budget of {args.budget:g} s was spent") for rest in waiting]
                break
            try:
                found, missing = step_time.compare(
                    group, device, args.rounds, args.implementations, args.compiled, deadline
                )
            except step_plan.NotEnoughMemory as error:
                left_out.append(("", str(group), str(error)))
            except RuntimeError as error:
                # A device that failed once keeps failing; earlier results are still reported.
                left_out.append(("", str(group), str(error).strip().splitlines()[0]))
                code = 1
            else:
                rows += found
                left_out += [(name, str(group), reason) for name, reason in missing.items()]
                if rows:
                    save(table, rows)
            waiting.remove(group)
    except KeyboardInterrupt:
        left_out += [("", str(rest), "interrupted") for rest in waiting]
        code = 130
    text = step_report.not_timed(left_out)
    if rows:
        where = f"On {device}" if device.type == "cuda" else "On the CPU, with its backends only: no GPU was timed"
        states = f" Before: {sentence(before)}. After: {sentence(gpu_info.state(device))}." if before else ""
        text = step_report.markdown(rows, left_out, title, "ms" if args.what == "models" else "us", f"{where}.{states}")
        with interrupts():
            files.replace(table.with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))
            for name, figure in drawn(args.what, rows, device, matrix).items():
                files.replace(table.with_name(f"{table.stem}{name}.png"), partial(figure_style.save, figure))
    print(text)
    return code


def drawn(what: str, rows: list[dict], device: torch.device, matrix: float) -> dict[str, Figure]:
    """Return the figures of a command, by the suffixes of their file names."""
    name = run_info.describe_device(str(device))["name"]
    if what == "models":
        return {"": step_report.models(rows, name)}
    found = {"_bandwidth": step_report.bandwidth(rows, name), "_roofline": step_report.roofline(rows, name, matrix)}
    return {end: figure for end, figure in found.items() if figure}


def matrix_rate(device: torch.device) -> float:
    """Return the operations per second of a float32 matrix product, the fastest of several."""
    n = 4096 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device) for _ in range(2))

    def seconds() -> float:
        if device.type == "cuda":
            return gpu_timing.event_seconds(lambda: torch.mm(a, b), device)
        started = time.perf_counter()
        torch.mm(a, b)
        return time.perf_counter() - started

    return 2 * n**3 / min(seconds() for _ in range(5))


def sentence(state: dict) -> str:
    return ", ".join(f"{name} {', '.join(v) or 'none' if isinstance(v, list) else v}" for name, v in state.items())


def save(table: Path, rows: list[dict]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    files.replace(table, lambda path: pd.DataFrame(rows).to_csv(path, index=False))


COMMANDS = {"sweep": sweep, "command": command, "halving": halving, "host": host}

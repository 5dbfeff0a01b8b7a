"""Compile every launch configuration for a GPU, present or not, and report its machine code: rows, page, figure."""

import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from matplotlib import style
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.common import run_info
from experiments.common.figure_style import STYLE
from experiments.common.progress import progress_bar
from experiments.common.tables import markdown_table
from kernels import codegen, rules
from kernels.codegen import MachineCode
from kernels.config import WALKS, Config, candidates, default
from kernels.occupancy import LIMITS, SOURCES, Limits, occupancy

MOST_PROCESSES = 16
KEPT, SPILLS, NARROW, SHARED, SAME = "kept", "spills", "narrow access", "too much shared memory", "same code as"


def compile_one(rule: str, target: str, dtype: str, config: Config) -> MachineCode:
    return codegen.compile_update(rules.RULES[rule], target, dtype, config)


def compile_all(rule: str, target: str, dtype: str, configs: list[Config]) -> list[MachineCode]:
    """Return the machine code of each configuration, in order, compiled in several processes with a progress bar.

    Args:
        rule, dtype: names in `rules.RULES` and `codegen.VARIANTS`.
        target: sm_NN or gfx9NN; the GPU need not be present. TRITON_INTERPRET must not be set.
    """
    workers = max(1, min(MOST_PROCESSES, os.cpu_count() or 1, len(configs)))
    # Forked processes would inherit locks that torch's threads hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        done = pool.map(partial(compile_one, rule, target, dtype), configs)
        return list(progress_bar(done, total=len(configs), unit="candidate", desc=f"{rule} {target}"))


def is_wide(code: MachineCode, elements_per_thread: int) -> bool:
    """Return whether every tensor is accessed 128 bits at a time, or 64 where these are a thread's four elements."""
    p_bytes, state_bytes = (dtype.itemsize for dtype in codegen.VARIANTS[code.dtype][:2])

    def enough(tensor_bytes: list[int], found: dict[int, int]) -> bool:
        of_thread = [elements_per_thread * n for n in tensor_bytes]
        wide, half = sum(n // 16 for n in of_thread), sum(n < 16 for n in of_thread)
        return sum(bits // 128 * count for bits, count in found.items()) >= wide and found.get(64, 0) >= half

    states = len(rules.RULES[code.rule].states) * [state_bytes]
    moves = enough([p_bytes, p_bytes, *states], code.loads) and enough([p_bytes, *states], code.stores)
    return elements_per_thread >= 4 and moves


def judge(codes: list[MachineCode], limits: Limits) -> list[dict]:
    """Return a row for each candidate: its code's facts, theoretical occupancy, and a verdict, kept or why not.

    Args:
        codes: as `compile_all` returns them.
        limits: the target's, from `occupancy.LIMITS`.
    """
    rows, seen = [], {}
    for code in codes:
        config, elements = code.config, code.config.elements_per_thread(limits.warp_size)
        resident = occupancy(limits, code.registers, code.shared, config.num_warps)
        # The code does not contain the number of warps, which decides how many threads run it.
        same = seen.setdefault((code.digest, config.num_warps, code.shared), config)
        if code.spills:
            verdict = SPILLS
        elif resident.blocks == 0:
            verdict = SHARED
        elif not is_wide(code, elements):
            verdict = NARROW
        else:
            verdict = KEPT if same is config else f"{SAME} {same.label}"
        rows.append(
            {
                "candidate": config.label,
                "elements per thread": elements,
                "block": config.block_size,
                "warps": config.num_warps,
                "blocks per chunk": config.blocks_per_chunk,
                "stages": config.num_stages,
                "eviction": config.eviction or "normal",
                "registers": code.registers,
                "spills": code.spills,
                "shared bytes": code.shared,
                "instructions": code.instructions,
                "loads": widths(code.loads),
                "stores": widths(code.stores),
                "occupancy": resident.share,
                "limited by": resident.limited_by,
                "code": code.digest,
                "verdict": verdict,
            }
        )
    return rows


def widths(counts: dict[int, int]) -> str:
    """Return the number of accesses of each width in bits, widest first, as "4x128 2x64"."""
    return " ".join(f"{count}x{bits}" for bits, count in sorted(counts.items(), reverse=True))


def verdicts(rows: list[dict]) -> dict[str, int]:
    """Count the candidates of each verdict."""
    return dict(Counter(SAME if row["verdict"].startswith(SAME) else row["verdict"] for row in rows).most_common())


def markdown(rows: list[dict], rule: str, target: str, dtype: str, provenance: dict) -> str:
    limits, columns = LIMITS[target], [key for key in rows[0] if key not in ("candidate", "code")]
    counts = ", ".join(f"{count} {describe(verdict)}" for verdict, count in verdicts(rows).items())
    return f"""# Launch configurations on {target}: {rule}, {dtype}

    {provenance["command"]}

{run_info.machine_line(provenance)}.

{len(rows)} candidates: {counts}.

Nothing was run: all numbers come from the machine code. Candidates that spill, do not fit into shared memory, or have
narrow access (below 128 bits, or 64 where these are four elements) are dropped; of candidates with the same machine
code the first is kept. Instructions include those for blocks with a mask. Loads and stores: how many of each width in
bits. Occupancy: the share of warps that can be resident at once. A multiprocessor holds {limits.warps} warps and
{limits.blocks} blocks, and has {limits.registers // 1024} K registers and {limits.shared_kib} KiB of shared memory
({SOURCES[target.split("_")[0].rstrip("0123456789a")]}).

{markdown_table([{column: row[column] for column in columns} for row in rows])}
"""


def sift(rule: str, dtype: str, target: str) -> tuple[dict[Config, str], dict[Config, str]]:
    """Return the candidates worth measuring, each with its machine code's hash, and the others, each with a reason.

    The default is always worth measuring.
    """
    warp_size = LIMITS[target].warp_size
    configs, always = candidates(warp_size), default(warp_size)
    rows = judge(compile_all(rule, target, dtype, configs), LIMITS[target])
    judged = dict(zip(configs, rows, strict=True))
    kept = {config: row["code"] for config, row in judged.items() if row["verdict"] == KEPT or config == always}
    return kept, {config: row["verdict"] for config, row in judged.items() if config not in kept}


MARKERS = dict(zip(WALKS, "os^DP", strict=True))
COLOURS = {KEPT: "C0", SAME: "C4", SPILLS: "C1", NARROW: "0.6", SHARED: "C3"}


def walk_name(blocks_per_chunk: int, num_stages: int, eviction: str) -> str:
    blocks = "1 block" if blocks_per_chunk == 1 else f"{blocks_per_chunk} blocks"
    return ", ".join([blocks, *([f"{num_stages} stages"] if num_stages > 1 else []), *([eviction] if eviction else [])])


@style.context(STYLE)
def candidates_figure(rows: list[dict], rule: str, target: str, dtype: str) -> Figure:
    """Draw registers and occupancy of every candidate, with a line for each block size and number of warps.

    Markers show the walk, colours the verdict; the default's line is bold.

    Args:
        rows: as `judge` returns them.
        rule, target, dtype: for which they were compiled; the target is in `occupancy.LIMITS`.
    """
    limits = LIMITS[target]
    shapes = list(dict.fromkeys((row["elements per thread"], row["block"], row["warps"]) for row in rows))
    drawn = Figure(figsize=(10.5, 2.2 + 0.42 * len(shapes)))
    left, right = drawn.subplots(1, 2, sharey=True)
    for row in rows:
        walk = row["blocks per chunk"], row["stages"], "" if row["eviction"] == "normal" else row["eviction"]
        shape = row["elements per thread"], row["block"], row["warps"]
        # Markers of a line are shifted, so that equal values stay visible.
        y = shapes.index(shape) + 0.17 * (list(MARKERS).index(walk) - (len(MARKERS) - 1) / 2)
        verdict = SAME if row["verdict"].startswith(SAME) else row["verdict"]
        kwargs = {"color": to_hex(COLOURS[verdict]), "markersize": 4.5, "linestyle": "", "marker": MARKERS[walk]}
        left.plot(row["registers"], y, **kwargs)
        right.plot(100 * row["occupancy"], y, **kwargs)
    for walk, marker in MARKERS.items():
        left.plot([], [], marker=marker, linestyle="", color="black", label=walk_name(*walk))
    for verdict, count in verdicts(rows).items():
        left.plot(
            [], [], marker="s", linestyle="", color=to_hex(COLOURS[verdict]), label=f"{count} {describe(verdict)}"
        )
    left.set_yticks(range(len(shapes)), [f"{n} a thread, block {block}, {warps} warps" for n, block, warps in shapes])
    bold = default(limits.warp_size)
    for label, (_, block, warps) in zip(left.get_yticklabels(), shapes, strict=True):
        if (block, warps) == (bold.block_size, bold.num_warps):
            label.set_fontweight("bold")
    for i in range(0, len(shapes), 2):
        for ax in (left, right):
            ax.axhspan(i - 0.5, i + 0.5, color="0.96", zorder=0)
    left.set(xlabel="registers a thread", xlim=(0, None), ylim=(len(shapes) - 0.5, -0.5))
    right.set(xlabel=f"occupancy, % of {limits.warps} warps a multiprocessor", xlim=(0, 104))
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
    drawn.suptitle(f"{rule}, {dtype}, {target}: what the compiler makes of {len(rows)} candidates (bold: the default)")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    drawn.draw_without_rendering()
    return drawn


def describe(verdict: str) -> str:
    """Return a verdict in the words of the legend."""
    return {KEPT: "kept", SAME: "with the code of another"}.get(verdict, f"dropped: {verdict}")

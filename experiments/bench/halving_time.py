"""What does `--halving` save and lose, and what does a lane cost that has diverged?

Every round is a sweep of other Sobol points, trained in turn to the end and with halving of several rungs. Another pair
is a sweep of which half the runs diverge within a few steps, as it is by default, and with `keep_diverged`.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from experiments.bench.timing import INTERVALS, with_interval
from experiments.common.tables import markdown_table
from experiments.training.axes import BETA, scale_of

LANES, ETA = 64, 4
RANGES = {"lr": (1e-4, 1e-1), "beta1": (0.0, 0.99), "beta2": (0.9, 0.9999), "eps": (1e-10, 1e-2)}
"""Ends of each axis; equal ratios of lr, of eps, and of 1 - beta are equally likely."""
DIVERGING = 1e3, 1e5
"""Ends of the lr of those that diverge."""
EPOCHS = 3
EVALUATIONS = {"T/4": 4, "T/8, T/4": 8, "T/16, T/4": 16}
"""How many evaluations make rungs at which steps; 8 is the default."""
MARKS = {"time / full": 0.3, "left / kept": 0.65}
CLOSE = 0.02
"""By how much more than the lowest final loss of the full sweep a winner may end with, to count as near it."""


def points(number: int) -> pd.DataFrame:
    """Return the configurations of a round: the `LANES` Sobol points after those of the rounds before."""
    from scipy.stats import qmc

    sequence = qmc.Sobol(len(RANGES), scramble=True, rng=np.random.default_rng(0))
    # Numbers of points that are no power of two bring a warning.
    drawn = sequence.random(2 ** (LANES * (number + 1) - 1).bit_length())[LANES * number :][:LANES]
    table = {}
    for (axis, (start, stop)), of_axis in zip(RANGES.items(), drawn.T, strict=True):
        is_beta = scale_of(axis, [start, stop]) == BETA
        low, high = (1 - start, 1 - stop) if is_beta else (start, stop)
        values = low * (high / low) ** of_axis
        table[axis] = 1 - values if is_beta else values
    return pd.DataFrame(table)


def half_diverge() -> pd.DataFrame:
    """Return `LANES` configurations, half of which diverge at once."""
    return pd.DataFrame({"lr": np.concatenate([np.geomspace(*ends, LANES // 2) for ends in (RANGES["lr"], DIVERGING)])})


def compare(number: int, sweep: Callable, **options) -> dict:
    """Train the sweeps of a round, and return its row of the table.

    Args:
        number: of the round, from 0; odd ones train in the opposite order.
        sweep: `experiments.sweep.sweep`, which no module of this folder may import; options are its further arguments.
    """
    configs, diverging = points(number), {"configs": half_diverge()}
    asked = {
        "full": {"configs": configs},
        **{rungs: {"configs": configs, "halving": ETA, "evaluations": n} for rungs, n in EVALUATIONS.items()},
        "left": diverging,
        "kept": diverging | {"keep_diverged": True},
    }
    names = [*asked][:: -1 if number % 2 else 1]
    found = {name: sweep("mnist", epochs=EPOCHS, progress=False, **asked[name], **options) for name in names}
    seconds = {name: found[name].provenance["seconds"]["total"] for name in asked}
    row = {"round": number} | {f"{name}: s": seconds[name] for name in asked}
    full = found["full"]
    final, all_steps = ended(full.runs)
    row["lowest loss"] = lowest = final.min()
    for rungs in EVALUATIONS:
        losses, steps = ended(found[rungs].runs)
        row[f"{rungs}: time / full"] = seconds[rungs] / seconds["full"]
        row[f"{rungs}: steps / full"] = steps / all_steps
        row[f"{rungs}: loss / lowest"] = losses.min() / lowest
        row[f"{rungs}: rank"] = 1 + int((final < final[losses.idxmin()]).sum())
    # What one evaluation tells of the next: the best of the last but one is halving at its latest.
    last_but_one = full.curves[full.curves["step"] < full.runs["steps"].max()].groupby("run_id")["eval_loss"].last()
    row["last but one: loss / lowest"] = final[last_but_one[final.index].idxmin()] / lowest
    row["left / kept"] = seconds["left"] / seconds["kept"]
    return row | {"diverged": int((found["left"].runs["status"] == "diverged").sum())}


def ended(runs: pd.DataFrame) -> tuple[pd.Series, int]:
    """Return the final losses of the runs that were trained to the end, by run_id, and the steps of all."""
    runs = runs.set_index("run_id")
    steps = runs["stopped_step"].astype("Float64").fillna(runs["diverged_step"]).fillna(runs["steps"])
    return runs.loc[runs["status"] == "ok", "eval_loss"], int(steps.sum())


def spread(ratios: pd.Series) -> dict[str, str]:
    """Return columns of the table: in how many rounds a winner is near the lowest loss, and by how much it is above."""
    # Adding 0 makes 0 of -0.
    above = [f"{round(100 * (ratios.quantile(q) - 1), 1) + 0.0:.1f}" for q in (0, 0.25, 0.5, 0.75, 1)]
    return {f"within {CLOSE:.0%}": f"{(ratios <= 1 + CLOSE).sum()} of {len(ratios)}", "above, %": ", ".join(above)}


def text(heading: str, rows: list[dict]) -> str:
    """Return the report as Markdown."""
    table, lines = pd.DataFrame(rows), []
    for rungs, n in EVALUATIONS.items():
        line = {"rungs": rungs, "evaluations": n, "steps / full": table[f"{rungs}: steps / full"].median()}
        line |= with_interval("time / full", table[f"{rungs}: time / full"]) | spread(table[f"{rungs}: loss / lowest"])
        ranks = table[f"{rungs}: rank"].value_counts().sort_index()
        lines.append(line | {"rank (rounds)": ", ".join(f"{rank} ({n})" for rank, n in ranks.items())})
    lines.append({"rungs": "best of the last evaluation but one"} | spread(table["last but one: loss / lowest"]))
    return f"""{heading}

{markdown_table(lines)}

{markdown_table([with_interval("left / kept", table["left / kept"])])}

Marks: {"; ".join(f"{name} at most {mark:g}" for name, mark in MARKS.items())}; within {CLOSE:.0%} in 9 of 10 rounds.
Medians over the {len(table)} rounds, with
{INTERVALS}.

Each round trains {LANES} other Sobol points of Adam's {", ".join(RANGES)} with one seed for {EPOCHS} epochs: to the end
with the default {EVALUATIONS["T/8, T/4"]} evaluations, and with `--halving {ETA}` and as many evaluations as make these
rungs. Within, above and rank: the final loss of the halved sweep's winner against the lowest of the full sweep, and its
rank among the full sweep's final losses; above are the least, the quartiles and the most. The last line takes the
configuration that is best at the full sweep's last evaluation but one: whoever chooses a single one before the end, by
one evaluation of one seed, knows no more. Left and kept: {LANES} values of lr, of which
{table["diverged"].median():g} diverge at once, as by default and with `--keep-diverged`. Seconds are those that sweeps
report: training, evaluations and compilation, without loading data and drawing. Every other round has the opposite
order.
"""

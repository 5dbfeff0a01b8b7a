"""The text of a report: one page of Markdown about a sweep, with its findings in sentences."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.common import intervals
from experiments.reports import aggregation, comparison, origin, statistics
from experiments.reports.aggregation import axis_name, best_configurations, listed, recorded, run_length, short
from experiments.reports.markup import fenced, markdown_frame, picture, plain, text_table
from experiments.training import population
from experiments.training.targets import Target


def unfinished_sentence(provenance: dict) -> str:
    """Return a sentence on how much of a sweep is finished; "" if all of it is."""
    if not (counts := provenance.get("unfinished")):
        return ""
    begun = f", {counts['begun']} more to their last evaluation so far" if counts.get("begun") else ""
    return (
        f"Unfinished: {counts['finished']} of {counts['of']} runs are finished, and shown here{begun}; the command of "
        "the sweep goes on with the others."
    )


HALFWAY = "halfway from the median to the lowest and to the highest"
"""The position of the quartiles of two or three values."""
DIVERGED = (
    "Diverged is a run whose training loss is not finite, or exceeds "
    f"{population.DIVERGED:g} times that of its first step."
)
"""The definition of a diverged run, shown where the word is first used."""
STOPPED = (
    "Stopped is a run that successive halving ended at a rung, because its configuration was not among the best of its "
    "optimizer there, or one of an unfinished sweep that has not ended; its losses are those at that step, come after "
    "the others in tables, and are hollow in figures."
)


def defined(summary: pd.DataFrame) -> str:
    """Return the definitions of how runs of these configurations ended."""
    return f"{DIVERGED} {STOPPED}" if aggregation.stopped_at(summary).notna().any() else DIVERGED


def edge_warnings(runs: pd.DataFrame, order: pd.DataFrame | None = None, of: str = "grid") -> list[str]:
    """Return a sentence for each varied hyperparameter whose best value ends its grid; none if all runs diverged.

    order: as of `aggregation.ranked`. of: as of `origin.values_of`.
    """
    order, names = aggregation.ranked(runs, order), runs["optimizer"].unique()
    sentences, several = [], len(names) > 1
    for name in names:
        own = aggregation.of_optimizer(order, name)
        best = own.iloc[0]
        for axis in aggregation.varied_axes(own):
            if aggregation.best_on_edge(own, axis):
                end = "largest" if best[axis] == own[axis].max() else "smallest"
                sentences.append(
                    f"The best {axis_name(axis, own)}{f' of {plain(name)}' * several}, {short(best[axis])}, is on the "
                    f"edge of the {of} (its {end} value): a better one may lie beyond."
                )
    return sentences


def page(
    runs: pd.DataFrame,
    summary: pd.DataFrame,
    provenance: dict,
    captions: dict[str, str],
    target: Target | None,
    left_out: str = "",
    of_axes: Sequence[str] = (),
) -> str:
    """Return the report in Markdown.

    Args:
        summary: `aggregation.summarise` of the runs, with `steps_to_target.medians` if there is a target.
        captions: file name of a figure -> caption.
        left_out: a sentence on a figure that is not there.
        of_axes: `importance.blocks`.
    """
    n_seeds = runs["seed"].nunique()
    names = [plain(name) for name in runs["optimizer"].unique()]
    data, model = plain(runs["data"].iloc[0]), plain(listed(runs["model"]))
    counts = f"{len(runs)} runs, {aggregation.ends(runs)}"
    loss_name = plain(provenance.get("loss_name", "evaluation loss"))
    best = best_configurations(summary)
    of_each = [markdown_frame(comparison.table(runs, summary)), "The best configurations of all:"]
    of_what = ", ".join([data, *(run_length(runs) or asked_length(provenance))])
    blocks = [
        f"# {', '.join(names)} on {of_what}{f': {model}' * (model != data)}",
        f"**{left}**" if (left := unfinished_sentence(provenance)) else "",
        origin.data_line(provenance.get("data") or {}),
        fenced(provenance.get("command", "unknown command")),
        text_table(["origin", ""], origin.rows(provenance)),
        "## What came out",
        f"{counts}; configurations: {len(summary)}, seeds: {n_seeds}. The loss is the {loss_name} after the last step, "
        f"median over {aggregation.seeds(summary['n_seeds'])}. {defined(summary)}",
        "\n".join(f"- {finding}" for finding in findings(runs, summary, provenance, target)),
        *(of_each if len(names) > 1 else []),
        markdown_frame(best),
        intervals.explained(summary["n_seeds"]),
        "All configurations are in [summary.csv](summary.csv).",
        *seed_by_seed(runs, summary),
        *confirmation(runs, provenance, summary),
        *of_axes,
        "## Figures",
        bands(summary),
        left_out,
        *(picture(name, caption) for name, caption in captions.items()),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def asked_length(provenance: dict) -> list[str]:
    """Return the length of the runs of an older sweep, whose table lacks it."""
    return [f"{steps} steps"] if (steps := (provenance.get("sweep") or {}).get("steps")) else []


def findings(runs: pd.DataFrame, summary: pd.DataFrame, provenance: dict, target: Target | None) -> list[str]:
    """Return the findings of a sweep that precede its tables, a sentence or two each."""
    names, several = runs["optimizer"].unique(), runs["optimizer"].nunique() > 1
    if not np.isfinite(summary["eval_loss_median"]).any() and (runs["status"] == "diverged").all():
        return ["Every run diverged: there is no best configuration, and the order below means nothing."]
    sentences = edge_warnings(runs, summary, origin.values_of(provenance)) + equal_length(runs)
    if len(summary) > 1 and not provenance.get("confirmed"):
        sentences.append(
            "The best of many runs looks better than it is: `--confirm 10` runs it again with ten fresh seeds."
        )
    sensitive = [
        aggregation.lr_sensitivity(group, aggregation.of_optimizer(summary, name))
        for name, group in runs.groupby("optimizer")
    ]
    if not np.isnan(sensitive).all():
        number = " is in the table" if several else f": {sensitive[0]:.3g}"
        sentences.append(
            f"Learning-rate sensitivity{number} (mean over the lr grid of min(loss, loss before training) - best loss, "
            "the rest as in the best configuration; Wortsman et al. 2023, arXiv:2309.14322)."
        )
    if several and summary.groupby("optimizer").size().nunique() > 1:
        sentences.append(
            "The optimizers had different numbers of configurations to choose from; expected best of "
            f"{summary.groupby('optimizer').size().min()} compares them at the budget that all {len(names)} had: the "
            "mean over which of its configurations are tried (Dodge et al. 2019, arXiv:1909.03004, without repetition)."
        )
    sentences += statistics.unresolved(runs, summary)
    if target:
        sentences.append(
            f"Target: {target}, reached by {int(summary['n_reached'].sum())} of {len(runs)} runs. Steps to it count to "
            "the first evaluation that meets it; a run that misses it counts as infinite in a median."
        )
    return sentences


def equal_length(runs: pd.DataFrame) -> list[str]:
    """Return a sentence on what is equal between runs of which a step, or an epoch, is not the same."""
    sizes = [axis for axis in ("batch_size", "accumulate", "n_train") if axis in aggregation.varied_axes(runs)]
    if not sizes or "steps" not in runs or "steps" in aggregation.varied_axes(runs):
        return []
    names, (length,) = " and ".join(map(axis_name, sizes)), aggregation.run_length(runs)
    if runs["steps"].nunique() > 1:
        return [f"Runs that differ in {names} have equal epochs, and so {length}; `--steps` makes their steps equal."]
    return [f"Runs that differ in {names} have {length} each, and so not equal epochs; `--epochs` makes these equal."]


def sampled(provenance: dict) -> str | None:
    """Return how configurations were chosen, for example `sobol:64` or the name of a table; None for a grid."""
    sweep = provenance.get("sweep") or {}
    return sweep.get("sample") or sweep.get("configs")


def bands(summary: pd.DataFrame) -> str:
    """Return a sentence on the bands over seeds; "" if every configuration has one seed."""
    counts = summary["n_seeds"]
    if counts.max() < 2:
        return ""
    few = f", {HALFWAY}" if counts.max() < 4 else f" (of two or three: {HALFWAY})" if counts.min() < 4 else ""
    return (
        f"Bands and bars over seeds run from quartile to quartile of {aggregation.seeds(counts)}{few}: they say how "
        "far seeds lie apart, not how sure a median is."
    )


def seed_by_seed(runs: pd.DataFrame, order: pd.DataFrame) -> list[str]:
    """Return the blocks on how sure the first place is; none of a single configuration or seed.

    order: as of `aggregation.ranked`.
    """
    if runs["seed"].nunique() < 2 or len(statistics.rivals(order)) < 2:
        return []
    winner = order.iloc[0]
    text = (
        "Seed by seed, with the same initial weights and batches, the best configuration "
        f"({plain(described(runs, winner))}) against the next: loss of the other minus its own, so that positive "
        "differences are in its favour. It was chosen on these very seeds, which flatters it."
    )
    return [text, markdown_frame(paired_table(runs, order))]


def described(runs: pd.DataFrame, row: pd.Series) -> str:
    """Return a configuration in words: its optimizer, if there are several, and its values on axes that vary."""
    several = runs["optimizer"].nunique() > 1
    axes = [axis for axis in aggregation.varied_axes(runs) or ["lr"] if not pd.isna(row.at[axis])]
    return ", ".join([str(row["optimizer"])] * several + [aggregation.label(row, axes, runs)])


def paired_table(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return `statistics.paired_rivals` as short strings."""
    rows = statistics.paired_rivals(runs, order)
    return pd.DataFrame(
        {
            "compared with": [described(runs, row) for _, row in rows.iterrows()],
            "median difference": rows["median"].map("{:+.3g}".format),
            **intervals.column(rows["low"].tolist(), rows["high"].tolist(), rows["n"].tolist(), "{:+.3g}"),
            "ahead on": [f"{k} of {n} seeds" for k, n in zip(rows["ahead"], rows["n"], strict=True)],
        }
    )


def confirmed_table(again: pd.DataFrame, order: pd.DataFrame) -> pd.DataFrame:
    """Return the winners on fresh seeds as short strings: the loss by which each was chosen, and the losses found now.

    Args:
        again: the `aggregation.summarise` of the runs of `--confirm`.
        order: as of `aggregation.ranked`, of the runs by which the winners were chosen.
    """
    table = best_configurations(again, len(again)).drop(columns="train loss")
    chosen = [aggregation.rows_like(order, row.loc[aggregation.configuration(again)]) for _, row in again.iterrows()]
    column = list(table).index("eval loss")
    table.insert(column, "eval loss when chosen", [f"{row['eval_loss_median'].item():.4g}" for row in chosen])
    if again["n_seeds"].min() > 1:
        quartiles = zip(again["eval_loss_q25"], again["eval_loss_q75"], strict=True)
        table.insert(column + 2, "quartiles", [f"{low:.4g} to {high:.4g}" for low, high in quartiles])
    return table


def confirmation(runs: pd.DataFrame, provenance: dict, order: pd.DataFrame | None = None) -> list[str]:
    """Return the blocks on the runs of `--confirm`: the winners again, on seeds by which nothing was chosen.

    order: as of `aggregation.ranked`.
    """
    confirmed = provenance.get("confirmed")
    if not confirmed:
        return []
    again, seeds = recorded(confirmed), confirmed["seeds"]
    several = again["optimizer"].nunique() > 1
    text = (
        f"The best configuration{' of every optimizer' * several} again, on n = {len(seeds)} fresh seeds ({seeds[0]} "
        f"to {seeds[-1]}) by which nothing was chosen: these are the numbers to report."
    )
    summary = aggregation.summarise(again)
    table = markdown_frame(confirmed_table(summary, aggregation.ranked(runs, order)))
    few = f"Quartiles of {len(seeds)} seeds lie {HALFWAY}." if 1 < len(seeds) < 4 else ""
    blocks = ["## Confirmation", text, table, f"{few} {intervals.explained([len(seeds)])}".strip()]
    if several and len(seeds) > 1:
        blocks += [
            "Seed by seed, the best of them against each other one:",
            markdown_frame(paired_table(again, summary)),
        ]
    return blocks

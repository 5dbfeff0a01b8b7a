"""The page about several studies: first what tells them apart, then tables and figures over all of them."""

import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from experiments.common import ambient, files, intervals
from experiments.reports import (
    aggregation,
    comparison,
    escape,
    html,
    markdown,
    pairing,
    steps_to_target,
    studies,
    studies_figures,
    training_figures,
    writer,
)
from experiments.reports.escape import escaped, without_math
from experiments.reports.studies import Study
from experiments.training.axes import axes_in
from experiments.training.targets import Target

RECORD = "compare.json"
"""The file by which a folder of a comparison is known: its studies, and the names of its files."""
WIDEST = 45
"""Facts with longer values stand in a list below the table of differences, which would not fit on a screen."""


class All(NamedTuple):
    """Studies that were joined, and their tables; see `studies.joined` and `aggregation.summarise`."""

    studies: Sequence[Study]
    runs: pd.DataFrame
    curves: pd.DataFrame
    provenance: dict
    summary: pd.DataFrame
    target: Target | None
    reached: pd.DataFrame | None

    def named(self, name: Callable[[str], str]) -> "All":
        """Return the same with each label of an optimizer, and each name of a study, as `name` returns it."""

        def renamed(table: pd.DataFrame) -> pd.DataFrame:
            return table.assign(optimizer=table["optimizer"].map(name))

        return self._replace(
            studies=[study._replace(name=name(study.name)) for study in self.studies],
            runs=renamed(self.runs),
            summary=renamed(self.summary),
            reached=None if self.reached is None else renamed(self.reached),
        )

    @property
    def best_of_studies(self) -> list[str]:
        """The label of the best optimizer of each study, in the order of the studies."""
        place = self.runs.drop_duplicates("optimizer").set_index("optimizer")["study"]
        best = self.summary.drop_duplicates("optimizer")["optimizer"]
        return best.groupby(best.map(place)).first().tolist()


@ambient.pinned()
def tables(found: Sequence[Study], target: str | None = None) -> All:
    """Join studies and summarise their runs.

    target: as of `writer.target_of`; by default that of all studies, if they have the same.
    Raises: OptionError if they cannot be compared, or there is no such target.
    """
    studies.check(found)
    runs, curves, provenance = studies.joined(found)
    summary = aggregation.summarise(runs)
    goal, reached = writer.target_of(runs, provenance, target, summary), None
    if goal:
        reached = steps_to_target.reach(runs, curves, goal)
        summary = summary.merge(steps_to_target.medians(reached), how="left")
    return All(found, runs, curves, provenance, summary, goal, reached)


@ambient.pinned()
def write(folder: Path, every: All, record: dict) -> list[Path]:
    """Write summary.csv, the figures (PNG and PDF), report.md and report.html into the folder; return their paths.

    Nothing in the folder changes unless everything could be drawn and written.

    record: what `RECORD` is to hold, beside the names of the files.
    """
    drawings_ = drawings(every.named(without_math))
    names = ["summary.csv", *(f"{name}.{kind}" for name in drawings_ for kind in ("png", "pdf"))]
    paths = {name: folder / name for name in [*names, "report.md", "report.html", RECORD]}
    folder.mkdir(parents=True, exist_ok=True)

    def fill(temporary: dict[Path, Path]) -> None:
        every.summary.to_csv(temporary[paths["summary.csv"]], index=False)
        images, captions = {}, {}
        for name, drawing in drawings_.items():
            png, pdf = (temporary[paths[f"{name}.{kind}"]] for kind in ("png", "pdf"))
            figure = drawing.draw()
            writer.save(figure, png, pdf)
            images[f"{name}.png"], captions[f"{name}.png"] = png.read_bytes(), drawing.caption(figure)
        text = page(every.named(escaped), captions)
        temporary[paths["report.md"]].write_text(text, encoding="utf-8")
        temporary[paths["report.html"]].write_text(html.render(text, images), encoding="utf-8")
        known = json.dumps({**record, "files": list(paths)}, indent=2)
        temporary[paths[RECORD]].write_text(f"{known}\n", encoding="utf-8")

    files.replace_all(paths.values(), fill)
    return list(paths.values())


def drawings(every: All) -> dict[str, writer.Drawing]:
    """Return the figures over all studies with their captions, by name."""
    _, runs, curves, provenance, order, target, reached = every
    loss_name, sampled = provenance["loss_name"], bool(markdown.sampled(provenance))
    curves = curves.assign(run_seconds=aggregation.run_seconds(runs, curves))
    chosen, lines = comparison.tuned(runs, order)
    clock: partial[Figure] = partial(training_figures.wall_clock, chosen, curves, loss_name, lines)
    found = writer.of_several(runs, curves, loss_name, sampled, order)
    if target and reached is not None:
        draw = partial(steps_to_target.figure, reached, target, int(curves["step"].max()), sampled, order)
        found["target"] = writer.Drawing(draw)
    found["wall_clock"] = writer.Drawing(clock)
    axes = studies_figures.axes_of_several(order)
    # The panel of losses against lr is in the first figure.
    for axis in axes[axes[:1] == ["lr"] :]:
        draw = partial(studies_figures.sensitivity, runs, axis, loss_name, sampled, order)
        found[f"sensitivity_{axis}"] = writer.Drawing(draw)
    names = every.best_of_studies
    of_best = order.loc[order["optimizer"].isin(names)]
    pairs = itertools.combinations(studies_figures.axes_of_several(of_best), 2)
    for x, y in () if sampled else pairs:
        having = [name for name in names if of_best.loc[of_best["optimizer"] == name, [x, y]].notna().all(axis=None)]
        if len(having) < 2:
            continue
        draw = partial(studies_figures.heatmaps, runs, x, y, loss_name, of_best, having)
        found[f"heatmap_{x}_{y}"] = writer.Drawing(draw)
    return found


def page(every: All, captions: dict[str, str]) -> str:
    """Return the report on several studies in Markdown. every: with `escaped` names; captions: by name of a file."""
    found, runs, summary, loss_name = every.studies, every.runs, every.summary, every.provenance["loss_name"]
    data = escaped(str(runs["data"].iloc[0]))
    blocks = [
        f"# {', '.join(study.name for study in found)}: {len(found)} studies of {data}",
        *different(found),
        "## What came out",
        f"{len(runs)} runs, {aggregation.ends(runs)}; configurations: {len(summary)}. The "
        f"loss is the {loss_name} after the last step, median over {aggregation.seeds(summary['n_seeds'])}. "
        f"{markdown.defined(summary)}",
        "\n".join(f"- {finding}" for finding in findings(every)),
        escape.frame(comparison.table(runs, summary)),
        "The best configurations of all:",
        escape.frame(aggregation.best_configurations(summary)),
        intervals.explained(summary["n_seeds"]),
        "All configurations are in [summary.csv](summary.csv).",
        *against_the_best(runs, summary, found, "It was chosen on these very seeds, which flatters it."),
        *confirmations(found),
        "## Figures",
        markdown.bands(summary),
        *(f"![{name}]({name})\n\n{caption}" for name, caption in captions.items()),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def different(found: Sequence[Study]) -> list[str]:
    """Return the blocks on what tells studies apart, which comes before every result."""
    differing, same = studies.differences(found)
    shown = {name: [escaped(" ".join(value.split())) or "-" for value in values] for name, values in differing.items()}
    names = [study.name for study in found]
    narrow = [[escaped(name), *values] for name, values in shown.items() if max(map(len, values)) <= WIDEST]
    wide = {name: values for name, values in shown.items() if max(map(len, values)) > WIDEST}
    return [
        "## Differences",
        escape.table(["", *names], narrow) if narrow else "",
        "\n".join(
            f"- {escaped(fact)}\n"
            + "\n".join(f"  - {name}: {value}" for name, value in zip(names, values, strict=True))
            for fact, values in wide.items()
        ),
        f"Equal in all of them: {escaped(', '.join(same))}."
        if same
        else "Nothing is known to be equal in all of them.",
    ]


def findings(every: All) -> list[str]:
    """Return the findings over all studies, a sentence or two each."""
    found, runs, _, provenance, summary, target, _ = every
    steps = runs["steps"]
    # Whether a longer run is a fairer one depends on the studies, and so their lengths are only told.
    of_steps = runs if "steps" in axes_in(runs) else runs.drop(columns="steps")
    sentences = markdown.findings(of_steps, summary, {**provenance, "confirmed": True}, target)
    if len({str(study.provenance.get("device")) for study in found}) > 1:
        sentences.insert(0, "The studies were trained on different devices: seconds do not compare.")
    if len({study.options.get("halving") for study in found}) > 1:
        sentences.insert(0, f"{halved(found)} What counts all runs, such as how many reach a target, does not compare.")
    if steps.nunique() > 1:
        sentences.insert(0, f"Runs are not of one length: they take {steps.min():.0f} to {steps.max():.0f} steps.")
    if runs["model"].nunique() > 1:
        sentences.insert(0, "Models differ: a difference between studies is not the optimizer's alone.")
    pairs = itertools.combinations(found, 2)
    return [*sentences, *filter(None, (pairing.repeated(one, other) for one, other in pairs))]


def halved(found: Sequence[Study]) -> str:
    """Return a sentence on how many runs of each study halving has stopped, and when."""
    parts = []
    for study in found:
        runs = study.runs.loc[study.runs["status"] == "stopped"]
        if len(runs):
            first, last = runs["stopped_step"].min(), runs["stopped_step"].max()
            parts.append(f"{len(runs)} of {len(study.runs)} runs of {study.name} (at steps {first} to {last})")
    return f"Halving has stopped {' and '.join(parts) or 'no runs'}: their losses are those when it did."


def against_the_best(runs: pd.DataFrame, order: pd.DataFrame, found: Sequence[Study], note: str) -> list[str]:
    """Return the blocks that compare the best configuration with the best of each other optimizer and study."""
    rows = pairing.rivals(runs, order, found)
    if not rows:
        return []
    winner = order.iloc[0]
    text = (
        f"The best configuration ({described(runs, winner)}) against the best of each other one: loss of the other "
        f"minus its own, so that positive differences are in its favour. {note} Where seeds and batches are shared, "
        "runs are paired by seed; elsewhere a difference is the median over all pairs of runs, and its interval holds "
        "if both have the same distribution but for its place (Hodges and Lehmann 1963)."
    )
    return [text, escape.frame(pairing.table(rows, [described(runs, row["row"]) for row in rows]))]


def described(runs: pd.DataFrame, row: pd.Series) -> str:
    """Return a configuration in words: its label, and its values on the axes that vary in its study."""
    own = runs.loc[runs["optimizer"] == row["optimizer"]]
    axes = [axis for axis in aggregation.varied_axes(own) or ["lr"] if row.loc[[axis]].notna().all()]
    return ", ".join(filter(None, [str(row["optimizer"]), aggregation.label(row, axes)]))


def confirmations(found: Sequence[Study]) -> list[str]:
    """Return the blocks on the winners again, on seeds by which nothing was chosen; none if a study lacks them."""
    if not all(study.provenance.get("confirmed") for study in found):
        return []
    again = [study._replace(runs=aggregation.recorded(study.provenance["confirmed"])) for study in found]
    runs = studies.joined(again)[0]
    summary = aggregation.summarise(runs)
    return [
        "## Confirmation",
        "The best configuration of every optimizer of every study again, on fresh seeds by which nothing was chosen: "
        "these are the numbers to report.",
        escape.frame(aggregation.best_configurations(summary, len(summary)).drop(columns="train loss")),
        intervals.explained(summary["n_seeds"]),
        *against_the_best(runs, summary, again, "Nothing was chosen on these seeds."),
    ]

"""The verdict on a claim as a record, as text for the console, and the page of all claims that were tried."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.common import files, run_info
from experiments.common.errors import OptionError, first_line
from experiments.common.numbers import number
from experiments.common.tables import markdown_table
from experiments.papers.claim import Claim, Measured
from experiments.papers.verdicts import UNDECIDED, Outcome, Region, judge

VERDICT, FIGURE, PAGE = "verdict.json", "claim.png", "README.md"
TITLE = "# Claims about Adam, and what came out"
INTRODUCTION = (
    "`python -m experiments.claims` lists them, and `python -m experiments.claims NAME` tries one. Each says before it "
    "is run where its effects have to lie. An effect is confirmed if its interval lies there, refuted if it lies "
    "outside, and undecided if it crosses a border. A claim is confirmed if all its effects are, and refuted if one "
    "is. Intervals are of medians over seeds, made of order statistics, and those of a claim hold together at 95 %. "
    "Where chance has no part, the range of all cases takes its place, and one case outside refutes."
)


def record(claim: Claim, measured: Measured, about: Mapping[str, Any]) -> dict:
    """Return a claim with its verdict as JSON takes it, with the texts and regions that it had when it was run.

    about: what else the page tells, such as provenance.
    """
    verdict, outcomes = judge(claim.effects, measured.samples)
    texts = {name: getattr(claim, name) for name in ("name", "says", "source", "setup", "confirms", "refutes")}
    effects = {
        name: {
            "region": claim.effects[name]._asdict(),
            "outcome": outcome._asdict(),
            "samples": [float(sample) for sample in measured.samples[name]],
        }
        for name, outcome in outcomes.items()
    }
    return {**texts, "verdict": verdict, "effects": effects, "notes": [*measured.notes], **about}


def write_verdict(folder: Path, found: Mapping[str, Any]) -> None:
    """Write a `record` to a claim's folder."""
    text = json.dumps(found, indent=1) + "\n"
    files.replace(folder / VERDICT, lambda path: path.write_text(text, encoding="utf-8"))


def claimed(region: Region) -> str:
    """Return a region in words: "at least 0.9", "from -0.1 to 0.1"."""
    if math.isinf(region.low):
        return f"at most {number(region.high)}"
    if math.isinf(region.high):
        return f"at least {number(region.low)}"
    return f"from {number(region.low, 5)} to {number(region.high, 5)}"


def effects_table(found: Mapping[str, Any]) -> str:
    """Return a Markdown table with a line for each effect of a `record`."""
    rows = []
    for name, effect in found["effects"].items():
        region, outcome = Region(**effect["region"]), Outcome(**effect["outcome"])
        ends = "-" if math.isnan(outcome.low) else f"{number(outcome.low, 4)} to {number(outcome.high, 4)}"
        level = "" if math.isnan(outcome.level) else "range" if region.exact else f"{100 * outcome.level:.1f} %"
        rows.append(
            {
                "effect": name,
                "claimed": claimed(region),
                "median": number(outcome.median, 4),
                "interval": ends,
                "level": level,
                "n": str(outcome.n),
                "verdict": outcome.verdict,
            }
        )
    return markdown_table(rows)


def what_would_decide(found: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each undecided effect of a `record`: what would decide it."""
    said = []
    for name, effect in found["effects"].items():
        outcome = Outcome(**effect["outcome"])
        if outcome.verdict != UNDECIDED:
            continue
        if outcome.needed:
            said.append(f"{name}: about {outcome.needed} seeds would decide, if further ones are like these.")
        else:
            said.append(
                f"{name}: not even a thousand times as many seeds would decide, if further ones are like these."
            )
    return said


def console_text(found: Mapping[str, Any]) -> str:
    """Return what the command prints about a `record`."""
    lines = [f"{found['name']}: {found['verdict']}", found["says"], "", effects_table(found)]
    return "\n".join([*lines, *what_would_decide(found), *found["notes"]])


def write_page(out: Path, order: Iterable[str]) -> None:
    """Write the page about all claims that have a verdict in a folder's subfolders.

    order: names of claims, the first ones first.
    """
    order, found = list(order), verdicts_in(out)
    found.sort(key=lambda one: (order.index(one["name"]) if one["name"] in order else len(order), one["folder"]))
    text = page(found)
    files.replace(out / PAGE, lambda path: path.write_text(text, encoding="utf-8"))


def check(out: Path) -> None:
    """Raise OptionError if `write_page` cannot write its page to a folder, or would overwrite another one."""
    verdicts_in(out)
    path = out / PAGE
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
        raise OptionError(f"--out accepts a folder for claims alone, and {path} is another page")


def verdicts_in(out: Path) -> list[dict]:
    """Return the `record`s in a folder's subfolders. Raises: OptionError if a file holds none."""
    found = []
    for path in sorted(out.glob(f"*/{VERDICT}")):
        try:
            one = json.loads(path.read_text(encoding="utf-8"))
            section(one)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OptionError(
                f"{path} holds no verdict ({first_line(error)}): remove it, and try its claim again"
            ) from None
        found.append(one)
    return found


def page(found: list[dict]) -> str:
    """Return the page about some claims, `record`s in their order, in Markdown."""
    rows = [
        {
            "claim": f"[{one['folder']}](#{one['folder']})",
            "says": escaped(one["says"]),
            "verdict": f"**{one['verdict']}**",
            "seeds": str(one["seeds"]),
            "seconds": f"{one['seconds']:.0f}",
        }
        for one in found
    ]
    return (
        "\n\n".join(
            [
                TITLE,
                INTRODUCTION,
                markdown_table(rows),
                *(section(one) for one in found),
            ]
        )
        + "\n"
    )


def escaped(text: str) -> str:
    """Return a formula's text with stars that stay stars in Markdown."""
    return text.replace("*", "\\*")


def section(one: Mapping[str, Any]) -> str:
    """Return the part of the page about one `record`."""
    about, folder = one["provenance"], one["folder"]
    data = "; ".join(f"{name}{f' ({warning})' if warning else ''}" for name, warning in one["data"].items())
    parts = [
        f"## {folder}",
        f"**{escaped(one['says'])}** {one['source']}.",
        f"Set-up: {one['setup']}",
        f"Confirmed if {one['confirms']}; refuted if {one['refutes']}.",
        f"Verdict: **{one['verdict']}**",
        effects_table(one),
        "\n".join(f"- {said}" for said in (*what_would_decide(one), *one["notes"])),
        f"![{escaped(one['says'])}]({folder}/{FIGURE})",
        f"    python -m experiments.claims {one['name']}{' --full' * (folder != one['name'])} --seeds {one['seeds']}",
        f"{run_info.machine_line(about)}. {f'Data: {data}. ' if data else ''}{one['seconds']:.0f} s.",
    ]
    return "\n\n".join(part for part in parts if part)

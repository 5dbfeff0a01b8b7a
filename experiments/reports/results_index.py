"""An index of results folders: one page with a picture, the task, the best configuration and links of each study."""

import base64
import html
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from experiments.common import files
from experiments.common.numbers import number
from experiments.common.run_info import readable
from experiments.reports import aggregation, markdown
from experiments.reports.html import CSS

NAME = "index.html"
PICTURES = "optimizers.png", "convergence.png"
"""The figures of a report, of which the first that is there is shown."""
SIZE = 440, 300
LINKS = {"report.html": "report", "summary.csv": "configurations", "provenance.json": "provenance"}
PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$css
article { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; border-bottom: 1px solid #ccc; padding: 1rem 0; }
article img { width: 220px; max-width: 100%; margin: 0; align-self: flex-start; }
article div { flex: 1 1 18rem; min-width: 0; }
article h2 { margin: 0; border: 0; }
article p { margin: 0.25rem 0; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$counts</p>
$entries</main>
</body>
</html>
"""
)


class Entry(NamedTuple):
    """A study in the index.

    Attributes:
        folder: relative to that of the index.
        lines: what is told about it, a paragraph each.
        files: names of its files that are linked.
        picture: a PNG file as bytes; empty if it has none.
        started: for the order.
    """

    folder: str
    lines: list[str]
    files: list[str]
    picture: bytes = b""
    started: str = ""


def of_sweep(folder: Path, root: Path, runs: pd.DataFrame, provenance: dict) -> Entry:
    """Return the entry of a sweep: its data and models, optimizers, best configuration and date."""
    order = aggregation.ranked(runs)
    best = order.iloc[0]
    accuracy = best["eval_accuracy_median"]
    loss = f"{provenance.get('loss_name', 'evaluation loss')} {number(best['eval_loss_median'], 4)}"
    found = "every run diverged" if (runs["status"] == "diverged").all() else loss
    if pd.notna(accuracy):
        found += f", accuracy {accuracy:.2%}"
    axes = [axis for axis in aggregation.varied_axes(runs) or ["lr"] if order.loc[[0], axis].notna().all()]
    of = f"{best['optimizer']}, {aggregation.label(best, axes, runs)}"
    counts = f"{int((runs['status'] == 'diverged').sum())} diverged{aggregation.early_ends(runs)}"
    started = str(provenance.get("started", ""))
    lines = [
        f"{runs['data'].iloc[0]} ({runs['task'].iloc[0]}), {aggregation.listed(runs['model'], most=3)}; "
        f"{', '.join(runs['optimizer'].astype(str).unique())}",
        f"Best: {found} by {of} (median over {aggregation.seeds([best['n_seeds']])})",
        f"{len(runs)} runs, {counts}{f'; started {started[:10]}' * bool(started)}",
        *filter(None, [markdown.unfinished_sentence(provenance), (provenance.get("data") or {}).get("warning")]),
    ]
    return entry(folder, root, lines, started)


def entry(folder: Path, root: Path, lines: Iterable[str], started: str = "") -> Entry:
    """Return an entry of a folder with the files that are there."""
    there = [name for name in LINKS if (folder / name).is_file()]
    picture = next((folder / name for name in PICTURES if (folder / name).is_file()), None)
    return Entry(os.path.relpath(folder, root), list(lines), there, thumbnail(picture) if picture else b"", started)


def thumbnail(path: Path) -> bytes:
    """Return an image as a small PNG file; b"" if it cannot be read."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail(SIZE, Image.Resampling.LANCZOS)
            # Few colours suffice, and take a third of the bytes.
            small.quantize(64).save(buffer, format="PNG", optimize=True)
    except (OSError, ValueError):
        return b""
    return buffer.getvalue()


def write(root: Path, entries: Iterable[Entry]) -> Path:
    """Write the page into the folder, the latest study first, and return its path."""
    ordered = sorted(entries, key=lambda one: one.folder)
    ordered.sort(key=lambda one: one.started, reverse=True)
    text = PAGE.substitute(
        title=html.escape(shown(f"Studies in {Path(os.path.abspath(root)).name}")),
        counts=f"{len(ordered)} {'study' if len(ordered) == 1 else 'studies'}, the latest first.",
        css=CSS.read_text(encoding="utf-8"),
        entries="".join(map(article, ordered)),
    )
    return files.replace(root / NAME, lambda path: path.write_text(text, encoding="utf-8"))


def article(one: Entry) -> str:
    """Return an entry as HTML, in which every name is text."""
    links = [f'<a href="{address(one.folder, name)}">{LINKS[name]}</a>' for name in one.files]
    image = ""
    if one.picture:
        data = base64.b64encode(one.picture).decode()
        image = f'<img alt="figure of {html.escape(shown(one.folder))}" src="data:image/png;base64,{data}">'
    paragraphs = "".join(f"<p>{html.escape(shown(line))}</p>" for line in one.lines)
    name = html.escape(shown(one.folder))
    return f"<article>{image}<div><h2>{name}</h2>{paragraphs}<p>{' &middot; '.join(links)}</p></div></article>\n"


def address(folder: str, name: str) -> str:
    """Return the relative address of a file; a leading ./ keeps a name such as javascript: from being a scheme."""
    return html.escape(quote(os.fsencode(f"./{Path(folder).as_posix()}/{name}")))


def shown(text: str) -> str:
    """Return text in one line that can be written as UTF-8."""
    return re.sub(r"\s+", " ", readable(text))

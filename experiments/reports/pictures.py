"""Figures as images inside HTML, for pages and notebooks that show them without files."""

import base64
import html
import io

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from experiments.common import ambient, figure_style
from experiments.reports import aggregation, comparison, markdown

DPI = 110
"""Resolution of pictures in a page: enough for a screen, and drawn in half a second."""


def encoded(figure: Figure) -> str:
    """Return a figure as a PNG file in base64."""
    buffer = io.BytesIO()
    with style.context(figure_style.STYLE):
        figure.savefig(buffer, format="png", dpi=DPI)
    return base64.b64encode(buffer.getvalue()).decode()


def image(figure: Figure, name: str) -> str:
    """Return a figure as an HTML element that holds it. name: says what it is, to who cannot see it."""
    return f'<img alt="{html.escape(name)}" style="max-width: 100%" src="data:image/png;base64,{encoded(figure)}">'


@ambient.pinned()
def comparison_of(runs: pd.DataFrame, curves: pd.DataFrame, provenance: dict) -> str:
    """Return the comparison of all optimizers as self-contained HTML: a figure and a table."""
    summary = aggregation.summarise(runs)
    loss_name, sampled = provenance.get("loss_name", "evaluation loss"), markdown.sampled(provenance)
    figure = comparison.figure(runs, curves, loss_name, bool(sampled), summary)
    table = comparison.table(runs, summary).to_html(index=False, border=0)
    return f'{image(figure, "comparison")}<div style="overflow-x: auto">{table}</div>'

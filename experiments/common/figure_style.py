"""How figures look, wherever they are drawn."""

from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

STYLE = ["default", Path(__file__).with_name("sandbox.mplstyle")]
"""For `matplotlib.style.context`: whatever a user's matplotlibrc or notebook has set, figures are drawn alike."""


def save(figure: Figure, path: Path, **options) -> None:
    """Write a figure to a file in the style in which it was drawn."""
    with style.context(STYLE):
        figure.savefig(path, **options)

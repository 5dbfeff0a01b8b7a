"""The style of all figures."""

from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

STYLE = ["default", Path(__file__).with_name("sandbox.mplstyle")]
"""For `matplotlib.style.context`: figures look alike whatever a user's matplotlibrc or notebook sets."""


def save(figure: Figure, path: Path, **options) -> None:
    """Write a figure to a file in our style.

    Args:
        options: of `Figure.savefig`.
    """
    with style.context(STYLE):
        figure.savefig(path, **options)

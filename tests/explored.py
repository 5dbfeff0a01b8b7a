"""Folders to explore, and the widgets that show them."""

from typing import Any

from experiments import sweep
from experiments.sweeps import results


def written(out, **options):
    """Make a folder with the tables of a sweep but without its report."""
    out.mkdir(exist_ok=True)
    results.save(out, *sweep.sweep("regression", **options, progress=False))
    return out


def find(widget, description: str) -> Any:
    """Return the first widget with that description, or None."""
    if getattr(widget, "description", None) == description:
        return widget
    found = (find(child, description) for child in getattr(widget, "children", ()))
    return next((one for one in found if one is not None), None)


def leaf(widget) -> Any:
    """Return the last widget, which shows the result."""
    while getattr(widget, "children", ()):
        widget = widget.children[-1]
    return widget

"""How far a sweep is, in a notebook: below its bar, what `experiments.watch` shows in a terminal."""

from __future__ import annotations

import contextlib
import html
import io
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from experiments.common import progress

if TYPE_CHECKING:
    from experiments.sweeps.watching import State

EVERY, SHARE, WIDTH = 1.0, 50, 100
"""Seconds between two looks, how many times that of one they are, at least, and characters of a line."""
STYLES = {"bar.back": "#b0b0b0", "bar.complete": "#1f83d0", "bar.finished": "#1f83d0"}
FRAME = (
    '<pre style="margin:0; padding:0; overflow-x:auto; line-height:normal; background:none; '
    'color:var(--jp-content-font-color1, inherit); font-family:var(--jp-code-font-family, monospace)">{code}</pre>'
)
"""A page's own colours, be they light or dark, and lines without gaps, which would cut the curve into strips."""


@contextlib.contextmanager
def view(title: str, wanted: bool = True) -> Iterator[Callable[[Callable[[], State]], None]]:
    """Yield a function that shows a state of a sweep, in a widget that stands still at the end.

    It takes what returns the state, and calls it so rarely that the widget costs less than 2 % of the time. An error
    stands in the widget, and ends nothing. Nothing is shown unless it is wanted and bars are widgets.
    """
    if not (wanted and progress.IS_WIDGET):
        yield lambda read: None
        return
    import ipywidgets
    from IPython.display import display
    from rich.console import Console
    from rich.theme import Theme

    from experiments import watch

    widget, latest, since, next_at = ipywidgets.HTML(), None, None, 0.0

    def draw(read: Callable[[], State], is_over: bool) -> None:
        nonlocal since, next_at
        began = time.monotonic()
        try:
            if not next_at:
                display(widget)
            state = read()
            since = since or (state.written, state.done)
            # Left to itself, rich would print below the cell.
            options = {"width": WIDTH, "color_system": "truecolor", "force_jupyter": False, "theme": Theme(STYLES)}
            console = Console(record=True, file=io.StringIO(), **options)
            console.print(watch.screen(title, state, since, console, is_over))
            widget.value = console.export_html(inline_styles=True, code_format=FRAME)
        except Exception as error:
            widget.value = f"No view of the sweep: {html.escape(f'{type(error).__name__}: {error}')}"
        next_at = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - began))

    def show(read: Callable[[], State]) -> None:
        nonlocal latest
        latest = read
        if time.monotonic() >= next_at:
            draw(read, is_over=False)

    try:
        yield show
    finally:
        if latest:
            draw(latest, is_over=True)

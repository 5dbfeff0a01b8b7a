"""The look of every series, in one place: an optimizer has one colour and one marker in all figures of a report.

Optimizers, and configurations of one optimizer, have palettes that share no colour. What matters most has the strongest
contrast with the paper, and never a thicker line.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#332288", "#8B0000", "#808000", "#C51B7D", "#004D40", "#8C564B"),
)
"""The colours of Okabe and Ito (https://jfly.uni-koeln.de/color/) without yellow and black, and six darker ones."""
MARKERS = "osD^vPX<>phd"
PREFERRED = dict.fromkeys(
    (
        "adam",
        "sgd",
        "adamw",
        "momentum",
        "lion",
        "muon",
        "rmsprop",
        "nadam",
        "adagrad",
        "schedule-free",
        "lamb",
        "radam",
    )
)
"""Optimizers that look the same in every report that has them; others take what these leave."""
MOST = 6
"""The most optimizers that one panel tells apart; of more, the best have colours, and the others are grey."""
CONFIGURATIONS = ("#51127C", "#932B80", "#D6456C", "#F8765C", "#FDB07A")
"""Configurations from the best to the fifth: the better, the darker."""
HELD, ENVELOPE = CONFIGURATIONS[0], CONFIGURATIONS[3]
"""One value changed, starting from the best configuration, and the best over all other values."""
BEHIND, INK, STRIP = "0.78", "0.3", "0.93"
"""Greys: of what is behind the emphasised, of notes and marks, and of strips beside the data."""
HOLLOW: dict[str, Any] = {
    **{"linestyle": "none", "markerfacecolor": "none", "markersize": 4, "markeredgewidth": 0.8, "zorder": 1.8}
}
"""What ended early, before its last step, is a hollow mark below the others: its loss is no final one."""
CORE = 0.66
"""The part of a heatmap's cell that is white where its configuration ended early."""
END, OF_END = "|", {"markersize": 9, "markeredgewidth": 1.2, "zorder": 4.1}
"""The mark at which a curve ends early; where a run diverged there is a ✕."""


class Look(NamedTuple):
    """The look of a series. marker: "" for none. line: "-" or "--"."""

    colour: str
    marker: str
    line: str = "-"


DEFAULT = Look("black", "", "--")
"""The look of a default configuration."""


def of_optimizers(optimizers: Iterable[object]) -> dict[str, Look]:
    """Return the look of each optimizer, by name. Of more than twelve, the first twelve differ in both from each other.

    optimizers: names, the most important first. Those of several studies, as "adam (first)", prefer the look of "adam".
    """
    names = [str(name) for name in dict.fromkeys(optimizers)]
    places: dict[str, int] = {}
    for name in names[: len(COLOURS)]:
        known = name.partition(" (")[0]
        place = list(PREFERRED).index(known) if known in PREFERRED else -1
        if place >= 0 and place not in places.values():
            places[name] = place
    free = [place for place in range(len(COLOURS)) if place not in places.values()]
    others = [name for name in names if name not in places]
    places |= dict(zip(others, [*free, *range(len(COLOURS), len(names))], strict=False))
    return {name: Look(COLOURS[places[name] % 12], MARKERS[sum(divmod(places[name], 12)) % 12]) for name in names}


def of_configuration(place: int) -> Look:
    """Return the look of a configuration from its place among the emphasised, 0 for the best."""
    return Look(CONFIGURATIONS[place % len(CONFIGURATIONS)], MARKERS[place % len(MARKERS)])


def emphasised(names: Iterable[object]) -> list[str]:
    """Return the optimizers that have colours in a panel of all, the best first: all of them, or the best `MOST`."""
    return list(map(str, names))[:MOST]

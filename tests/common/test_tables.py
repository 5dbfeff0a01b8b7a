"""Tables in Markdown: intervals, and cells without a value."""

import math

from experiments.common import tables


def test_markdown_table_shows_an_interval_in_the_cell_of_its_median():
    row = {"size": "2^16", "ms": 0.123456, "ratio": 1.0, "ratio, low": 0.9, "ratio, high": 1.1, "builds": 0}
    *_, line = tables.markdown_table([row]).splitlines()
    assert line == "| 2^16 | 0.123 | 1.00 [0.90, 1.10] | 0 |"


def test_markdown_table_leaves_cells_empty_that_have_no_value():
    rows = [{"size": "a", "us": math.nan, "us, low": math.nan, "us, high": math.nan}, {"size": "b", "GB/s": 12345.6}]
    assert tables.markdown_table(rows).splitlines()[2:] == ["| a |  |  |", "| b |  | 12346 |"]

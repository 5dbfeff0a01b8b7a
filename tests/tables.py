"""Tables as tests compare them."""

import pandas as pd


def last(curves: pd.DataFrame, column: str) -> pd.Series:
    """Return the largest value of a column, in the curve of each run or lane."""
    return curves.groupby("lane" if "lane" in curves else "run_id")[[column]].agg("max").loc[:, column]


def without_seconds(curves: pd.DataFrame) -> pd.DataFrame:
    """Return curves without how long they took, which is never the same twice."""
    return curves.loc[:, [column for column in curves if "seconds" not in column]]

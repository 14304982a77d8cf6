"""Tables for other programs: what a spreadsheet would run as a formula is made text."""

from __future__ import annotations

import pandas as pd

_FORMULA = r"'*[=+\-@\t\r\n＝＋－＠]"
"""How text begins that spreadsheets run; apostrophes before it are counted, so that what was defused can be told."""


def defused(df: pd.DataFrame) -> pd.DataFrame:
    """Return a copy in which text that spreadsheets take for a formula begins with an apostrophe; numbers stay numbers.

    Names of columns too. Times are plain UTC.
    """
    copy = df.copy()
    for name in copy.columns:
        if isinstance(copy[name].dtype, pd.DatetimeTZDtype):
            copy[name] = copy[name].dt.tz_convert(None)
        elif not pd.api.types.is_numeric_dtype(copy[name].dtype):
            text = copy[name].astype("str")
            copy[name] = text.mask(text.str.match(_FORMULA, na=False), "'" + text)
    names = copy.columns.astype("str")
    copy.columns = names.where(~names.str.match(_FORMULA), "'" + names)
    return copy


def to_csv(df: pd.DataFrame) -> str:
    """Return a table as CSV (RFC 4180), defused: absent is empty, figures are in full.

    Lines end with CR LF, so that a CR within text is quoted too and cannot begin a row of its own.
    """
    return defused(df).to_csv(index=False, lineterminator="\r\n", date_format="%Y-%m-%dT%H:%M:%S.%fZ")

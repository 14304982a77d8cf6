"""The frame of all runs of a store, with a local cache: a load reads only what is new since the last one.

The cache is one file a store in $XDG_CACHE_HOME/wattbench (otherwise ~/.cache/wattbench), which may be deleted at any time.
It holds what `tracker.news` has read of runs that have ended, those in progress are read anew. Where it is damaged,
or of another version, everything is read anew; where it cannot be written, everything works without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analytics.runs.frame import DECLARED, declared, tidy
from bench.redact import redact
from bench.store import tracker as tracking

_FORMAT = 1
_PART, _RUN = "_part", "_run"
MLFLOW_RUN = "mlflow_run_id"
"""Column with the name by which MLflow knows a run."""
_VERSION = hashlib.sha256(json.dumps([_FORMAT, pd.__version__, DECLARED]).encode()).hexdigest()


def load(
    uri: str | None = None, suite: str | None = None, *, refresh: bool = False, named: bool = False
) -> pd.DataFrame:
    """Return `analytics.runs.frame.frame` of all runs in the store, or of those of one suite.

    With `named` there is a column more, `mlflow_run_id`, by which MLflow knows a run.

    What is kept of finished runs is not read again, unless `refresh` asks for it: see `tracker.news` for what cannot
    be seen without. Raises StoreError; never creates a store.
    """
    path = _path(uri)
    table, known = (None, {}) if refresh else _read(path)
    news = tracking.news(uri, known)
    found = _joined(table, known, news)
    if news.parts != known:
        _write(path, found[found[_PART].map(news.parts) != ""], news.parts)
    found = found if suite is None else found[found["suite"] == suite]
    found = found.rename(columns={_RUN: MLFLOW_RUN}) if named else found.drop(columns=_RUN)
    return tidy(found.drop(columns=_PART))


def _joined(table: pd.DataFrame | None, known: dict[str, str], news: tracking.News) -> pd.DataFrame:
    """Put together what was kept, as far as it is there still, and what was read, in one order whichever it was."""
    rows, parts = list(news.rows), dict(news.parts)
    kept = {part for part, stamp in parts.items() if stamp and known.get(part) == stamp}
    if table is not None and len(kept) < len(known):
        table = table[table[_PART].isin(kept)]
    found = declared(row for *_, row in rows)
    for name, values in ((_PART, [part for part, *_ in rows]), (_RUN, [run for _, run, _ in rows])):
        found[name] = pd.Series(values, index=found.index, dtype="str")
    if table is not None:
        found = pd.concat([table, found], ignore_index=True) if len(found) else table
    if len(rows):  # those that began at once stay in one order, whichever of them was kept
        found = found.sort_values(_RUN, kind="stable", ignore_index=True)
    return found


def _path(uri: str | None) -> Path | None:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    where = hashlib.sha256(redact(tracking.location(uri)).encode()).hexdigest()[:24]
    return folder / "wattbench" / f"{where}.parquet"


def _read(path: Path | None) -> tuple[pd.DataFrame | None, dict[str, str]]:
    """Return what is kept: rows as `declared` made them, and the stamps of the parts of the store that they are."""
    if path is None:
        return None, {}
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        about = json.loads(table.schema.metadata[b"wattbench"])
        if about["version"] != _VERSION:
            return None, {}
        df = table.to_pandas()
        df["started_at"] = df["started_at"].dt.tz_localize("UTC")
        for name in about["encoded"]:
            values = {text: json.loads(text) for text in df[name].dropna().unique()}
            df[name] = pd.Series([values.get(text) for text in df[name]], index=df.index, dtype=object)
        return df, dict(about["parts"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None, {}


def _write(path: Path | None, df: pd.DataFrame, parts: dict[str, str]) -> None:
    """Keep rows for the next time. Columns that are not declared are kept as they came: their types depend on all rows."""
    if path is None:
        return
    others = [name for name in df.columns if name not in (*DECLARED, _PART, _RUN)]
    encoded = [name for name in others if not all(isinstance(value, float) for value in df[name].dropna())]
    df = df.assign(
        started_at=df["started_at"].dt.tz_localize(None),
        **{name: df[name].map(json.dumps, na_action="ignore").astype("str") for name in encoded},
        **{name: pd.to_numeric(df[name]).astype("float64") for name in others if name not in encoded},
    )
    table = pa.Table.from_pandas(df, preserve_index=False)
    about = json.dumps({"version": _VERSION, "encoded": encoded, "parts": parts})
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"wattbench": about.encode()})
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".new")
        try:
            with os.fdopen(handle, "wb") as file:
                pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink()
            raise

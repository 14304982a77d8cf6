"""How well the law with losses (step) and the plain one (ideal) predict published tables.

`python -m tests.published [SERIES.csv ...] [--json]` prints it.

Each file has the columns of tests/data/published/series.csv (the default): `table`, `series`, `devices`, `x` (speed of all
devices, or 1 / time) and, where known, `nodes`, `u` (samples a device between two synchronisations), `scaling` (weak,
strong), `metric`. A series is all measurements of one configuration over numbers of devices; those with three rows or more
are judged; rows that cannot be used are counted and left out. Held out: the law is fitted to the smallest half of the rows
(two at least) and asked for the time at the last. Nothing is learned from these tables: the priors of `analytics.law.law` are
the same for all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analytics.law import law as laws
from tests.fixtures import fixtures

DATA = Path(__file__).parent / "data" / "published"
LAWS = ("step", "ideal")
NUMBERS = ("devices", "nodes", "x", "u")
COLUMNS = ("table", "series", "scaling", "metric", *NUMBERS)


def observations(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a series as a table for `laws.fit`, by number of devices.

    In strong scaling the batch of a device falls with their number, in weak scaling it stays; where `u` is not told, strong
    scaling divides it by the devices.
    """
    rows = rows.sort_values("devices", kind="stable").reset_index(drop=True)
    strong = rows["scaling"].iloc[0] == "strong"
    u = rows["u"].where(rows["u"] > 0)
    if u.isna().any():
        u = 1 / rows["devices"] if strong else pd.Series(1.0, index=rows.index)
    return pd.DataFrame(
        {
            "devices": rows["devices"],
            "num_nodes": rows["nodes"].where(rows["nodes"] > 0),
            "speed": rows["x"],
            "samples_per_device": u,
            "batch_size_per_device": u if strong else np.nan,
        }
    )


def _fit(table: pd.DataFrame, law: str) -> laws.Fit:
    """Fit the law with losses (step), or the plain one (ideal)."""
    return laws.fit(table, plain=law == "ideal")


def judge(table: str, name: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Errors of the time at the last row, in percent of it, and whether the 80 % interval of `step` holds it."""
    seen = observations(rows)
    half = max(2, -(-len(seen) // 2))
    train, target = seen.iloc[:half], seen.iloc[[-1]]
    rate = np.log(seen["speed"] / seen["devices"])
    true = float(target["speed"].iloc[0])
    out: dict[str, Any] = {"table": table, "series": name, "counts": seen["devices"].nunique()}
    for law in LAWS:
        predicted = _fit(train, law).predict(target).iloc[0]
        out[law] = 100 * abs(true / predicted["speed"] - 1)
        if law == "step":
            out["covered"] = bool(predicted["low"] <= true <= predicted["high"])
    out["last"] = 100 * abs(np.exp(rate.iloc[-1] - rate.iloc[half - 1]) - 1)
    return out


def read(paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Return the usable rows of files, and a sentence on each lot that was left out. Raises ValueError for no such table."""
    parts, said = [], []
    for path in paths:
        try:
            found = pd.read_csv(path, dtype=str, skipinitialspace=True)
        except (OSError, ValueError) as error:  # absent, empty, no CSV
            raise ValueError(f"{path}: {error}") from error
        missing = [name for name in ("table", "series", "devices", "x") if name not in found]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(found)[:200]}")
        found = found.reindex(columns=[*COLUMNS]).assign(**{name: _number(found, name) for name in NUMBERS})
        usable = found["devices"].ge(1) & found["x"].gt(0) & np.isfinite(found[["devices", "x"]]).all(axis=1)
        usable &= found[["table", "series"]].notna().all(axis=1)
        if not usable.all():
            lines = ", ".join(str(i + 2) for i in np.flatnonzero(~usable)[:5])
            said.append(
                f"{path.name}: {(~usable).sum()} rows cannot be used (line {lines} ...): devices and x must be > 0"
            )
        parts.append(found[usable])
    return pd.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True), said


def _number(found: pd.DataFrame, name: str) -> pd.Series:
    absent = pd.Series(np.nan, index=found.index)
    return pd.to_numeric(found[name], errors="coerce") if name in found else absent


def series(rows: pd.DataFrame) -> pd.DataFrame:
    """Judge every series of three rows or more on two numbers of devices or more, of one metric."""
    groups = [(key, part) for key, part in rows.groupby(["table", "series"], sort=False) if len(part) >= 3]
    judged = [
        judge(str(table), str(name), part)
        for (table, name), part in groups
        if part["devices"].nunique() > 1 and part["metric"].nunique() <= 1
    ]
    return pd.DataFrame(judged)


def joint() -> dict[str, float]:
    """Errors in percent of one law over sizes and devices: llm-foundry, H100, 128 to 512 devices.

    n are the parameters, so that what attention adds is for the law to find. Each of the 18 configurations is left out once;
    then 512 devices are predicted from 128 and 256.
    """
    rows = pd.read_csv(DATA / "llm_foundry.csv")
    rows = rows[rows["table"].str.contains("Large Scale") & (rows["seq_len"] == 2048)].reset_index(drop=True)
    seen = pd.DataFrame(
        {
            "devices": rows["devices"],
            "num_nodes": rows["devices"] / 8,
            "work": rows["params"],
            "speed": rows["throughput"] * rows["params"],
            "samples_per_device": rows["batch_per_device"],
        }
    )
    out: dict[str, float] = {"configurations": len(seen)}
    for law in ("step", "ideal"):
        left = [_error(law, seen.drop(i), seen.loc[[i]])[0] for i in seen.index]
        ahead = _error(law, seen[seen["devices"] < 512], seen[seen["devices"] == 512])
        out |= {f"{law}_left_out": float(np.median(left)), f"{law}_512": float(np.median(ahead))}
    return out


def _error(law: str, train: pd.DataFrame, target: pd.DataFrame) -> list[float]:
    predicted = _fit(train, law).predict(target)["speed"]
    return [100 * abs(true / told - 1) for true, told in zip(target["speed"], predicted, strict=True)]


def by_table(judged: pd.DataFrame) -> pd.DataFrame:
    """Medians and 90th percentiles over the series of each table, and of all."""
    parts = [*judged.groupby("table", sort=False), ("all", judged)]
    if (judged["counts"] < 3).any():
        parts.append(("all, 3 numbers of devices", judged[judged["counts"] >= 3]))
    out = []
    for name, part in parts:
        row: dict[str, Any] = {"table": name, "series": len(part)}
        row |= {column: part[column].median() for column in ("ideal", "last", "step")}
        row |= {f"{law} p90": part[law].quantile(0.9) for law in LAWS}
        row |= {"covered %": 100 * part["covered"].mean()}
        good = part[part["ideal"] < 100]["step"]
        out.append(row | {"worst (ideal < 100)": good.max()})
    return pd.DataFrame(out)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description="How well the laws predict published tables.")
    parser.add_argument("files", nargs="*", type=Path, metavar="SERIES.csv")
    parser.add_argument("--json", action="store_true", help="Print one JSON document and nothing else.")
    given = parser.parse_args()
    try:
        rows, said = read(given.files or [DATA / "series.csv"])
    except ValueError as error:
        parser.error(str(error))
    judged = series(rows)
    if judged.empty:
        parser.error("no series has three usable rows on two numbers of devices of one metric")
    told = by_table(judged)
    shared: dict[str, Any] = {}
    if not given.files:
        shared = {"joint": joint(), "fixtures": [asdict(fixture) for fixture in fixtures()]}
    if given.json:
        print(json.dumps({"tables": json.loads(told.to_json(orient="records")), "left_out": said, **shared}, indent=1))
        return
    print(*said, sep="\n", end="\n" if said else "")
    print("Absolute error of the time in percent, median over series; held out: the last row from the smallest half.")
    print(told.round(2).to_string(index=False))
    for name, value in shared.get("joint", {}).items():
        print(f"joint, llm-foundry H100 128-512, {name}: {value:.3g}")
    for row in shared.get("fixtures", []):
        print(f"{row['name']}: {row['value']:.4g} {row['unit']} (published {row['published']:g})")


if __name__ == "__main__":
    main()

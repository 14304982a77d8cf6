"""Reading a store of 10,000 runs: `runs.store.load`, cold and warm, beside plain `mlflow.search_runs` of the same store.

    python -m tests.benchmarks.frame [--runs 10000]

One real run is logged as a pattern, its rows in the database are copied under new names, and figures are added up to
about 100 fields. Each reading is a process of its own, timed after its imports; cold means that there is no cache, not that
the system has not seen the file. Times of plain reading and cold loads alternate, so that a slow minute hits both.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

from bench.store.tracker import Tracker
from tests import rows

FIELDS, WARM_SECONDS = 100, 1.5
_TIMED = """
import sys, time, warnings
warnings.simplefilter("ignore")
{imports}
begun = time.perf_counter()
{body}
print(len(df), df.shape[1], time.perf_counter() - begun)
"""
PLAIN = "import mlflow", "mlflow.set_tracking_uri(sys.argv[1])\ndf = mlflow.search_runs(search_all_experiments=True)"
OURS = "from analytics.runs.store import load", "df = load(sys.argv[1])"


def build(folder: Path, runs: int, suites: int = 1) -> str:
    """Make a store with so many runs of one suite, or of several, `suite-1` the newest; return its URI."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    record = rows.record(2)
    tracker = Tracker(uri, record.suite, record.execution)
    tracker.open()
    tracker.log(record, folder)
    tracker.close(finished=True)
    assert tracker.error is None, tracker.error
    with sqlite3.connect(folder / "mlflow.db") as database:
        where = "select run_uuid from tags where key = 'bench.kind' and value = 'run'"
        (pattern,) = database.execute(where).fetchone()
        (text,) = database.execute(
            "select value from tags where key = 'bench.row' and run_uuid = ?", (pattern,)
        ).fetchone()
        row = json.loads(text)
        (known,) = database.execute("select count(*) from latest_metrics where run_uuid = ?", (pattern,)).fetchone()
        lacking = FIELDS - len(row) - known
        figures = [(f"figure_{number}", number + 0.5, pattern) for number in range(lacking)]
        database.executemany(
            "insert into latest_metrics (key, value, timestamp, step, is_nan, run_uuid) values (?, ?, 0, 0, 0, ?)",
            figures,
        )
        names = [(uuid.uuid4().hex, number) for number in range(1, runs)]
        database.execute("create temp table copies (id text primary key, number int)")
        database.executemany("insert into copies values (?, ?)", names)
        for table in ("runs", "tags", "params", "latest_metrics"):
            columns = [name for _, name, *_ in database.execute(f"pragma table_info({table})")]
            given = {"run_uuid": "c.id", "start_time": "t.start_time + 1000 * c.number"}
            if table == "latest_metrics":
                given["value"] = "t.value * (1 + (t.value != round(t.value)) * c.number / 1e6)"
            chosen = ", ".join(given.get(name, f"t.{name}") for name in columns)
            into = f"insert into {table} ({', '.join(columns)}) select {chosen}"
            database.execute(f"{into} from {table} t, copies c where t.run_uuid = ?", (pattern,))
        told = [
            (json.dumps(row | {"run_id": f"run-{number}", "repeat": number % 1000}), name) for name, number in names
        ]
        database.executemany("update tags set value = ? where key = 'bench.row' and run_uuid = ?", told)
        if suites > 1:
            _split(database, names, suites, row)
    database.close()
    return uri


def _split(database: sqlite3.Connection, names: list[tuple[str, int]], suites: int, row: dict[str, object]) -> None:
    """Give each suite an experiment of its own and an equal share of the runs; a later run belongs to a newer suite."""
    columns = [name for _, name, *_ in database.execute("pragma table_info(experiments)")]
    chosen = ", ".join({"experiment_id": ":id", "name": ":name"}.get(name, name) for name in columns)
    (pattern,) = database.execute("select max(experiment_id) from experiments").fetchone()
    into = f"insert into experiments ({', '.join(columns)})"
    for suite in range(1, suites + 1):
        given = {"id": pattern + suite, "name": f"suite-{suite}", "old": pattern}
        database.execute(f"{into} select {chosen} from experiments where experiment_id = :old", given)  # noqa: S608
    of = {name: suites - suites * number // (len(names) + 1) for name, number in names}
    database.executemany("update runs set experiment_id = ? where run_uuid = ?", [(pattern + of[n], n) for n in of])
    told = []
    for name, number in names:
        began = datetime.fromisoformat(str(row["started_at"])) + timedelta(seconds=number)
        own = {"suite": f"suite-{of[name]}", "started_at": began.isoformat(), "devices": 2 ** (number % 4)}
        own["precision"] = ("fp32", "bf16")[number // 4 % 2]
        told.append((json.dumps(row | own | {"run_id": f"run-{number}", "repeat": number % 1000}), name))
    suites_of = [(f"suite-{of[name]}", name) for name in of]
    database.executemany("update tags set value = ? where key = 'bench.suite' and run_uuid = ?", suites_of)
    database.executemany("update tags set value = ? where key = 'bench.row' and run_uuid = ?", told)


def timed(code: tuple[str, str], uri: str, cache: Path) -> tuple[int, int, float]:
    """Read a store in a new process; return runs, columns and seconds."""
    text = _TIMED.format(imports=code[0], body=code[1])
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", text, uri], env=environment, check=True, capture_output=True, text=True
    )
    runs, columns, seconds = done.stdout.split()[-3:]
    return int(runs), int(columns), float(seconds)


def main() -> None:
    """Build a store in a temporary folder, read it in each way, and print the comparison; exit 1 where a target is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri = build(Path(folder), asked.runs)
        plain, cold, warm = [], [], []
        for number in range(asked.rounds):
            cache = Path(folder) / f"cache-{number}"
            plain.append(timed(PLAIN, uri, cache))
            cold.append(timed(OURS, uri, cache))
            warm += [timed(OURS, uri, cache) for _ in range(3)]
    for name, found in (("mlflow.search_runs", plain), ("load, cold", cold), ("load, warm", warm)):
        seconds = [one[2] for one in found]
        print(f"{name:20} {found[0][0]:6} rows {found[0][1]:4} columns: ", end="")
        print(f"median {median(seconds):.2f} s, slowest {max(seconds):.2f} s")
    ratio = median(one[2] for one in cold) / median(one[2] for one in plain)
    slowest = max(one[2] for one in warm)
    print(
        f"cold / plain: {ratio:.2f} (target: at most 1); warm at most {slowest:.2f} s (target: at most {WARM_SECONDS} s)"
    )
    sys.exit(ratio > 1 or slowest > WARM_SECONDS or any(one[0] != asked.runs for one in (*cold, *warm)))


if __name__ == "__main__":
    main()

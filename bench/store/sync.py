"""Log records from the folders of runs that a store lacks: after a failure of its server, or into a new store."""

from __future__ import annotations

import json
from pathlib import Path

from bench.errors import FAILED
from bench.files import is_held, read_json
from bench.folder import IMPORTED, LOCK, RECORD, SEARCH
from bench.renamed import current_row
from bench.schema import Scalar
from bench.store.tracker import StoreError, Tracker, is_search


def sync(runs: Path, uri: str | None = None, only: Path | None = None) -> tuple[int, list[str]]:
    """Log the records, imported rows and searches that the store lacks, of all executions in a folder or of `only` one.

    Return how many runs were logged, and the unreadable files. Raises StoreError at the first failure of the store.
    """
    count, unreadable = 0, []
    executions = {path.parent.parent for path in runs.glob(f"*/*/*/{RECORD.name}")}
    executions |= {path.parent for name in (IMPORTED, SEARCH) for path in runs.glob(f"*/*/{name}")}
    for execution in sorted(executions if only is None else {only}):
        tracker = Tracker(uri, execution.parent.name, execution.name)
        tracker.open()
        for path in sorted(execution.glob(f"*/{RECORD.name}")):
            try:
                record = RECORD.read(path.parent)
            except ValueError:
                unreadable.append(str(path))
                continue
            count += tracker.log(record, path.parent)
        rows, torn = _imported(execution)
        count += sum(tracker.log_row(row) for row in rows)
        unreadable += torn
        if is_search(document := read_json(execution / SEARCH)):
            tracker.attach(document)
        if not is_held(execution / LOCK):  # a running execution ends its parent run itself
            tracker.close(finished=True)
        if tracker.error:
            raise StoreError(tracker.error, code=FAILED)
    return count, unreadable


def _imported(execution: Path) -> tuple[list[dict[str, Scalar]], list[str]]:
    """Return the rows that were imported into an execution; or, where they are damaged, the name of their file."""
    path = execution / IMPORTED
    if not path.exists():
        return [], []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        whole = all({"run_id", "started_at", "suite", "execution"} <= row.keys() for row in rows)
    except (ValueError, AttributeError):
        whole = False
    return ([current_row(row) for row in rows], []) if whole else ([], [str(path)])

"""The MLflow run that a script has made of itself: it gets the figures of wattbench, and each run the id of the other."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from bench.figures.metrics import metrics
from bench.record import RunRecord
from bench.store import tracker as tracking

AUTO = "auto"
_GRACE = timedelta(seconds=2)


def join(record: RunRecord, run: str = AUTO) -> tuple[str | None, str]:
    """Log the figures of a record to the run of its script, `wattbench.` before their names; return its id and what was done.

    `auto` means the run of MLFLOW_RUN_ID, else the only one that began while the command ran. The store is that of
    MLFLOW_TRACKING_URI, or MLflow's default here. A failure is told, not raised.
    """
    try:
        from mlflow import get_tracking_uri
        from mlflow.entities import Metric

        where = get_tracking_uri()
        client = tracking.reader(where)
        found = _of_script(client, record) if run == AUTO else [run]
        if len(found) != 1:
            return None, f"{len(found)} runs of MLflow at {tracking.shown(where)} began while the command ran: name one"
        (own,) = found
        now = round(record.started_at.timestamp() * 1000)
        points = [Metric(f"wattbench.{name}", value, now, 0) for name, value in metrics(record).items()]
        client.log_batch(own, metrics=points)
        for name in ("suite", "execution", "run_id"):
            client.set_tag(own, f"wattbench.{name}", getattr(record, name))
    except Exception as error:  # noqa: BLE001  no failure of the script's store may cost the record
        return None, f"MLflow run of the script: {tracking.reason(error)}"
    return own, f"figures were added to the MLflow run {own} at {tracking.shown(where)}"


def _of_script(client: Any, record: RunRecord) -> list[str]:
    """Return the runs that began while the command ran and are not those of wattbench."""
    if named := os.environ.get("MLFLOW_RUN_ID"):
        return [named]
    begin = record.started_at - _GRACE
    end = record.started_at + timedelta(seconds=record.duration_seconds) + _GRACE
    within = " and ".join(
        f"attributes.start_time {sign} {round(at.timestamp() * 1000)}" for sign, at in ((">=", begin), ("<=", end))
    )
    ids = [entry.experiment_id for entry in client.search_experiments()]
    runs = client.search_runs(ids, within) if ids else []
    return [run.info.run_id for run in runs if "bench.kind" not in run.data.tags]

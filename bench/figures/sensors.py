"""Results of sensor checks on this machine: one JSON file per GPU, driver and version of wattbench.

`python -m tests.gpu_check` writes them. A run on a GPU without a recent check is flagged `unvalidated_sensor`. The folder
is $WATTBENCH_SENSOR_CHECKS, or `wattbench/sensor-checks` in the user's data folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.files import read_json, write_json
from bench.schema import Gpu, Model, Scalar

REQUIRED = ("V2", "V4", "V6", "V10")
"""Period of the counter, agreement of counter and power, additivity, plausibility."""
FRESH = timedelta(days=30)
_SKEW = timedelta(days=1)


class Check(Model):
    """One result of a sensor check. `ok` is None for a value without a limit, or a check that was not done."""

    check: str
    found: str
    expected: str = ""
    ok: bool | None = None


class SensorCheck(Model):
    """The check of the sensor of one GPU; `check` of a result begins with an id, such as `V4`.

    `counter_continuous` is False for an energy counter that covers a part of the time only, None where that was not
    checked. `facts` are further figures, with their units in their names.
    """

    uuid: str
    name: str
    driver: str
    wattbench: str
    commit: str | None = None
    date: datetime
    results: list[Check]
    counter_period_seconds: float | None = None
    counter_continuous: bool | None = None
    facts: dict[str, Scalar]

    @property
    def passed(self) -> bool:
        """Return whether all required checks passed, and the counter covers all of the time."""
        if self.counter_continuous is False:
            return False
        verdicts = [{r.ok for r in self.results if r.check.partition(" ")[0] == check} for check in REQUIRED]
        return all(True in oks and False not in oks for oks in verdicts)


def checks_folder() -> Path:
    """Folder of the sensor checks."""
    if given := os.environ.get("WATTBENCH_SENSOR_CHECKS"):
        return Path(given).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "wattbench" / "sensor-checks"


def version() -> str:
    """Version of the installed wattbench; `source` where only its source tree is there."""
    try:
        return metadata.version("wattbench")
    except metadata.PackageNotFoundError:
        return "source"


def save_check(gpu: Gpu, driver: str, results: Iterable[Check], **more: Any) -> Path:
    """Write the sensor check of a GPU, replacing an older one by this driver and version; return its path.

    `more` are further fields of SensorCheck; `date` defaults to now. Raises ValueError for an invalid field.
    """
    key = {"uuid": gpu.uuid, "driver": driver, "wattbench": version()}
    given = {"date": datetime.now(UTC), "facts": {}, **more}
    check = SensorCheck(name=gpu.name, results=list(results), **key, **given)
    path = checks_folder() / _file_name(*key.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, check.model_dump(mode="json"))
    return path


def _file_name(*key: str) -> str:
    """Return a file name that is safe for any key, and unique."""
    readable = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part).strip(".")[:60] for part in key)
    return f"{readable}_{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}.json"


def find_check(uuid: str, driver: str | None, now: datetime | None = None) -> SensorCheck | None:
    """Return the newest sensor check of a GPU with this driver within 30 days. Damaged files are ignored."""
    now = now or datetime.now(UTC)
    known = [
        v for path in checks_folder().glob("*.json") if (v := _read(path)) and (v.uuid, v.driver) == (uuid, driver)
    ]
    return max((v for v in known if -_SKEW <= now - v.date <= FRESH), key=lambda v: v.date, default=None)


def fresh(uuid: str, driver: str | None, now: datetime | None = None) -> bool:
    """Whether the newest sensor check of a GPU with this driver is at most 30 days old, and passed."""
    check = find_check(uuid, driver, now)
    return check is not None and check.passed


def _read(path: Path) -> SensorCheck | None:
    try:
        check = SensorCheck.model_validate(read_json(path))
    except (OSError, ValueError):
        return None
    return check if check.date.tzinfo is not None else None

"""Records without the names of hosts, users and folders, for what is handed to others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from bench.record import RunRecord
from bench.redact import redact
from bench.schema import AXES, Choice, RunSpec

_PLACE = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*)://(?P<rest>[^\s'\"<>]*)"  # a URL: its host is one too
    r"|(?<![\w.~/\\])(?:~[\w.-]*)?/(?:[^\s/:'\",;()<>|]+/)*(?P<last>[^\s/:'\",;()<>|]+)/?"  # an absolute path, or one from ~
    r"|(?<!\w)(?:[A-Za-z]:\\|\\\\)(?:[^\s\\/'\"]+\\)*(?P<windows>[^\s\\/'\"]+)\\?"
)
_USER = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\|(?<![\w.-])~)([\w.-]{2,})")
_FILES = ("file", "sqlite")


def scrubbed(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the records with `host-1`, `host-2` ... for hosts, and paths, commands and errors without folders and users.

    Users are told by their home folders; environment variables go altogether, and so does the log's tail. Of a path its last
    part stays, of a URL its scheme.
    """
    hosts = list(dict.fromkeys(r.environment.host for r in sorted(records, key=lambda one: one.started_at)))
    users = {name for record in records for text in _texts(record) for name in _USER.findall(text)}
    names = {host: f"host-{number}" for number, host in enumerate(hosts, 1)}
    names |= {host.partition(".")[0]: name for host, name in names.items() if "." in host}
    names |= dict.fromkeys(users - names.keys(), "user")
    longest = sorted(names, key=len, reverse=True)
    known = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in longest) or r"(?!)")

    def clean(text: str) -> str:
        return known.sub(lambda found: names[found[0]], _PLACE.sub(_last_part, redact(text)))

    def clean_note(text: str) -> str:  # whoever names the page of a price wants it seen
        return "".join(part if "://" in part else clean(part) for part in re.split(r"(https?://\S+)", text))

    return [
        _clean_record(record, clean, names[record.environment.host]).model_copy(update=_notes(record, clean_note))
        for record in records
    ]


def scrubbed_rows(df: pd.DataFrame) -> pd.DataFrame:
    """Return rows that have no record, with text without folders and users, as in `scrubbed`; their hosts are absent."""
    out = df.assign(host=None)
    for name in out.columns:
        if not pd.api.types.is_numeric_dtype(out[name].dtype) and name != "started_at":
            text = out[name].map(lambda cell: _PLACE.sub(_last_part, redact(str(cell))), na_action="ignore")
            out[name] = text.astype(df[name].dtype)
    return out


def _notes(record: RunRecord, clean: Callable[[str], str]) -> dict[str, Any]:
    cost = record.cost and record.cost.model_copy(update={"note": clean(record.cost.note)})
    return {"site": record.site.model_copy(update={"price_note": clean(record.site.price_note)}), "cost": cost}


def _last_part(found: re.Match[str]) -> str:
    if found["scheme"] is None:
        return found["last"] or found["windows"] or found[0]
    if found["scheme"] in _FILES:
        return f"{found['scheme']}:{found['rest'].rstrip('/').rpartition('/')[2]}"
    return f"{found['scheme']}://..."


def _texts(record: RunRecord) -> Iterator[str]:
    yield from record.environment.argv
    yield from map(str, record.spec.workload_args.values())
    yield from record.spec.meters
    if record.error is not None:
        yield record.error.message


def _values(values: dict[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    return {key: clean(value) if isinstance(value, str) else value for key, value in values.items()}


def _clean_spec(spec: RunSpec, clean: Callable[[str], str]) -> RunSpec:
    choices = {axis: getattr(spec, axis) for axis in AXES}
    changed: dict[str, Any] = {
        axis: Choice(name=choice.name, options=_values(choice.options, clean)) for axis, choice in choices.items()
    }
    changed["workload_args"] = _values(spec.workload_args, clean)
    changed["meters"] = [clean(meter) for meter in spec.meters]
    return spec.model_copy(update=changed)


def _clean_record(record: RunRecord, clean: Callable[[str], str], host: str) -> RunRecord:
    """Clean what is shown of a record. Where the name of the configuration changes, that of the run is made anew."""
    environment, measured, error = record.environment, record.measurement, record.error
    spec = _clean_spec(record.spec, clean)
    changed: dict[str, Any] = {
        "spec": spec,
        "environment": environment.model_copy(
            update={"host": host, "boot_id": None, "variables": {}, "argv": [clean(part) for part in environment.argv]}
        ),
    }
    if spec.label != record.spec.label:
        changed["run_id"] = spec.run_id.replace(spec.config_id, record.config_id)
    if error is not None:
        changed["error"] = error.model_copy(update={"message": clean(error.message), "log_tail": ""})
    if measured is not None and measured.dataset is not None:
        changed["measurement"] = measured.model_copy(update={"dataset": clean(measured.dataset)})
    return record.model_copy(update=changed)

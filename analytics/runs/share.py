"""Records without the names of hosts, users and folders, for what is handed to others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from bench.figures.nodes import node_names
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
_HOST_COLUMNS = {"host", "hostname", "host_name", "node", "node_name", "server", "machine"}
_USER_COLUMNS = {"user", "username", "user_name", "owner", "author", "account", "login", "email"}


def cleaner(records: Sequence[RunRecord], rows: pd.DataFrame | None = None) -> Callable[[str], str]:
    """Return what takes private names out of a text: of the hosts and users of records, and of rows that have no record.

    Hosts become `host-1`, `host-2` ... in the order of `records`, then of `rows`. Users are told by their home folders, and
    by columns and arguments that name them. Of a path its last part stays, of a URL its scheme.
    """
    cells: list[tuple[Any, Any]] = (
        [] if rows is None else [(name, text) for name in rows for text in dict.fromkeys(rows[name].dropna())]
    )
    cells += [item for record in records for item in record.spec.workload_args.items()]
    said = [(str(name).rpartition(".")[2].lower(), text) for name, text in cells if isinstance(text, str)]
    ordered = sorted(records, key=lambda one: one.started_at)
    hosts = [name for record in ordered for name in (record.environment.host, *node_names(record))]
    hosts += [text for name, text in said if name in _HOST_COLUMNS and not text.isdecimal()]
    texts = [*(text for record in records for text in _texts(record)), *(text for _, text in said)]
    users = {name for text in texts for name in _USER.findall(text)}
    users |= {text for name, text in said if name in _USER_COLUMNS and len(text) > 1 and not text.isdecimal()}
    names = {host: f"host-{number}" for number, host in enumerate(filter(None, dict.fromkeys(hosts)), 1)}
    short = {host.partition(".")[0]: name for host, name in names.items() if "." in host}
    names |= {host: name for host, name in short.items() if not host.isdecimal()}  # an address is no name
    names |= dict.fromkeys(users - names.keys(), "user")
    longest = sorted(names, key=len, reverse=True)
    known = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in longest) or r"(?!)")
    return lambda text: known.sub(lambda found: names[found[0]], _PLACE.sub(_last_part, redact(text)))


def scrubbed(records: Sequence[RunRecord], clean: Callable[[str], str] | None = None) -> list[RunRecord]:
    """Return the records with hosts, paths, commands and errors as `clean` leaves them, by default that of `cleaner`.

    Environment variables go altogether, and so does the log's tail.
    """
    clean = clean or cleaner(records)
    return [_clean_record(record, clean) for record in records]


def scrubbed_rows(rows: pd.DataFrame, clean: Callable[[str], str]) -> pd.DataFrame:
    """Return rows that have no record with all their text as `clean` leaves it."""
    out = rows.copy()
    for name in out.columns:
        if not pd.api.types.is_numeric_dtype(out[name].dtype) and name != "started_at":
            out[name] = out[name].map(lambda cell: clean(str(cell)), na_action="ignore").astype(rows[name].dtype)
    return out


def _notes(record: RunRecord, clean: Callable[[str], str]) -> dict[str, Any]:
    """Notes on prices; whoever names the page of a price wants it seen."""

    def kept(text: str) -> str:
        return "".join(part if "://" in part else clean(part) for part in re.split(r"(https?://\S+)", text))

    cost = record.cost and record.cost.changed(note=kept(record.cost.note))
    return {"site": record.site.changed(price_note=kept(record.site.price_note)), "cost": cost}


def _last_part(found: re.Match[str]) -> str:
    if found["scheme"] is None:
        return found["last"] or found["windows"] or found[0]
    if found["scheme"] in _FILES:
        return f"{found['scheme']}:{found['rest'].rstrip('/').rpartition('/')[2]}"
    return f"{found['scheme']}://..."


def _texts(record: RunRecord) -> Iterator[str]:
    yield from record.environment.argv
    yield from map(str, record.spec.workload_args.values())
    yield from (word for words in record.spec.words.values() for word in words)
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
    changed["words"] = {name: [clean(word) for word in words] for name, words in spec.words.items()}
    changed["meters"] = [clean(meter) for meter in spec.meters]
    return spec.changed(**changed)


def _clean_record(record: RunRecord, clean: Callable[[str], str]) -> RunRecord:
    """Clean what is shown of a record. Where the name of the configuration changes, that of the run is made anew."""
    environment, measured, error = record.environment, record.measurement, record.error
    spec = _clean_spec(record.spec, clean)
    changed: dict[str, Any] = {
        "spec": spec,
        **_notes(record, clean),
        "environment": environment.changed(
            host=clean(environment.host),
            boot_id=None,
            variables={},
            cluster=_values(environment.cluster, clean),
            argv=[clean(part) for part in environment.argv],
        ),
    }
    changed["nodes"] = [node.changed(name=clean(node.name), boot_id=None) for node in record.nodes]
    changed["lost"] = [attempt.changed(job="") for attempt in record.lost]
    if spec.label != record.spec.label:
        changed["run_id"] = spec.run_id.replace(spec.config_id, record.config_id)
    if error is not None:
        changed["error"] = error.changed(message=clean(error.message), log_tail="")
    if measured is not None and measured.dataset is not None:
        changed["measurement"] = measured.changed(dataset=clean(measured.dataset))
    return record.changed(**changed)

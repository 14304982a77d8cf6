"""Cells of tables of others: numbers with their units, counts of devices, names of precisions, and what ended badly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, TypeGuard

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from analytics.amounts import Hardware, hardware, written
from analytics.runs.frame import COUNTS, NUMBERS
from analytics.text import number, printable
from bench.base import in_words
from bench.errors import BadValue
from bench.record import Status
from bench.schema import Scalar

LENGTH = "workload_args.sequence_length"
SPEEDS = ("samples_per_second", "tokens_per_second")
RATES = tuple(f"{name}_per_device" for name in SPEEDS)
FIGURES = {*COUNTS, *NUMBERS, *RATES, LENGTH}
"""Targets whose cells are numbers."""
MOST = 1e33
"""Figures above it, or below its inverse, cannot be meant, and what is made of them has no floating-point number."""
PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16", "amp_bf16", "bf16-mixed", "mixed_bf16", "torch.bfloat16"), "bf16"),
    "bf16-true": "bf16_params",
    **dict.fromkeys(("fp16", "float16", "half", "amp_fp16", "fp16-mixed", "16-mixed", "torch.float16"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "float", "single", "32-true", "torch.float32"), "fp32"),
    **dict.fromkeys(("tf32", "tensorfloat32"), "tf32"),
    **dict.fromkeys(("fp8", "float8"), "fp8"),
}
_STATUS = {
    **dict.fromkeys(("ok", "success", "succeeded", "finished", "completed", "complete", "done", "passed"), Status.OK),
    **dict.fromkeys(("oom", "out of memory", "out_of_memory", "cuda oom", "cuda out of memory"), Status.OUT_OF_MEMORY),
    **dict.fromkeys(("failed", "fail", "crashed", "crash", "error", "killed"), Status.FAILED),
    **dict.fromkeys(("timeout", "timed out", "time out"), Status.TIMEOUT),
    **dict.fromkeys(("skipped",), Status.SKIPPED),
}
_EMPTY = {"", "-", "--", "---", "–", "—", "n/a", "na", "n.a.", "nan", "?", "tbd", "<na>"}
_EMPTY_FIGURE = {"none", "null"}
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2101, 1, 1, tzinfo=UTC)
_EPOCH = re.compile(r"1\d{9}(?P<milli>\d{3})?(\.\d+)?")
"""Seconds or milliseconds since 1970, of the years 2001 to 2033; 2026010112 is none."""
_MACHINES = ("devices", "num_nodes", "devices_per_node")
"""Counts of hardware, of which nobody has more than a million."""
_EXACT = {*COUNTS, LENGTH, "parameters"}
_POWERS_OF_TWO = {LENGTH, "global_batch_size", "batch_size_per_device"}

_SECOND, _DEVICE = (
    {"s", "sec", "secs", "second", "seconds"},
    {"gpu", "gpus", "device", "devices", "chip", "accelerator"},
)
_THINGS = {
    **dict.fromkeys(("t", "tok", "toks", "token", "tokens"), "tokens"),
    **dict.fromkeys(("s", "sample", "samples", "img", "imgs", "image", "images", "seq", "seqs"), "samples"),
    **dict.fromkeys(("sequence", "sequences", "example", "examples"), "samples"),
}
_UNITS: dict[str, dict[str, float]] = {
    "share": {"%": 0.01, "percent": 0.01, "pct": 0.01},
    "s": {
        "ns": 1e-9,
        "us": 1e-6,
        "µs": 1e-6,
        "ms": 1e-3,
        "msec": 1e-3,
        "milliseconds": 1e-3,
        **dict.fromkeys(_SECOND, 1.0),
        "m": 60.0,
        "min": 60.0,
        "mins": 60.0,
        "minutes": 60.0,
        "h": 3600.0,
        "hr": 3600.0,
        "hrs": 3600.0,
        "hours": 3600.0,
        "days": 86400.0,
    },
    "J": {"j": 1.0, "joules": 1.0, "kj": 1e3, "MJ": 1e6, "wh": 3600.0, "kwh": 3.6e6, "MWh": 3.6e9},
    "W": {"w": 1.0, "watt": 1.0, "watts": 1.0, "kw": 1e3},
    "kg": {"g": 1e-3, "kg": 1.0, "gco2e": 1e-3, "kgco2e": 1.0, "gco2eq": 1e-3, "kgco2eq": 1.0, "tco2e": 1e3},
    "B": {
        "bytes": 1.0,
        "kb": 1e3,
        "MB": 1e6,
        "mb": 1e6,
        "gb": 1e9,
        "tb": 1e12,
        "kib": 2.0**10,
        "mib": 2.0**20,
        "gib": 2.0**30,
        "tib": 2.0**40,
    },
    "USD": {"usd": 1.0, "$": 1.0, "us$": 1.0},
    "device": dict.fromkeys(_DEVICE, 1.0),
    "node": {"node": 1.0, "nodes": 1.0},
    "token": {"t": 1.0, "token": 1.0, "tokens": 1.0, "tok": 1.0},
    "parameter": {"params": 1.0, "m": 1e6, "million": 1e6, "b": 1e9, "bn": 1e9, "billion": 1e9},
    "sample": {"samples": 1.0, "sample": 1.0, "sequences": 1.0, "images": 1.0},
}
_DIMENSIONS = (
    (r"(tokens|samples)_per_second(_per_device)?", None),
    (r"(\w+_)?seconds(_median)?", "s"),
    (r"(run_|startup_)?energy_joules(_estimated)?", "J"),
    (r"(idle_)?power_watts(_estimated)?", "W"),
    (r"emissions_kg", "kg"),
    (r"cost_usd", "USD"),
    (r"\w+_bytes", "B"),
    (r"\w*(share|utilization|accuracy)", "share"),
    (r"devices(_per_node)?", "device"),
    (r"num_nodes", "node"),
    (re.escape(LENGTH), "token"),
    (r"(trainable_)?parameters", "parameter"),
    (r"(global_batch_size|batch_size_per_device)", "sample"),
)


def dimension(target: str) -> str:
    """Return what kind of units the cells of a target may have; "" where they have none."""
    for pattern, name in _DIMENSIONS:
        if re.fullmatch(pattern, target):
            return name or target
    return ""


def unit(text: str, among: str | None = None) -> tuple[str, float] | None:
    """Return the dimension of a unit and its factor: ("tokens_per_second", 1) for tok/s, ("s", 0.001) for ms, or None.

    `among` is the dimension that is wanted, where a unit has several: t is a token, or a part of T/s.
    """
    plain = re.sub(r"\s*(?:_|\b)per(?:_|\b)\s*|\s*/\s*", "/", text.strip().lower()).strip("/ ")
    kilo = re.fullmatch(r"k\s*(?=tok|samples|img|images)(.+)", plain)
    what, *rest = (kilo[1] if kilo else plain).split("/")
    if what in _THINGS and rest and set(rest) <= _SECOND | _DEVICE and len(rest) <= 2:
        seconds, devices = [part for part in rest if part in _SECOND], [part for part in rest if part in _DEVICE]
        if len(seconds) == 1 and len(devices) < 2:
            return f"{_THINGS[what]}_per_second{'_per_device' * len(devices)}", 1e3 if kilo else 1.0
    for name, units in _UNITS.items():
        factor = units.get(text.strip(), units.get(plain) if text.strip() not in ("mJ", "mWh", "Mb", "Gb") else None)
        if factor is not None and among in (None, name):
            return name, factor
    return None


@dataclass(frozen=True)
class Column:
    """A column of the file, what it is called here, and what its numbers are multiplied by."""

    name: str
    target: str
    factor: float = 1.0


@dataclass
class RowValues:
    """What the cells of a row say: values by target, half a unit of their last digit, and how the run ended.

    `zeros` are speeds that were rounded to 0.
    """

    values: dict[str, Scalar] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    zeros: dict[str, float] = field(default_factory=dict)
    status: Status = Status.OK

    def add(self, target: str, value: Scalar, rounding: float = 0.0) -> None:
        """Take a value. Raises ValueError where another column says something else."""
        own = self.values.get(target, value)
        if isinstance(own, str) or isinstance(value, str):
            if own != value:
                raise BadValue(f"{target} is {own!r} in one column and {value!r} in another")
        elif abs(own - value) > self.rounding.get(target, 0.0) + rounding + 1e-9 * abs(own):
            raise BadValue(f"{target} is {number(own)} in one column and {number(value)} in another")
        if target not in self.values or rounding < self.rounding.get(target, 0.0):
            self.values[target], self.rounding[target] = value, rounding


def empty(cell: Any, target: str) -> bool:
    """Say whether a cell holds nothing: blank, -, N/A, nan."""
    text = str(cell).strip().lower() if cell is not None else ""
    if target == "device_name" and re.fullmatch(r"cuda(:\d+)?|gpu|auto", text):
        return True  # no name of a device
    return text in _EMPTY or (target in FIGURES and text in _EMPTY_FIGURE)


def status_of(cell: Any) -> Status | None:
    """Return how a run ended by a cell such as OOM, crashed or FINISHED; None for other cells."""
    text = " ".join(str(cell).lower().split())
    return _STATUS.get(text) or (Status.FAILED if re.match(r"failed\b", text) else None)


def decimal_mark(cells: Iterable[str]) -> tuple[str, str | None, str | None]:
    """Return which of . and , begins fractions in cells, "" where none shows it, and cells that may have either.

    These are such as 11.216 and 11,216. Raises ValueError where some cells have one mark and some the other.
    """
    marks: dict[str, str] = {}
    unsure: dict[str, str] = {}
    for cell in cells:
        parts = written(cell)
        if parts is None:
            continue
        try:
            mark = parts.decimal
        except ValueError:
            continue  # told with its row
        if mark:
            marks.setdefault(mark, cell)
        elif others := [c for c in ".," if c in parts.digits]:
            unsure.setdefault(others[0], cell)
    if len(marks) > 1:
        raise BadValue(f"fractions begin with . in {marks['.']!r} and with , in {marks[',']!r}: give --decimal . or ,")
    return "".join(marks), unsure.get("."), unsure.get(",")


def _moment(text: str) -> str:
    """Return a time in ISO 8601; of whole numbers, those of 10 and 13 digits are seconds and milliseconds since 1970."""
    epoch = _EPOCH.fullmatch(text.strip())
    moment = (
        datetime.fromtimestamp(float(epoch[0]) / (1000 if epoch["milli"] else 1), UTC)
        if epoch
        else datetime.fromisoformat(text)
    )
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not _EARLIEST <= moment < _LATEST:
        raise ValueError("it is not between 1970 and 2100")
    return moment.isoformat()


@cache
def _check(target: str) -> TypeAdapter[Any]:
    """What the cells of a column may be: a time, a number within bounds, or text."""
    if target == "started_at":
        return TypeAdapter(Annotated[str, BeforeValidator(str), AfterValidator(_moment)])
    if target not in FIGURES and target != "factor":
        return TypeAdapter(Annotated[str, BeforeValidator(lambda value: printable(value, 200))])
    whole = target in (*COUNTS, LENGTH)
    most = 10**6 if target in _MACHINES else 2**53 if whole else MOST
    bounds: dict[str, Any] = {"le": 1 if re.search("share|accuracy|utilization", target) else most}
    if re.search("accuracy|share|warmup|repeat|seed|ladder|reached", target):
        bounds["ge"] = 0
    elif not re.search("loss|error", target):
        bounds["gt"] = 0
    kind: Any = Annotated[int, Field(**bounds)] if whole else Annotated[float, Field(allow_inf_nan=False, **bounds)]
    return TypeAdapter(kind)


def _figure(target: str, cell: Any, factor: float, decimal: str) -> tuple[float, float]:
    """Return a number and half a unit of its last digit. Raises ValueError."""
    if isinstance(cell, bool):
        raise ValueError("not a number")
    if isinstance(cell, int | float):
        exact = cell * factor
        return exact, abs(float(exact)) * 1e-12
    text = (
        re.sub(r"^(us)?\$\s*", "", str(cell).strip(), flags=re.IGNORECASE) if dimension(target) == "USD" else str(cell)
    )
    parts = written(text)
    if parts is None:
        raise ValueError("not a number")
    tail = parts.suffix + parts.unit
    its = unit(tail, dimension(target)) if tail and not parts.unit else None
    if its is not None:  # 5m of a time, 3t of an emission: a unit, not a number of millions
        parts = parts._replace(suffix="")
    elif parts.unit and (its := unit(parts.unit, dimension(target))) is None:
        raise ValueError(f"not a number: {printable(parts.unit, 20)!r} is no unit of it")
    if its is not None and its[0] != dimension(target):
        raise ValueError(f"not a number of this kind: its unit is {printable(tail, 20)!r}")
    if parts.suffix and target in _POWERS_OF_TWO:
        raise ValueError("k or M may stand for powers of 1,000 or of 1,024: write the number in full")
    if its is not None and factor not in (1.0, its[1]):
        raise ValueError(f"it has the unit {printable(tail, 20)!r} and the factor {factor:g}: give one of them")
    times = its[1] if its is not None else factor
    value = parts.value(decimal)
    # Digits that are all kept are exact integers.
    return value * times if times != 1 or not value.is_integer() else int(value), parts.rounding(decimal) * times


def value_of(target: str, cell: Any, factor: float = 1.0, decimal: str = ".") -> tuple[Scalar, float]:
    """Read a cell; return its value, and half a unit of its last digit. Raises ValueError with the reason."""
    value: Scalar
    rounding = 0.0
    try:
        if target in FIGURES or target == "factor":
            figure, rounding = _figure(target, cell, factor, decimal)
            value = _check(target).validate_python(figure)
        elif "." in target and (parts := written(str(cell))) and not (parts.suffix or parts.unit):
            value = parts.value(decimal) * factor
        elif factor != 1:
            raise ValueError("a factor needs a number")
        elif target == "status":
            if (ended := status_of(cell)) is None:
                raise ValueError("how it ended is not understood: write ok, oom, failed or timeout")
            value = str(ended)
        elif target == "device_name" and str(cell).strip().isdecimal():
            raise ValueError("it is a number; if it counts devices, map it to devices")
        else:
            word: str = _check(target).validate_python(cell)
            value = PRECISIONS.get(word.lower(), word) if target == "precision" else word
    except (ValidationError, ValueError, TypeError, OverflowError) as error:
        reason = in_words(error.errors()[0]) if isinstance(error, ValidationError) else error
        percent = ": for percent give the factor :0.01" if str(reason).endswith("equal to 1") else ""
        raise BadValue(f"{target} {printable(cell, 30)!r}: {reason}{percent}") from error
    return value, 0.0 if target in _EXACT else rounding


def read(columns: Iterable[Column], cells: dict[Any, Any], decimal: str) -> RowValues:
    """Read the cells of a row. Raises ValueError for what cannot be understood, and where columns contradict each other."""
    row = RowValues()
    explicit = {column.target for column in columns if not empty(cells.get(column.name), column.target)}
    for column in columns:
        target, cell = column.target, cells.get(column.name)
        if empty(cell, target):
            continue
        ended = status_of(cell) if target in FIGURES or target == "status" else None
        if ended is not None and isinstance(cell, str):
            row.status = ended if row.status is Status.OK else row.status
        elif target in SPEEDS + RATES and re.fullmatch(r"0+([.,]0+)?", str(cell).strip()) and column.factor == 1:
            row.zeros[target] = written(str(cell)).rounding(decimal)  # type: ignore[union-attr]  # it is a number
        elif target in ("devices", "device_name") and _named(cell) and (devices := hardware(cell)):
            _add_hardware(row, target, cell, devices, explicit)
        else:
            row.add(target, *value_of(target, cell, column.factor, decimal))
    return row


def _named(cell: Any) -> TypeGuard[str]:
    return isinstance(cell, str) and not cell.strip().isdecimal()


def _add_hardware(row: RowValues, target: str, cell: str, devices: Hardware, explicit: set[str]) -> None:
    """Take 8xH100, 2x8 H100 or 1 node x 8 apart; a column of its own says more of a name."""
    if target == "device_name" and not re.search(r"(\d|\s)[x×*](\d|\s)", cell, re.IGNORECASE):  # 2080 Ti is a name
        row.add(target, *value_of(target, cell))
        return
    row.add("devices", *value_of("devices", devices.devices))
    if devices.nodes is not None:
        row.add("num_nodes", devices.nodes)
        row.add("devices_per_node", devices.devices // devices.nodes)
    if devices.name and (target == "device_name" or "device_name" not in explicit):
        row.add("device_name", devices.name)

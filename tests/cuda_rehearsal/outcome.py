"""What became of the cases: rows of the table, with everything that is not as expected."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.record import RunRecord, Status
from tests.cuda_rehearsal.cases import Case


@dataclass(frozen=True)
class Row:
    """One line of the table. `problems` is empty if all is as expected."""

    case: str
    devices: int
    expected: str
    seen: str
    seconds: float | None = None
    problems: tuple[str, ...] = ()


def row(case: Case, record: RunRecord | None, gpus: Sequence[str], most_seconds: float = float("inf")) -> Row:
    """Compare a record with what the case expects; `gpus` are the UUIDs of the machine's GPUs."""
    expected = f"{case.status}: {case.words}" if case.words else case.status
    if record is None:
        return Row(case.name, case.devices, expected, "no record", problems=("there is no record",))
    message = record.error.message if record.error else ""
    seen = f"{record.status}: {message.splitlines()[0]}" if message else str(record.status)
    problems = []
    if record.status != case.status or not re.search(re.escape(case.words), message, re.IGNORECASE):
        problems.append(f"{record.status}: {message}" if message else f"{record.status} without {case.words!r}")
    if record.duration_seconds > most_seconds:
        problems.append(f"it took {record.duration_seconds:.0f} s, more than {most_seconds:.0f} s")
    if record.status is Status.OK:
        problems += _facts(record, gpus)
    return Row(case.name, case.devices, expected, seen, record.duration_seconds, tuple(problems))


def _facts(record: RunRecord, gpus: Sequence[str]) -> list[str]:
    """Return what is wrong in the record of a run that ended well: facts that do not depend on arithmetic."""
    measurement, spec, problems = record.measurement, record.spec, []
    assert measurement is not None
    world = spec.world_size
    if spec.measure_steps is not None and measurement.steps != spec.measure_steps:
        problems.append(f"{measurement.steps} steps, not {spec.measure_steps}")
    if [rank.device for rank in measurement.ranks] != list(gpus[:world]):
        problems.append(f"ranks on {[rank.device for rank in measurement.ranks]}, not {gpus[:world]}")
    if not all(measurement.peak_memory_bytes) or len(measurement.peak_memory_bytes) != world:
        problems.append(f"memory of the ranks: {measurement.peak_memory_bytes}")
    metered = sorted({reading.device for reading in record.energy if reading.source == "nvml"})
    if spec.meters and metered != sorted(gpus[:world]):
        problems.append(f"energy of {metered}, not of {gpus[:world]}")
    return problems


def table(rows: Iterable[Row]) -> str:
    """Return the table as text, with the problems below the rows that have them."""
    cells = [("case", "GPUs", "expected", "seen", "s")]
    notes: list[tuple[str, ...]] = [()]
    for r in rows:
        cells.append((r.case, str(r.devices), r.expected, r.seen, "" if r.seconds is None else f"{r.seconds:.1f}"))
        notes.append(r.problems)
    widths = [min(100, max(len(line[column]) for line in cells)) for column in range(5)]
    lines = []
    for line, problems in zip(cells, notes, strict=True):
        lines.append("  ".join(text[:width].ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        lines += [f"  !! {problem}" for problem in problems]
    return "\n".join(lines)


def sentence(rows: Sequence[Row]) -> str:
    """Return the counts in one sentence."""
    wrong = [r for r in rows if r.problems]
    kinds = Counter(r.seen.split(":")[0] for r in rows)
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    if not wrong:
        return f"All {len(rows)} runs were as expected: {counts}."
    return f"{len(wrong)} of {len(rows)} runs were not as expected ({counts}): {', '.join(r.case for r in wrong)}."


def document(rows: Sequence[Row], **more: Any) -> dict[str, Any]:
    """Return all as JSON holds it."""
    return {"rows": [asdict(r) for r in rows], "as_expected": not any(r.problems for r in rows), **more}

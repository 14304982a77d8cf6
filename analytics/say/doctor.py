"""What can be measured on a machine, as `bench doctor` prints it: the answer, what to fix, and each check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analytics.say.blocks import Block, Commands, Lines, Note, Sentence, Table, command
from analytics.text import counted, number, printable
from bench.machine.doctor import Finding

_STATES = {"absent": "missing", "unknown": "not checked"}
_LONGEST = 600


def blocks(findings: Sequence[Finding], store: str | None = None) -> Iterator[Block]:
    """Yield which energy can be measured, how many problems there are with their remedies, then the checks."""
    yield Sentence(_energy(findings), "title")
    open_ = [finding for finding in findings if finding.state != "ok"]
    problems = [finding for finding in open_ if finding.state == "problem"]
    yield Sentence(
        f"{counted(len(problems), 'problem')}: {', '.join(finding.subject for finding in problems)}."
        if problems
        else "No problems.",
        "answer",
    )
    if open_:
        yield _table(open_)
    if remedies := [line for finding in problems for line in _remedies(finding)]:
        yield Lines(tuple(remedies))
    missing = [line for finding in open_ if finding not in problems for line in _remedies(finding)]
    yield from (Sentence(line, detail=True) for line in missing)
    fine = [finding for finding in findings if finding.state == "ok"]
    yield _table(fine, detail=True)
    yield Note(f"{counted(len(fine), 'other check')} passed.")
    yield Commands((f"{command('doctor', store=store)} --explain",))


def _remedies(finding: Finding) -> list[str]:
    return [f"{finding.subject}: {line}" for line in finding.remedy.splitlines()]


def _table(findings: Sequence[Finding], *, detail: bool = False) -> Table:
    rows = tuple((f.subject, _STATES.get(f.state, f.state), printable(f.detail, _LONGEST)) for f in findings)
    return Table("", ("check", "state", "found"), rows, figures=False, detail=detail)


def _energy(findings: Sequence[Finding]) -> str:
    """Say whose energy can be measured, or how much is estimated."""
    sources: dict[str, set[str]] = {}
    for finding in findings:
        watts = {"energy_joules", "power_watts"} & set(finding.values)
        if finding.state == "ok" and watts:
            source, *device = finding.subject.split()
            kind = "memory" if device[-1:] == ["dram"] else {"RAPL": "CPU"}.get(source, source)
            sources.setdefault(kind, set()).add(" ".join(device[:1]))
    if sources:
        parts = [counted(len(which), "GPU") if kind == "GPU" else kind for kind, which in sources.items()]
        return f"Energy can be measured here: {', '.join(parts)}"
    estimates = [v for f in findings for name, v in f.values.items() if name.endswith("_estimated") and "watts" in name]
    if estimates:
        return f"Energy cannot be measured here; CodeCarbon estimates it (about {number(round(sum(estimates)))} W now)"
    return "Energy can be neither measured nor estimated here"

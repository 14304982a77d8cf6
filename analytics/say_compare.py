"""The answer of `bench compare` for a terminal: the sides, the table of verdicts, remarks and the gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rich.table
from rich.text import Text

from analytics.compare import Comparison, Effect, Matched
from analytics.gate import Outcome
from analytics.sides import Side
from analytics.words import between, number, printable, repeats_words


def parts(sides: Sequence[Side], matched: Matched, equivalence: float) -> Iterator[str | rich.table.Table]:
    """Return the comparison as sentences and a table."""
    compared = [comparison for comparison in matched.comparisons if comparison.effects]
    bases = list(dict.fromkeys(comparison.baseline for comparison in compared))
    for name, side in zip(("BASE", "NEW "), sides, strict=False):
        about = side.to_dict()
        facts = [f"{about['runs']} runs"]
        facts += [_listed(about[key], key) for key in ("executions", "commits", "hosts") if about[key]]
        first = ""
        if bases and len(sides) == 1:
            first = "the first of each kind of work in " if len(bases) > 1 else f"{bases[0]}, the first of "
        yield f"{name} {printable(f'{first}{side}', 200)}: {printable('; '.join(facts), 300)}"
    if compared:
        yield ""
        yield _table(compared, headed=len(bases) > 1)
        yield ""
    yield from _basis(sides, matched, equivalence)
    yield from _remarks(matched)


def _listed(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) < 3 else f"{len(names)} {what}"


def _table(compared: Sequence[Comparison], *, headed: bool) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("configuration", "metric", "BASE", "NEW", "NEW / BASE (95 %)", "P(better)", "verdict"):
        table.add_column(heading, no_wrap=heading != "configuration")
    base = ""
    for comparison in compared:
        if headed and comparison.baseline != base:
            base = comparison.baseline
            table.add_row(Text(f"against {base}:", "bold"))
        for place, effect in enumerate(comparison.effects):
            table.add_row(*map(Text, ("" if place else comparison.name, *_cells(effect))))
    return table


def _cells(effect: Effect) -> tuple[str, ...]:
    change = effect.ratio if effect.difference is None else effect.difference
    chance = effect.probability_better
    return (
        ("~" if "estimated" in effect.metric else "") + effect.metric,
        number(effect.baseline_value),
        number(effect.value),
        ("" if effect.difference is None else "NEW - BASE: ") + between(change, effect.low, effect.high),
        "-" if chance is None else ">0.99" if chance > 0.99 else "<0.01" if chance < 0.01 else f"{chance:.2f}",
        _verdict(effect),
    )


def _verdict(effect: Effect) -> str:
    """The verdict, how many repeats would decide it, and why it differs from that of the interval alone."""
    few = [f"{effect.repeats} repeats only"] if effect.repeats == 2 and effect.verdict != "cannot tell" else []
    more = [repeats_words(effect.more_repeats)] if effect.more_repeats is not None else few
    among = f" among {effect.among}" if effect.among else ""
    return f"{effect.verdict}{among}" + (f" ({', '.join(more)})" if more else "")


def _basis(sides: Sequence[Side], matched: Matched, equivalence: float) -> Iterator[str]:
    """Say how intervals and verdicts are made, and what limits them."""
    effects = [effect for comparison in matched.comparisons for effect in comparison.effects]
    if not effects:
        return
    pairs = sum(effect.paired for effect in effects)
    count = f"all {len(effects)} together" if len(effects) > 1 else "this one alone"
    yield (
        f"Intervals are 95 %, from pairs that ran side by side ({pairs} of {len(effects)} comparisons) or two samples; "
        f"verdicts allow for {count} (Holm). Equivalent: within ±{100 * equivalence:g} %. BASE and NEW are the figures "
        "of bench fit: medians of quality, the largest of memory, else geometric means."
    )
    if any(effect.among for effect in effects):
        yield (
            f"cannot tell among {len(effects)}: the interval alone would decide, but among so many comparisons that may be "
            "chance."
        )
    if any(effect.more_repeats for effect in effects):
        yield "+5 repeats: about 5 more of each would decide."
    if len(sides) == 2 and not any(effect.paired for effect in effects):
        yield (
            "BASE and NEW did not run side by side: other changes between them are in the ratio, but not in its interval."
        )


def _remarks(matched: Matched) -> Iterator[str]:
    """Say where the sides did other work, what was not compared and why, and what only one side has."""
    names_by_line: dict[str, list[str]] = {}
    for comparison in matched.comparisons:
        refused: dict[str, list[str]] = {}
        for metric, reason in (comparison.not_compared or {}).items():
            refused.setdefault(reason, []).append(metric)
        lines = [*comparison.notes, *comparison.doubts]
        lines += [f"not compared by {', '.join(metrics)}: {reason}" for reason, metrics in refused.items()]
        lines += [f"flags: {' '.join(comparison.flags)}"] if comparison.flags else []
        if not comparison.effects and comparison.reason:
            lines.append(f"{comparison.status}: {comparison.reason}")
        for line in lines:
            names_by_line.setdefault(line, []).append(comparison.name)
    for line, names in names_by_line.items():
        every = len(names) == len(matched.comparisons) and len(names) > 1
        yield f"{'all' if every else printable(', '.join(names), 200)}: {printable(line, 400)}"
    yield from (printable(note, 400) for note in matched.notes)
    for side, names in (("BASE", matched.only_baseline), ("NEW", matched.only_candidate)):
        if names:
            yield f"only in {side}: {printable(', '.join(names), 400)}"


def gate_lines(outcomes: Sequence[Outcome], broken: Sequence[tuple[str, str]], missing: Sequence[str]) -> Iterator[str]:
    """Say what became of each condition of --fail-if, and what else fails the gate."""
    words = {"fails": "is", "holds": "is not", "cannot tell": "may be"}
    for outcome in outcomes:
        metric, limit = outcome.condition.split(" ", 1)
        ratio = "" if outcome.ratio is None else f" {between(outcome.ratio, outcome.low, outcome.high)}"
        more = "" if outcome.more_repeats is None else f" ({repeats_words(outcome.more_repeats)})"
        reason = f": {outcome.reason}{more}" if outcome.reason else ""
        reason += "".join(f"; {doubt}" for doubt in outcome.doubts)
        yield f"{outcome.state}: {printable(outcome.name)}: {metric}{ratio} {words[outcome.state]} {limit}{reason}"
    for name, reason in broken:
        yield f"fails: {printable(name)}: {printable(reason, 400)}"
    for name in missing:
        yield f"fails: {printable(name)}: it is in BASE, but not in NEW (allow this with --allow-missing)"
    states = [outcome.state for outcome in outcomes]
    fails = states.count("fails") + len(broken) + len(missing)
    yield f"gate: holds {states.count('holds')}, fails {fails}, cannot tell {states.count('cannot tell')}"

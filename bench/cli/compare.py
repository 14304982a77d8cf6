"""`bench compare`: runs against others, with verdicts, and a gate for continuous integration."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import baselines_option, json_option, store_option
from bench.cli.sides import Side, Sources

if TYPE_CHECKING:
    from rich.table import Table

    from analytics.compare import Comparison, Effect, Matched
    from analytics.gate import Condition, Outcome


@click.command()
@click.argument("base")
@click.argument("new", required=False)
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Compare by this column; may be repeated.")
@click.option(
    "--fail-if",
    "gates",
    multiple=True,
    metavar="'METRIC OP RATIO'",
    help="Exit with 1 if all of the 95 % interval of NEW / BASE is there, from 3 repeats of each, and it is no chance "
    "among all that are compared: 'tokens_per_second < 0.97'. May be repeated.",
)
@click.option("--fail-if-unsure", is_flag=True, help="With --fail-if: exit with 1 too where that cannot be told.")
@click.option("--allow-missing", is_flag=True, help="With --fail-if: NEW may lack configurations of BASE.")
@click.option(
    "--equivalence",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.02,
    show_default=True,
    help="Figures are equivalent if the interval of their ratio is within 1 ± this.",
)
@baselines_option
@store_option
@json_option
def compare(
    base: str,
    new: str | None,
    metrics: tuple[str, ...],
    gates: tuple[str, ...],
    fail_if_unsure: bool,
    allow_missing: bool,
    equivalence: float,
    folder: Path,
    store: str | None,
    as_json: bool,
) -> None:
    """Compare NEW with BASE, configuration by configuration, or those of one suite with the first that does the same work.

    Each is a suite (its newest execution, or SUITE@EXECUTION), a git commit (that of the folder where the runs were made, or
    of wattbench), a host, a file (CSV, Parquet, JSON of `bench fit --json`) or a baseline of `bench baseline save`; where a
    name could be several: suite:NAME, commit:NAME, host:NAME, file:NAME, baseline:NAME.
    """
    from analytics.gate import Condition, broken, outcomes

    try:
        conditions = [Condition.parse(text) for text in gates]
    except ValueError as error:
        fail(str(error))
    sources = Sources(store, folder)
    sides = [sources.find(text) for text in (base, new) if text is not None]
    wanted = _metrics(sides, metrics, conditions)
    found = _found(sides, wanted, equivalence)
    told = outcomes(conditions, found.comparisons)
    broke = broken(found.comparisons, skipped=len(sides) == 2) if conditions else []
    missing = found.lost if conditions and not allow_missing else []
    bad = {"fails", "cannot tell"} if fail_if_unsure else {"fails"}
    failed = bool(broke or missing) or any(outcome.state in bad for outcome in told)
    if as_json:
        document = {
            **{name: _side(side) for name, side in zip(("base", "new"), sides, strict=False)},
            "metrics": wanted,
            "equivalence": equivalence,
            "comparisons": [comparison.to_dict() for comparison in found.comparisons],
            "only_base": found.only_baseline,
            "only_new": found.only_candidate,
            "gate": [asdict(outcome) for outcome in told],
            "broken": [name for name, _ in broke],
            "missing": missing,
            "notes": found.notes,
            "failed": failed,
        }
        click.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        _show(sides, found, equivalence)
        for line in _gate_lines(told, broke, missing) if conditions else ():
            click.echo(line)
    for condition in conditions:
        if not failed and not any(condition.metric == e.metric for c in found.comparisons for e in c.effects):
            fail(f"--fail-if {str(condition)!r}: {condition.metric} could be compared in no configuration")
    sys.exit(1 if failed else 0)


def _found(sides: Sequence[Side], wanted: Sequence[str], equivalence: float) -> Matched:
    """Compare the sides, or one within itself; where there is nothing to compare the command ends with exit code 2."""
    from analytics.compare import match, within

    if len(sides) == 1:
        found = within(sides[0].df, wanted, equivalence)
        nothing = (
            f"{sides[0]} alone has nothing to compare: it takes two configurations of the same work, or BASE and NEW"
        )
    else:
        base, new = sides
        found = match(new.df, base.df, str(base), wanted, equivalence)
        nothing = f"{base} and {new} have no configuration in common (config_id): they were asked for different runs"
    if not found.comparisons:
        fail(nothing)
    if not wanted and all(comparison.status == "ok" for comparison in found.comparisons):
        fail(f"{' and '.join(map(str, sides))} have no figure in common that could be compared; name one with --metric")
    return found


def _metrics(sides: Sequence[Side], metrics: Sequence[str], conditions: Sequence[Condition]) -> list[str]:
    """Return the columns to compare by; one that no run has ends the command with exit code 2."""
    from analytics.comparable import metric_names, usual_metrics

    frames = [side.df for side in sides]
    wanted = list(dict.fromkeys([*metrics, *(condition.metric for condition in conditions)]))
    there = metric_names(*frames)
    for name in wanted:
        if name not in there:
            where = " and of ".join(map(str, sides))
            fail(f"no run of {where} has a figure {name!r}: {_instead(name, there)}")
    return wanted or usual_metrics(*frames)


_MEANT = {
    **dict.fromkeys(("time", "speed", "throughput", "seconds"), "samples_per_second"),
    **dict.fromkeys(("energy", "joules", "power"), "joules_per_sample"),
    "memory": "peak_memory_bytes",
    "loss": "validation_loss",
    "accuracy": "validation_accuracy",
    "cost": "cost_usd_per_million_samples",
    "carbon": "emissions_kg_per_million_samples",
}


def _instead(name: str, there: Sequence[str]) -> str:
    """Say what was meant, or the figures that are asked for most, of those that are there."""
    meant = _MEANT.get(name, name)
    near = [one for one in (meant, f"{meant}_estimated") if one in there] or get_close_matches(name, there, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    usual = ["tokens_per_second", "duration_seconds", *_MEANT.values(), *there]
    shown = [one for one in dict.fromkeys(usual) if one in there][:15]
    return f"there are {', '.join(shown)}" + (" and more (bench fit --json)" if len(shown) < len(there) else "")


def _side(side: Side) -> dict[str, Any]:
    known = {f"{name}s": sorted(side.df[name].dropna().unique()) for name in ("suite", "execution", "commit", "host")}
    return {"kind": side.kind, "name": side.name, "runs": len(side.df), **known}


# --- in words


def _listed(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) < 3 else f"{len(names)} {what}"


def _show(sides: Sequence[Side], found: Matched, equivalence: float) -> None:
    from analytics.words import printable
    from bench.cli.answer import console

    screen = console()
    compared = [comparison for comparison in found.comparisons if comparison.effects]
    bases = list(dict.fromkeys(comparison.baseline for comparison in compared))
    for name, side in zip(("BASE", "NEW "), sides, strict=False):
        about = _side(side)
        facts = [
            f"{about['runs']} runs",
            *(_listed(about[key], key) for key in ("executions", "commits", "hosts") if about[key]),
        ]
        first = ""
        if bases and len(sides) == 1:
            first = "the first of each kind of work in " if len(bases) > 1 else f"{bases[0]}, the first of "
        screen.print(f"{name} {printable(f'{first}{side}', 200)}: {printable('; '.join(facts), 300)}", soft_wrap=True)
    if compared:
        screen.print()
        screen.print(_table(compared, headed=len(bases) > 1))
        screen.print()
    for line in _remarks(sides, found, equivalence):
        screen.print(line, soft_wrap=True)


def _table(compared: Sequence[Comparison], *, headed: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    from analytics.words import between, number

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("configuration", "metric", "BASE", "NEW", "NEW / BASE (95 %)", "P(better)", "verdict"):
        table.add_column(heading, no_wrap=heading != "configuration")
    base = ""
    for comparison in compared:
        if headed and comparison.baseline != base:
            base = comparison.baseline
            table.add_row(Text(f"against {base}:", "bold"))
        for place, effect in enumerate(comparison.effects):
            change = effect.ratio if effect.difference is None else effect.difference
            chance = effect.probability_better
            cells = (
                "" if place else comparison.name,
                ("~" if "estimated" in effect.metric else "") + effect.metric,
                number(effect.baseline_value),
                number(effect.value),
                ("" if effect.difference is None else "NEW - BASE: ") + between(change, effect.low, effect.high),
                "-" if chance is None else ">0.99" if chance > 0.99 else "<0.01" if chance < 0.01 else f"{chance:.2f}",
                _verdict(effect),
            )
            table.add_row(*map(Text, cells))
    return table


def _verdict(effect: Effect) -> str:
    """The verdict, with what it takes to tell, and why it is not that of the interval beside it."""
    from analytics.words import repeats_words

    few = [f"{effect.repeats} repeats only"] if effect.repeats == 2 and effect.verdict != "cannot tell" else []
    more = [repeats_words(effect.more_repeats)] if effect.more_repeats is not None else few
    among = f" among {effect.among}" if effect.among else ""
    return f"{effect.verdict}{among}" + (f" ({', '.join(more)})" if more else "")


def _remarks(sides: Sequence[Side], found: Matched, equivalence: float) -> Iterator[str]:
    """What the table rests on, where the sides did other work, and what is not in it."""
    from analytics.words import printable

    effects = [effect for comparison in found.comparisons for effect in comparison.effects]
    if effects:
        pairs = sum(effect.paired for effect in effects)
        count = f"all {len(effects)} together" if len(effects) > 1 else "this one alone"
        yield (
            f"Intervals are 95 %, from pairs that ran side by side ({pairs} of {len(effects)} comparisons) or two samples; "
            f"verdicts allow for {count} (Holm). Equivalent: within ±{100 * equivalence:g} %. BASE and NEW are the figures "
            "of bench fit: medians of quality, the largest of memory, else geometric means."
        )
        if any(effect.among for effect in effects):
            yield f"cannot tell among {len(effects)}: the interval alone would tell, but among so many that may be chance."
        if any(effect.more_repeats for effect in effects):
            yield "+5 repeats: about 5 more of each would tell."
    if len(sides) == 2 and effects and not any(effect.paired for effect in effects):
        yield "BASE and NEW did not run side by side: what else changed between them is in the ratio, not in the interval."
    said: dict[str, list[str]] = {}
    for comparison in found.comparisons:
        refused: dict[str, list[str]] = {}
        for metric, why in (comparison.not_compared or {}).items():
            refused.setdefault(why, []).append(metric)
        lines = [
            *comparison.notes,
            *comparison.doubts,
            *(f"not compared by {', '.join(metrics)}: {why}" for why, metrics in refused.items()),
        ]
        lines += [f"flags: {' '.join(comparison.flags)}"] if comparison.flags else []
        if not comparison.effects and comparison.reason:
            lines.append(f"{comparison.status}: {comparison.reason}")
        for line in lines:
            said.setdefault(line, []).append(comparison.name)
    for line, names in said.items():
        every = len(names) == len(found.comparisons) and len(names) > 1
        yield f"{'all' if every else printable(', '.join(names), 200)}: {printable(line, 400)}"
    yield from (printable(note, 400) for note in found.notes)
    for side, names in (("BASE", found.only_baseline), ("NEW", found.only_candidate)):
        if names:
            yield f"only in {side}: {printable(', '.join(names), 400)}"


def _gate_lines(told: Sequence[Outcome], broke: Sequence[tuple[str, str]], missing: Sequence[str]) -> Iterator[str]:
    from analytics.words import between, printable, repeats_words

    words = {"fails": "is", "holds": "is not", "cannot tell": "may be"}
    for outcome in told:
        metric, limit = outcome.condition.split(" ", 1)
        ratio = "" if outcome.ratio is None else f" {between(outcome.ratio, outcome.low, outcome.high)}"
        more = "" if outcome.more_repeats is None else f" ({repeats_words(outcome.more_repeats)})"
        why = f": {outcome.reason}{more}" if outcome.reason else ""
        why += "".join(f"; {doubt}" for doubt in outcome.doubts)
        yield f"{outcome.state}: {printable(outcome.name)}: {metric}{ratio} {words[outcome.state]} {limit}{why}"
    for name, why in broke:
        yield f"fails: {printable(name)}: {printable(why, 400)}"
    for name in missing:
        yield f"fails: {printable(name)}: it is in BASE, but not in NEW (--allow-missing lets it pass)"
    states = [outcome.state for outcome in told]
    fails = states.count("fails") + len(broke) + len(missing)
    yield f"gate: holds {states.count('holds')}, fails {fails}, cannot tell {states.count('cannot tell')}"

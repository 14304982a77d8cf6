"""The answer of `bench compare` and of its gate as blocks: what is better, what cannot be told yet, and what to do next."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.interval import MOST_REPEATS
from analytics.judge.compare import Comparison, Effect, Matched
from analytics.judge.gate import Outcome
from analytics.judge.sides import Side
from analytics.quantities import quantity
from analytics.runs.frame import asked, names, summary
from analytics.say.blocks import Block, Commands, Note, Sentence, Table
from analytics.say.names import metric_name, named, plain, ranged
from analytics.text import interval, printable
from bench.figures.flags import meaning

MANY = 20
"""More repeats than this are no advice."""
_FEW = 2
"""As many configurations are named in a sentence; of more, the one that differs most."""
_VERDICTS = {"cannot tell": "?", "equivalent": "same"}


@dataclass(frozen=True)
class Label:
    """A configuration in words: the kind of work, empty where there is one; what differs from the base; the base."""

    work: str
    change: str
    base: str = ""

    @property
    def title(self) -> str:
        """The label in a sentence: `2 devices + bf16 (tiny)`."""
        return self.change.replace(", ", " + ") + (f" ({self.work})" if self.work else "")


class _Labels(dict[str, Label]):
    def __missing__(self, name: str) -> Label:
        return Label("", printable(name, 80))


_Rows = Sequence[tuple[Label, Comparison]]


def labels(sides: Sequence[Side], matched: Matched) -> dict[str, Label]:
    """Return the labels of all configurations by the names that comparisons and lists have for them."""
    runs = pd.concat([side.df for side in sides]).sort_values("started_at", kind="stable", na_position="first")
    runs = runs.drop_duplicates("config_id", keep="last").reset_index(drop=True)
    table, bases = runs[["config_id", *asked(runs)]], dict[str, str]()
    if len(sides) == 1:
        short = table["config_id"].map(summary(sides[0].df).drop_duplicates("config_id").set_index("config_id")["name"])
        keys = short.fillna(runs["label"]).astype(str).tolist()
        bases = {comparison.name: comparison.baseline for comparison in matched.comparisons}
    else:
        short = names(table)
        unique = short.where(~short.duplicated(keep=False), short.replace("plain", "") + " " + table["config_id"])
        keys = unique.str.strip().tolist()
    words = named(table)
    full = words["change"].where(~words.duplicated(keep=False), keys).tolist()
    works = words["work"].tolist() if words["work"].nunique() > 1 else [""] * len(keys)
    base = pd.Series([keys.index(bases[k]) if bases.get(k) in keys else None for k in keys], dtype="Int64")
    changes = named(table, base)["change"]
    return _Labels(
        {
            key: Label(work, whole, "") if pd.isna(place) else Label(work, change or whole, full[place])
            for key, work, whole, change, place in zip(keys, works, full, changes, base, strict=True)
        }
    )


def blocks(sides: Sequence[Side], matched: Matched, equivalence: float) -> Iterator[Block]:
    """Yield the comparison: title, answer, table, notes and what to do next; evidence as detail."""
    by_name = labels(sides, matched)
    rows = [(by_name[comparison.name], comparison) for comparison in matched.comparisons]
    effects = [effect for _, comparison in rows for effect in comparison.effects]
    yield Sentence(_title(sides, rows, effects), "title")
    yield from (Sentence(line, "answer") for line in _answer(rows, effects, equivalence))
    if effects:
        yield _table([(label, comparison) for label, comparison in rows if comparison.effects], effects)
    yield from _notes(sides, rows, effects)
    for side, only in (("base", matched.only_baseline), ("new", matched.only_candidate)):
        if only:
            yield Note(f"{'; '.join(by_name[name].title for name in only)}.", f"Only in {side}")
    for note in matched.notes:
        for name in sorted(filter(lambda name: "=" in name, by_name), key=len, reverse=True):
            note = note.replace(name, by_name[name].title)
        yield Note(f"{note[:1].upper()}{plain(note[1:])}.")
    yield _next(sides, effects)
    yield from _evidence(sides, rows, equivalence)


def _title(sides: Sequence[Side], rows: _Rows, effects: Sequence[Effect]) -> str:
    counts = sorted({effect.repeats for effect in effects})
    repeats = "-".join(str(n) for n in dict.fromkeys(counts[:1] + counts[-1:]))
    tail = f"; new / base, 95 %, {repeats} run{'s' * (repeats != '1')} each" if counts else ""
    first, *others = (side.name if side.kind == "suite" else str(side) for side in sides)
    if others:
        return f"{others[0]} against {first}{tail}"
    bases = {label.base for label, _ in rows}
    base = bases.pop() if len(bases) == 1 else "the first one"
    return f"{first}: each configuration against {base}{' with the same model' * bool(rows[0][0].work)}{tail}"


def _answer(rows: _Rows, effects: Sequence[Effect], equivalence: float) -> Iterator[str]:
    for metric in dict.fromkeys(effect.metric for effect in effects):
        pairs = [(label, e) for label, comparison in rows for e in comparison.effects if e.metric == metric]
        verdicts = [v for v in ("better", "worse", "less", "more") if any(e.verdict == v for _, e in pairs)]
        if verdicts:
            title = metric_name(metric)
            parts = (f"{v}{_most([pair for pair in pairs if pair[1].verdict == v], len(rows))}" for v in verdicts)
            yield f"{title[0].upper()}{title[1:]}: {'; '.join(parts)}."
    total = f"of {len(effects)} comparisons" if len(effects) > 1 else "comparison"
    if same := sum(effect.verdict == "equivalent" for effect in effects):
        yield f"{same} {total} equivalent within {100 * equivalence:g} %."
    if unclear := [effect for effect in effects if effect.verdict == "cannot tell"]:
        yield f"{len(unclear)} {total} cannot be told yet{_repeats(unclear)}."
    if not effects:
        yield "Nothing could be compared."


def _most(pairs: Sequence[tuple[Label, Effect]], count: int) -> str:
    """Name few configurations with what they change, of many the one that changes most."""
    if count == 1:
        return f", {_change(pairs[0][1])}"
    pairs = sorted(pairs, key=lambda p: -abs(math.log(p[1].ratio) if p[1].difference is None else p[1].difference))
    texts = [f"{label.title} {_change(effect)}" for label, effect in pairs]
    return f" with {' and '.join(texts) if len(texts) <= _FEW else f'{len(texts)} of {count}, most with {texts[0]}'}"


def _change(effect: Effect) -> str:
    if effect.difference is None:
        return interval(effect.ratio, effect.low, effect.high)
    return f"new - base {interval(effect.difference, effect.low, effect.high)}"


def _repeats(unclear: Sequence[Effect]) -> str:
    """Say how many more repeats should tell."""
    counts = [effect.more_repeats for effect in unclear if effect.more_repeats is not None]
    few = [count for count in counts if count <= MANY]
    if few:
        which = "" if len(few) == len(unclear) else f" {len(few)} of them"
        return f"; {max(few)} more repeat{'s' * (max(few) > 1)} of each should tell{which}"
    if counts:
        return f" and need more than {MANY} repeats more: measure longer, or on a quieter machine"
    return ": give 3 repeats or more" if any(effect.repeats < 2 for effect in unclear) else ""


def _table(rows: _Rows, effects: Sequence[Effect]) -> Table:
    columns = {"change" if rows[0][0].base else "configuration": [label.change for label, _ in rows]}
    if rows[0][0].work:
        works = [label.work for label, _ in rows]
        columns = {"model": [work * (work != above) for above, work in pairwise(["", *works])], **columns}
    for metric in dict.fromkeys(effect.metric for effect in effects):
        found = [next((e for e in comparison.effects if e.metric == metric), None) for _, comparison in rows]
        width = max(len(_change(effect)) for effect in found if effect)
        cells = ["-" if effect is None else f"{_change(effect):<{width}} {_verdict(effect)}" for effect in found]
        columns[metric_name(metric, mark=True)] = cells
    return Table("", tuple(columns), tuple(zip(*columns.values(), strict=True)), figures=False)


def _verdict(effect: Effect) -> str:
    more = "" if effect.more_repeats is None else f" +{effect.more_repeats}"
    more = f" >+{MOST_REPEATS}" if (effect.more_repeats or 0) > MOST_REPEATS else more
    few = " (2 runs)" if effect.repeats == 2 and effect.verdict != "cannot tell" else ""
    return _VERDICTS.get(effect.verdict, effect.verdict) + more + few


def _notes(sides: Sequence[Side], rows: _Rows, effects: Sequence[Effect]) -> Iterator[Note]:
    """Say what marks mean, what was not compared, and where the sides did other work."""
    if any(effect.more_repeats for effect in effects):
        yield Note(
            "? cannot be told yet; +3: three more repeats of each should. Verdicts allow for all comparisons of a metric "
            "(Holm)."
        )
    if any(quantity(effect.metric).estimated for effect in effects):
        yield Note("~ estimated, not measured.")
    if len(sides) > 1 and effects and not any(effect.paired for effect in effects):
        yield Note("The sides did not run side by side, so other changes between them count as well.", "Careful")
    flags = {plain(flag) for _, c in rows for text in c.doubts for flag in text.partition(" has ")[2].split(" and ")}
    if flags:
        count = sum(bool(comparison.doubts) for _, comparison in rows)
        many = "all" if count == len(rows) else f"{count} of {len(rows)}"
        yield Note(f"{' or '.join(sorted(flags))} on one side alone in {many} comparisons.", "Careful")
    for (status, reason), who in _grouped(rows, lambda c: [(c.status, c.reason)] * (c.status != "ok")):
        yield Note(f"{who}: {printable(reason, 160)}", status.replace("_", " ").capitalize())
    refused = [(metric, why) for _, c in rows for metric, why in (c.not_compared or {}).items()]
    whys = {metric: ranged(why for other, why in refused if other == metric) for metric, _ in refused}
    for why in dict.fromkeys(why for texts in whys.values() for why in texts):
        metrics = [metric_name(metric) for metric, texts in whys.items() if why in texts]
        yield Note(f"{', '.join(metrics)}: {plain(why)}.", "Not compared")
    for note, who in _grouped(rows, lambda c: c.notes):
        other = note.startswith("other ")
        yield Note(f"{plain(note.removeprefix('other '))} ({who}).", "Other work" if other else "Careful")


def _grouped(rows: _Rows, texts: Callable[[Comparison], Iterable[Any]]) -> Iterator[tuple[Any, str]]:
    """Yield each text, the first of those that differ in long numbers alone, with the configurations that it holds for."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    for label, comparison in rows:
        for text in texts(comparison):
            groups.setdefault(re.sub(r"\d{4,}", "", str(text)), (text, []))[1].append(label.title)
    for text, titles in groups.values():
        listed = "; ".join(titles)
        short = listed if len(listed) <= 80 else f"{len(titles)} configuration{'s' * (len(titles) > 1)}"
        yield text, "all" if len(titles) == len(rows) > 1 else short


def _next(sides: Sequence[Side], effects: Sequence[Effect]) -> Commands:
    """The command that repeats the suite as often as its open comparisons need, and the one that shows the evidence."""
    one = len(sides) == 1 and sides[0].kind == "suite"
    names_ = " ".join(shlex.quote(printable(side.name if one else f"{side.kind}:{side.name}", 200)) for side in sides)
    counts = [e.repeats + e.more_repeats for e in effects if e.more_repeats is not None and e.more_repeats <= MANY]
    counts += [3 for effect in effects if effect.repeats < 2]
    file = Path("suites", f"{sides[0].name}.yaml")
    more = (
        [f"bench run {shlex.quote(str(file))} --set repeats={max(counts)}"] if one and counts and file.exists() else []
    )
    return Commands((*more, f"bench compare {names_} --explain"))


def _evidence(sides: Sequence[Side], rows: _Rows, equivalence: float) -> Iterator[Block]:
    for side, label in zip(sides, ("base", "new"), strict=False):
        facts = side.to_dict()
        parts = [f"{key[:-1]} {', '.join(facts[key])}" for key in ("executions", "commits", "hosts") if facts[key]]
        head = label if len(sides) > 1 else "Runs"
        yield Note(printable("; ".join([f"{side}, {facts['runs']} runs", *parts]), 400), head, detail=True)
    pairs = [(label, effect) for label, comparison in rows for effect in comparison.effects]
    if pairs:
        columns = ("configuration", "metric", "base", "new", "unit", "P(better)", "compared by")
        cells = tuple((label.title, *_figures(effect)) for label, effect in pairs)
        yield Table("Figures", columns, cells, folded=True, words=("metric", "unit", "compared by"))
        yield Note(
            "Intervals are 95 %: Student's t on logarithms of pairs that ran side by side, or Welch's t of two samples. "
            f"same: equivalent within {100 * equivalence:g} %. Figures are medians of quality, the largest of memory, "
            "else geometric means.",
            detail=True,
        )
    if chance := sum(effect.among is not None for _, effect in pairs):
        yield Note(f"{chance} intervals exclude 1, but among so many comparisons that may be chance.", detail=True)
    for doubt, who in _grouped(rows, lambda c: c.doubts):
        yield Note(f"{plain(doubt)} ({who}).", "Careful", detail=True)
    for flag, who in _grouped(rows, lambda c: c.flags):
        yield Note(f"{meaning(flag)} ({who}).", "Limit", detail=True)


def _figures(effect: Effect) -> tuple[str, ...]:
    known, chance = quantity(effect.metric), effect.probability_better
    sure = "-" if chance is None else ">99 %" if chance > 0.99 else "<1 %" if chance < 0.01 else f"{100 * chance:.0f} %"
    base, new = (interval(value * known.factor) for value in (effect.baseline_value, effect.value))
    way = "pairs" if effect.paired else "two samples"
    return metric_name(effect.metric, mark=True), base, new, known.unit, sure, way


def gate_blocks(
    sides: Sequence[Side],
    matched: Matched,
    outcomes: Sequence[Outcome],
    broken: Sequence[tuple[str, str]],
    missing: Sequence[str],
    *,
    failed: bool,
) -> Iterator[Block]:
    """Yield what --fail-if decides: the verdict first, then what fails or cannot be told, and as detail what passes."""
    by_name = labels(sides, matched)
    cells = [(outcome.state, by_name[outcome.name].title, *_outcome(outcome)) for outcome in outcomes]
    cells += [("fails", by_name[name].title, "", plain(printable(why, 300))) for name, why in broken]
    missing_words = "missing in new; accept that with --allow-missing"
    cells += [("fails", by_name[name].title, "", missing_words) for name in missing]
    order = ("fails", "cannot tell", "holds")
    cells.sort(key=lambda row: order.index(row[0]))
    states = [str(row[0]) for row in cells]
    counts = [
        f"{states.count(state)} {word}" for state, word in zip(order, ("failed", "undecided", "passed"), strict=True)
    ]
    text = f"Checks: {', '.join(count for count in counts if count[0] != '0')}."
    first = [f"{row[1]}: {row[2] or row[3]}." for row in cells[:1] if failed]
    yield Sentence(" ".join([f"The gate {'fails' if failed else 'passes'}.", *first, text]), "title")
    columns = ("gate", "configuration", "new / base", "why")
    for holds, caption in ((False, ""), (True, "Checks that pass")):
        if chosen := tuple(row for row in cells if (row[0] == "holds") == holds):
            yield Table(caption, columns, chosen, figures=False, folded=holds)


def _outcome(outcome: Outcome) -> tuple[str, str]:
    """What was checked, and why it cannot be told or is in doubt."""
    metric, limit = outcome.condition.split(" ", 1)
    ratio = "" if outcome.ratio is None else f" {interval(outcome.ratio, outcome.low, outcome.high)}"
    sign = {"fails": "is", "holds": "is not", "cannot tell": "may be"}[outcome.state]
    more = [f"+{outcome.more_repeats} repeats"] if (outcome.more_repeats or MOST_REPEATS) < MOST_REPEATS else []
    why = "; ".join(filter(None, (outcome.reason, *more, *outcome.doubts)))
    return f"{metric_name(metric)}{ratio} {sign} {limit}", plain(why)

"""The answer of `bench compare` and of its gate as blocks: what is better, what cannot be told yet, and what to do next."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analytics.judge.compare import Comparison, Effect, Matched
from analytics.judge.gate import Outcome, State
from analytics.judge.sides import Side
from analytics.quantities import quantity
from analytics.runs.frame import asked, measured_commands, names, of_tables, summary
from analytics.say.blocks import Block, Commands, Lines, Note, Sentence, Table, command, unnamed
from analytics.say.names import (
    START,
    UP_TO,
    grouped,
    measure_commands,
    metric_name,
    named,
    plain,
    ranged,
    run_again,
    spoken,
    why_ended,
)
from analytics.say.table import MANY, blanked, marks, verdict, verdict_cell
from analytics.text import counted, interval, percent, printable, written
from bench.figures.flags import meaning
from bench.schema import COMMAND

SPEEDS = ("samples_per_second", "tokens_per_second", "duration_seconds")
_FEW = 2
"""As many configurations are named in a sentence; of more, the one that differs most."""


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
        return Label("", printable(spoken(name), 80))


_OTHER = re.compile(r"other (\w+): (.*) against (.*)")
"""A note that the sides did other work."""
_Rows = Sequence[tuple[Label, Comparison]]


def labels(sides: Sequence[Side], matched: Matched) -> dict[str, Label]:
    """Return the labels of all configurations by the names that comparisons and lists have for them."""
    runs = pd.concat([side.df for side in sides]).sort_values("started_at", kind="stable", na_position="first")
    runs = runs.drop_duplicates("config_id", keep="last").reset_index(drop=True)
    table, bases = runs[["config_id", "ladder", "work", *asked(runs)]], dict[str, str]()
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
    apart = _command_label(sides, matched)
    return _Labels(
        apart
        | {
            key: Label(work, whole, "") if pd.isna(place) else Label(work, change or whole, full[place])
            for key, work, whole, change, place in zip(keys, works, full, changes, base, strict=True)
        }
    )


def _command_label(sides: Sequence[Side], matched: Matched) -> dict[str, Label]:
    """Label the only configuration of one name against that of another, whose commands differ."""
    tables = [side.df.drop_duplicates("config_id", keep="last") for side in sides]
    if [len(table) for table in tables] != [1, 1] or len(matched.comparisons) != 1:
        return {}
    table = pd.concat(tables, ignore_index=True)
    if not table["workload"].eq(COMMAND).all() or table["config_id"].nunique() == 1:
        return {}
    words = named(table[["config_id", "ladder", "work", *asked(table)]].assign(**{"workload_args.argv": COMMAND}))
    base, new = words["change"]
    base, new = (base, new) if base != new else (str(sides[0].typed), str(sides[1].typed))
    return {matched.comparisons[0].name: Label("", new, base)}


def blocks(sides: Sequence[Side], matched: Matched, equivalence: float, store: str | None = None) -> Iterator[Block]:
    """Yield the comparison: title, answer, table, notes and what to do next; evidence as detail."""
    by_name = labels(sides, matched)
    rows = [(by_name[comparison.name], comparison) for comparison in matched.comparisons]
    effects = [effect for _, comparison in rows for effect in comparison.effects]
    yield Sentence(_title(sides, rows, effects), "title")
    counts = [effect.more_repeats for effect in effects if effect.more_repeats is not None]
    counts += [3 - effect.repeats for effect in effects if effect.repeats < 2]
    lines = (*_answer(rows, effects, equivalence), *_decide(sides, effects, counts, store))
    yield from (Sentence(line, "answer") for line in lines)
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
    typed = (side.typed or (side.name if side.kind == "suite" else f"{side.kind}:{side.name}") for side in sides)
    yield Commands((command("compare", *typed, "--explain", store=store),))
    yield from unnamed(store)
    yield from _evidence(sides, rows, equivalence)


def _title(sides: Sequence[Side], rows: _Rows, effects: Sequence[Effect]) -> str:
    tail = f"; new/base, 95 %, {_counts(rows)}" if effects else ""
    first, *others = (side.name if side.kind == "suite" else str(side) for side in sides)
    if others:
        return f"{others[0]} against {first}{tail}"
    bases = {label.base for label, _ in rows}
    base = bases.pop() if len(bases) == 1 else "the first one"
    if base == START:
        return f"{first}: the steps up to each against the {START}{tail}"
    return f"{first}: each configuration against {base}{' with the same model' * bool(rows[0][0].work)}{tail}"


def _counts(rows: _Rows) -> str:
    """Say how many runs of each side are compared: of those that ran side by side the pairs."""
    counts = [
        (e.repeats, e.repeats) if e.paired else (c.ended[0], c.baseline_ended[0]) for _, c in rows for e in c.effects
    ]
    new, base = ("-".join(dict.fromkeys((str(min(side)), str(max(side))))) for side in zip(*counts, strict=True))
    equal = all(one == other for one, other in counts)
    return f"{new} run{'s' * (new != '1')} {'each' if equal else f'against {base}'}"


def _answer(rows: _Rows, effects: Sequence[Effect], equivalence: float) -> Iterator[str]:
    """Say what is better and what is worse, speed first, metric by metric, and what is open."""
    yield from _speed(rows, equivalence)
    order = sorted(dict.fromkeys(effect.metric for effect in effects), key=lambda metric: metric not in SPEEDS)
    verdicts = [effect.verdict for effect in sorted(effects, key=lambda effect: effect.metric not in SPEEDS)]
    for told in dict.fromkeys(one for one in verdicts if one not in ("equivalent", "cannot tell")):
        pairs = [(label, e) for label, comparison in rows for e in comparison.effects if e.verdict == told]
        own = {effect.metric for _, effect in pairs}
        metrics = [metric for metric in order if metric in own]
        parts = (
            f"{metric_name(m)} {_most([pair for pair in pairs if pair[1].metric == m], len(rows))}" for m in metrics
        )
        if pairs:
            yield f"{told.capitalize()}: {'; '.join(parts)}."
    counts = Counter(verdict(effect) for effect in effects)
    texts = [f"{counts['same']} same within {percent(equivalence)}"] * bool(counts["same"])
    texts += [f"{count} {name}" for name, count in counts.items() if name.startswith("probably")]
    texts += [f"{counts['undecided']} undecided"] * bool(counts["undecided"])
    if not effects:
        yield "Nothing could be compared."
    elif texts:
        yield f"Of {counted(len(effects), 'comparison')}: {', '.join(texts)}."


def _speed(rows: _Rows, equivalence: float) -> Iterator[str]:
    """Say how fast the sides are where no difference of speed is decided."""
    pairs = [(label, e) for label, comparison in rows for e in comparison.effects if e.metric in SPEEDS]
    if not pairs or any(effect.verdict in ("better", "worse") for _, effect in pairs):
        return
    if len(pairs) > 2 * _FEW and all(effect.interval.low is None for _, effect in pairs):
        return  # single runs of many configurations: the table has them
    unsure = [(label, effect) for label, effect in pairs if effect.verdict == "cannot tell"]
    if not unsure:
        yield f"Equally fast, within {percent(equivalence)}."
        return
    unsure.sort(key=lambda pair: -abs(math.log(pair[1].ratio)))
    texts = []
    for label, effect in unsure:
        factor, _, ends = written(effect.cost.inverse()).partition(" (")
        base = f" as fast as {label.base}" if label.base else " the speed"
        texts.append(f"{label.title} {factor}x{base}{f' ({ends}' if ends else ''}")
    more = f"; and {len(texts) - _FEW} more" if len(texts) > _FEW else ""
    yield f"Not decided: {'; '.join(texts[:_FEW])}{more}."


def _most(pairs: Sequence[tuple[Label, Effect]], count: int) -> str:
    """Name few configurations with what they change, of many the one that changes most."""
    if count == 1:
        return written(pairs[0][1].interval)
    pairs = sorted(pairs, key=lambda p: -abs(math.log(p[1].ratio)))
    texts = [f"{label.title} {written(effect.interval)}".removeprefix(UP_TO) for label, effect in pairs]
    way = "up to" if pairs[0][0].change.startswith(UP_TO) else "with"
    return f"{way} {' and '.join(texts) if len(texts) <= _FEW else f'{len(texts)} of {count}, most with {texts[0]}'}"


def _decide(
    sides: Sequence[Side], effects: Sequence[Effect], counts: Sequence[int], store: str | None
) -> Iterator[str]:
    """Say how many more repeats should tell, with the command where the suite is at hand."""
    if few := [count for count in counts if count <= MANY]:
        repeats = f"repeats={max(few) + max(effect.repeats for effect in effects)}"
        some = f" {len(few)} of {len(counts)}" * (len(few) < len(counts))
        own = len(sides) == 1 and sides[0].kind == "suite"
        both = pd.concat([side.df for side in sides])
        once = all(effect.repeats < 2 for effect in effects)  # then a side that has repeats needs no more
        parts = [side.df for side in sides if not once or side.df.groupby("config_id").size().min() < 3]
        lines = measure_commands(parts, max(few), store) if measured_commands(both) else []
        lines = lines or [run_again(sides[0].name if own else "", both, max(few), "--set", repeats, store=store)]
        yield from (f"{f'To decide{some}' if place == 0 else 'And'}: {line}" for place, line in enumerate(lines))
    elif counts:
        yield f"They need more than {MANY} repeats more: measure longer, or on a quieter machine."


def _table(rows: _Rows, effects: Sequence[Effect]) -> Table:
    head = "change" if rows[0][0].base else "configuration"
    steps = any(label.change.startswith(UP_TO) for label, _ in rows)
    columns = {"up to" if steps else head: [label.change.removeprefix(UP_TO) for label, _ in rows]}
    if several := bool(rows[0][0].work):
        columns = {"model": [label.work for label, _ in rows], **columns}
    for metric in dict.fromkeys(effect.metric for effect in effects):
        found = [comparison.effect(metric) for _, comparison in rows]
        width = max(len(written(effect.interval)) for effect in found if effect)
        cells = [
            "-" if e is None else f"{written(e.interval):<{width}} {verdict_cell(e) if e.repeats > 1 else ''}"
            for e in found
        ]
        columns[metric_name(metric, mark=True)] = [cell.rstrip() for cell in cells]
    return Table(
        "", tuple(columns), tuple(blanked([*zip(*columns.values(), strict=True)], int(several))), figures=False
    )


def _notes(sides: Sequence[Side], rows: _Rows, effects: Sequence[Effect]) -> Iterator[Note]:
    """Say what marks mean, what was not compared, and where the sides did other work."""
    if explained := marks(effects):
        yield Note(" ".join(explained))
    what = "sides" if len(sides) > 1 else "configurations"
    tables = len(sides) == 1 and of_tables(sides[0].df).all()  # they do not say it
    for _, who in _grouped(rows, lambda c: ["apart"] * (c.apart and bool(c.effects) and not tables)):
        which = "" if who == "all" or len(rows) == 1 else f" ({who})"
        yield Note(
            f"The {what} did not run side by side, so other changes between them count as well{which}.", "Careful"
        )
    yield from _doubts(rows, within=len(sides) == 1)
    for status, who in _grouped(rows, lambda c: [c.status] * (c.status != "ok")):
        yield Note(f"{who} {why_ended(status, [c.reason for _, c in rows if c.status == status])}.", "Careful")
    refused = [(metric, why) for _, c in rows for metric, why in c.not_compared.items()]
    whys = {metric: ranged(why for other, why in refused if other == metric) for metric, _ in refused}
    for why in dict.fromkeys(why for texts in whys.values() for why in texts):
        metrics = [metric_name(metric) for metric, texts in whys.items() if why in texts]
        yield Note(f"{', '.join(metrics)}: {plain(why)}.", "Not compared")
    for note, who in _grouped(rows, lambda c: [n for n in c.notes if not _OTHER.match(n)]):
        yield Note(f"{plain(note)} ({who}).", "Careful")
    others = [found.groups() for _, c in rows for note in c.notes if (found := _OTHER.match(note))]
    for what, who in _grouped(rows, lambda c: [found[1] for note in c.notes if (found := _OTHER.match(note))]):
        new, base = (
            " or ".join(dict.fromkeys(sides_)) for sides_ in zip(*(x[1:] for x in others if x[0] == what), strict=True)
        )
        yield Note(f"{what} {new} against {base} ({who}).", "Other work")


def _doubts(rows: _Rows, *, within: bool) -> Iterator[Note]:
    """Say which side alone has what may have made a difference too; `within` one suite the base is another configuration.

    Of many rows with either side there is a summary, and each side as detail.
    """
    every = [(label, side, codes) for label, c in rows for side, codes in c.doubts.items()]
    many = len(rows) > _FEW and len({side for _, side, _ in every}) > 1
    if many:
        for _, who in _grouped(rows, lambda c: ["doubts"] * bool(c.doubts)):
            yield Note(f"new or base: {_codes(codes for *_, codes in every)} ({who}).", "Careful")
    for side in ("candidate", "baseline"):
        own = [(label, codes) for label, which, codes in every if which == side]
        other, bases = within and side == "baseline", {label.base for label, _ in own}
        name = plain(f"the {side}") + (f" ({''.join(bases)})" if other and len(bases) == 1 else "")
        for _, who in grouped((label.title, [side] * (side in c.doubts)) for label, c in rows):
            flags = _codes(codes for _, codes in own)
            yield Note(f"{name} alone has {flags} ({'against ' * other}{who}).", "Careful", detail=many)


def _codes(groups: Iterable[Sequence[str]]) -> str:
    return " or ".join(sorted({plain(code) for codes in groups for code in codes}))


def doubt_words(doubts: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what one side alone has that may have made a difference too: `new alone has a busy host`."""
    return [plain(f"the {side} alone has {' and '.join(codes)}") for side, codes in doubts.items()]


def _grouped(rows: _Rows, texts: Callable[[Comparison], Iterable[str]]) -> Iterator[tuple[str, str]]:
    return grouped((label.title, texts(comparison)) for label, comparison in rows)


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
        yield Table("Figures", columns, cells, detail=True, words=("metric", "unit", "compared by"))
        yield Note(
            "Verdicts allow for a whole column (Holm). Intervals are 95 %: Student's t on logarithms of pairs that ran side "
            f"by side, or Welch's t of two samples. same: equivalent within {percent(equivalence)}. Figures are medians of "
            "quality, the largest of memory, else geometric means.",
            detail=True,
        )
    for flag, who in _grouped(rows, lambda c: c.flags):
        yield Note(f"{meaning(flag)} ({who}).", "Limit", detail=True)


def _figures(effect: Effect) -> tuple[str, ...]:
    known, chance = quantity(effect.metric), effect.probability_better
    sure = (
        "-" if chance is None else ">99 %" if chance > 0.99 else "<1 %" if chance < 0.01 else percent(round(chance, 2))
    )
    base, new = (interval(value * known.factor) for value in (effect.baseline_value, effect.value))
    way = "pairs" if effect.paired else "two samples"
    return metric_name(effect.metric, mark=True), base, new, known.unit, sure, way


_STATES = {"fails": "failed", "cannot tell": "undecided", "holds": "passed"}
_GATE: dict[State, str] = {
    "fails": "The gate fails.",
    "holds": "The gate passes.",
    "cannot tell": "The gate cannot decide.",
}
_WHY = {
    "few_repeats": "{repeats} only, it takes 3 of each",
    "chance": "alone it would fail, among {among} that may be chance",
    "limit": "the interval includes the limit",
}
"""Why a condition cannot be told."""


def gate_blocks(
    sides: Sequence[Side],
    matched: Matched,
    outcomes: Sequence[Outcome],
    broken: Sequence[tuple[str, str]],
    missing: Sequence[str],
    equivalence: float,
    store: str | None,
    state: State,
) -> Iterator[Block]:
    """Yield what --fail-if decides: the verdict by the `state` of the gate, then what fails or cannot be told.

    As detail what passes and is compared.
    """
    by_name = labels(sides, matched)
    cells = [(outcome.state, by_name[outcome.name].title, *_outcome(outcome)) for outcome in outcomes]
    cells += [("fails", by_name[name].title, "", plain(printable(why, 300))) for name, why in broken]
    missing_words = "missing in new; accept that with --allow-missing"
    cells += [("fails", by_name[name].title, "", missing_words) for name in missing]
    cells.sort(key=lambda row: [*_STATES].index(row[0]))
    states = [str(row[0]) for row in cells]
    counts = [f"{states.count(state)} {text}" for state, text in _STATES.items() if state in states]
    first = [f"{row[1]}: {row[2] or row[3]}." for row in cells[:1] if state == "fails"]
    checks = [f"Checks: {', '.join(counts)}."] if counts else ["Nothing was compared."]
    yield Sentence(" ".join([_GATE[state], *first, *checks]), "title")
    others = blocks(sides, matched, equivalence, store)
    yield Sentence(getattr(next(others), "text", ""), "answer")
    more = [outcome.more_repeats for outcome in outcomes if outcome.state == "cannot tell" and outcome.more_repeats]
    effects = [effect for comparison in matched.comparisons for effect in comparison.effects]
    yield from (Sentence(line, "answer") for line in _decide(sides, effects, more, store))
    columns = ("gate", "configuration", "new / base", "why")
    for holds, caption in ((False, ""), (True, "Checks that pass")):
        if chosen := tuple((_STATES[row[0]], *row[1:]) for row in cells if (row[0] == "holds") == holds):
            yield Table(caption, columns, chosen, figures=False, detail=holds)
    for block in others:
        named_ = isinstance(block, Commands) or (isinstance(block, Note) and block.label)
        yield block if named_ or isinstance(block, Lines) else replace(block, detail=True)


def _outcome(outcome: Outcome) -> tuple[str, str]:
    """What was checked, and why it cannot be told or is in doubt."""
    metric, limit = outcome.condition.split(" ", 1)
    ratio = "" if outcome.ratio is None else f" {interval(outcome.ratio, outcome.low, outcome.high)}"
    sign = {"fails": "is", "holds": "is not", "cannot tell": "may be"}[outcome.state]
    sign = "is probably" if outcome.reason == "chance" else sign
    more = [f"+{outcome.more_repeats} repeats"] if 0 < (outcome.more_repeats or 0) <= MANY else []
    facts = {"repeats": counted(outcome.repeats or 0, "repeat"), "among": outcome.among}
    reason = _WHY.get(outcome.reason, "").format(**facts) or outcome.reason
    why = "; ".join(filter(None, (reason, *more, *doubt_words(outcome.doubts))))
    return f"{metric_name(metric)}{ratio} {sign} {limit}", plain(why)

"""The answer of `bench advise`: advice in the words of `advice.ini`, for JSON, terminal, report and pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from analytics.interval import Interval
from analytics.judge.advice import Advice, Case, Evidence
from analytics.judge.advise import advise
from analytics.judge.matched import MEASURES, Change, Changes
from analytics.judge.symptoms import too_large
from analytics.runs.selection import TOGETHER
from analytics.say.blocks import Block, Commands, Note, Sentence, Table, command
from analytics.say.names import named, plain, repeat_command, word
from analytics.say.terms import definitions
from analytics.text import interval, number, percent, printable
from bench.record import Status

EVERYWHERE = "this machine, these workloads and batches; steady time, without starting up; intervals of 95 %"
"""Limits of every advice."""


@dataclass(frozen=True)
class Recommendation:
    """An advice in words: what to do and why, and under which limits."""

    advice: Advice
    sentence: str
    limits: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        head = {name: getattr(self.advice, name) for name in ("topic", "action", "saving", "first", "weak")}
        return {**head, "sentence": self.sentence, "limits": self.limits, "evidence": asdict(self.advice.evidence)}


def recommendations(df: pd.DataFrame, store: str | None = None) -> list[Recommendation]:
    """Return at most ten advices from runs of one execution, in words."""
    names = _names(df)
    return [_recommendation(advice, df, names, store) for advice in advise(df)]


def remedy(lost: pd.DataFrame, ok: pd.DataFrame) -> str:
    """Say what to do about the first of some runs that ran out of memory, by those of the same execution that did not."""
    found = too_large(Case(lost, ok, Changes(lost[:0])))
    return next((_recommendation(advice, lost, _names(lost)).sentence for advice in found), "")


def _recommendation(
    advice: Advice, df: pd.DataFrame, names: Mapping[str, str], store: str | None = None
) -> Recommendation:
    text, evidence, ok = definitions("advice"), advice.evidence, int((df["status"] == Status.OK).sum())
    facts = {name: value / 1e9 if name.endswith("_bytes") else value for name, value in advice.facts.items()}
    facts |= vars(evidence) | {"percent": 100 * (evidence.ratio or 0.0), "all": len(df), "ok": ok}
    facts["which"] = listed([names.get(config, config) for config in evidence.configurations], 2)
    facts["repeats"] = f"{evidence.n} repeat{'s' * (evidence.n != 1)}"
    told = evidence.ratio and evidence.n > 1  # with one there is no spread on that side
    facts["spread"] = f"{facts['repeats']} differ by {facts['percent']:.2g} %" if told else "each ran once"
    suites = printable(df["suite"].iloc[0]).split(TOGETHER)
    losses = command("compare", *suites, "--metric", "loss_median", store=store)
    facts["compare"] = losses if len(suites) <= 2 else "loss_median"  # it takes two names at most
    if advice.changes:
        facts |= _change_facts(advice.changes)
    do, colon, why = text["topics"][advice.claim or advice.topic].format_map(facts).partition(": ")
    do = f"Perhaps {do[0].lower()}{do[1:]}" if advice.weak else do
    sentence = f"{do}{f' ({advice.action})' if advice.action else ''}{colon}{why}."
    limits = tuple(text["limits"][limit].format_map(facts) for limit in advice.limits)
    return Recommendation(replace(advice, changes={}), sentence, limits)  # small enough for a cache


def _change_facts(changes: Mapping[Change, Sequence[str]]) -> dict[str, str]:
    """The options in words, the baseline of the first, and what they change."""
    options, first = [option_words(change, change.option) for change in changes], next(iter(changes))
    texts = [" and ".join(amount(change, one) for one in measures) for change, measures in changes.items()]
    each = "; ".join(f"{option} {text}" for option, text in zip(options, texts, strict=True))
    facts = {"option": " and ".join(options), "why": each if len(options) > 1 else texts[0]}
    pairs = zip(options, (option_words(change, change.baseline) for change in changes), strict=True)
    facts |= {"baseline": option_words(first, first.baseline), "open": listed([f"{a} against {b}" for a, b in pairs])}
    return facts | {"refusal": plain(first.refusal(first.quality) or ""), "quality": amount(first, first.quality)}


def amount(change: Change, measure: str) -> str:
    """Say what a change makes of a measure: `24 % (20-28) less time`; ~ is estimated; the range of cells that disagree."""
    noun, mark, verdict = measure.lstrip("~"), "~" * measure.startswith("~"), change.verdict(measure)
    if measure == change.quality:
        after, before = (side[MEASURES[measure][0]].median() for side in change.runs)
        return f"{noun} {before:.3f} -> {after:.3f}" + f" ({verdict})" * (verdict != "cannot tell")
    if ends := sorted(change.range(measure), key=lambda cell: abs(cell[1].value - 1)):
        texts = [f"{mark}{ratio_words(replace(cost, low=None), noun)} ({_place(name)})" for name, cost in ends]
        return " to ".join(texts)
    if verdict == "equivalent":
        return f"about the same {noun}"
    return mark + ratio_words(change.ratio(measure), noun) + " (undecided)" * (verdict == "cannot tell")


def ratio_words(ratio: Interval, noun: str) -> str:
    """Say what a ratio means: `24 % (20-28) less time`, `9.2 (8.9-9.4) times the time`."""
    if ratio.value >= 2:
        return f"{interval(ratio.value, ratio.low, ratio.high)} times the {noun}"
    sign, comparative = (-1, "less") if ratio.value < 1 else (1, "more")
    ends = sorted(sign * (end - 1) for end in (ratio.low, ratio.high) if end is not None)
    return f"{percent(sign * (ratio.value - 1), *(ends if len(ends) == 2 else ()))} {comparative} {noun}"


def option_words(change: Change, option: str) -> str:
    """Put an option into words: `bf16`, `not compiled`, `2 devices`."""
    if change.topic.noun != "{}":
        return option
    name, _, rest = option.partition(" ")
    return " ".join(filter(None, [word(change.topic.columns[0], name), rest.replace("=", " ")]))


def _place(name: str) -> str:
    """Put what tells cells apart into words: `tiny, 2 devices`."""
    pairs = (part.partition("=") for part in name.split())
    return ", ".join(word({"d": "devices"}.get(key, key), value) if value else key for key, _, value in pairs)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names, the first few of many: `a, b, c and 4 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _names(runs: pd.DataFrame) -> dict[str, str]:
    """Configurations in words, by `config_id`."""
    table = runs.drop_duplicates("config_id").reset_index(drop=True)
    words = named(table)
    several = words["work"].nunique() > 1
    texts = (f"{change} ({work})" if several else change for work, change in words.itertuples(index=False, name=None))
    return dict(zip(table["config_id"], texts, strict=True))


def document(df: pd.DataFrame) -> dict[str, Any]:
    """Return the advice for each execution in a frame of runs as JSON."""
    executions = []
    for (suite, execution), runs in df.groupby(["suite", "execution"], sort=False):
        counts = {f"runs_{status}": int((runs["status"] == status).sum()) for status in ("ok", "skipped")}
        advice = [each.to_dict() for each in recommendations(runs)]
        executions.append({"suite": suite, "execution": execution, "runs": len(runs), **counts, "advice": advice})
    return {"limits": EVERYWHERE, "executions": executions}


def blocks(df: pd.DataFrame, store: str | None = None) -> Iterator[Block]:
    """Yield at most ten advices for each execution in a frame of runs, each with its condition; evidence as detail."""
    for (suite, _), runs in df.groupby(["suite", "execution"], sort=False):
        ok, skipped = (runs[runs["status"] == status] for status in (Status.OK, Status.SKIPPED))
        where = " and ".join(sorted({printable(name) for name in (ok if len(ok) else runs)["device_name"].dropna()}))
        ended = f"{len(ok)} of {len(runs)} runs ended well" + f", {len(skipped)} skipped" * (len(skipped) > 0)
        yield Sentence(f"{printable(suite)} on {where}: {ended}", "title")
        found, names = recommendations(runs, store), _names(runs)
        for position, each in enumerate(found, 1):
            limits = "".join(f" {text[0].upper()}{text[1:]}." for text in each.limits)
            yield Sentence(f"{position}. {each.sentence}{limits}", "answer")
        if found:
            rows = tuple((str(n), *_evidence(each.advice.evidence, names)) for n, each in enumerate(found, 1))
            yield Table("Evidence", ("advice", "figure", "runs", "configurations"), rows, figures=False, detail=True)
            settings = next((one for each in found if ": " in (one := each.advice.action)), "")
            words = [word for part in settings.split(", ") if part for word in ("--set", part.replace(": ", "="))]
            again = repeat_command(suite, runs, *words, store=store)
            explain = f"{command('advise', *printable(suite).split(TOGETHER), store=store)} --explain"
            yield Commands((*([again] if words and again.startswith("bench ") else []), explain))
        else:
            yield Sentence("Nothing to advise: nothing stands out.", "answer")
    yield Note(f"{EVERYWHERE}.", "Limits of all advice", detail=True)


def _evidence(evidence: Evidence, names: Mapping[str, str]) -> tuple[str, str, str]:
    """The figure with its interval, or with the smallest and largest of the runs, and which runs they are."""
    text = "" if evidence.ratio is None else f" {number(evidence.ratio)}"
    if evidence.ratio is not None and evidence.measure in MEASURES:
        text = f" × {interval(evidence.ratio, evidence.low, evidence.high)}"
    elif evidence.low is not None and evidence.high is not None and evidence.low < evidence.high:
        text += f" (runs: {number(evidence.low)} to {number(evidence.high)})"
    configurations = [names.get(name, name) for name in evidence.configurations]
    return plain(evidence.measure) + text, str(evidence.runs), "; ".join(configurations)

"""The answer of `bench advise` as JSON and as blocks: what to do, what it gains, and under which condition."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from analytics.judge.advice import EVERYWHERE, Advice, Evidence, listed
from analytics.judge.advise import advise
from analytics.judge.matched import MEASURES
from analytics.judge.stats import LOSS
from analytics.runs.frame import summary
from analytics.say.blocks import Block, Commands, Note, Sentence, Table
from analytics.say.names import named, plain
from analytics.text import interval, number, printable


def document(df: pd.DataFrame) -> dict[str, Any]:
    """Return the advice for each execution in a frame of runs as JSON."""
    executions = []
    for (suite, execution), runs, advice in _advised(df):
        ok, skipped = (int((runs["status"] == status).sum()) for status in ("ok", "skipped"))
        head = {"suite": suite, "execution": execution, "runs": len(runs), "runs_ok": ok, "runs_skipped": skipped}
        executions.append(head | {"advice": [asdict(each) for each in advice]})
    return {"limits": EVERYWHERE, "executions": executions}


def blocks(df: pd.DataFrame) -> Iterator[Block]:
    """Yield at most ten advices for each execution in a frame of runs, each with its condition; evidence as detail."""
    for (suite, _), runs, advice in _advised(df):
        ok, skipped = (int((runs["status"] == status).sum()) for status in ("ok", "skipped"))
        ran = runs[runs["status"] == "ok"] if ok else runs
        where = " and ".join(sorted({printable(name) for name in ran["device_name"].dropna()}))
        ended = f"{ok} of {len(runs)} runs ended well" + (f", {skipped} skipped" if skipped else "")
        yield Sentence(f"{printable(suite)} on {where}: {ended}", "title")
        names = _names(runs)
        for position, each in enumerate(advice, 1):
            yield Sentence(f"{position}. {_sentence(each, ok, names)}{_condition(each)}", "answer")
        if advice:
            rows = tuple((str(n), *_evidence(each.evidence, names)) for n, each in enumerate(advice, 1))
            yield Table("Evidence", ("advice", "figure", "runs", "configurations"), rows, figures=False, folded=True)
            yield Commands((f"bench advise {shlex.quote(printable(suite))} --explain",))
        else:
            yield Sentence("Nothing to advise: nothing stands out.", "answer")
    yield Note(f"{EVERYWHERE}.", "Limits of all advice", detail=True)


def _advised(df: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame, list[Advice]]]:
    for (suite, execution), runs in df.groupby(["suite", "execution"], sort=False):
        yield (str(suite), str(execution)), runs, advise(runs)


def _names(runs: pd.DataFrame) -> dict[str, str]:
    """Configurations in words, by the short names and the labels that advice has for them."""
    table = runs.drop_duplicates("config_id").reset_index(drop=True)
    words = named(table)
    several = words["work"].nunique() > 1
    texts = [f"{change} ({work})" if several else change for work, change in words.itertuples(index=False, name=None)]
    by_config = dict(zip(table["config_id"], texts, strict=True))
    labels = {printable(label, 80): text for label, text in zip(table["label"], texts, strict=True)}
    short = summary(runs)
    return labels | {code: by_config[config] for code, config in zip(short["name"], short["config_id"], strict=True)}


def _sentence(advice: Advice, ok: int, names: Mapping[str, str]) -> str:
    """Say what to do: in own words for what runs tell of themselves, else in those of the advice."""
    evidence, action = advice.evidence, f" ({advice.action})" if advice.action else ""
    figure = evidence.ratio or 0.0
    if advice.topic == "repeats":
        spread = f"{evidence.n} repeats differ by {100 * figure:.2g} %" if figure else "each ran once"
        do = "Measure longer" if "measure" in advice.action else "Repeat more often"
        return f"{do}{action}: {listed(evidence.configurations)} cannot be told yet; {spread}."
    if advice.topic == "steadiness":
        return f"Measure longer{action} on a quiet machine: {evidence.runs} of {ok} runs were unsteady or disturbed."
    if advice.topic == "start-up":
        share = f"{100 * LOSS:.0f} % of trainings shorter than {interval(figure / LOSS)} s"
        return f"Starting up takes {interval(figure)} s, more than {share}."
    if advice.topic == "out of memory":
        which = names.get(evidence.configurations[0], evidence.configurations[0])
        return f"Make it smaller{action}: {which} does not fit into the memory."
    text = advice.sentence
    for code, words in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(code, words) if "=" in code else text
    return plain(text) + (f" Set {advice.action}." if advice.action else "")


def _condition(advice: Advice) -> str:
    text = "; ".join(advice.limits)
    return f" {text[0].upper()}{text[1:]}." if text else ""


def _evidence(evidence: Evidence, names: Mapping[str, str]) -> tuple[str, str, str]:
    """The figure with its interval, or with the smallest and largest of the runs, and which runs they are."""
    figure, low, high = evidence.ratio, evidence.low, evidence.high
    text = "" if figure is None else f" {number(figure)}"
    if figure is not None and evidence.measure in MEASURES:
        text = f" × {interval(figure, low, high)}"
    elif low is not None and high is not None and low < high:
        text += f" (runs: {number(low)} to {number(high)})"
    configurations: Sequence[str] = [names.get(name, name) for name in evidence.configurations]
    return plain(evidence.measure) + text, str(evidence.runs), "; ".join(configurations)

"""The answer of `bench pareto` as JSON and as blocks: what to choose for what, how sure that is, and the front."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analytics.judge.advice import SOUND
from analytics.judge.front import without_probes
from analytics.runs.frame import IDENTITY, measured_commands, of_tables, summary
from analytics.runs.selection import TOGETHER
from analytics.say.blocks import Block, Commands, Note, Sentence, Table, command, unnamed
from analytics.say.names import joined, named, plain, ranged, repeat_command, run_again, spoken
from analytics.say.search import change, unit_of
from analytics.text import interval, number, percent, printable
from bench.record import Status
from bench.schema import COMMAND, program_of

if TYPE_CHECKING:
    from analytics.judge.front import Front
    from analytics.judge.objectives import Objective

BEST = {
    "time": "fastest",
    "energy": "least energy",
    "cost": "cheapest",
    "carbon": "least carbon",
    "memory": "least memory",
    "quality": "best quality",
}
_WEAK = {
    "few_repeats": f"fewer than {SOUND} repeats",
    "grade C": "figures of grade C",
    "noisy_host": "a busy host",
    "not_steady": "an unsteady speed",
}
"""Why no choice is sure."""
_SURE, _CLEAR, _LIKELY = 0.95, 0.5, 0.25
"""From the first probability on a choice is sure, below the second it is none; from the third one of being on the front a
configuration may well be."""


def document(front: Front) -> dict[str, Any]:
    """Return a front as JSON."""
    objectives = {o.name: {"column": o.column, "unit": o.unit} for o in front.objectives}
    doubts = {"weak": front.weak, "apart": front.apart}
    rows = json.loads(front.table.to_json(orient="records", double_precision=15))
    head = {"work": front.work, "per": front.per, "objectives": objectives, "dropped": front.dropped}
    return head | doubts | {"configurations": rows}


def blocks(fronts: Sequence[Front], runs: pd.DataFrame, store: str | None = None) -> Iterator[Block]:
    """Yield the fronts of `runs`: title, what to choose, a table for all with the same objectives, and notes."""
    table, identity = summary(runs), list(IDENTITY)
    words = dict(zip(map(tuple, table[identity].astype(str).to_numpy()), named(table).to_numpy(), strict=True))
    names = [[words[tuple(key)] for key in one.table[identity].astype(str).to_numpy()] for one in fronts]
    works = {id(one): texts[0][0] for one, texts in zip(fronts, names, strict=True)}
    works = works if len({*works.values()}) == len(fronts) else {id(one): spoken(one.work) for one in fronts}
    changes = {id(one): [text for _, text in texts] for one, texts in zip(fronts, names, strict=True)}
    shown = [one for one in fronts if len(one.table) > 1 and one.objectives]
    suites = sorted({str(suite) for one in fronts for suite in one.table["suite"].dropna()})
    if all(len(one.table) == 1 for one in fronts) and any(one.objectives for one in fronts):
        yield from _alone(fronts, suites, runs, store)
        return
    yield Sentence(f"{printable(', '.join(suites), 200)}: {_what(shown)}", "title")
    for one in shown:
        head = f"{works[id(one)]}: " if len(fronts) > 1 else ""
        yield Sentence(head + answer(one, changes[id(one)]), "answer")
    yield Sentence(_surer(shown, suites[0] if len(suites) == 1 else "", runs, store), "answer")
    few = works if len(fronts) > 1 else {}
    groups: dict[tuple[str, ...], list[Front]] = {}
    for one in shown:
        groups.setdefault((one.per, *(o.column for o in one.objectives)), []).append(one)
    for alike in groups.values():
        yield _table(alike, few, changes, alike[0].per if len(groups) > 1 else "")
    yield from notes(fronts, works)
    yield from _probes(runs)
    yield Commands(
        (command("pareto", *(suites[0].split(TOGETHER) if len(suites) == 1 else []), "--explain", store=store),)
    )
    yield from unnamed(store)
    for alike in groups.values():
        yield _table(alike, few, changes, f"All configurations, {alike[0].per}", detail=True)
    yield Note(
        "No other configuration beats one on the Pareto front in everything. The percentage is in how many draws, given "
        "how the repeats scatter, that holds. The knee is the configuration of the front nearest to the best of all.",
        detail=True,
    )


def _probes(runs: pd.DataFrame) -> Iterator[Note]:
    if probes := without_probes(runs[runs["status"] == Status.OK])[1]:
        yield Note(f"{probes} runs that were short probes of a search, which may be better.", "Left out")


def _alone(fronts: Sequence[Front], suites: Sequence[str], runs: pd.DataFrame, store: str | None) -> Iterator[Block]:
    """Say that there is one configuration only, and how there are more to choose from."""
    which = "this is one configuration" if len(fronts) == 1 else "each kind of work has one configuration"
    yield Sentence(f"{printable(', '.join(suites), 200)}: {which}, so there is nothing to choose from", "title")
    if of_tables(runs).all():
        text = "Import rows of other configurations of the same work."
    elif measured_commands(runs) and len(suites) > 1:
        same = runs["workload_args.argv"].map(program_of).nunique() == 1
        chosen = suites if same else ["NAME", "NAME"]
        text = f"Name those that do the same work: {command('pareto', *chosen, store=store)}"
    elif measured_commands(runs):
        how = "Measure it on two devices or with other arguments, under another NAME"
        text = f"{how}. Then: {command('pareto', *suites, 'NAME', store=store)}"
    elif len(suites) > 1 or runs["workload"].eq(COMMAND).any():
        text = "Give a field of the suite several values, such as devices: [1, 2]."
    else:
        text = f"For another one: {repeat_command(suites[0], runs, '--set', 'precision=[fp32, bf16]', store=store)}"
    yield Sentence(text, "answer")
    yield from _probes(runs)


def _surer(fronts: Sequence[Front], suite: str, runs: pd.DataFrame, store: str | None) -> str:
    """Say what to do next: how to make the choice surer where it is not."""
    if not fronts:
        return "There is nothing to choose from."
    chances = [one.table[f"p_best_{o.name}"].max() for one in fronts for o in one.objectives]
    if any(math.isnan(chance) for chance in chances):
        more = run_again(suite, runs, 2, "--set", "repeats=3", store=store)
        return f"How sure that is cannot be said without repeats: {more}"
    if all(chance > _SURE for chance in chances) and not any(one.weak for one in fronts):
        return "The choice is sure: it holds in more than 95 % of draws."
    head = "To decide" if min(chances) < _CLEAR else "To be surer"
    return f"{head}: {run_again(suite, runs, None, '--publish', store=store)}"


def _what(fronts: Sequence[Front]) -> str:
    objectives = ", ".join(dict.fromkeys(o.name for one in fronts for o in one.objectives))
    repeats = [int(n) for one in fronts for n in one.table["repeats"]]
    ends = "-".join(str(n) for n in dict.fromkeys([min(repeats), max(repeats)])) if repeats else ""
    per = " or ".join(dict.fromkeys(one.per for one in fronts))
    return f"{objectives} {per}; 95 %, {ends} run{'s' * (ends != '1')} each" if repeats else "no objective to choose by"


def answer(one: Front, names: Sequence[str]) -> str:
    """Say which configuration is best in what, how sure that is, and which stands in between; `names` are by row.

    What is best in less than half of the draws is no choice: then the two that are best most often are named.
    """
    names, titles, unclear = (
        [name.replace(", ", " + ") for name in names],
        dict[int, list[str]](),
        dict[str, list[str]](),
    )
    for objective, index in bests(one):
        chances = one.table[f"p_best_{objective.name}"]
        if not math.isnan(chances.iloc[index]) and chances.max() < _CLEAR:
            close = " or ".join([names[int(place)] for place in chances.sort_values(ascending=False).index[:2]])
            unclear.setdefault(close, []).append(objective.name)
            continue
        chance = _chance(chances.iloc[index])
        titles.setdefault(index, []).append(
            objective.name + f" ({chance} {'of draws' if one.weak else 'sure'})" * bool(chance)
        )
    if len(titles) > 1 or (titles and unclear):
        titles.setdefault(int(one.table.index[one.table["knee"]][0]), []).append("balance (the knee)")
    parts = [f"{names[index]} for {joined(words)}" for index, words in titles.items()]
    out = [f"Take {'; '.join(parts)}."] if parts else []
    return " ".join([*out, *(f"No clear choice for {joined(o)} yet: {close}." for close, o in unclear.items())])


def bests(one: Front) -> Iterator[tuple[Objective, int]]:
    """Yield each objective with the row of the table that is best in it."""
    for objective in one.objectives:
        values = one.table[objective.name].to_numpy(dtype=float)
        yield objective, int(values.argmin() if objective.rising else values.argmax())


def _units(fronts: Sequence[Front], place: int) -> tuple[float, str]:
    """The divisor and the unit of a column that suit its largest figure."""
    name = fronts[0].objectives[place].name
    return unit_of(name, max(float(one.table[name].max()) for one in fronts))


def _table(
    fronts: Sequence[Front],
    works: Mapping[int, str],
    changes: Mapping[int, list[str]],
    caption: str,
    *,
    detail: bool = False,
) -> Table:
    """Configurations of the front, and those that may well be on it; as detail all, with the chance to be the best."""
    objectives = fronts[0].objectives
    units = [_units(fronts, place) for place in range(len(objectives))]
    heads = [
        ", ".join(filter(None, (_title(o) + "~" * any(o.name in one.estimated for one in fronts), unit)))
        for o, (_, unit) in zip(objectives, units, strict=True)
    ]
    rows = []
    for one in fronts:
        likely = one.table["front"] | (one.table["p_front"] >= _LIKELY) | detail
        for place, (_, row) in enumerate(one.table[likely].iterrows()):
            ends = (
                (row[o.name + end] / size for end in ("", "_low", "_high"))
                for o, (size, _) in zip(one.objectives, units, strict=True)
            )
            share = _chance(row["p_front"]) or ("yes" if row["front"] else "no")
            best = [_chance(row[f"p_best_{o.name}"]) or "-" for o in one.objectives] if detail else []
            work = [works[id(one)] * (place == 0)] if works else []
            change = changes[id(one)][int(str(row.name))]
            rows.append(
                (*work, change, *(interval(*figure) for figure in ends), share + " knee" * bool(row["knee"]), *best)
            )
    words = ("configuration", "on the front")
    columns = (*(["model"] if works else []), words[0], *heads, words[1], *(BEST[o.name] for o in objectives if detail))
    return Table(caption, columns, tuple(rows), detail=detail, words=words)


def _title(objective: Objective) -> str:
    return objective.unit if objective.name == "quality" else objective.name


def _chance(share: float) -> str:
    return "" if math.isnan(share) else percent(round(share, 2))


def notes(fronts: Sequence[Front], works: Mapping[int, str]) -> Iterator[Note]:
    """Say what is estimated, what ran once, and what is left out; `works` names the kind of work of a front by its id."""
    count = sum(len(one.table) for one in fronts)
    if count > (once := sum(int((one.table["repeats"] < 2).sum()) for one in fronts)) > 0:
        yield Note(f"{once} of {count} configurations ran once, so their spread is unknown.")
    if estimated := dict.fromkeys(name for one in fronts for name in one.estimated):
        yield Note(f"~ {' and '.join(estimated)}: estimated, not measured.")
    for note in dict.fromkeys(note for one in fronts for note in one.notes):
        yield Note(f"{note}.", "Careful")
    chosen = [one for one in fronts if len(one.table) > 1]
    if doubts := [text for code, text in _WEAK.items() if any(code in one.weak for one in chosen)]:
        yield Note(f"No choice is sure: {joined(doubts)}.", "Careful")
    if any(one.apart for one in chosen):
        yield Note(
            "The configurations did not run side by side, so other changes between them count as well.", "Careful"
        )
    reasons: dict[str, list[str]] = {}
    for one in fronts:
        for name, reason in one.dropped.items():
            reasons.setdefault(name, []).append(reason)
    for name, texts in reasons.items():
        for reason in ranged(texts):
            yield Note(f"{name}: {plain(reason)}.", "Left out")
    alone = [works[id(one)] for one in fronts if len(one.table) == 1]
    if 0 < len(alone) < len(fronts):
        yield Note(f"{printable(', '.join(alone), 300)}.", "Nothing to choose, with one configuration")


def against(one: Front, index: int) -> Iterator[str]:
    """Say what a configuration, by its index in the table, takes more or less than the knee and the best of each objective.

    "Not told apart" are figures whose 95 % intervals hold no difference: half-widths on logarithms add in quadrature.
    """
    here = one.table.iloc[index]
    others: dict[int, list[str]] = {int(i): ["the knee"] for i in one.table.index[one.table["knee"]]}
    for objective, best in bests(one):
        others.setdefault(best, []).append(BEST[objective.name])
    for other, titles in others.items():
        if other == index and len(one.table) > 1:
            yield f"This is {', '.join(titles)} of all {len(one.table)}."
    for other, titles in others.items():
        if other != index:
            row = one.table.iloc[other]
            told = ", ".join(_difference(objective, here, row) for objective in (*one.objectives, *one.others))
            yield f"Compared with {spoken(row['name'])} ({', '.join(titles)}): {told}."


def _difference(objective: Objective, here: pd.Series, other: pd.Series) -> str:
    name = _title(objective)
    new, old = float(here[objective.name]), float(other[objective.name])
    if new == old:
        return f"the same {name}"
    if min(new, old) <= 0:
        return f"{name} {number(new)} instead of {number(old)}"
    ends = [(float(row[f"{objective.name}_low"]), float(row[f"{objective.name}_high"])) for row in (here, other)]
    half = math.hypot(*(math.log(high / low) / 2 for low, high in ends))  # not a number where one ran once
    return change(name, new / old) + (" (not told apart)" if abs(math.log(new / old)) <= half else "")

"""What matched configurations say: which option to use, what it costs in quality, at how many devices to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from analytics import stats
from analytics.advice import Advice, Case, amount, change_evidence, digits, flagged, thin
from analytics.comparable import unequal_training
from analytics.matched import MEASURES, UNKNOWN, Change, apart
from analytics.stats import LOSS, SAME, Estimate

_MORE = {
    **dict.fromkeys(("memory", "accumulation", "optimizer", "attention"), ("memory",)),
    **dict.fromkeys(("quantization", "pruning"), ("size",)),
}
"""Topics in which memory, or the size of the served model, is a reason of its own."""
_DOES = {"time": "the same work takes", "time in use": "the model in use takes"}
_FREE = f"it takes no visible time ({100 * LOSS:.0f} % at most) and"
_WORDS = {"time in use": "time", "size": "space on disk"}
_DEARER = {"distillation": "distillation has its price", "compile": "compiling does not pay"}
_LOOKS = "It looks as if "


FALSE_ALARMS = 0.05
"""Share of executions in which chance may be taken for a gain."""


def told(changes: Sequence[Change]) -> frozenset[tuple[Change, str]]:
    """Return the changes and measures that differ: the interval of each says so, and so do all tests taken together.

    Many comparisons are made of one execution, so that some differ by chance: Holm's procedure over all of them, with the
    noise of all configurations (`stats.p_value`), leaves one false claim in 5 % of executions at most.
    """
    tests = []
    sides: dict[str, dict[tuple[int, ...], pd.Series]] = {}
    for change in changes:
        more = () if change.topic.name == "devices" else ("energy", *_MORE.get(change.topic.name, ()))
        for measure in (change.main, *more):
            if pairs := change.pairs(measure):
                tests.append((change, measure, pairs))
                sides.setdefault(MEASURES[measure][0][0], {}).update({tuple(s.index): s for p in pairs for s in p})
    noise = {column: stats.pooled(known.values()) for column, known in sides.items()}
    values = [stats.p_value(pairs, noise[MEASURES[m][0][0]], change.times(m)) for change, m, pairs in tests]
    found = zip(tests, stats.holm(values), strict=True)
    return frozenset((change, m) for (change, m, _), p in found if p <= FALSE_ALARMS and apart(change.ratio(m)))


def options(case: Case) -> Iterator[Advice]:
    """For each topic: the option that gains most, or what to stay with because all else costs."""
    for topic in dict.fromkeys(change.topic.name for change in case.changes if change.topic.name != "devices"):
        here = [change for change in case.changes if change.topic.name == topic]
        gains = [(kind, change) for change in here if (kind := _gain(case, change))]
        worse = [change for change in here if differs(case, change, change.main) > 1 + SAME]
        if gains:
            yield _use(*min(gains, key=lambda one: (one[0] not in _DOES, one[1].ratio(one[0]).value)), worse)
        elif worse:
            yield _stay(worse, decided=not any(undecided(case, change) for change in here))


def differs(case: Case, change: Change, measure: str) -> float:
    """Return the ratio of a measure where it is told to differ from 1; else 1."""
    return change.ratio(measure).value if (change, measure) in case.told else 1.0


def undecided(case: Case, change: Change) -> bool:
    """Whether a change may be larger than LOSS, but the repeats do not tell."""
    ratio = change.ratio(change.main)
    if not ratio.n or (change, change.main) in case.told:
        return False
    return ratio.low is None or ratio.high is None or not 1 - LOSS <= ratio.low <= ratio.high <= 1 + LOSS


def _gain(case: Case, change: Change) -> str:
    """The measure in which a change gains, or nothing: time, else energy, memory or size that take no visible time."""
    if (change.runs[0]["target_reached"] == 0).any():
        return ""
    if differs(case, change, change.main) < 1 - SAME:
        return change.main
    highs = [change.ratio(measure).high for measure in {"time", change.main}]
    free = all(high is not None and high <= 1 + LOSS for high in highs)
    kinds = [kind for kind in ("energy", "memory", "size") if differs(case, change, kind) < 1 - LOSS]
    return kinds[0] if free and kinds else ""


def _use(kind: str, change: Change, worse: Sequence[Change]) -> Advice:
    """Advise the option that gains `kind`; warn of the one that costs most of all."""
    ratio = change.ratio(kind)
    judged, limits = quality(change, "served loss" if change.main == "time in use" else "validation loss")
    weak = _thin(change)
    said = f"{'Consider' if 'price' in judged else 'Use'} {change.title} instead of {change.baseline}"
    said = f"{_LOOKS}{change.title} gains over {change.baseline}" if weak else said
    said += f": {_DOES.get(kind, _FREE)} "
    said += amount(ratio, _WORDS.get(kind, kind)) + (_energy(change, " and ") if kind == "time" else "")
    size = change.ratio("size")
    said += f", with {amount(size, 'space on disk')}" if kind != "size" and apart(size) else ""
    said += "." + (_pays(change) if change.topic.name == "compile" else "") + judged
    if worse and not weak:
        worst = max(worse, key=lambda other: other.ratio(other.main).value)
        said += f" Not {worst.option}: {amount(worst.ratio(worst.main), worst.main)}."
    return _advice(change, kind, said, change.action, 1 - ratio.value if kind in _DOES else None, limits)


def _thin(change: Change) -> str:
    """Why a change is no ground to act on, or nothing."""
    return thin(pd.concat(change.runs), change.ratio(change.main).n)


def _advice(
    change: Change,
    measure: str,
    said: str,
    action: str = "",
    saving: float | None = None,
    limits: tuple[str, ...] = (),
) -> Advice:
    """Make an advice of a change; one on thin evidence has neither action nor saving."""
    weak, limits = _thin(change), (*limits, *_conditions(change, measure, said))
    evidence = change_evidence(change, measure)
    if weak:
        return Advice(change.topic.name, said, evidence, limits=(weak, *limits), weak=True)
    return Advice(change.topic.name, said, evidence, action, saving, limits)


def _stay(worse: Sequence[Change], *, decided: bool) -> Advice:
    """Advise against what costs time; what it gives instead stands beside it."""
    first, parts = worse[0], []
    kind = "size" if first.main == "time in use" else "memory"
    for change in worse[:3]:
        less, loss = change.ratio(kind), _paired(change, "validation loss")
        gives = [amount(less, _WORDS.get(kind, kind))] if apart(less) and less.value < 1 - LOSS else []
        if kind == "memory" and apart(loss) and loss.value < 1 and not _unequal(change):
            gives.append(f"a lower validation loss ({_losses(change, 'validation loss')})")
        takes = f"take{'' if change.option[0].isdigit() else 's'} {amount(change.ratio(change.main), change.main)}"
        parts.append(f"{change.option} {takes}" + (f", for {' and '.join(gives)}" if gives else ""))
    said = f"{_opening(first, less='less memory' in ''.join(parts), decided=decided)}: {'; '.join(parts)}."
    judged, limits = quality(first, "validation loss")
    said += judged if first.topic.name == "distillation" else ""
    return _advice(first, first.main, said, limits=limits)


def _opening(change: Change, *, less: bool, decided: bool) -> str:
    """Say to stay with a baseline, unless `less` memory is a reason; or how it looks, on thin evidence."""
    stay = f"{change.topic.name} {change.baseline}" if change.topic.noun == "{}" else change.baseline
    weak, dearer = _thin(change), _DEARER.get(change.topic.name)
    if dearer:
        return _LOOKS + dearer if weak else dearer.capitalize()
    if not decided:
        return f"Compared with {stay}" + (", as it looks" if weak else "")
    if weak:
        return f"{_LOOKS}{stay} is the better choice" + (", unless memory is short" if less else "")
    return f"{'Unless memory is short, stay' if less else 'Stay'} with {stay}"


def _energy(change: Change, before: str) -> str:
    """The energy beside the time: measured if known, else that of a model (~), and only if the repeats tell it."""
    mark = "" if change.pairs("energy") else "~"
    ratio = change.ratio(f"{mark}energy")
    return f"{before}{amount(ratio, 'energy', mark)}" if apart(ratio) else ""


def _pays(change: Change) -> str:
    """After how many steps the gain has paid for compiling; nothing where compiling was not timed."""
    option, baseline = change.runs
    ratio, cost, step = (
        change.ratio("time"),
        option["compile_seconds"].median(),
        baseline["step_seconds_median"].median(),
    )
    if ratio.low is None or ratio.high is None or not cost > 0 or ratio.high >= 1:
        return ""
    steps = [f"{cost / (step * (1 - value)):,.0f}" for value in (ratio.value, ratio.low, ratio.high)]
    return f" It pays after {steps[0]} steps ({steps[1]} to {steps[2]}): compiling takes {digits(cost, 3)} s once."


def _losses(change: Change, measure: str) -> str:
    after, before = (side[MEASURES[measure][0][0]].median() for side in change.runs)
    return f"{before:.3f} -> {after:.3f}"


def _paired(change: Change, measure: str) -> Estimate:
    """The ratio of a loss over repeats of both sides with the same number, and so the same seed, weights and samples."""
    found: list[float] = []
    for sides in change.cells:
        after, before = (runs.drop_duplicates("repeat").set_index("repeat") for runs in sides)
        column = MEASURES[measure][0][0]
        found += list((after[column] / before[column]).dropna()) if column in after and column in before else []
    return stats.geometric_mean(found) if found and min(found) > 0 else UNKNOWN


def _unequal(change: Change) -> bool:
    """Whether the two sides were trained on other data, or on more samples, so that their quality says nothing."""
    return any(
        unequal_training(*cell) is not None or len({frozenset(runs["dataset_digest"].dropna()) for runs in cell}) > 1
        for cell in change.cells
    )


def quality(change: Change, measure: str) -> tuple[str, tuple[str, ...]]:
    """Return what is to be said of quality: the price or that there is none, and what limits that."""
    ratio = _paired(change, measure)
    if not ratio.n:
        return "", ("quality was not looked at: set validation.samples",)
    if _unequal(change):
        return "", ("quality is not compared, after training on other data or numbers of samples (set measure_steps)",)
    losses = f"{measure} {_losses(change, measure)}"
    if ratio.low is None or ratio.high is None or (ratio.low <= 1 and ratio.high > 1 + SAME):
        return "", (f"whether quality changes cannot be told from {ratio.n} repeats: {losses}",)
    verdict = "Its price" if ratio.low > 1 else "Quality gains" if ratio.high < 1 else "No loss of quality shows"
    return f" {verdict}: {losses}.", ()


def _conditions(change: Change, measure: str, said: str) -> Iterator[str]:
    """Limits that follow from the runs themselves, and from what was said."""
    if len(change.cells) > 1:
        each = [stats.ratio([pair]).value * change.times(measure) for pair in change.pairs(measure)]
        known = sorted(zip(each, (name for name, _ in change.names), strict=True))
        yield f"a mean: from × {known[0][0]:.3g} ({known[0][1]}) to × {known[-1][0]:.3g} ({known[-1][1]})"
    runs = pd.concat(change.runs)
    if not _thin(change) and flagged(runs, "noisy_host", "not_steady").any():
        yield "some of the runs were unsteady"
    if change.topic.name in ("batch", "devices") and runs["global_batch_size"].nunique() > len(change.cells):
        yield "a larger batch makes fewer updates from the same samples: look at the loss too"
    if "~" in said:
        yield "~ is energy by a model, not measured"


def devices(case: Case) -> Iterator[Advice]:
    """Up to how many devices to go: the last step that brings more than it costs, and the first that does not."""
    chain: dict[int, Change] = {}
    for change in case.changes:
        if change.topic.name == "devices" and change.pairs("time"):
            count = int(change.runs[0]["devices"].iloc[0])
            best = chain.get(count, change)  # of several kinds of parallelism the fastest
            chain[count] = min(best, change, key=lambda one: (-len(one.cells), one.ratio("time").value))
    worth: Change | None = None
    for _, change in sorted(chain.items()):
        if differs(case, change, "knee") >= 1:
            if (change, "knee") in case.told:
                yield _count(change, stop=True)
            break
        worth = change
    if worth is not None:
        yield _count(worth, stop=False)


def _count(change: Change, *, stop: bool) -> Advice:
    """Advise to use a number of devices, or to stop before it."""
    time, hours = change.ratio("time"), change.ratio("device-hours")
    paid = amount(hours, "device-hours") if apart(hours) else "about as many device-hours"
    paid += _energy(change, ", ")
    if stop:
        gain = f"take {amount(time, 'time')}" if apart(time) else "are not visibly faster"
        said = f"Stop at {change.baseline}: {change.option} {gain}, but {paid}: they cost more than they bring."
        if _thin(change):
            said = f"{_LOOKS}{change.option} cost more than they bring: they {gain}, but {paid}."
        return _advice(change, "time", said, f"devices: {change.baseline.split()[0]}", 1 - 1 / hours.value)
    opening = f"{_LOOKS}{change.option} pay" if _thin(change) else f"Use {change.option}"
    said = f"{opening} if time counts: against {change.baseline} the same work takes {amount(time, 'time')} and {paid}."
    return _advice(change, "time", said, change.action, 1 - time.value)

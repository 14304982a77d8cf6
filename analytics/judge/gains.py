"""What matched configurations say: which option to use, what it costs in quality, at how many devices to stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from analytics.judge.advice import Advice, Case, amount, change_evidence, digits, thin
from analytics.judge.compare import Effect
from analytics.judge.matched import MEASURES, Change, flagged
from analytics.judge.stats import LOSS, SAME

_DOES = {"time": "the same work takes", "time in use": "the model in use takes"}
_FREE = f"it takes no visible time ({100 * LOSS:.0f} % at most) and"
_DEARER = {"distillation": "distillation has its price", "compile": "compiling does not pay"}
_LOOKS = "It looks as if "
_MORE = {
    **dict.fromkeys(("memory", "accumulation", "optimizer", "attention"), ("memory",)),
    **dict.fromkeys(("quantization", "pruning"), ("size",)),
}
"""Topics in which memory, or the size of the served model, is a reason of its own."""


def options(case: Case) -> Iterator[Advice]:
    """For each topic: the option that gains most, or what to stay with because all else costs."""
    for topic in dict.fromkeys(change.topic.name for change in case.changes if change.topic.name != "devices"):
        here = [change for change in case.changes if change.topic.name == topic]
        gains = [(kind, change) for change in here if (kind := _gain(change))]
        worse = [change for change in here if differs(change, change.main) > 1 + SAME]
        if gains:
            yield _use(*min(gains, key=lambda one: (one[0] not in _DOES, one[1].ratio(one[0]).value)), worse)
        elif worse:
            yield _stay(worse, decided=not any(map(undecided, here)))
        elif mixed := next((change for change in here if change.mixed(change.main)), None):
            text = f"Whether {mixed.title} pays depends on the configuration: against {mixed.baseline} "
            yield _advice(mixed, mixed.main, f"{text}{_DOES[mixed.main]} {amount(mixed, mixed.main)}.")


def differs(change: Change, measure: str) -> float:
    """Return the ratio of a measure where the verdict is that it differs; else 1."""
    return change.ratio(measure).value if change.verdict(measure) in ("better", "worse") else 1.0


def undecided(change: Change) -> bool:
    """Whether a change may be larger than LOSS, but the repeats do not tell."""
    ratio = change.ratio(change.main)
    if not ratio.n or change.verdict(change.main) != "cannot tell" or change.mixed(change.main):
        return False
    return ratio.low is None or ratio.high is None or not 1 - LOSS <= ratio.low <= ratio.high <= 1 + LOSS


def _gain(change: Change) -> str:
    """The measure in which a change gains, or nothing: time, else energy, memory or size that take no visible time."""
    if (change.runs[0]["target_reached"] == 0).any():
        return ""
    if differs(change, change.main) < 1 - SAME:
        return change.main
    highs = [change.ratio(measure).high for measure in {"time", change.main}]
    free = all(high is not None and high <= 1 + LOSS for high in highs)
    reasons = ("energy", *_MORE.get(change.topic.name, ()))
    return next((kind for kind in reasons if free and differs(change, kind) < 1 - LOSS), "")


def _use(kind: str, change: Change, worse: Sequence[Change]) -> Advice:
    """Advise the option that gains `kind`; warn of the one that costs most of all."""
    judged, limits = quality(change, "served loss" if change.main == "time in use" else "validation loss")
    weak = _thin(change)
    text = f"{'Consider' if 'price' in judged else 'Use'} {change.title} instead of {change.baseline}"
    text = f"{_LOOKS}{change.title} gains over {change.baseline}" if weak else text
    text += f": {_DOES.get(kind, _FREE)} {amount(change, kind)}"
    text += _energy(change, " and ") if kind == "time" else ""
    text += f", with {amount(change, 'size')}" if kind != "size" and differs(change, "size") != 1 else ""
    text += "." + (_pays(change) if change.topic.name == "compile" else "") + judged
    if worse and not weak:
        worst = max(worse, key=lambda other: other.ratio(other.main).value)
        text += f" Not {worst.option}: {amount(worst, worst.main)}."
    saving = 1 - change.ratio(kind).value if kind in _DOES else None
    return _advice(change, kind, text, change.action, saving, limits)


def _thin(change: Change) -> str:
    """Why a change is no ground to act on, or nothing."""
    return thin(pd.concat(change.runs), change.ratio(change.main).n)


def _advice(
    change: Change,
    measure: str,
    text: str,
    action: str = "",
    saving: float | None = None,
    limits: tuple[str, ...] = (),
) -> Advice:
    """Make an advice of a change; one on thin evidence has neither action nor saving."""
    weak, limits = _thin(change), (*limits, *_conditions(change, text))
    evidence = change_evidence(change, measure)
    if weak:
        return Advice(change.topic.name, text, evidence, limits=(weak, *limits), weak=True)
    return Advice(change.topic.name, text, evidence, action, saving, limits)


def _stay(worse: Sequence[Change], *, decided: bool) -> Advice:
    """Advise against what costs time; what it gives instead stands beside it."""
    first, parts = worse[0], []
    kind = "size" if first.main == "time in use" else "memory"
    for change in worse[:3]:
        gives = [amount(change, kind)] if differs(change, kind) < 1 - LOSS else []
        if kind == "memory" and change.verdict("validation loss") == "better":
            gives.append(f"a lower validation loss ({_losses(change, 'validation loss')})")
        takes = f"take{'' if change.option[0].isdigit() else 's'} {amount(change, change.main)}"
        parts.append(f"{change.option} {takes}" + (f", for {' and '.join(gives)}" if gives else ""))
    text = f"{_opening(first, less='less memory' in ''.join(parts), decided=decided)}: {'; '.join(parts)}."
    judged, limits = quality(first, "validation loss")
    text += judged if first.topic.name == "distillation" else ""
    return _advice(first, first.main, text, limits=limits)


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
    kind = "energy" if change.found("energy") else "~energy"
    return f"{before}{amount(change, kind)}" if change.verdict(kind) in ("better", "worse") else ""


def _pays(change: Change) -> str:
    """After how many steps the gain has paid for compiling; nothing where compiling was not timed."""
    option, baseline = change.runs
    ratio, cost = change.ratio("time"), option["compile_seconds"].median()
    step = baseline["step_seconds_median"].median()
    if ratio.low is None or ratio.high is None or not cost > 0 or ratio.high >= 1 or change.range("time"):
        return ""
    steps = [f"{cost / (step * (1 - value)):,.0f}" for value in (ratio.value, ratio.low, ratio.high)]
    return f" It pays after {steps[0]} steps ({steps[1]} to {steps[2]}): compiling takes {digits(cost, 3)} s once."


def _losses(change: Change, measure: str) -> str:
    after, before = (side[MEASURES[measure][0]].median() for side in change.runs)
    return f"{before:.3f} -> {after:.3f}"


def quality(change: Change, measure: str) -> tuple[str, tuple[str, ...]]:
    """Return what is to be said of quality: the price or that there is none, and what limits that."""
    metric = change.metric(measure)
    if metric is None:
        return "", ("quality was not looked at: set validation.samples",)
    reasons = [why for pair in change.pairs if not isinstance(why := change.among.judge.effect(*pair, metric), Effect)]
    if reasons:
        return "", (f"quality is not compared: {reasons[0]}",)
    losses = f"{measure} {_losses(change, measure)}"
    heads = {"worse": "Its price", "better": "Quality gains", "equivalent": "No loss of quality shows"}
    if (verdict := change.verdict(measure)) in heads:
        return f" {heads[verdict]}: {losses}.", ()
    return "", (f"whether quality changes cannot be told from {change.ratio(measure).n} repeats: {losses}",)


def _conditions(change: Change, text: str) -> Iterator[str]:
    """Limits that follow from the runs themselves, and from the text of the advice."""
    runs = pd.concat(change.runs)
    if not _thin(change) and flagged(runs, "noisy_host", "not_steady").any():
        yield "some of the runs were unsteady"
    if change.topic.name in ("batch", "devices") and runs["global_batch_size"].nunique() > len(change.cells):
        yield "a larger batch makes fewer updates from the same samples: look at the loss too"
    if "~" in text:
        yield "~ is energy by a model, not measured"


def devices(case: Case) -> Iterator[Advice]:
    """Up to how many devices to go: the last step that brings more than it costs, and the first that does not."""
    chain: dict[int, Change] = {}
    for change in case.changes:
        if change.topic.name == "devices" and change.found("time"):
            count = int(change.runs[0]["devices"].iloc[0])
            best = chain.get(count, change)  # of several kinds of parallelism the fastest
            chain[count] = min(best, change, key=lambda one: (-len(one.cells), one.ratio("time").value))
    worth: Change | None = None
    for _, change in sorted(chain.items()):
        if change.verdict("knee") != "better":
            if change.verdict("knee") == "worse":
                yield _count(change, stop=True)
            break
        worth = change
    if worth is not None:
        yield _count(worth, stop=False)


def _count(change: Change, *, stop: bool) -> Advice:
    """Advise to use a number of devices, or to stop before it."""
    hours = "device-hours"
    paid = amount(change, hours) if differs(change, hours) != 1 else "about as many device-hours"
    paid += _energy(change, ", ")
    if stop:
        gain = f"take {amount(change, 'time')}" if differs(change, "time") != 1 else "are not visibly faster"
        text = f"Stop at {change.baseline}: {change.option} {gain}, but {paid}: they cost more than they bring."
        if _thin(change):
            text = f"{_LOOKS}{change.option} cost more than they bring: they {gain}, but {paid}."
        action, saving = f"devices: {change.baseline.split()[0]}", 1 - 1 / change.ratio(hours).value
        return _advice(change, "time", text, action, saving)
    opening = f"{_LOOKS}{change.option} pay" if _thin(change) else f"Use {change.option}"
    time = amount(change, "time")
    text = f"{opening} if time counts: against {change.baseline} the same work takes {time} and {paid}."
    return _advice(change, "time", text, change.action, 1 - change.ratio("time").value)

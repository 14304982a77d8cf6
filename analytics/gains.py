"""What matched configurations say: which option to use, what it costs in quality, at how many devices to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from analytics import stats
from analytics.advice import Advice, Case, amount, change_evidence
from analytics.matched import MEASURES, Change, apart
from analytics.stats import LOSS, SAME, Estimate

_MORE = {
    **dict.fromkeys(("memory", "accumulation", "optimizer", "attention"), ("memory",)),
    **dict.fromkeys(("quantization", "pruning"), ("size",)),
}
"""Topics in which memory, or the size of the served model, is a reason of its own."""
_COLUMN = {"knee": "time"}
_WORDS = {"time in use": "time", "size": "space on disk"}


def told(changes: Sequence[Change]) -> frozenset[tuple[Change, str]]:
    """Return the changes and measures that differ: the interval of each says so, and so do all tests taken together.

    Many comparisons are made of one execution, so that some differ by chance: Holm's procedure over all of them, with the
    noise of all configurations (`stats.p_value`), leaves one false claim in 5 % of executions at most.
    """
    tests = [
        (change, measure, pairs)
        for change in changes
        for measure in _tested(change)
        if (pairs := _pairs(change, measure))
    ]
    sides: dict[str, dict[tuple[int, ...], pd.Series]] = {}
    for _, measure, pairs in tests:
        for side in (side for pair in pairs for side in pair):
            sides.setdefault(_COLUMN.get(measure, measure), {})[tuple(side.index)] = side
    noise = {measure: stats.pooled(known.values()) for measure, known in sides.items()}
    values = [
        stats.p_value(pairs, noise[_COLUMN.get(measure, measure)], math.sqrt(change.grew) if measure == "knee" else 1.0)
        for change, measure, pairs in tests
    ]
    found = zip(tests, stats.holm(values), strict=True)
    return frozenset((c, m) for (c, m, _), yes in found if yes and apart(knee(c) if m == "knee" else c.ratio(m)))


def _tested(change: Change) -> list[str]:
    """Name the measures in which a change could be said to gain."""
    if change.topic.name == "devices":
        return ["knee"]
    return [change.main, "energy", *_MORE.get(change.topic.name, ())]


def _pairs(change: Change, measure: str) -> list[tuple[pd.Series, pd.Series]]:
    return change.pairs(_COLUMN.get(measure, measure))


def knee(change: Change) -> Estimate | None:
    """Time × sqrt(factor of devices): above 1 more devices cost more than they bring.

    Device-hours then grow by a larger factor than time falls: beyond the knee of the execution time and efficiency
    profile, where time × cost is least (Eager, Zahorjan, Lazowska, IEEE Trans. Computers 38, 1989).
    """
    return _times(change.ratio("time"), math.sqrt(change.grew))


def _times(ratio: Estimate | None, factor: float) -> Estimate | None:
    if ratio is None or ratio.low is None or ratio.high is None:
        return None
    return Estimate(ratio.value * factor, ratio.low * factor, ratio.high * factor, ratio.n)


def options(case: Case) -> Iterator[Advice]:
    """For each topic: the option that gains most, or what to stay with because all else costs."""
    for topic in dict.fromkeys(change.topic.name for change in case.changes if change.topic.name != "devices"):
        here = [change for change in case.changes if change.topic.name == topic]
        gains = [(kind, change) for change in here if (kind := _gain(case, change))]
        worse = [change for change in here if _differs(case, change, change.main) > 1 + SAME]
        if gains:
            kind, best = min(gains, key=lambda one: (not one[0].startswith("time"), _value(one[1], one[0])))
            yield _use(kind, best, worse)
            continue
        if worse:
            yield _stay(worse)


def _differs(case: Case, change: Change, measure: str) -> float:
    """The ratio of a measure where it is told to differ from 1; else 1."""
    return _value(change, measure) if (change, measure) in case.told else 1.0


def _value(change: Change, measure: str) -> float:
    found = change.ratio(measure)
    return 1.0 if found is None else found.value


def _gain(case: Case, change: Change) -> str:
    """The measure in which a change gains, or nothing: time, else energy, memory or size that take no visible time."""
    if _missed(change):
        return ""
    if _differs(case, change, change.main) < 1 - SAME:
        return change.main
    times = [change.ratio(measure) for measure in {"time", change.main}]
    if any(time is None or time.high is None or time.high > 1 + LOSS for time in times):
        return ""
    kinds = [kind for kind in ("energy", "memory", "size") if _differs(case, change, kind) < 1 - LOSS]
    return kinds[0] if kinds else ""


def _missed(change: Change) -> bool:
    """Whether a run of the option did not reach its target."""
    return any((runs["target_reached"] == 0).any() for runs, _ in change.cells)


def _use(kind: str, change: Change, worse: Sequence[Change]) -> Advice:
    """Advise the option that gains `kind`; warn of the one that costs most of all."""
    ratio = change.ratio(kind)
    assert ratio is not None  # noqa: S101  it was told
    does = {"time": "the same work takes", "time in use": "the model in use takes"}
    free = f"it takes no visible time ({100 * LOSS:.0f} % at most) and"
    said = f"Use {change.title} instead of {change.baseline}: {does.get(kind, free)} {amount(ratio, _WORDS.get(kind, kind))}"
    said += _energy(change) if kind == "time" else ""
    said += _served(change) if kind != "size" else ""
    said += _waits(change) if change.topic.name == "parallelism" else ""
    price, limits = quality(change, "served loss" if change.main == "time in use" else "validation loss")
    said = said.replace("Use ", "Consider ", 1) if "price" in price else said
    pays = _pays(change) if change.topic.name == "compile" else ""
    if worse:
        worst = max(worse, key=lambda other: _value(other, other.main))
        ratio_worst = worst.ratio(worst.main)
        price += f" Not {worst.option}: {amount(ratio_worst, worst.main)}." if ratio_worst else ""
    limits = (*limits, *_conditions(change, kind), *_marked(said))
    saving = 1 - ratio.value if kind.startswith("time") else None
    return Advice(
        change.topic.name, f"{said}.{pays}{price}", change_evidence(change, kind), change.action, saving, limits
    )


def _stay(worse: Sequence[Change]) -> Advice:
    """Advise against what costs time; what it gives instead stands beside it."""
    first = worse[0]
    topic = f"{first.topic.name} " if first.topic.noun == "{}" else ""
    short = False
    parts = []
    for change in worse:
        ratio, loss = change.ratio(change.main), _paired(change, "validation loss")
        assert ratio is not None  # noqa: S101  it was told
        kind = "size" if change.main == "time in use" else "memory"
        less = change.ratio(kind)
        gives = [amount(less, _WORDS.get(kind, kind))] if less and apart(less) and less.value < 1 - LOSS else []
        short |= kind == "memory" and bool(gives)
        if loss and apart(loss) and loss.value < 1 and not _unequal(change) and kind == "memory":
            gives.append(f"a lower validation loss ({_losses(change, 'validation loss')})")
        takes = "take" if change.option[0].isdigit() else "takes"
        parts.append(
            f"{change.option} {takes} {amount(ratio, change.main)}" + (f", for {' and '.join(gives)}" if gives else "")
        )
    opening = f"{'Unless memory is short, stay' if short else 'Stay'} with {topic}{first.baseline}"
    opening = {"distillation": "Distillation has its price", "compile": "Compiling does not pay"}.get(
        first.topic.name, opening
    )
    limits = (*quality(first, "validation loss")[1], *_conditions(first, first.main))
    said = quality(first, "validation loss")[0] if first.topic.name == "distillation" else ""
    sentence = f"{opening}: {'; '.join(parts[:3])}.{said}"
    return Advice(first.topic.name, sentence, change_evidence(first, first.main), limits=limits)


def _energy(change: Change) -> str:
    """The energy beside the time: measured if known, else that of a model, and only if the repeats tell it."""
    measured = change.ratio("energy")
    ratio, mark = (measured, "") if measured else (change.ratio("~energy"), "~")
    return f" and {amount(ratio, 'energy', mark)}" if ratio is not None and apart(ratio) else ""


def _served(change: Change) -> str:
    size = change.ratio("size")
    return f", with {amount(size, 'space on disk')}" if size and apart(size) and abs(size.value - 1) > SAME else ""


def _pays(change: Change) -> str:
    """After how many steps the gain has paid for compiling; nothing where compiling was not timed."""
    runs, base = (pd.concat([cell[side] for cell in change.cells]) for side in (0, 1))
    ratio, cost = change.ratio("time"), runs["compile_seconds"].median()
    saved = base["step_seconds_median"].median()
    if ratio is None or ratio.low is None or ratio.high is None or not cost > 0 or ratio.high >= 1:
        return ""
    steps = [cost / (saved * (1 - value)) for value in (ratio.value, ratio.low, ratio.high)]
    return (
        f" It pays after {steps[0]:,.0f} steps ({steps[1]:,.0f} to {steps[2]:,.0f}): compiling takes {cost:.3g} s once."
    )


def _losses(change: Change, measure: str) -> str:
    column = measure.replace(" ", "_")
    before, after = (pd.concat([cell[side] for cell in change.cells])[column].median() for side in (1, 0))
    return f"{before:.3f} -> {after:.3f}"


def _paired(change: Change, measure: str) -> Estimate | None:
    """The ratio of a loss over repeats of both sides with the same number, and so the same seed, weights and samples."""
    column, found = MEASURES[measure][0][0], []
    for sides in change.cells:
        after, before = (runs.drop_duplicates("repeat").set_index("repeat").get(column) for runs in sides)
        if after is None or before is None:
            return None
        found += list((after / before).dropna())
    return stats.geometric_mean(found) if found and min(found) > 0 else None


def _waits(change: Change) -> str:
    """How much of a step the ranks wait for each other, on both sides."""
    column = "exposed_communication_share"
    shares = [pd.concat([cell[side] for cell in change.cells]).get(column, pd.Series()).median() for side in (0, 1)]
    return (
        ""
        if any(map(pd.isna, shares))
        else f"; ranks wait for each other {shares[0]:.0%} of a step, not {shares[1]:.0%}"
    )


def _marked(said: str) -> tuple[str, ...]:
    return ("~ is energy by a model, not measured",) if "~" in said else ()


def _unequal(change: Change) -> bool:
    """Whether the two sides were trained on other data, or on more samples, so that their quality says nothing."""
    for cell in change.cells:
        seen = pd.concat([(runs["trained_steps"] * runs["global_batch_size"]).dropna() for runs in cell])
        data = {frozenset(runs["dataset_digest"].dropna()) for runs in cell}
        if len(data) > 1 or (len(seen) and seen.max() > 1.1 * seen.min()):
            return True
    return False


def quality(change: Change, measure: str) -> tuple[str, tuple[str, ...]]:
    """Return what is to be said of quality: the price or that there is none, and what limits that."""
    ratio = _paired(change, measure)
    if ratio is None:
        return "", ("quality was not looked at: set validation.samples",)
    if _unequal(change):
        return "", (
            "quality is not compared: the two were trained on other data or numbers of samples (set measure_steps)",
        )
    losses = f"{measure} {_losses(change, measure)}"
    if ratio.low is None or ratio.high is None or (ratio.low <= 1 and ratio.high > 1 + SAME):
        return "", (f"whether quality changes cannot be told from {ratio.n} repeats: {losses}",)
    if ratio.low > 1:
        return f" Its price: {losses}.", ()
    return (f" No loss of quality shows: {losses}.", ()) if ratio.high >= 1 else (f" Quality gains: {losses}.", ())


def _conditions(change: Change, measure: str) -> tuple[str, ...]:
    """Limits that follow from the runs themselves."""
    out = []
    if len(change.cells) > 1:
        each = {change.names[i][0]: change.only(i).ratio(measure) for i in range(len(change.cells))}
        known = sorted((ratio.value, name) for name, ratio in each.items() if ratio is not None)
        out.append(f"a mean: from × {known[0][0]:.3g} ({known[0][1]}) to × {known[-1][0]:.3g} ({known[-1][1]})")
    runs = pd.concat([side for cell in change.cells for side in cell])
    if runs["flags"].fillna("").str.contains("noisy_host|not_steady").any():
        out.append("some of the runs were unsteady")
    if change.topic.name in ("batch", "devices") and runs["global_batch_size"].nunique() > len(change.cells):
        out.append("a larger batch makes fewer updates from the same samples: look at the loss too")
    return tuple(out)


def devices(case: Case) -> Iterator[Advice]:
    """Up to how many devices to go: the last step that brings more than it costs, and the first that does not."""
    chain: dict[int, Change] = {}
    for change in case.changes:
        if change.topic.name == "devices" and (time := change.ratio("time")) is not None:
            count = int(change.cells[0][0]["devices"].iloc[0])
            before = chain[count].ratio("time") if count in chain else None
            if before is None or time.value < before.value:
                chain[count] = change  # of several kinds of parallelism the fastest
    worth: Change | None = None
    for _, change in sorted(chain.items()):
        effect = _times(change.ratio("time"), math.sqrt(change.grew))
        if effect is None or (change, "knee") not in case.told:
            break
        if effect.value > 1:
            yield _stop(change)
            break
        worth = change
    if worth is not None:
        time, paid = worth.ratio("time"), _times(worth.ratio("time"), worth.grew)
        assert time is not None  # noqa: S101
        assert paid is not None  # noqa: S101
        text = f"Use {worth.option} if time counts: against {worth.baseline} the same work takes {amount(time, 'time')}"
        yield Advice(
            "devices",
            f"{text} and {_hours(paid)}{_joules(worth)}.",
            change_evidence(worth, "time"),
            worth.action,
            1 - time.value,
            (*_conditions(worth, "time"), *_marked(_energy(worth))),
        )


def _hours(paid: Estimate) -> str:
    """Device-hours, which are what a rented machine costs."""
    return amount(paid, "device-hours") if apart(paid) else "about as many device-hours"


def _joules(change: Change) -> str:
    said = _energy(change)
    return said.replace(" and ", ", ", 1)


def _stop(change: Change) -> Advice:
    time, paid = change.ratio("time"), _times(change.ratio("time"), change.grew)
    assert time is not None  # noqa: S101  it was told
    assert paid is not None  # noqa: S101
    gains = f"take {amount(time, 'time')}" if apart(time) else "are not visibly faster"
    return Advice(
        "devices",
        f"Stop at {change.baseline}: {change.option} {gains}, but {_hours(paid)}{_joules(change)}: "
        "they cost more than they bring.",
        change_evidence(change, "time"),
        f"devices: {change.baseline.split()[0]}",
        1 - 1 / paid.value,
        (*_conditions(change, "time"), *_marked(_energy(change))),
    )

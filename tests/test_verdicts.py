"""One verdict: whatever shows two configurations in a metric, says the same of them; and what does not change it."""

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analytics.judge.advise import advise
from analytics.judge.compare import Configurations, Effect, costs, ladder, within
from analytics.judge.matched import Changes
from analytics.runs import store
from analytics.runs.frame import frame
from analytics.say.answer import find
from analytics.say.confirm import confirmed
from analytics.say.ratios import ratios
from app.pages import runs as listed
from bench.schema import Scalar
from tests import rows
from tests.commands import bench
from tests.test_searched import GIVEN, TRIALS
from tests.test_searched import find as search_result
from tests.test_searched import runs as searched

METRICS = ("samples_per_second", "joules_per_sample", "cost_usd_per_million_samples")
Verdicts = dict[tuple[str, str, str], str]
"""Verdicts by the names of candidate and baseline, and metric."""


@cache
def synthetic() -> pd.DataFrame:
    """Two models, three precisions, two numbers of devices: some differ much, some a little, some not at all."""
    given: list[dict[str, Scalar]] = []
    gains = {("tiny", "bf16"): 0.985, ("small", "bf16"): 1.5, ("tiny", "fp16"): 1.0, ("small", "fp16"): 1.02}
    for place, ((preset, devices), precision) in enumerate(
        (cell, name)
        for cell in (("tiny", 1), ("tiny", 2), ("small", 1), ("small", 2))
        for name in ("fp32", "bf16", "fp16")
    ):
        random = np.random.default_rng([place])
        speed = gains.get((preset, precision), 1.0) * (0.9 if devices == 2 else 1.0)
        noise = 0.04 if (preset, precision) == ("small", "fp16") else 0.004
        for repeat in range(6):
            v = rows.V * speed * float(np.exp(random.normal(0, noise)))
            row = rows.make(devices, preset, precision, repeat, v=v)
            begun = f"2026-01-02T03:{10 * repeat + place // 60:02d}:{place % 60:02d}+00:00"
            given.append(row | {"started_at": begun, "cost_usd_per_million_samples": 1e3 / float(str(row[METRICS[0]]))})
    return frame(given)


@cache
def judged() -> Configurations:
    return Configurations(synthetic())


def expected() -> Callable[[str, str, str], str]:
    found = judged()
    of = {name: config for config, name in found.names.items()}

    def verdict(candidate: str, baseline: str, metric: str) -> str:
        effect = found.effect(of[candidate], of[baseline], metric)
        assert isinstance(effect, Effect)
        return effect.verdict

    return verdict


def of_comparisons(comparisons: Any) -> Verdicts:
    return {(c.name, c.baseline, e.metric): e.verdict for c in comparisons for e in c.effects}


@cache
def compared(*metrics: str) -> Verdicts:
    return of_comparisons(within(synthetic(), metrics).comparisons)


def by_compare(df: pd.DataFrame) -> Verdicts:
    return of_comparisons(within(df, METRICS).comparisons)


def by_compare_with_a_baseline(df: pd.DataFrame) -> Verdicts:
    return of_comparisons(within(df, METRICS, baseline="preset=tiny d=2 bf16").comparisons)


def by_fit(df: pd.DataFrame) -> Verdicts:
    (found,) = find(df)
    return of_comparisons(found.others)


def by_changes(df: pd.DataFrame) -> Verdicts:
    out: Verdicts = {}
    for change in Changes(df):
        for measure in ("time", "energy"):
            found, metric = change.found(measure), change.metric(measure)
            assert found is not None
            for (candidate, baseline), effect in zip(change.names, found.effects, strict=True):
                out[candidate, baseline, str(metric)] = effect.verdict
    return out


def decided(words: str) -> str:
    """The verdict that words stand for."""
    plain = {"same": "equivalent", "undecided": "cannot tell"}
    return "cannot tell" if words.startswith("probably") else plain.get(words, words)


def by_figures(df: pd.DataFrame) -> Verdicts:
    """What the figures of the page of strategies show, by the places of candidates."""
    found, out = within(df, METRICS).comparisons, Verdicts()
    for metric in METRICS:
        figure = ratios([(str(place), one) for place, one in enumerate(found)], metric)
        for group, mark in ((g, m) for g in figure.groups for m in g.marks) if figure else ():
            one = found[int(mark.name)]
            out[one.name, one.baseline, metric] = decided(group.name)
    return out


def by_runs_page(df: pd.DataFrame) -> Verdicts:
    """Four pairs of the table of the first configuration, and one of another."""
    names, out = judged().names, Verdicts()
    titles = {listed.title(metric): metric for metric in METRICS}
    first, second, *others = (config for config in names if judged().kinds[config] == next(iter(names)))
    for candidate, baseline in (*((other, first) for other in (second, *others[:3])), (others[0], second)):
        b, a = (df[df["config_id"] == config].iloc[-1] for config in (candidate, baseline))
        for _, row in listed.figures(df, a, b).iterrows():
            if row["Figure"] in titles:
                words = re.split(r" \(\+|: ", row["Configurations, B / A"])[0]
                out[names[candidate], names[baseline], titles[row["Figure"]]] = decided(words)
    return out


CALLERS = (by_compare, by_compare_with_a_baseline, by_fit, by_changes, by_figures, by_runs_page)


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.__name__)
def test_every_caller_says_the_same(caller: Callable[[pd.DataFrame], Verdicts]) -> None:
    verdict, shown = expected(), caller(synthetic())
    counts = Counter(metric for *_, metric in shown)
    assert all(counts[metric] >= 4 for metric in METRICS[: 2 if caller is by_changes else 3])
    assert shown == {key: verdict(*key) for key in shown}


def near_the_limit(seed: int) -> pd.DataFrame:
    """A small store begun in any order, whose differences are about as large as can just be told."""
    random = np.random.default_rng(seed)
    given = rows.grid(
        (1, 2),
        ("tiny",),
        {name: float(np.exp(random.normal(0, 0.02))) for name in ("fp32", "bf16", "fp16")},
        {2: float(np.exp(random.normal(0, 0.02)))},
        repeats=3,
        noise=0.008,
        seed=seed,
    )
    begun = dict(zip(dict.fromkeys(row["config_id"] for row in given), random.permutation(6), strict=True))
    clock = "2026-01-02T03:{:02d}:{:02d}+00:00"
    return frame([row | {"started_at": clock.format(row["repeat"], begun[row["config_id"]])} for row in given])


INVERSE = {"better": "worse", "worse": "better"}


@pytest.mark.parametrize("seed", range(40))
def test_a_pair_has_one_verdict_whichever_is_the_baseline(seed: int) -> None:
    df, metric, shown = near_the_limit(seed), METRICS[0], set[tuple[str, str, str]]()
    changes = Changes(df)
    table = changes.judge
    for name in (None, [*table.names.values()][-1 - seed % 3]):
        shown |= {
            (*key[:2], told) for key, told in of_comparisons(within(df, [metric], baseline=name).comparisons).items()
        }
    for change in changes:
        told = change.found("time")
        assert told is not None
        shown |= {(*pair, effect.verdict) for pair, effect in zip(change.names, told.effects, strict=True)}
    for one, other in permutations(table.rows, 2):
        effect = table.effect(one, other, metric)
        assert isinstance(effect, Effect)
        shown.add((table.names[one], table.names[other], effect.verdict))
    turned = {(b, a, INVERSE.get(verdict, verdict)) for a, b, verdict in shown}
    assert shown == turned
    assert len(shown) == 30, "one verdict for each of 15 pairs, in both directions"


def test_an_effect_asked_the_other_way_round_is_its_inverse() -> None:
    table = Configurations(near_the_limit(3))
    one, other = (table.effect(*pair, METRICS[0]) for pair in (list(table.rows)[:2], list(table.rows)[1::-1]))
    assert isinstance(one, Effect)
    assert isinstance(other, Effect)
    assert (one.ratio, one.low, one.high) == pytest.approx((1 / other.ratio, 1 / other.high, 1 / other.low))
    assert (one.value, one.p_adjusted, one.spread) == (other.baseline_value, other.p_adjusted, other.spread[::-1])


def test_the_store_has_all_kinds_of_verdicts() -> None:
    assert {*compared(*METRICS).values()} == {"better", "worse", "equivalent", "cannot tell"}


def test_the_verbs_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("judge.sides", "runs.selection"):
        monkeypatch.setattr(f"analytics.{module}.load", lambda *_, **__: synthetic())
    verdict = expected()
    metrics = [text for metric in METRICS for text in ("--metric", metric)]
    documents = [json.loads(bench(*words, "--json").stdout) for words in (("compare", "synthetic", *metrics), ("fit",))]
    for document in documents:
        shown = {
            (c["name"], c["baseline"], e["metric"]): e["verdict"] for c in document["comparisons"] for e in c["effects"]
        }
        shown = {key: told for key, told in shown.items() if key[2] in METRICS}
        assert len(shown) == 30
        assert shown == {key: verdict(*key) for key in shown}


def test_a_ladder_says_the_same() -> None:
    given = [
        row | {"ladder": step}
        for step, (precision, memory) in enumerate((("fp32", "none"), ("bf16", "none"), ("bf16", "recompute")))
        for row in rows.grid((1,), ("tiny",), {precision: 1 + 0.02 * step}, seed=step, noise=0.01, memory=memory)
    ]
    df = frame(given)
    table = Configurations(df)
    configs = [df.loc[df["ladder"] == step, "config_id"].iloc[0] for step in range(3)]
    pairs = [(configs[1], configs[0]), (configs[2], configs[1]), (configs[2], configs[0])]
    for step, pair in zip(ladder(df), pairs, strict=True):
        assert [effect.verdict for effect in step.effects] == [
            effect.verdict for metric in costs(df) if isinstance(effect := table.effect(*pair, metric), Effect)
        ]


def test_confirming_runs_say_the_same() -> None:
    found = search_result(GIVEN, TRIALS)
    again = frame([*searched(0, "a", 102, 300, 5), *searched(1, "b", 200, 100, 5), *searched(2, "c", 101, 299.5, 5)])
    table = Configurations(again)
    of = {str(config): number for number, config in enumerate(("a", "b", "c"))}
    configs = {number: config for config in table.sides for name, number in of.items() if name == config}
    (line,) = (line for line in confirmed(found, again) if line.startswith("Really different: trials "))
    pairs = re.findall(r"(\d) and (\d) \(([^)]*)\)", line)
    assert len(pairs) >= 1
    for a, b, words in pairs:
        for name, metric in (("time", "samples_per_second"), ("energy", "joules_per_sample")):
            effect = table.effect(configs[int(a)], configs[int(b)], metric)
            assert isinstance(effect, Effect)
            assert (f"{name} {effect.verdict}" in words) == (effect.verdict in ("better", "worse"))


def test_real_runs_say_the_same(recorded_uri: str) -> None:
    df = store.load(recorded_uri)
    count = 0
    for part in find(df):
        table = part.changes.judge
        shown = of_comparisons([*within(part.runs, costs(part.runs)).comparisons, *part.steps])
        count += len(shown)
        for change in part.changes:
            for measure in ("time", "~energy", "memory"):
                if found := change.found(measure):
                    effects = [table.effect(*pair, str(change.metric(measure))) for pair in change.pairs]
                    assert [e.verdict for e in effects if isinstance(e, Effect)] == [e.verdict for e in found.effects]
        assert of_comparisons(part.others).items() <= shown.items()
    assert count > 50


def test_other_metrics_and_filters_change_no_verdict() -> None:
    df = synthetic()
    few, many = compared(METRICS[0]), compared(*METRICS, "duration_seconds")
    assert few == {key: told for key, told in many.items() if key[2] == METRICS[0]}
    some = list(judged().rows)[3:7]
    filtered = within(df, METRICS, only=some).comparisons
    assert filtered
    assert of_comparisons(filtered).items() <= compared(*METRICS).items()
    other = [
        row | {"started_at": "2026-01-03T00:00:00+00:00"} for row in rows.grid((1,), ("tiny",), memory="recompute")
    ]
    alien = [row | {"workload": "alien", "config_id": f"alien{row['config_id']}"} for row in other]
    both = frame([*df.to_dict("records"), *alien])
    named = of_comparisons(within(both, METRICS).comparisons)
    plain = {tuple(text.removeprefix("synthetic ") for text in key): told for key, told in named.items()}
    assert plain == compared(*METRICS)


def test_a_pair_of_other_options_is_judged_in_its_own_table() -> None:
    table = judged()
    base = next(config for config, name in table.names.items() if name == "preset=tiny d=2 bf16")
    bases = {table.names[one] for one in table.baselines(base).values()}
    assert bases == {"preset=tiny d=2 bf16", "preset=small d=2 bf16"}
    assert len(table.table(base)) == 10
    effect = table.effect(next(iter(table.rows)), base, METRICS[0])
    assert isinstance(effect, Effect)
    assert effect.p_value is not None
    assert (effect.p_adjusted or 0) >= effect.p_value


def test_the_batch_may_follow_the_model() -> None:
    small = [row | {"global_batch_size": 16, "batch_size_per_device": 16} for row in rows.grid((1,), ("small",), TWO)]
    table = Configurations(frame([*rows.grid((1,), ("tiny",), TWO), *small]))
    base = next(iter(table.rows))
    assert len({table.names[one].rsplit(maxsplit=1)[-1] for one in table.baselines(base).values()}) == 1
    assert len(table.table(base)) == 2


TWO = {"fp32": 1.0, "bf16": 1.3}


# --- over several cells


def change(given: list[dict[str, Scalar]]) -> Any:
    (one,) = (one for one in Changes(frame(given)) if one.topic.name == "precision")
    return one


def cells(*factors: float, noise: float = 0.01, repeats: int = 4) -> list[dict[str, Scalar]]:
    """A cell for each factor of bf16: of one or two devices, tiny or small."""
    where = [(devices, preset) for preset in ("tiny", "small") for devices in (1, 2)]
    return [
        row
        for place, ((devices, preset), factor) in enumerate(zip(where, factors, strict=False))
        for row in rows.grid(
            (devices,), (preset,), {"fp32": 1.0, "bf16": factor}, noise=noise, repeats=repeats, seed=place
        )
    ]


def test_cells_that_agree_have_one_ratio_and_verdict() -> None:
    found = change(cells(1.3, 1.3, 1.3))
    assert found.range("time") == []
    assert found.verdict("time") == "better"
    ratio = found.ratio("time")
    assert ratio.value == pytest.approx(1 / 1.3, rel=0.01)
    assert ratio.low < ratio.value < ratio.high
    alone = change(cells(1.3))
    assert alone.verdict("time") == alone.found("time").effects[0].verdict
    assert alone.found("time").whole == alone.found("time").effects[0]


def test_cells_that_disagree_have_a_range_and_the_direction_that_all_share() -> None:
    found = change(cells(1.1, 1.12, 1.5))
    (low_name, low), (high_name, high) = found.range("time")
    assert (low_name, high_name) == ("preset=small d=1 bf16".removesuffix(" bf16"), "preset=tiny d=1")
    assert (low.value, high.value) == (pytest.approx(1 / 1.5, rel=0.02), pytest.approx(1 / 1.1, rel=0.02))
    assert found.verdict("time") == "better"
    given = cells(0.8, 0.8, 1.5)
    split = change(given)
    (advice,) = (one for one in advise(frame(given)) if one.topic == "precision")
    assert (advice.action, advice.saving, advice.evidence.ratio) == ("", None, None)
    assert split.verdict("time") == "cannot tell"
    assert len(split.range("time")) == 2
    document = split.to_dict("time")
    assert (document["ratio"], document["low"]) == (None, None)
    assert len(document["cells"]) == 3


@pytest.mark.parametrize("seed", range(8))
def test_advice_claims_what_a_comparison_tells_and_nothing_else(seed: int) -> None:
    """Of a gain in time some cell is told to be better; of what cannot be told no cell is."""
    random = np.random.default_rng(seed)
    given = cells(*(float(x) for x in np.exp(random.normal(0.02, 0.03, 4))), noise=0.02, repeats=3)
    df = frame(given)
    one = change(given)
    verdicts = {effect.verdict for effect in one.found("time").effects}
    advice = {advice.topic: advice for advice in advise(df)}
    if verdicts == {"cannot tell"}:
        assert one.verdict("time") == "cannot tell"
        assert "precision" not in advice or "time" not in advice["precision"].evidence.measure
    if len(verdicts) == 1:
        assert {one.verdict("time")} == verdicts
    if "precision" in advice and advice["precision"].evidence.measure == "time":
        assert verdicts & {"better", "worse"}
    if one.mixed("time"):
        assert advice["precision"].evidence.ratio is None
    if "repeats" in advice and any("bf16" in name for name in advice["repeats"].evidence.configurations):
        assert one.verdict("time") == "cannot tell"

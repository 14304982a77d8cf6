"""Fronts of planted runs: what is on them, how sure that is, and what is never compared."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from analytics.judge import front as pareto
from analytics.judge.front import front
from analytics.judge.objectives import Amount
from analytics.runs import selection
from analytics.runs.frame import frame
from analytics.say.blocks import Note, Sentence, Table
from analytics.say.front import against, answer, blocks, notes
from tests import rows
from tests.commands import bench
from tests.test_tracking import logged


def runs(
    name: str, time: float, joules: float, repeats: int = 4, noise: float = 0.01, seed: int = 0, **fields: Any
) -> list[Any]:
    """Runs of a configuration with planted seconds and joules for a million samples, which share their noise."""
    random = np.random.default_rng([seed, *name.encode()])
    out = []
    for repeat in range(repeats):
        factor = math.exp(random.normal(0, noise)) if repeats > 1 else 1.0
        row = rows.make(precision=name, repeat=repeat, readings="m") | {"samples_per_second": 1e6 / (time * factor)}
        out.append(row | {"joules_per_sample": joules * factor / 1e6, "config_id": name} | fields)
    return out


def table(given: list[Any], *by: str, **options: Any) -> pd.DataFrame:
    (found,) = front(frame(given), by or ("time", "energy"), **options)
    return found.table.set_index("config_id")


THREE = runs("a", 100, 300) + runs("b", 200, 200) + runs("c", 300, 100)


def test_what_is_beaten_and_what_is_not() -> None:
    found = table([*THREE, *runs("d", 210, 310)])
    assert found["front"].to_dict() == {"a": True, "b": True, "c": True, "d": False}
    assert (found.loc[["a", "b", "c"], "p_front"] == 1).all()
    assert found.loc["d", "p_front"] < 0.02
    assert found.index[-1] == "d", "the front comes first"
    assert found.loc["a", "p_best_time"] == found.loc["c", "p_best_energy"] == 1
    assert found["knee"].to_dict() == {"a": False, "b": True, "c": False, "d": False}
    assert found.loc["a", "time"] == pytest.approx(100, rel=0.02)
    assert found.loc["a", "time_low"] < found.loc["a", "time"] < found.loc["a", "time_high"]


def plainly(points: np.ndarray) -> np.ndarray:
    """Hold each point against each other."""
    here, there = points[:, :, None], points[:, None]
    return ~((there <= here).all(axis=3) & (there < here).any(axis=3)).any(axis=2)


@pytest.mark.parametrize("objectives", range(1, 6))
def test_the_fast_front_is_the_plain_one(objectives: int) -> None:
    random = np.random.default_rng(objectives)
    for count in (1, 2, 7, 40):
        shape = (30, count, objectives)
        near = random.standard_normal((1, *shape[1:])) + 0.01 * random.standard_normal(shape)
        equal = random.integers(0, 4, shape).astype(float)
        rounded = random.choice([0.1, 0.2, 0.3, 1e16, 1e16 + 2], shape)
        for points in (random.standard_normal(shape), near, equal, rounded):
            assert (pareto._nondominated(points) == plainly(points)).all()


def test_a_close_call_is_no_certainty() -> None:
    close = table([*runs("a", 100, 100, noise=0.05), *runs("b", 101, 101, noise=0.05)])
    assert 0.1 < close.loc["a", "p_front"] < 0.9
    assert 0.1 < close.loc["b", "p_front"] < 0.9
    again = table([*runs("a", 100, 100, noise=0.05), *runs("b", 101, 101, noise=0.05)])
    pd.testing.assert_frame_equal(close, again)


def test_objectives_of_a_run_stay_together() -> None:
    """Time and energy move as one here, so one configuration is better in both or in neither: never both on the front."""
    found = table([*runs("a", 100, 100, noise=0.05), *runs("b", 100, 100, noise=0.05)], draws=4000)
    assert found["p_front"].sum() == pytest.approx(1, abs=0.02)


def test_the_draws_have_the_spread_of_student() -> None:
    x = np.log([[1.0, 2.0], [1.1, 2.3], [0.9, 1.9]])
    drawn = pareto._draws([x], 20_000, np.random.default_rng(0))[:, 0]
    standard = (drawn - x.mean(axis=0)) / (x.std(axis=0, ddof=1) / math.sqrt(3))
    assert np.quantile(standard, 0.975, axis=0) == pytest.approx(
        [4.303, 4.303], rel=0.08
    )  # t with 2 degrees of freedom
    inside = np.abs(drawn - np.median(drawn, axis=0)) < 0.5
    assert np.corrcoef(drawn[inside.all(axis=1)].T)[0, 1] == pytest.approx(np.corrcoef(x.T)[0, 1], abs=0.1)


def test_one_repeat_has_no_probability() -> None:
    found = table([*runs("a", 100, 300, repeats=1), *runs("b", 200, 200), *runs("c", 300, 300)])
    assert math.isnan(found.loc["a", "p_front"])
    assert math.isnan(found.loc["a", "time_low"])
    assert bool(found.loc["a", "front"])
    assert found.loc["b", "p_front"] == 1


def test_measured_and_estimated_energy_never_meet() -> None:
    estimated = [row | {"joules_per_sample_estimated": 1.0} for row in runs("b", 200, 200)]
    for row in estimated:
        del row["joules_per_sample"]
    (mixed,) = front(frame([*runs("a", 100, 300), *estimated]), ("time", "energy"))
    assert [objective.name for objective in mixed.objectives] == ["time"]
    assert "never mixed" in mixed.dropped["energy"]
    both = [row | {"joules_per_sample_estimated": 1.0} for row in runs("a", 100, 300)]
    (found,) = front(frame([*both, *estimated]), ("time", "energy"))
    assert found.objectives[1].unit == "J, estimated"
    partly = [row | {"energy_components": "gpu"} for row in runs("b", 200, 200)]
    (found,) = front(frame([*runs("a", 100, 300), *partly]), ("time", "energy"))
    assert found.dropped["energy"] == "it is that of cpu and gpu, which are never mixed"


def test_other_work_is_another_front() -> None:
    other = [row | {"dataset_digest": "1" * 16} for row in runs("b", 50, 50)]
    assert [len(one.table) for one in front(frame([*runs("a", 100, 100), *other]), ("time",))] == [1, 1]
    larger = [row | {"workload_args.preset": "small"} for row in runs("b", 200, 200)]
    given = [*runs("a", 100, 100), *larger]
    assert len(front(frame(given), ("time", "energy"))) == 2, "a larger model is other work ..."
    judged = [row | {"validation_loss": 3.0} for row in given]
    assert len(front(frame(judged), ("time", "quality"))) == 2, "... also where quality counts"
    loaders = [row | {"workload_args.workers": 2.0 * (row["config_id"] == "b")} for row in THREE]
    assert len(front(frame(loaders))) == 1, "a loader changes neither model nor data"


def test_work_is_told_by_its_flop_too() -> None:
    def sized(name: str, factor: float, **fields: Any) -> list[Any]:
        return [row | {"flops_per_sample": 1e8 * factor} for row in runs(name, 100, 100, **fields)]

    several = front(frame([*sized("a", 1), *sized("b", 1.009), *sized("c", 1.02)]), pareto.DEFAULT)
    assert [sorted(one.table["config_id"]) for one in several] == [["a", "b"], ["c"]]
    assert several[1].work == "102M FLOP a sample"
    (found,) = front(frame([*sized("a", 1), *sized("b", 0.7, finetune="lora")]))
    assert len(found.table) == 2, "that a method takes less is its gain"


def test_quality_after_unequal_training_does_not_count() -> None:
    def trained(name: str, steps: float, **fields: Any) -> list[Any]:
        more: dict[str, Any] = {"trained_steps": steps, "validation_loss": 3.0} | fields
        return [row | more for row in runs(name, 100, 100)]

    (found,) = front(frame([*trained("a", 100), *trained("b", 105)]))
    assert found.objectives[-1].name == "quality"
    (found,) = front(frame([*trained("a", 100), *trained("b", 120)]))
    assert "quality" not in [objective.name for objective in found.objectives]
    assert "it is that after 800 to 960 samples: give all the same measure_steps" in found.dropped["quality"]
    goal: dict[str, Any] = {"target_reached": 1.0, "target.value": 3.0, "seconds_to_target": 9.0}
    (found,) = front(frame([*trained("a", 100, **goal), *trained("b", 120, **goal)]), ("time", "quality"))
    assert [objective.name for objective in found.objectives] == ["time", "quality"]


def test_what_is_missing_is_said_with_a_remedy() -> None:
    bare = [{k: v for k, v in row.items() if "cost" not in k and "emissions" not in k} for row in THREE]
    (found,) = front(frame(bare), pareto.OBJECTIVES)
    assert [objective.name for objective in found.objectives] == ["time", "energy", "memory"]
    assert "--price" in found.dropped["cost"]
    assert "--region" in found.dropped["carbon"]
    assert "validat" in found.dropped["quality"]
    bare[0]["cost_usd_per_million_samples"] = 1.0
    (found,) = front(frame(bare), ("time", "cost"))
    assert found.dropped["cost"] == "not known for all of them"


def test_the_way_to_a_target_counts_where_all_reached_it() -> None:
    def aimed(row: dict[str, Any], seconds: float) -> dict[str, Any]:
        return row | {
            "target_reached": 1.0,
            "seconds_to_target": seconds,
            "target.value": 3.0,
            "target.metric": "validation_loss",
        }

    given = [aimed(row, 50) for row in runs("a", 100, 1)] + [aimed(row, 20) for row in runs("b", 200, 1)]
    (found,) = front(frame(given), ("time",))
    assert found.per == "to the target"
    assert found.table["config_id"].tolist() == ["b", "a"]
    given[0]["target_reached"] = 0.0
    (found,) = front(frame(given), ("time",))
    assert (found.per, found.table["config_id"].tolist()) == ("per million samples", ["a", "b"])


def test_tokens_count_where_samples_are_not_known() -> None:
    given = [{k: v for k, v in row.items() if k != "samples_per_second"} | {"tokens_per_second": 1e6} for row in THREE]
    (found,) = front(frame(given), ("time",))
    assert found.per == "per million tokens"
    assert found.table["time"].tolist() == pytest.approx([1, 1, 1])


def test_accuracy_is_to_be_large_and_may_be_zero() -> None:
    scored = [
        row | {"validation_accuracy": score} for score, name in ((0.0, "a"), (0.9, "b")) for row in runs(name, 100, 1)
    ]
    found = table(scored, "quality", "time")
    assert found.index.tolist() == ["b", "a"]
    assert found["front"].tolist()[0]
    assert found["quality"].tolist() == [0.9, 0.0]


def test_an_amount_of_work() -> None:
    ((_, work),) = pareto.works(frame(THREE))
    one = pareto.front_of("w", work, ("time", "energy"), Amount(samples=2.5e7))
    million = pareto.front_of("w", work, ("time", "energy"))
    assert (one.per, million.per) == ("for 25,000,000 samples", "per million samples")
    assert one.table["time"].tolist() == pytest.approx((25 * million.table["time"]).tolist())
    assert one.table["p_front"].tolist() == million.table["p_front"].tolist()
    assert pareto.units(work) == ["samples", "tokens"]
    tokens = pareto.front_of("w", work, ("time",), Amount(tokens=1e6))
    assert tokens.objectives[0].column == "tokens_per_second"


def test_what_is_told_beside_the_front_does_not_count() -> None:
    ((_, work),) = pareto.works(frame([*THREE, *runs("d", 350, 90)]))
    one = pareto.front_of("w", work, ("time",), also=("time", "energy", "quality"))
    assert [objective.name for objective in one.others] == ["energy"]
    assert one.table["front"].tolist() == [True, False, False, False]
    assert one.table["energy"].tolist() == pytest.approx([300, 200, 100, 90], rel=0.02)
    assert (one.table["energy_low"] < one.table["energy"]).all()


def remarks(one: pareto.Front) -> list[Note]:
    return list(notes([one], {id(one): one.work}))


def test_the_table_holds_the_front_and_what_may_well_be_on_it() -> None:
    given = frame([*THREE, *runs("d", 400, 400)])
    tables = [block for block in blocks(front(given, ("time", "energy")), given) if isinstance(block, Table)]
    assert [(len(table.rows), table.detail) for table in tables] == [(3, False), (4, True)]
    assert [row[-1] for row in tables[0].rows] == ["100 %", "100 % knee", "100 %"]
    assert tables[0].columns == ("configuration", "time, s", "energy, J", "on the front")


def test_figures_of_a_model_are_named_also_where_carbon_rests_on_them() -> None:
    assert front(frame(THREE), pareto.OBJECTIVES)[0].estimated == ()
    modelled = [row | {"emissions_basis": "estimated"} for row in THREE]
    (one,) = front(frame(modelled), pareto.OBJECTIVES)
    assert one.estimated == ("carbon",)
    assert [note.text for note in remarks(one) if note.text.startswith("~ carbon")]


def test_several_regions_and_prices_of_several_devices_are_told() -> None:
    assert front(frame(THREE), pareto.OBJECTIVES)[0].notes == ()
    other = {"region": "FRA", "cost_usd": 0.03, "device_name": "another"}
    given = [row | (other if row["config_id"] == "a" else {}) for row in THREE]
    (one,) = front(frame(given), pareto.OBJECTIVES)
    assert one.notes == (
        "cost is that of several devices with several prices, 3.6 to 10.8 USD per device and hour: "
        "bench pareto --price makes it anew by one",
        "carbon is that of several regions: FRA, XX",
    )
    assert any(one.notes[0] in note.text for note in remarks(one))


def test_cost_by_several_prices_of_one_device_does_not_count() -> None:
    (one,) = front(frame([row | {"cost_usd": 0.03 if row["config_id"] == "a" else 0.01} for row in THREE]))
    assert "cost" not in one.table
    why = "it is that of several prices, 3.6 to 10.8 USD per device and hour: bench pareto --price makes it anew by one"
    assert one.dropped["cost"] == why
    assert "cost" not in answer(one, one.table["name"].tolist())
    assert [note for note in remarks(one) if (note.label, note.text[:5]) == ("Left out", "cost:")]


def test_what_ran_once_is_named_so_where_it_wins() -> None:
    (one,) = front(frame([*THREE, *runs("once", 50, 290, repeats=1)]), ("time", "energy"))
    text = answer(one, one.table["name"].tolist())
    assert "once for time;" in text, "how sure that is cannot be said"
    assert "c for energy (100 % of draws)" in text
    assert [note.text[:7] for note in remarks(one) if "ran once" in note.text] == ["1 of 4 "]


@pytest.mark.parametrize(
    ("fields", "options", "weak"),
    [
        ({"grade": "A"}, {}, []),
        ({"grade": "A"}, {"repeats": 2, "noise": 0.0001}, ["few_repeats"]),
        ({"grade": "C"}, {}, ["grade C"]),
        ({"flags": "noisy_host"}, {}, ["noisy_host"]),
        ({"flags": "not_steady short_window"}, {}, ["not_steady"]),
        (
            {"flags": "noisy_host not_steady", "grade": "C"},
            {"repeats": 1},
            ["few_repeats", "noisy_host", "not_steady", "grade C"],
        ),
    ],
)
def test_a_choice_is_sure_only_on_grounds_to_act_on(fields: Any, options: Any, weak: list[str]) -> None:
    given = frame(
        [row | fields for name, time in (("a", 100), ("b", 300)) for row in runs(name, time, time, **options)]
    )
    found = front(given, ("time", "energy"))
    assert (list(found[0].weak), found[0].apart) == (weak, False)
    text = [block.text for block in blocks(found, given) if isinstance(block, Sentence | Note)]
    assert any("The choice is sure" in line for line in text) == (not weak)
    assert any("sure)" in line for line in text) == (not weak)
    assert any("No choice is sure" in line for line in text) == bool(weak)


def test_runs_of_several_calls_of_bench_measure_did_not_run_side_by_side() -> None:
    given = frame([row | {"open_devices": True} for row in THREE])
    found = front(given, ("time", "energy"))
    assert found[0].apart
    assert any("did not run side by side" in note.text for note in remarks(found[0]))


def test_what_is_best_in_less_than_half_of_the_draws_is_no_choice() -> None:
    close = [runs(name, 100, 300 + place, repeats=3, noise=0.05) for place, name in enumerate("abcdefg")]
    (one,) = front(frame([row for part in close for row in part]), ("time",))
    text = answer(one, one.table["name"].tolist())
    best, second = one.table.sort_values("p_best_time", ascending=False)["name"].iloc[:2]
    assert one.table["p_best_time"].max() < 0.5
    assert text == f"No clear choice for time yet: {best} or {second}."


def test_work_is_named_by_what_tells_it_apart() -> None:
    other = {"workload_args.preset": "small", "workload_args.architecture": "b", "dataset": "another"}
    given = [row | {"workload_args.architecture": "a"} for row in THREE] + [row | other for row in runs("b", 1, 1)]
    assert [one.work for one in front(frame(given))] == ["preset=tiny", "preset=small"]


def test_one_against_the_others() -> None:
    (one,) = front(frame([*THREE, *runs("d", 206, 206, noise=0.05, seed=1)]), ("time", "energy"))
    names = one.table["name"].tolist()
    assert names == ["a", "b", "c", "d"]
    first = list(against(one, 0))
    assert first[0] == "This is fastest of all 4."
    assert first[1] == "Compared with b (the knee): 2 times as fast, 50 % more energy."
    assert first[2].startswith("Compared with c (least energy): ")
    assert len(first) == 3
    close = next(iter(against(one, 3)))
    assert close.count("(not told apart)") == 2
    (alone,) = front(frame(runs("a", 1, 1)), ("time",))
    assert list(against(alone, 0)) == []


def test_accuracy_of_nothing_has_no_ratio() -> None:
    scored = [row | {"validation_accuracy": 0.9 * (row["config_id"] == "b")} for row in THREE]
    (one,) = front(frame(scored), ("time", "quality"))
    lines = list(against(one, one.table["name"].tolist().index("a")))
    assert any("accuracy 0 instead of 0.9" in line for line in lines)


@pytest.mark.parametrize("by", [("speed",), (), ("time", "Time")])
def test_unknown_objectives(by: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="allowed are time, energy"):
        front(frame(THREE), by)


def test_nothing_to_compare() -> None:
    assert front(frame([])) == []


def asked(given: list[Any], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr(selection, "load", lambda *_, **__: frame(given))
    return bench("pareto", *arguments)


def test_the_verb_says_what_to_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = asked([*THREE, *runs("d", 400, 400, repeats=1)], monkeypatch)
    assert done.exit_code == 0, done.output
    for said in (
        "a for time (100 % of draws)",
        "c for energy (100 % of draws)",
        "b for balance",
        "ran once",
        "Left out: quality",
    ):
        assert said in done.output
    document = json.loads(asked(THREE, monkeypatch, "synthetic", "--by", "time,energy", "--json").stdout)
    (one,) = document["fronts"]
    assert one["objectives"]["energy"] == {"column": "joules_per_sample", "unit": "J"}
    assert [row["config_id"] for row in one["configurations"]] == ["a", "b", "c"]
    assert one["configurations"][1]["knee"] is True
    assert "nothing to choose from" in asked(runs("a", 1, 1), monkeypatch).output
    others = [row | {"workload": name, "config_id": name} for name in ("x", "y") for row in runs("a", 1, 1)]
    mixed = asked([*THREE, *others], monkeypatch).output
    assert "Nothing to choose, with one configuration: x, y" in mixed
    assert mixed.count("Take ") == 1


@pytest.mark.slow
def test_prices_of_stored_runs_are_made_anew(tmp_path: Path) -> None:
    kept = logged(tmp_path, [rows.record(precision=p, repeat=r) for p in ("fp32", "bf16") for r in range(2)])

    def usd(*arguments: str) -> float:
        done = bench("pareto", "--store", kept, "--by", "cost", "--json", *arguments)
        return float(json.loads(done.stdout)["fronts"][0]["configurations"][0]["cost"])

    assert usd("--price", "7.2") == pytest.approx(2 * usd())
    wrong = bench("pareto", "--store", kept, "--price", "-1")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "--price" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--by", "speed"], "--by: objective speed: allowed are"), (["synthetik"], "did you mean 'synthetic'")],
)
def test_wrong_use(monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    done = asked(THREE, monkeypatch, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    bare = [{k: v for k, v in row.items() if "cost" not in k} for row in THREE]
    unpriced = asked(bare, monkeypatch, "--by", "cost")
    assert (unpriced.exit_code, unpriced.stdout) == (2, "")
    assert unpriced.stderr == "bench: cost: no price is known: give --price USD, or --electricity-price\n"
    failed = [row | {"status": "failed"} for row in THREE]
    assert "no run ended well" in asked(failed, monkeypatch).stderr


def test_hostile_names_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [row | {"precision": f"[bold]{rows.HOSTILE}\x1b[31m" if row["config_id"] == "a" else "b"} for row in THREE]
    done = asked(given, monkeypatch)
    assert "\x1b" not in done.output
    assert "[bold]" in done.output

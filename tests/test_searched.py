"""The answer of a search, on planted runs: the front, its words, and what confirming runs say."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analytics.judge.front import hypervolume
from analytics.judge.objectives import Amount, Objective, column
from analytics.runs.frame import frame
from analytics.say.blocks import Commands, Note, Sentence, Table
from analytics.say.confirm import confirmed
from analytics.say.search import (
    blocks,
    certainty,
    details,
    front_table,
    headline,
    notes,
    preview_blocks,
    sentences,
    title,
    unit_of,
)
from analytics.search.confirm import confirm_suite
from analytics.search.file import Search
from analytics.search.result import SearchResult, Spent, Tried, result
from analytics.search.space import Space
from bench.figures.metrics import parameters
from bench.schema import Machine
from bench.suites import yaml as yamlfile
from bench.suites.expand import expand
from bench.suites.load import load_suite
from tests import rows

STUDY = "find-0123abcd"
FOLDER = "20260102T030405-aaaa"
SPENT = Spent(trials=4, runs=12, seconds=90.0, joules=4500.0, joules_estimated=True, usd=0.09)


class Planted(Space):
    """A space of as many configurations as values of precision; nothing of it is run."""

    @property
    def possible(self) -> Any:
        return {frozenset({("precision", name)}): {} for name in self.search.space["precision"]}

    def params(self, row: Any) -> Any:
        return {"precision": row["precision"]}


def space(objectives: Any = ("time", "energy"), **fields: Any) -> Planted:
    given = {"name": "find", "budget": {"trials": 9}, "space": {"precision": list("abcdefgh")}}
    given["defaults"] = {"workload": "decoder_lm", "batch_size_per_device": 8, "workload_args.preset": "tiny"}
    search = Search.model_validate(given | {"objectives": objectives} | fields)
    return Planted.of(search, Machine(cpu_model="Synthetic CPU", cpu_count=64))


def runs(
    number: int, name: str, time: float, joules: float, repeats: int = 3, study: str = STUDY, **fields: Any
) -> list[dict[str, Any]]:
    """Runs of a trial with planted seconds and joules for a million samples, 1 % apart."""
    out: list[dict[str, Any]] = []
    for repeat in range(repeats):
        row: dict[str, Any] = rows.make(precision=name, repeat=repeat, readings="m")
        factor = 1 + 0.01 * (repeat - (repeats - 1) / 2)
        row |= {"samples_per_second": 1e6 / time / factor, "joules_per_sample": joules * factor / 1e6}
        out.append(
            row | {"config_id": name, "study": study, "trial": str(number), "run_id": f"{name}-r{repeat}"} | fields
        )
    return out


def tried(number: int, name: str, repeats: int = 3, **fields: Any) -> Tried:
    values = {"time": 1.0, "energy": 1.0}
    names = tuple(f"{FOLDER}/{name}-r{repeat}" for repeat in range(repeats))
    given = Tried(
        *(number, "complete", "full" if repeats > 1 else "probe", "search", {"precision": name}, values, {}, names),
        *(30.0, 1500.0, True, 0.03, None),
    )
    return replace(given, **fields)


def oom(number: int, name: str, **fields: Any) -> Tried:
    lost: dict[str, Any] = {
        "state": "infeasible",
        "values": {},
        "violations": {"runs": 1.0},
        "runs": (f"{FOLDER}/x-r0",),
    }
    lost |= {"why": "out_of_memory: tried to allocate 3 GB"}
    return tried(number, name, **(lost | fields))


def find(given: list[Any], trials: list[Tried], where: Space | None = None, **fields: Any) -> SearchResult:
    told: dict[str, Any] = {"importance": {}, "spent": SPENT, "ended": "the budget of 4 trials is spent"} | fields
    return result(where or space(), STUDY, trials, frame(given), **told)


GIVEN = [*runs(0, "a", 100, 300), *runs(1, "b", 200, 100), *runs(2, "c", 120, 150), *runs(3, "d", 220, 310, 1)]
TRIALS = [tried(0, "a"), tried(1, "b"), tried(2, "c"), tried(3, "d", 1), oom(4, "e")]


def labels(found: SearchResult) -> dict[str, str]:
    return {note.label: note.text for note in (*notes(found), *details(found))}


def test_the_front_with_its_intervals() -> None:
    found = find(GIVEN, TRIALS)
    assert [point.number for point in found.front] == [0, 2, 1], "the fastest first"
    assert [point.number for point in found.points] == [2, 0, 1, 3], "the knee, the front, the others"
    a, b, c, d, e = found.trials
    assert a.values["time"] == pytest.approx(100, rel=1e-3)
    assert a.low["energy"] < a.values["energy"] < a.high["energy"]
    assert a.p_front is not None
    assert a.p_front > 0.95
    assert (b.knee, c.knee) == (False, True)
    assert (d.low, d.p_front, d.front) == ({}, None, False)
    assert (e.values, e.front, e.why) == ({}, False, "out_of_memory: tried to allocate 3 GB")
    assert [name.column for name in found.objectives] == ["samples_per_second", "joules_per_sample"]


def test_values_are_for_the_work_asked_for() -> None:
    found = find(GIVEN, TRIALS, space(work={"samples": 2e6}))
    assert found.trials[0].values["time"] == pytest.approx(200, rel=1e-3)
    assert found.trials[0].values["energy"] == pytest.approx(600, rel=1e-3)
    priced = frame([row | {"cost_usd_per_million_tokens": 3.0, "tokens_per_second": 50.0} for row in GIVEN])
    work = Amount(tokens=5e5)
    assert column("cost", work, priced) == "cost_usd_per_million_tokens"
    assert Objective("cost", "cost_usd_per_million_tokens", 5e5).values(priced)[0] == 1.5
    assert Objective("time", "tokens_per_second", 5e5).values(priced)[0] == 1e4
    assert Objective("memory", "peak_memory_bytes", 5e5).values(priced)[0] == 1e9


def test_a_trial_is_judged_by_the_runs_that_it_names_whatever_else_has_their_run_ids() -> None:
    again = runs(0, "a", 110, 330, 1, execution="20260102T040405-aaaa")
    two = tried(0, "a", runs=(*TRIALS[0].runs, "20260102T040405-aaaa/a-r0"))
    found = find([*GIVEN, *again, *runs(0, "a", 1, 1, execution="x")], [two, *TRIALS[1:]])
    assert found.trials[0].values["time"] == pytest.approx((100**3 * 110) ** 0.25, rel=1e-3)
    found = find([*GIVEN, *again], TRIALS)
    assert found.trials[0].values["time"] == pytest.approx(100, rel=1e-3)
    assert find(GIVEN, [tried(0, "a", runs=("a-r0",))]).points == (), "a run_id alone names nothing"
    moved = [row | {"study": "other", "trial": "7"} for row in GIVEN]
    assert find(moved, TRIALS).front == find(GIVEN, TRIALS).front, "the names of runs are enough"
    stored = tried(0, "a", source="store")
    found = find([*GIVEN, *again], [*TRIALS[1:], stored])
    assert found.trials[0].number == 0, "those of the store come first"
    assert found.trials[0].values["time"] == pytest.approx(100, rel=1e-3)


def test_models_of_any_size_stand_on_one_front() -> None:
    larger = [row | {"workload_args.preset": "small", "flops_per_sample": 9e9} for row in runs(1, "b", 200, 100)]
    assert len(find([*runs(0, "a", 100, 300), *larger], TRIALS[:2]).front) == 2


def test_measured_and_estimated_energy_never_meet() -> None:
    def told(row: dict[str, Any], *, measured: bool) -> dict[str, Any]:
        joules = row.pop("joules_per_sample")
        return row | {"joules_per_sample_estimated": 2 * joules} | ({"joules_per_sample": joules} if measured else {})

    given = [told(row, measured=True) for row in runs(0, "a", 100, 300)]
    given += [told(row, measured=False) for row in runs(1, "b", 200, 100)]
    found = find(given, TRIALS[:2])
    assert found.objectives[1].column == "joules_per_sample_estimated", "which all know"
    assert found.trials[0].values["energy"] == pytest.approx(600, rel=1e-3)
    assert "~200 J" in headline(found)
    assert any(note.text.startswith("~ estimated") for note in notes(found))
    for row in given[3:]:
        del row["joules_per_sample_estimated"]
    found = find(given, TRIALS[:2])
    assert found.objectives[1].column == "joules_per_sample"
    assert [point.number for point in found.points] == [0]
    assert labels(found)["Left out"].startswith("trials 1,")
    parts = [row | {"energy_components": "gpu"} for row in runs(1, "b", 200, 100)]
    found = find([*runs(0, "a", 100, 300), *parts], TRIALS[:2])
    assert found.absent == {"energy": "it is that of cpu and gpu, which are never mixed"}
    assert [one.name for one in found.objectives] == ["time"]


def test_accuracy_is_to_be_large() -> None:
    scored = [row | {"validation_accuracy": x} for x, n in ((0.5, 0), (0.9, 1)) for row in runs(n, "ab"[n], 100 + n, 1)]
    trials = [tried(n, name, values={"accuracy": 0.0}) for n, name in enumerate("ab")]
    found = find(scored, trials, space(("accuracy",), work={"samples": 1e6}))
    assert [point.number for point in found.front] == [1]
    assert found.reference == {"accuracy": pytest.approx(0.45)}
    assert headline(found) == "Take b for accuracy (accuracy 90 %)."
    assert [share for _, share in found.hypervolume] == [pytest.approx(0.05 / 0.45), 1]


def test_hypervolume_over_trials() -> None:
    found = find(GIVEN, TRIALS)
    numbers, shares = zip(*found.hypervolume, strict=True)
    assert numbers == (0, 1, 2, 3, 4)
    assert 0 < shares[0] < shares[1] < shares[2]
    assert shares[2:] == (1, 1, 1)
    assert found.reference["energy"] == pytest.approx(1.1 * 310, rel=1e-3)
    assert [number for number, _ in find(GIVEN, [*TRIALS[:4], oom(4, "e", state="running")]).hypervolume] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([[-3.0], [-1.0]], [0.0], 3.0),
        ([[-3.0, -1.0], [-1.0, -3.0]], [0.0, 0.0], 5.0),
        ([[-3.0, -1.0], [-1.0, -3.0], [-1.0, -1.0], [-2.0, 1.0]], [0.0, 0.0], 5.0),
        ([[-2.0, -1.0, -1.0], [-1.0, -2.0, -1.0], [-1.0, -1.0, -2.0]], [0.0, 0.0, 0.0], 4.0),
        ([[-2.0, -1.0, -1.0, -3.0], [-1.0, -2.0, -1.0, -3.0]], [0.0, 0.0, 0.0, 0.0], 9.0),
        ([[1.0, 10.0], [10.0, 1.0]], [100.0, 100.0], 3 * math.log(10) ** 2),
        ([[1.0, 0.0]], [10.0, 2.0], 2 * math.log(10)),
    ],
)
def test_known_volumes(points: list[list[float]], reference: list[float], volume: float) -> None:
    assert hypervolume(np.array(points), np.array(reference)) == pytest.approx(volume)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_volumes_as_counted_by_chance(objectives: int) -> None:
    random = np.random.default_rng(objectives)
    points = -random.random((30, objectives))
    darts = -random.random((40_000, objectives))
    inside = (points[:, None] <= darts).all(axis=2).any(axis=0)
    assert hypervolume(points, np.zeros(objectives)) == pytest.approx(inside.mean(), abs=0.012)
    assert hypervolume(np.vstack([points, points]), np.zeros(objectives)) == pytest.approx(
        hypervolume(points, np.zeros(objectives))
    )


def test_what_all_that_are_recommended_share_is_said_once() -> None:
    trials = [replace(one, params={"devices": 2, **one.params}) for one in TRIALS[:2]]
    assert headline(find(GIVEN, trials)).startswith("Take 2 devices: a for time")


def test_the_answer_says_what_to_take_and_how_sure_that_is() -> None:
    importance = {
        "time": {"precision": 0.9, "devices": 0.1, "schedule": 0.0},
        "energy": {"precision": 0.97, "devices": 0.02, "schedule": 0.01},
    }
    found = find(GIVEN, TRIALS, importance=importance)
    assert headline(found) == (
        "Take a for time (100 s and 300 J); or b for energy (200 s and 100 J); or c for balance (120 s and 150 J)."
    )
    front, probed = certainty(found)
    assert front == "Pareto front among full runs: 100 % sure (trial 0), 100 % sure (trial 2) and 100 % sure (trial 1)."
    assert probed.startswith("1 configuration was only probed")
    assert title(found).endswith("time and energy for 1,000,000 samples; 5 of 8 configurations measured")
    told = labels(found)
    assert told["Search"] == "12 runs, 90 s, ~4.5 kJ, 0.09 USD; the budget of 4 trials is spent."
    assert told["Failed"] == "1 of 5 trials: 1 × out of memory (tried to allocate 3 GB)."
    assert told["Trial 0 instead of 2"] == "1.2 times as fast and 2 times the energy."
    assert told["Mattered most among the best trials"] == (
        "precision for time (90 %), precision for energy (97 %); hardly: schedule."
    )
    assert {*sentences(found)[:3]} == {headline(found), *certainty(found)}


def test_the_blocks_begin_with_the_answer_and_the_command() -> None:
    parts = blocks(find(GIVEN, TRIALS), (), ["bench search x.yaml --confirm"])
    assert [type(part) for part in parts[:5]] == [Sentence, Sentence, Sentence, Sentence, Commands]
    table = parts[5]
    assert isinstance(table, Table)
    assert table.columns == ("trial", "configuration", "time, s", "energy, J", "runs", "on the front")
    assert [row[0] for row in table.rows] == ["0", "2", "1"], "the front by its first objective"
    every = next(part for part in parts[6:] if isinstance(part, Table))
    assert (every.detail, [row[0] for row in every.rows]) == (True, ["0", "2", "1", "3"])
    assert table.rows[1] == ("2", "c", "120 (117-123)", "150 (146-154)", "3 full", "100 % knee")
    assert every.rows[3][2:] == ("220", "310", "1 probe", "no")
    assert all(part.detail for part in parts[-3:] if isinstance(part, Note))
    repeated = blocks(find(GIVEN, TRIALS), ["Confirmed: take c.", "Trial 2 is still on the front."])
    assert isinstance(repeated[1], Sentence)
    assert repeated[1].text == "Confirmed: take c."
    alone = find(GIVEN, TRIALS, space(("time",)))
    assert [row[0] for row in front_table(alone).rows] == ["0", "2"], "and the second best"
    bare = blocks(find(GIVEN, []))
    assert not any(isinstance(part, Table) for part in bare)


def test_what_would_be_searched() -> None:
    preview = {"combinations": 8, "possible": 6, "refused": {"no": 2}, "known": 0, "sampler": "tpe"}
    told = preview_blocks("find", ["time"], preview | {"budget": {"trials": 9}}, "bench search x")
    text = " ".join(part.text for part in told if isinstance(part, Sentence | Note))
    assert all(words in text for words in ("9 trials", "6 configurations", "8 combinations", "none", "2 cannot: no"))
    told = preview_blocks("find", ["time"], preview | {"possible": None, "combinations": None, "budget": {}}, "")
    assert "too many" in " ".join(part.text for part in told if isinstance(part, Sentence)).lower()


@pytest.mark.parametrize(
    ("name", "largest", "unit"),
    [
        ("time", 7199.0, (1.0, "s")),
        ("time", 7200.0, (3600.0, "h")),
        ("energy", 4500.0, (1e3, "kJ")),
        ("carbon", 0.5, (1e-3, "g CO2e")),
        ("carbon", 5.0, (1.0, "kg CO2e")),
        ("memory", 2e9, (1e9, "GB")),
        ("cost", 3e6, (1.0, "USD")),
        ("accuracy", 0.9, (0.01, "%")),
        ("loss", 3.0, (1.0, "")),
    ],
)
def test_units_are_those_of_the_catalogue(name: str, largest: float, unit: tuple[float, str]) -> None:
    assert unit_of(name, largest) == (pytest.approx(unit[0]), unit[1])


def test_energy_that_is_known_of_some_trials_only() -> None:
    found = find(GIVEN, [*TRIALS[:2], oom(4, "e", joules=None)])
    assert labels(found)["Search"].startswith("12 runs, 90 s, at least ~4.5 kJ, 0.09 USD")


EVEN = dict.fromkeys("uvwxyz", 1 / 6)


@pytest.mark.parametrize(
    ("time", "memory", "said"),
    [
        (EVEN, EVEN, None),
        (EVEN | {"u": 0.33}, EVEN | {"u": 0.9}, None),
        (EVEN | {"u": 0.34}, EVEN | {"u": 0.9}, "u for time (34 %)."),
        ({"u": 1.0}, {}, None),
        (
            {"u": 0.9, "v": 0.08, "w": 0.02},
            {"u": 0.3, "v": 0.3, "w": 0.4},
            "u for time (90 %); hardly: w.",
        ),
    ],
)
def test_what_mattered_is_said_where_something_stands_out(time: Any, memory: Any, said: str | None) -> None:
    found = find(
        GIVEN, TRIALS, space(("time", "memory")), importance={"time": time, "memory": memory, "loss": {"u": 1.0}}
    )
    assert all(point.values["memory"] == pytest.approx(1e9) for point in found.points), "which does not vary"
    assert labels(found).get("Mattered most among the best trials") == said


def test_how_sure_that_is() -> None:
    once = [*runs(0, "a", 100, 300, 1), *runs(1, "b", 300, 100)]
    *_, line = certainty(find(once, [tried(0, "a", 1), tried(1, "b")]))
    assert line.startswith("Trial 0 ran once")
    near = [*GIVEN[:9], *runs(4, "e", 120.2, 150.2)]
    found = find(near, [*TRIALS[:3], tried(4, "e")])
    chance = next(point.p_front for point in found.points if point.number == 4)
    assert chance is not None
    assert 0.25 < chance < 0.6
    assert f"perhaps also trial 4 ({100 * chance:.0f} %)" in " ".join(certainty(found))


def broken(number: int, name: str, **excess: float) -> Tried:
    return tried(number, name, state="infeasible", violations=excess, why="breaks a constraint")


def test_no_feasible_point() -> None:
    limited = space(constraints={"memory": {"max": 2e9}, "time": {"max": 10}})
    trials = [broken(0, "a", memory=0.5, time=0.3), broken(1, "b", memory=0.12, time=-0.1), oom(4, "e")]
    found = find(GIVEN, trials, limited)
    assert (found.points, found.hypervolume) == ((), ((0, 0.0), (1, 0.0), (4, 0.0)))
    assert headline(found) == "No configuration is allowed; memory ≤ 2 GB is missed by 12 % at least, trial 1 (b)."
    assert labels(found)["Failed"].startswith("3 of 3 trials: 1 × beyond the limit of memory and time; 1 × beyond")


NOTHING = Spent(0, 0, 0.0, None, False, None)


@pytest.mark.parametrize(
    ("trials", "spent", "said", "unsaid"),
    [
        ([], NOTHING, "0 of 8 configurations|no run was started|yet", "Take"),
        ([tried(0, "a")], SPENT, "Take a: 100 s", "instead|Failed"),
        ([oom(0, "a"), oom(1, "b", runs=())], SPENT, "No configuration is allowed|2 of 2 trials|1 of 8", "Left out"),
        (
            [tried(0, "a", source="store"), tried(1, "b", source="store")],
            NOTHING,
            "Take a for time|no run was started",
            "Failed",
        ),
        ([tried(0, "a", state="running", runs=())], SPENT, "0 of 8", "Take"),
    ],
)
def test_degenerate_searches(trials: list[Tried], spent: Spent, said: str, unsaid: str) -> None:
    found = find(GIVEN, trials, spent=spent)
    text = " ".join([title(found), *sentences(found)])
    assert all(words in text for words in said.split("|")), text
    assert not any(words in text for words in unsaid.split("|")), text
    json.dumps(found.document(), allow_nan=False)


def test_an_objective_that_no_run_tells() -> None:
    bare = [{k: v for k, v in row.items() if "joules" not in k} for row in GIVEN]
    found = find(bare, TRIALS[:2])
    assert [one.name for one in found.objectives] == ["time"]
    assert labels(found)["Left out"].startswith("energy (no energy is known: bench doctor")
    assert found.document()["objectives"][1] == {
        "name": "energy",
        "direction": "minimize",
        "unit": None,
        "column": None,
    }
    neither = find(bare, TRIALS[:2], space(("energy",)))
    assert (neither.points, neither.objectives) == ((), ())
    assert headline(neither) == "Nothing can be chosen yet."


def test_reasons_are_counted() -> None:
    nan = [oom(k, "ab"[k], why=f"invalid: the loss went from {k} to nan") for k in range(2)]
    never = oom(2, "c", why="needs 3 × 64 threads; this machine has 64 processors", runs=(), stage=None)
    told = labels(find(GIVEN, [*nan, never]))
    assert told["Impossible here, never started"].startswith("1 × needs 3 × 64 threads; this machine has 64 processors")
    assert told["Failed"] == "2 of 2 trials: 2 × invalid (the loss went from 0 to nan)."
    many = [oom(k, "a", why=f"reason {k}") for k in range(7)]
    assert labels(find(GIVEN, many))["Failed"].endswith("1 × reason 4; ....")
    killed = oom(0, "a", why="the search was killed in it 2 times", runs=(), stage=None)
    told = labels(find(GIVEN, [killed]))
    assert told["Failed"] == "1 of 1 trials: 1 × the search was killed in it 2 times."
    assert "Impossible here, never started" not in told


WORDS = """study name description sampler machine storage work objectives constraints space space_size budget spent ended
trials hypervolume reference importance front_file"""
OF_A_TRIAL = """number state stage source params values low high violations front knee p_front runs seconds joules
joules_estimated usd why"""


def test_the_document() -> None:
    document = json.loads(json.dumps(find(GIVEN, TRIALS).document(), allow_nan=False))
    assert sorted(document) == sorted(WORDS.split())
    assert sorted(document["trials"][0]) == sorted(OF_A_TRIAL.split())
    assert document["machine"] == "Synthetic CPU, 64 processors"
    assert document["work"] == {"samples": 1e6}
    assert document["space"]["precision"]["choices"] == list("abcdefgh")
    assert (document["space_size"], document["budget"]) == (8, {"trials": 9})
    assert document["objectives"][0] == {
        "name": "time",
        "direction": "minimize",
        "unit": "s",
        "column": "samples_per_second",
    }
    assert document["trials"][2]["knee"] is True
    assert document["hypervolume"][-1] == {"trial": 4, "share": 1.0}


def test_the_suite_of_the_best(tmp_path: Path) -> None:
    where = space(region="FR", usd_per_device_hour=2.0, idle_seconds=0.0)
    told = confirm_suite(find(GIVEN, TRIALS, where), k=2)
    path = tmp_path / "confirm.yaml"
    path.write_text(yamlfile.write(told))
    suite = load_suite(path)
    assert (suite.name, suite.repeats) == ("find-confirm", 5)
    assert suite.include == [{"precision": "c"}, {"precision": "a"}, {"precision": "b"}], "the knee, then the front"
    assert (suite.region, suite.usd_per_device_hour, suite.idle_seconds) == ("FR", 2.0, 0.0)
    assert suite.defaults == where.search.defaults
    assert len(confirm_suite(find(GIVEN, TRIALS, where))["include"]) == 4, "filled up"
    assert len(confirm_suite(find(GIVEN, TRIALS, where), k=1)["include"]) == 3, "the front is repeated whole"
    twice = find(GIVEN, [*TRIALS, tried(5, "c", source="store")], where)
    cells = confirm_suite(twice, k=9)["include"]
    assert all(a != b for a, b in itertools.combinations(cells, 2))


def test_the_suite_of_a_search_for_quality_trains_for_all_of_the_work() -> None:
    fields = {"defaults": {"workload": "text_cnn", "batch_size_per_device": 8, "warmup_steps": 2}, "seed": 1}
    search = Search.model_validate(
        {"name": "find", "budget": {"trials": 1}, "space": {"devices": [1]}, "objectives": ["loss"]}
        | fields
        | {"work": {"samples": 800}}
    )
    where = Space.of(search, Machine(cpu_model="Synthetic CPU", cpu_count=64))
    given = [row | {"validation_loss": 2.0} for row in runs(0, "a", 100, 300)]
    (cell,) = confirm_suite(find(given, [tried(0, "a", params={"devices": 1})], where))["include"]
    assert cell == {"devices": 1, "measure_steps": 98, "warmup_seconds": 0.0}


def test_the_way_to_a_target() -> None:
    aimed = [row | {"target_reached": 1.0, "seconds_to_target": 7.0} for row in runs(0, "a", 100, 300)]
    aim = {"target.metric": "validation_loss", "target.value": 3.0}
    defaults = {"workload": "decoder_lm", "batch_size_per_device": 8, **aim}
    found = find(aimed, TRIALS[:1], space(("time",), work={"target": True}, defaults=defaults))
    assert headline(found) == "Take a: 7 s."
    assert "time to the target" in title(found)
    assert found.document()["work"] == {"target": {"metric": "validation_loss", "value": 3.0}}


def test_what_confirming_runs_say() -> None:
    found = find(GIVEN, TRIALS)
    again = [*runs(0, "a", 102, 300, 5), *runs(1, "b", 200, 100, 5), *runs(2, "c", 120, 150, 5)]
    lines = confirmed(found, frame(again))
    assert "Take a for time (102 s" in lines[0]
    assert lines[1].startswith("Trial 2 (c): 120 s (")
    assert lines[1].endswith("still on the front (100 %).")
    assert "Really different: trials 0 and 2 (time better, energy worse); 2 and 1 (time better, energy worse)." in lines
    assert lines[-1] == "The values of the search were off by 0.0067 % (median), 2 % at most."
    noisy = [*runs(0, "a", 102, 300, 5), *runs(2, "c", 99, 150, 5)]
    lines = confirmed(found, frame(noisy))
    assert any(line.startswith("Trial 0 (a): ") and "no longer on the front" in line for line in lines)
    assert lines[-1] == "Not repeated: trial 1 (b)."
    failed = [row | {"status": "failed"} for row in runs(1, "b", 200, 100)]
    lines = confirmed(found, frame([*noisy[:5], *failed]))
    assert lines[-2:] == ["No repeat tells all of what counts of trial 1 (b).", "Not repeated: trial 2 (c)."]
    assert confirmed(found, frame([])) == ["Not repeated: trial 0 (a), trial 2 (c), trial 1 (b)."]
    assert confirmed(find([], []), frame(noisy)) == ["There is nothing to confirm."]


def test_what_confirming_runs_cannot_tell() -> None:
    close = [*runs(0, "a", 100, 102), *runs(1, "b", 101, 100)]
    found = find(close, TRIALS[:2])
    again = [*runs(0, "a", 100, 100.5, 4), *runs(1, "b", 100.6, 100, 4)]
    assert not any(line.startswith("Really") for line in confirmed(found, frame(again)))


def test_confirming_runs_are_known_again_by_what_they_set(tmp_path: Path) -> None:
    """With a real space: options, numbers and what is set only with another value come back from the rows."""
    search = Search.model_validate(
        {
            "name": "real",
            "defaults": {"workload": "text_cnn", "measure_seconds": 1.0},
            "space": {
                "devices": [1, 2],
                "batch_size_per_device": {"low": 1, "high": 64, "log": True},
                "parallelism": ["ddp", {"name": "ddp", "bucket_mb": 5}],
                "gradient_accumulation_steps": {"choices": [2, 4], "when": {"devices": 2}},
            },
            "objectives": ["time"],
            "budget": {"trials": 3},
        }
    )
    where = Space.of(search, Machine(cpu_model="Synthetic CPU", cpu_count=64))
    cells: list[dict[str, Any]] = [
        {"devices": 1, "batch_size_per_device": 7, "parallelism": "ddp-bucket_mb=5"},
        {"devices": 2, "batch_size_per_device": 64, "parallelism": "ddp", "gradient_accumulation_steps": 4},
    ]

    def ran(stage: dict[str, Any], *repeats: int) -> list[dict[str, Any]]:
        out = []
        for number, params in enumerate(cells):
            for repeat in repeats:
                spec = where.spec(params).model_copy(update={"repeat": repeat})
                row = {k: v for k, v in rows.make().items() if k not in parameters(rows.record().spec)}
                told = row | parameters(spec) | {"config_id": spec.config_id, "run_id": f"{number}-r{repeat}"}
                out.append(
                    told | {"samples_per_second": 100.0 + number + 0.01 * repeat} | stage | {"trial": str(number)}
                )
        return out

    trials = [
        tried(n, "", params=params, runs=(f"{FOLDER}/{n}-r0", f"{FOLDER}/{n}-r1")) for n, params in enumerate(cells)
    ]
    found = result(where, STUDY, trials, frame(ran({"study": STUDY}, 0, 1)), {}, SPENT, "it ended")
    assert [point.number for point in found.points] == [1, 0]
    assert found.space_size is not None
    path = tmp_path / "confirm.yaml"
    path.write_text(yamlfile.write(confirm_suite(found, repeats=2)))
    plan = expand(load_suite(path), where.machine)
    assert sorted(map(where.params, map(parameters, plan.runs)), key=str) == sorted(2 * cells, key=str)
    lines = confirmed(found, frame(ran({"study": "other"}, 0, 1, 2)))
    assert lines[1].startswith(
        "Trial 1 (2 devices, batch 64 per device, DDP, 4 accumulation steps): 2.75 h (2.75-2.75); still on the front"
    )
    assert "The same: trials 1 and 0." in lines

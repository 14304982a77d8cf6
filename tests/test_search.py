"""Searches played back from a grid that was measured once: what is asked for, told, repeated, given up and found."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from analytics.runs.frame import frame
from analytics.search.file import Search
from analytics.search.searcher import NEAR, Scores, Searcher, near
from analytics.search.study import StorageProblem, launched, one_at_a_time, open_study, read_trials, spent
from bench.schema import RunSpec
from tests.replay import Recorded, search, space


def searcher(tmp_path: Path, run: Any = None, asked: Search | None = None, **more: Any) -> tuple[Searcher, Any]:
    asked = asked or search(budget={"trials": 12})
    over = space(asked)
    run = run or Recorded(over)
    where = str(tmp_path / "study.journal")
    study = open_study(where, "replay", over, asked.sampler)
    return Searcher(over, study, run, Scores(asked), asking=partial(one_at_a_time, where), **more), run


def test_a_search_spends_its_trials_on_different_configurations(tmp_path: Path) -> None:
    one, run = searcher(tmp_path)
    assert one.search() == "the budget of 12 trials is spent"
    assert len(run.configurations) == len(set(run.configurations)) == 12
    tried = launched(one.study)
    assert len(tried) == 12
    assert {trial.user_attrs["source"] for trial in tried} == {"search"}
    best = one.study.best_trials[0]
    row = run.row(one.space.spec(best.params))
    assert best.user_attrs["values"]["time"] == pytest.approx(1e6 / row["samples_per_second"])
    assert best.user_attrs["values"]["cost"] == pytest.approx(row["cost_usd_per_million_samples"])
    assert one.search() == "the budget of 12 trials is spent"
    assert len(run.configurations) == 12


def test_near_the_front_is_what_nobody_beats_clearly() -> None:
    import numpy as np

    known = [np.array([10.0, 1.0]), np.array([5.0, 2.0])]
    assert near(np.array([4.0, 3.0]), known)
    assert near(np.array([10.0 * (1 + NEAR / 2), 1.0]), known)
    assert not near(np.array([11.0, 1.1]), known)
    assert near(np.array([-0.9]), [np.array([-0.92])])
    assert not near(np.array([-0.5]), [np.array([-0.92])])


def test_candidates_are_repeated_in_full_and_the_rest_is_not(tmp_path: Path) -> None:
    stages: list[tuple[str, int, float | None]] = []
    asked = search(budget={"trials": 15}, repeats=3, probe={"measure_seconds": 0.5})
    recorded = Recorded(space(asked))

    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        stages.append((stage, len(specs), specs[0].measure_seconds))
        return recorded(specs, number, stage)

    one, _ = searcher(tmp_path, run, asked)
    one.search()
    assert stages[:2] == [("probe", 1, 0.5), ("full", 3, 1.5)]
    assert 2 <= sum(stage == "full" for stage, *_ in stages) < 15 == sum(stage == "probe" for stage, *_ in stages)
    values = {trial.number: trial.values for trial in launched(one.study) if trial.values}
    for trial in launched(one.study):
        if trial.user_attrs["stage"] == "probe" and trial.values:
            assert not near(trial.values, [v for n, v in values.items() if n < trial.number])
        assert len(trial.user_attrs["runs"]) == (3 if trial.user_attrs["stage"] == "full" else 1)


def test_all_configurations_are_tried_once_and_then_it_ends(tmp_path: Path) -> None:
    asked = search(space={"precision": ["fp32", "bf16"], "devices": [1, 2], "batch_size_per_device": [4]}, exclude=[])
    asked = asked.model_copy(
        update={"defaults": asked.defaults | {"optimizer": "adamw", "memory": "none", "parallelism": "ddp"}}
    )

    class Some(Recorded):
        def __init__(self) -> None:
            super().__init__(space(search()))

    for sampler in ("tpe", "random", "grid", "nsga2"):
        folder = tmp_path / sampler
        one, run = searcher(folder, Some(), asked.model_copy(update={"sampler": sampler}))
        assert one.search() == "all 4 configurations that are possible were tried"
        assert len(run.configurations) == 4


def test_what_cannot_run_is_never_launched_and_told_with_its_reason(tmp_path: Path) -> None:
    asked = search(budget={"trials": 20}, space=search().space | {"devices": [1, 2, 4]})
    one, run = searcher(tmp_path, None, asked)
    one.search()
    assert len(run.configurations) == 20
    refused = [trial for trial in one.study.trials if trial.params.get("devices") == 4]
    assert refused
    assert all(trial.constraints == {"runs": 1.0} for trial in refused)
    assert {trial.user_attrs["why"] for trial in refused} == {"needs 4 × 1 threads; this machine has 2 processors"}
    assert one.used()["trials"] == 20


def failing(recorded: Recorded, fails: Any, **row: Any) -> Any:
    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        rows = recorded(specs, number, stage)
        keep = ("run_id", "execution", "duration_seconds", "run_energy_joules_estimated", "repeat", "started_at")
        asked_of = [{name: value for name, value in r.items() if name in keep} | row for r in rows]
        return [bad if fails(spec) else good for bad, good, spec in zip(asked_of, rows, specs, strict=True)]

    return run


def test_out_of_memory_is_a_constraint_that_is_paid_for(tmp_path: Path) -> None:
    asked = search(budget={"trials": 15})
    run = failing(
        Recorded(space(asked)),
        lambda spec: spec.batch_size_per_device >= 8,
        status="out_of_memory",
        error_message="tried to allocate 2 GiB",
    )
    one, _ = searcher(tmp_path, run, asked)
    assert one.search() == "the budget of 15 trials is spent"
    lost = [trial for trial in launched(one.study) if trial.state.name == "PRUNED"]
    assert lost
    assert {trial.user_attrs["why"] for trial in lost} == {"out_of_memory: tried to allocate 2 GiB"}
    assert all(trial.constraints == {"runs": 1.0} for trial in lost)
    told = [trial for trial in read_trials(one.study) if trial.why]
    assert all(trial.joules and trial.joules_estimated for trial in told)
    assert one.used()["joules"] == pytest.approx(sum(trial.joules or 0 for trial in read_trials(one.study)))
    assert all(trial.params["batch_size_per_device"] < 8 for trial in one.study.best_trials)


def test_a_search_in_which_nothing_runs_ends_early_and_says_why(tmp_path: Path) -> None:
    asked = search()
    run = failing(Recorded(space(asked)), lambda spec: True, status="failed", error_message="no such file: text")
    one, _ = searcher(tmp_path, run, asked)
    assert one.search() == "the last 5 configurations broke down: failed: no such file: text"
    again, run = searcher(
        tmp_path, None, asked.model_copy(update={"budget": asked.budget.model_copy(update={"trials": 9})})
    )
    assert again.search() == "the budget of 9 trials is spent"  # what was wrong is mended


def test_running_out_of_memory_again_and_again_is_no_reason_to_give_up(tmp_path: Path) -> None:
    asked = search(budget={"trials": 12})
    run = failing(Recorded(space(asked)), lambda spec: True, status="out_of_memory", error_message="too large")
    one, _ = searcher(tmp_path, run, asked)
    assert one.search() == "the budget of 12 trials is spent"


def test_a_configuration_that_fails_when_it_is_repeated_is_not_recommended(tmp_path: Path) -> None:
    asked = search(budget={"trials": 4}, repeats=3, probe={"measure_seconds": 0.5})
    recorded = Recorded(space(asked))
    lost = failing(recorded, lambda spec: spec.repeat == 2, status="out_of_memory", error_message="later")

    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        return lost(specs, number, stage) if stage == "full" else recorded(specs, number, stage)  # type: ignore[no-any-return]

    one, _ = searcher(tmp_path, run, asked)
    one.search()
    told = [trial for trial in read_trials(one.study) if trial.stage == "full"]
    assert told
    assert {(trial.state, trial.why) for trial in told} == {("infeasible", "out_of_memory: later")}
    assert spent(one.study).runs == sum(4 if trial.stage == "full" else 1 for trial in read_trials(one.study))


def test_an_objective_that_no_run_tells_ends_the_search(tmp_path: Path) -> None:
    asked = search("[time, energy]")

    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in row.items() if "joules" not in k} for row in Recorded(space(asked))(specs, number, stage)
        ]

    one, _ = searcher(tmp_path, run, asked)
    assert one.search() == "energy is not known: no energy is known: bench doctor says what can be measured"
    assert one.used()["trials"] == 2


def test_a_budget_that_cannot_be_counted_ends_the_search(tmp_path: Path) -> None:
    asked = search(budget={"joules": 1000.0})

    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in row.items() if "joules" not in k} for row in Recorded(space(asked))(specs, number, stage)
        ]

    one, _ = searcher(tmp_path, run, asked)
    assert "budget is counted in joules, and what the runs took of it is not known" in one.search()


def test_budgets_of_energy_and_money_end_before_they_are_overspent(tmp_path: Path) -> None:
    for part, limit in (("joules", 900.0), ("usd", 0.001)):
        asked = search(budget={part: limit})
        one, _ = searcher(tmp_path / part, None, asked)
        assert one.search() == f"the budget of {limit:g} {part} is spent"
        assert 0.6 * limit < one.used()[part] < 1.3 * limit
    asked = search(budget={"joules": 900.0}, repeats=20)
    one, _ = searcher(tmp_path / "repeats", None, asked)
    one.search()
    assert one.used()["joules"] < 1.3 * 900


def test_a_constraint_that_nobody_meets_leaves_no_best_trial(tmp_path: Path) -> None:
    asked = search(budget={"trials": 10}, constraints={"memory": {"max": 1e6}})
    one, _ = searcher(tmp_path, None, asked)
    assert one.search() == "the budget of 10 trials is spent"
    tried = launched(one.study)
    assert all(trial.constraints["memory"] > 0 for trial in tried if trial.values)
    assert one.study.best_trials == []
    assert {trial.user_attrs["stage"] for trial in tried} == {"probe"}  # nothing is repeated that is not allowed


def test_a_stopped_trial_is_proposed_again_by_the_next_worker(tmp_path: Path) -> None:
    asked = search(budget={"trials": 6})
    recorded, seen = Recorded(space(asked)), []

    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        seen.append(recorded.place(specs[0]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return recorded(specs, number, stage)

    one, _ = searcher(tmp_path, run, asked)
    with pytest.raises(KeyboardInterrupt):
        one.search()
    two, _ = searcher(tmp_path, run, asked)
    before = spent(two.study).joules
    assert before
    own = pd.DataFrame([row | {"study": "replay"} for row in recorded.frame().to_dict("records")])
    assert two.add_known(frame(own)) == 0  # its own runs are no earlier ones
    assert two.search() == "the budget of 6 trials is spent"
    assert seen[2] == seen[3]
    assert (spent(two.study).joules or 0) > before
    assert len(set(seen)) == 6
    assert two.used()["trials"] == 6


def orphan(one: Searcher, **held: Any) -> dict[str, Any]:
    """Leave a trial behind as a worker that was killed does."""
    trial, _ = one._ask() or pytest.fail("nothing to ask for")
    trial.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0, "until": 0.0} | held)
    return trial.params


def test_what_a_killed_worker_was_doing_is_done_again_but_not_for_ever(tmp_path: Path) -> None:
    one, _ = searcher(tmp_path)
    lost = orphan(one)
    two, run = searcher(tmp_path)
    two.search()
    assert run.configurations[0] == run.place(two.space.spec(lost))
    three, _ = searcher(tmp_path / "b")
    first = orphan(three)
    three._take_over()
    assert orphan(three) == first
    again, run = searcher(tmp_path / "b")
    again.search()
    given_up = [trial for trial in again.study.trials if trial.params == first and trial.state.name == "PRUNED"]
    assert given_up[0].user_attrs["why"] == "the search was killed in it 2 times"
    assert run.place(again.space.spec(first)) not in run.configurations


def test_what_another_machine_is_doing_is_left_alone_until_its_time_is_over(tmp_path: Path) -> None:
    import time

    one, _ = searcher(tmp_path)
    held = orphan(one, until=time.time() + 1000)
    two, run = searcher(tmp_path)
    two.search()
    assert run.place(two.space.spec(held)) not in run.configurations


def test_stored_runs_are_added_and_not_repeated(tmp_path: Path) -> None:
    asked = search(budget={"trials": 40}, space=search().space | {"optimizer": ["adamw"], "parallelism": ["ddp"]})
    one, run = searcher(tmp_path, None, asked)
    df = run.frame()
    known = df[(df["parallelism"] == "ddp") & (df["memory"] == "none") & (df["optimizer"] == "adamw")]
    assert one.add_known(known) == 30
    assert one.add_known(known) == 0
    assert {t.user_attrs["source"] for t in one.study.trials} == {"store"}
    assert one.search() == "all 60 configurations that are possible were tried"
    assert len(run.configurations) == 30


def test_stored_runs_of_something_else_are_passed_over(tmp_path: Path) -> None:
    one, run = searcher(tmp_path)
    df = run.frame()
    assert one.add_known(df.assign(**{"workload_args.sequence_length": 128.0})) == 0
    assert one.add_known(df.assign(precision="fp16")) == 0
    assert one.add_known(df[df["status"] == "failed"]) == 0
    assert one.add_known(df.head(3).assign(measure_seconds=0.1)) == 0  # looked at for less time than a probe is
    both = pd.concat(
        [df.head(3).assign(samples_per_second=1.0), df.head(3).assign(measure_seconds=60.0, run_id="long")]
    )
    assert one.add_known(frame(both)) == 3  # of several lengths the longest counts
    assert all(trial.values[0] < 1e5 for trial in one.study.trials)


def test_two_workers_at_once_neither_repeat_each_other_nor_overspend(tmp_path: Path) -> None:
    for sampler in ("tpe", "random", "grid"):
        asked, both = search(budget={"trials": 14}, sampler=sampler), threading.Barrier(2)
        runs, ends = [Recorded(space(asked)) for _ in range(2)], []
        workers = [searcher(tmp_path / sampler, run, asked)[0] for run in runs]

        def go(worker: Searcher, both: threading.Barrier = both, ends: list[str] = ends) -> None:
            both.wait()
            ends.append(worker.search())

        threads = [threading.Thread(target=go, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends == ["the budget of 14 trials is spent"] * 2
        tried = [*runs[0].configurations, *runs[1].configurations]
        assert len(tried) == len(set(tried)) == 14
        assert all(run.configurations for run in runs)


def test_what_another_worker_took_for_lost_is_left_to_it(tmp_path: Path) -> None:
    asked = search(budget={"trials": 3})
    recorded, taken = Recorded(space(asked)), []

    def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[dict[str, Any]]:
        if not taken:
            taken.append(number)
            one.study.tell(number, state=optuna.trial.TrialState.FAIL)
        return recorded(specs, number, stage)

    one, _ = searcher(tmp_path, run, asked)
    assert one.search() == "the budget of 3 trials is spent"


def test_a_line_torn_by_a_kill_does_not_break_the_study(tmp_path: Path) -> None:
    one, _ = searcher(tmp_path)
    one.search()
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    two, _ = searcher(tmp_path, None, search(budget={"trials": 14}))
    two.search()
    three, _ = searcher(tmp_path)
    assert len(launched(three.study)) == 14


def test_a_storage_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("not a journal\n" * 3)
    with pytest.raises(StorageProblem, match=r"study\.journal cannot be used"):
        searcher(tmp_path)
    with pytest.raises(StorageProblem, match="nosuch"):
        open_study("nosuch://host/db", "replay", space(search()), "tpe")


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import sqlite3

    from analytics.search import study

    monkeypatch.setattr(study, "_LOCK_SECONDS", 0.2)
    where = f"sqlite:///{tmp_path}/study.db"
    open_study(where, "replay", space(search()), "tpe")
    connection = sqlite3.connect(tmp_path / "study.db")
    connection.execute("begin exclusive")
    yield where
    connection.rollback()
    connection.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_database_that_another_process_locks_is_told(locked: str) -> None:
    with pytest.raises(StorageProblem, match="locked; another process holds it"):
        open_study(locked, "replay", space(search()), "tpe")

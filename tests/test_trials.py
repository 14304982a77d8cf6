"""The runs of a search: through one warm node, on devices of their own, and going on after whatever ended the search."""

import json
import os
import signal
import sqlite3
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench.errors import Stopped
from bench.figures.metrics import TEXT_COLUMNS, labels
from bench.machine.environment import find_machine
from bench.record import RunRecord, Status, Trial
from bench.run.collect import Context, skipped
from bench.run.launcher import Launcher, LaunchOptions
from bench.run.runner import Progress, load_records, resume, run_suite
from bench.run.trials import _execution, open_trials
from bench.schema import RunSpec, Site, Suite
from bench.store.progress import Flight, in_flight
from bench.store.tracker import flights, load, searches
from bench.suites.expand import Expansion
from tests import rows, warm

STUDY = "look-0a1b2c3d"
LOOK = Suite(name="look", idle_seconds=0, usd_per_device_hour=1)


def trial(number: int, stage: Any = "full") -> Trial:
    return Trial(study=STUDY, number=number, stage=stage)


def spec(**fields: Any) -> RunSpec:
    given = {"workload_args": {"layers": 1, "hidden": 32, "heads": 2, "sequence_length": 16}, "device_type": "cpu"}
    given |= {"workload": "decoder_lm", "batch_size_per_device": 2, "measure_steps": 8, "warmup_steps": 2}
    return RunSpec.model_validate({**given, "meters": [], "validation": {"samples": 0}, **fields})


def test_a_record_says_which_trial_it_belongs_to() -> None:
    plain = rows.record(1)
    assert not {"study", "trial", "stage"} & labels(plain).keys()
    tried = plain.model_copy(update={"trial": trial(3, "probe")})
    assert labels(tried) == labels(plain) | {"study": STUDY, "trial": "3", "stage": "probe"}
    assert set(labels(tried)) <= set(TEXT_COLUMNS)
    assert RunRecord.model_validate_json(tried.model_dump_json()) == tried
    before = json.loads(plain.model_dump_json())
    del before["trial"]  # as versions wrote it that knew no searches
    assert RunRecord.model_validate(before) == plain


def test_a_run_that_is_skipped_belongs_to_its_trial_too() -> None:
    context = Context("look", "x", Site(), rows.environment(), [], trial(4))
    assert skipped(context, spec(), "no").trial == trial(4)


def test_each_worker_has_an_execution_and_goes_on_with_it(tmp_path: Path) -> None:
    plan, facts = Expansion(LOOK, [spec()]), rows.environment()

    def opened(stack: ExitStack, study: str = STUDY, host: Any = facts) -> Any:
        return _execution(stack, tmp_path / "runs" / "look", plan, study, host)

    with ExitStack() as stack:
        first, second = opened(stack), opened(stack)
        assert first.folder != second.folder
        assert not first.resumed
        assert not second.resumed
    written = json.loads((first.folder / "execution.json").read_text())
    assert (written["study"], written["plan_digest"]) == (STUDY, f"search-{STUDY}")
    with ExitStack() as stack:
        newest = opened(stack)
        assert newest.resumed
        assert newest.folder == max(first.folder, second.folder)
        assert opened(stack).folder == min(first.folder, second.folder)
        others = {opened(stack).folder, opened(stack, "look-11111111").folder}
        others.add(opened(stack, host=rows.environment(host="another")).folder)
        assert len({newest.folder, *others}) == 4


class Heard(Progress):
    def __init__(self) -> None:
        self.started: list[str] = []
        self.noted: list[str] = []

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        self.started.append(spec.run_id)

    def note(self, text: str) -> None:
        self.noted.append(text)


def test_a_run_counts_whose_listener_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Progress):
        def done(self, record: RunRecord) -> None:
            raise BrokenPipeError

    class Dead(Launcher):
        def __init__(self, options: LaunchOptions) -> None: ...

        def submit(self, folder: Path) -> None: ...

        def wait(self, *_: Any) -> bool:
            return False

    monkeypatch.setattr("bench.run.runner.make_launcher", lambda runs, options: Dead(options))
    plan = Expansion(LOOK, [spec(repeat=repeat) for repeat in range(3)])
    machine = find_machine()[0].changed(gpus=[])
    with pytest.raises(BrokenPipeError):
        run_suite(plan, machine, runs=tmp_path / "runs", store=f"sqlite:///{tmp_path}/mlflow.db", progress=Gone())
    (folder,) = (tmp_path / "runs" / "look").iterdir()
    flight = Flight.model_validate_json((folder / "progress.json").read_text())
    assert (flight.done, flight.to_do, len(load_records(folder))) == (1, 3, 1)


def ended(folder: Path) -> list[str]:
    """How the parent runs of a store have ended."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        query = "select status from runs join tags using (run_uuid) where key = 'bench.kind' and value = 'suite'"
        return sorted(status for (status,) in database.execute(query))


@pytest.mark.slow
@warm.nodes()
def test_trials_go_through_one_node(tmp_path: Path) -> None:
    machine, heard = find_machine()[0], Heard()
    probe, full = spec(), [spec(measure_steps=12, repeat=repeat, seed=repeat) for repeat in range(2)]
    machine = machine.model_copy(update={"gpus": []})
    document = {"study": STUDY, "trials": [{"number": 0}, {"number": 1}]}
    more: dict[str, Any] = {"runs": Path("runs"), "store": None, "progress": heard, "to_do": 9}
    opened = lambda: open_trials(LOOK, STUDY, [probe], machine, **more)  # noqa: E731
    with opened() as trials:
        assert trials.runner.launcher._process is None  # as long as nothing is to be run
        (short,) = trials.run([probe], trial(0, "probe"))
        node = trials.runner.launcher._process
        longer = trials.run(full, trial(1), done=1)
        (seen,) = in_flight(Path("runs"), flights(), datetime.now(UTC))
        told = seen.flight
        assert (seen.state, told.unit, told.done, told.to_do, told.failed) == ("running", "trials", 1, 9, 0)
        assert told.current == f"trial 1, full: {full[1].label} r1"
        assert flights() == [told]
        assert trials.runner.launcher._process is node
        trials.publish(document)
        assert searches() == [document]
    assert [r.status for r in (short, *longer)] == [Status.OK] * 3
    assert [r.trial for r in (short, *longer)] == [trial(0, "probe"), trial(1), trial(1)]
    assert short.cost is not None
    assert json.loads((trials.execution.folder / "search.json").read_text()) == document
    assert ended(tmp_path) == ["FINISHED"]
    assert in_flight(Path("runs"), flights(), datetime.now(UTC)) == []
    assert Flight.model_validate_json((trials.execution.folder / "progress.json").read_text()).ended
    found = {str(row["run_id"]): row for row in load()}
    assert {(row["study"], row["trial"], row["stage"]) for row in found.values()} == {
        (STUDY, "0", "probe"),
        (STUDY, "1", "full"),
    }
    assert len(heard.started) == 3

    def again() -> None:
        with opened() as found:
            assert found.execution.folder == trials.execution.folder
            assert found.run([*full, probe], trial(7)) == [*longer, short]
            assert found.runner.launcher._process is None
            os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C between two trials
            time.sleep(5)

    with pytest.raises(Stopped, match=resume()):
        again()
    assert resume(new=True) == "Run the same command again, without --new, to resume."
    assert ended(tmp_path) == ["KILLED"]
    told = Flight.model_validate_json((trials.execution.folder / "progress.json").read_text())
    assert (told.ended, told.stopped, told.finished) == (True, True, False)
    assert [seen.state for seen in in_flight(Path("runs"), flights(), datetime.now(UTC))] == ["stopped"]
    assert len(heard.started) == len(load()) == 3
    assert heard.noted == []

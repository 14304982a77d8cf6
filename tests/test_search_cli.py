"""`bench search` for real: trials that train, an answer, going on after every way to end, and what cannot be searched."""

import io
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from analytics.search import session as searching
from analytics.search.result import SearchResult
from bench.record import RunRecord
from bench.run.runner import Progress
from bench.suites import yaml as yamlfile
from tests import commands
from tests.processes import BENCH, PATIENCE, interrupted, processes_in, until
from tests.stores import empty_store

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "name": "small",
    "defaults": {
        "workload": "decoder_lm",
        **{
            f"workload_args.{name}": size
            for name, size in {"layers": 1, "hidden": 32, "heads": 2, "sequence_length": 16}.items()
        },
        "threads_per_device": 1,
        "device_type": "cpu",
        "warmup_steps": 1,
        "warmup_seconds": 0,
        "measure_seconds": 0.2,
        "validation": {"samples": 0},
    },
    "space": {"batch_size_per_device": [1, 8, 64], "precision": ["fp32", "bf16"]},
    "objectives": ["time", "memory"],
    "budget": {"trials": 3},
    "probe": {"measure_seconds": 0.1},
    "repeats": 2,
    "idle_seconds": 0,
}


SCRIPT = """
import sys, time
from bench.steps import step
for _ in range(12):
    time.sleep(float(sys.argv[1]) / 100)
    step(samples=4)
"""
SCRIPTS: dict[str, Any] = {
    "defaults": {
        "workload": "command",
        "workload_args.argv": f"{sys.executable} -c '{SCRIPT}' {{hundredths}}",
        "device_type": "cpu",
        "meters": [],
    },
    "space": {"workload_args.hundredths": [4, 5, 6, 7, 8, 9]},
    "objectives": ["time"],
    "probe": {},
}
"""Changes for searches that are interrupted: a script imports no torch."""


def written(folder: Path, **changes: Any) -> str:
    path = folder / "small.yaml"
    path.write_text(yamlfile.write({**SMALL, **changes}))
    return str(path)


def search(folder: Path, *arguments: str, **changes: Any) -> Result:
    empty_store(folder)
    return asked(folder, *arguments, **changes)


def asked(folder: Path, *arguments: str, **changes: Any) -> Result:
    """The same where no store is wanted."""
    return commands.execute(folder, "search", written(folder, **changes), *arguments)


def records(folder: Path) -> list[RunRecord]:
    paths = sorted(folder.glob("runs/small/*/*/record.json"), key=lambda path: path.stat().st_mtime)
    return [RunRecord.model_validate_json(path.read_text()) for path in paths]


def document(process: Result) -> dict[str, Any]:
    assert process.stdout, process.stderr
    found: dict[str, Any] = json.loads(process.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    return found


Done = tuple[Path, Result]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("search")
    return folder, search(folder, "--json")


def test_a_search_runs_its_trials_and_answers(done: Done) -> None:
    folder, process = done
    assert process.exit_code == 0, process.stderr
    told = document(process)
    assert told["ended"] == "the budget of 3 trials is spent"
    tried = [trial for trial in told["trials"] if trial["state"] == "complete"]
    assert len(tried) == told["spent"]["trials"] == 3
    assert any(trial["front"] and trial["knee"] for trial in tried)
    by_trial: dict[int, list[RunRecord]] = {}
    for record in records(folder):
        assert record.trial is not None
        assert record.trial.study == told["study"]
        by_trial.setdefault(record.trial.number, []).append(record)
    for trial in tried:
        made = by_trial[trial["number"]]
        assert [record.trial.stage for record in made if record.trial] == ["probe", "full", "full"][: len(made)]
        assert len(trial["runs"]) == (2 if trial["stage"] == "full" else 1)
        assert made[0].spec.batch_size_per_device == trial["params"]["batch_size_per_device"]
        rates = [
            r.measurement.samples / r.measurement.window_seconds
            for r in made[-len(trial["runs"]) :]
            if r.measurement and r.measurement.samples
        ]
        assert trial["low"].get("time", 0) <= trial["values"]["time"]
        assert (
            min(1e6 / rate for rate in rates) * 0.999
            <= trial["values"]["time"]
            <= max(1e6 / rate for rate in rates) * 1.001
        )
    assert sum(record.duration_seconds for record in records(folder)) <= told["spent"]["seconds"]
    assert processes_in(folder) == []


def test_the_index_knows_study_and_trial(done: Done) -> None:
    from bench.store.tracker import load, searches

    folder, process = done
    told = document(process)
    uri = f"sqlite:///{folder}/mlflow.db"
    assert {(row["study"], row["stage"]) for row in load(uri)} == {(told["study"], "probe"), (told["study"], "full")}
    (kept,) = searches(uri)
    assert kept["trials"] == told["trials"]
    assert kept["sentences"]


def test_the_same_command_again_only_answers_and_a_larger_budget_goes_on(done: Done) -> None:
    folder, process = done
    before = len(records(folder))
    again = search(folder)
    assert again.exit_code == 0, again.stderr
    assert len(records(folder)) == before
    assert f"bench search {folder / 'small.yaml'} --confirm" in again.stdout
    assert "optuna-dashboard " in search(folder, "--show", "--explain").stdout
    more = search(folder, "--trials", "4", "--json")
    assert document(more)["study"] == document(process)["study"]
    assert document(more)["spent"]["trials"] == 4
    assert len(records(folder)) > before


def test_stored_runs_begin_another_study(done: Done) -> None:
    folder, _ = done
    known = len({json.dumps(t["params"]) for t in document(search(folder, "--show", "--json"))["trials"]})
    shown = search(folder, "--dry-run")
    assert f"tell {known} of them" in shown.stdout
    new = document(search(folder, "--new", "--trials", "1", "--json"))
    assert new["study"].endswith("-2")
    assert [trial["source"] for trial in new["trials"]].count("store") == known


def test_confirming_repeats_the_front_in_turn(tmp_path: Path) -> None:
    from bench.store.tracker import searches

    process = search(tmp_path, "--confirm", "--trials", "1", "--json", **SCRIPTS)
    assert process.exit_code == 0, process.stderr
    told = document(process)
    confirming = [json.loads(path.read_text()) for path in tmp_path.glob("runs/small-confirm/*/*/record.json")]
    assert len(confirming) == 5 * len([t for t in told["trials"] if t["state"] == "complete"])
    assert told["confirmed"]
    assert document(search(tmp_path, "--show", "--json", **SCRIPTS))["confirmed"] == told["confirmed"]
    (kept,) = searches(f"sqlite:///{tmp_path}/mlflow.db")
    assert kept["confirmed"] == told["confirmed"]
    assert (tmp_path / told["front_file"]).exists() or Path(told["front_file"]).exists()


def test_stored_runs_cost_what_they_would_cost_here(done: Done) -> None:
    folder, _ = done
    shown = search(folder, "--dry-run", "--json", "--price", "7", objectives=["time", "cost"])
    assert document(shown)["known"] >= 3, "those runs had no price"
    assert document(search(folder, "--dry-run", "--json", "--ignore-stored"))["known"] == 0
    told = document(search(folder, "--price", "7", "--trials", "1", "--json", objectives=["time", "cost"]))
    stored = [trial for trial in told["trials"] if trial["source"] == "store"]
    assert len(stored) >= 3
    for trial in stored:
        assert trial["values"]["cost"] == pytest.approx(trial["values"]["time"] / 3600 * 7, rel=1e-3)


def test_a_study_that_is_not_there_names_the_others(done: Done) -> None:
    folder, process = done
    shown = asked(folder, "--show", "--price", "3")
    assert shown.exit_code == 2
    assert "nothing was tried yet in the study small-" in shown.stderr
    assert "other studies of this search: small-" in shown.stderr
    assert document(process)["study"] in shown.stderr


def test_a_dry_run_tells_and_creates_nothing(tmp_path: Path) -> None:
    process = asked(tmp_path, "--dry-run", "--json", "--storage", f"sqlite:///{tmp_path}/study.db")
    wanted = {"combinations": 6, "possible": 6, "refused": {}, "known": 0, "sampler": "tpe", "budget": {"trials": 3}}
    assert document(process) == wanted
    assert asked(tmp_path, "--show").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]
    shown = commands.bench("show", "small.yaml")
    assert "this is a search: bench search small.yaml --dry-run" in shown.stderr


def test_the_answer_is_published_now_and_then_with_a_file_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FourTrials:
        def __init__(self, *_: Any, told: Any, **__: Any) -> None:
            self.told = told

        def search(self) -> str:
            for number in range(4):
                launched.append(number)
                self.told(number)
            return "all were tried"

    points: Any = (SimpleNamespace(front=False),)
    given: Any = (None, "small-0", (), points, (), {}, (), {}, {}, None, "all were tried")
    made = SearchResult(*given)
    published: list[bool] = []
    launched, told = list[int](), list[dict[str, Any]]()
    trials: Any = SimpleNamespace(
        runner=SimpleNamespace(tell=lambda **news: told.append(news)),
        execution=SimpleNamespace(folder=tmp_path),
        publish=lambda document: published.append(Path(document["front_file"]).exists()),
    )
    space: Any = SimpleNamespace(search=SimpleNamespace(name="small"))
    session = searching.Session(space, None, tmp_path, lambda _: [], lambda *_: [], ignore_stored=True)  # type: ignore[arg-type]
    monkeypatch.setattr(searching, "Searcher", FourTrials)
    monkeypatch.setattr(searching, "Scores", lambda search: None)
    monkeypatch.setattr(searching, "launched", lambda study: launched)
    monkeypatch.setattr(searching, "confirm_suite", lambda found: {})
    monkeypatch.setattr(SearchResult, "document", lambda self: {"front_file": self.front_file})
    monkeypatch.setattr(session, "_result", lambda *_: made)
    found = session._go(None, trials, searching.SearchProgress())  # type: ignore[arg-type]
    assert published == [True, True], "the first, and the end"
    assert told[-1] == {"done": 4}, "the last trial counts"
    begun = datetime.now(UTC)
    plan = SimpleNamespace(to_do=[SimpleNamespace(timeout_seconds=600.0)] * 3)
    for name, value in {"load_suite": None, "expand": plan}.items():
        monkeypatch.setattr(searching, name, lambda *_, value=value: value)
    monkeypatch.setattr(searching.Preview, "takes", lambda preview: "")
    monkeypatch.setattr(searching, "run_suite", lambda *_, **__: SimpleNamespace(records={}))
    session._confirm(found, trials, Progress())
    assert told[-1]["run_began_at"] >= begun, "not that of the last probe"
    assert told[-1]["silent_seconds"] > 3 * 600
    assert told[-1]["remaining_seconds"] is None
    assert found.front_file == str(tmp_path / "confirm.yaml")


def test_the_output_of_a_run_that_failed_is_named(tmp_path: Path) -> None:
    space = {"workload_args.code": [0, 3]}
    defaults = {"workload": "command", "workload_args.argv": "sh -c 'exit {code}'", "device_type": "cpu"}
    defaults |= {"meters": []}
    process = search(tmp_path, space=space, defaults=defaults, objectives=["time"], probe={}, repeats=1)
    (log,) = [line for line in process.stderr.splitlines() if line.startswith("  its output: ")]
    assert Path(log.removeprefix("  its output: ")).exists()


def killed_in_a_run(folder: Path, after: int) -> None:
    """Start a search and kill its process, all at once, in the middle of a run."""
    empty_store(folder)
    process = subprocess.Popen(
        [*BENCH, "search", written(folder, **SCRIPTS)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def in_a_run() -> bool:
        assert process.poll() is None, process.stdout and process.stdout.read()
        runs = folder / "runs" / "small"
        return len(list(runs.glob("*/*/record.json"))) >= after and len(list(runs.glob("*/*/spec.json"))) > after

    until(in_a_run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_after_kill_9_in_a_trial_the_same_command_goes_on(tmp_path: Path) -> None:
    killed_in_a_run(tmp_path, after=1)
    before = {record.run_id for record in records(tmp_path)}
    process = search(tmp_path, "--json", **SCRIPTS)
    assert process.exit_code == 0, process.stderr
    told = document(process)
    assert told["spent"]["trials"] == 3
    assert len({record.execution for record in records(tmp_path)}) == 1
    assert before <= {run.rpartition("/")[2] for trial in told["trials"] for run in trial["runs"]} | {
        r.run_id for r in records(tmp_path)
    }
    assert processes_in(tmp_path) == []


def test_ctrl_c_ends_in_order_and_says_so_in_the_index(tmp_path: Path) -> None:
    from bench.store.tracker import searches

    with interrupted(signal.SIGTERM, lambda: list(tmp_path.glob("runs/small/*/*/spec.json"))):
        ended = search(tmp_path, **SCRIPTS)
    assert ended.exit_code == 130, ended.stderr
    assert [kept["ended"] for kept in searches(f"sqlite:///{tmp_path}/mlflow.db")] == ["stopped before its end"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two processors")
def test_two_workers_share_a_study_on_disjoint_devices(tmp_path: Path) -> None:
    numbers = sorted(os.sched_getaffinity(0))[:2]
    both = 'len(set(p.parts[2] for p in pathlib.Path().glob("runs/small/*/*/spec.json"))) == 2'
    wait = f"import pathlib, time\nwhile not {both}: time.sleep(0.05)\n"  # however late the other worker comes
    gated = f"{sys.executable} -c '{wait}{SCRIPT}' {{hundredths}}"
    asks = SCRIPTS | {"defaults": SCRIPTS["defaults"] | {"workload_args.argv": gated}, "budget": {"trials": 6}}
    path = written(tmp_path, **asks)
    empty_store(tmp_path)
    workers = [
        subprocess.Popen(
            ["taskset", "-c", str(number), *BENCH, "search", path, "--json"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in numbers
    ]
    until(lambda: len(list(tmp_path.glob("runs/small/*/execution.json"))) == 2 or any(w.poll() for w in workers))
    third = asked(tmp_path, **asks)
    assert third.exit_code == 2
    assert "held by another search or worker" in third.stderr
    told = [worker.communicate(timeout=PATIENCE) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    tried = json.loads(told[0][0] if told[0][0].count("complete") >= told[1][0].count("complete") else told[1][0])
    configurations = [
        json.dumps(trial["params"], sort_keys=True) for trial in tried["trials"] if trial["state"] == "complete"
    ]
    assert len(configurations) == len(set(configurations))
    assert len({record.execution for record in records(tmp_path)}) == 2


CANNOT: dict[str, tuple[dict[str, Any], list[str], int, str]] = {
    "nothing can run": (
        {"space": {"devices": [64], "batch_size_per_device": [1]}},
        [],
        1,
        "no configuration of the space can run on this machine",
    ),
    "no price": ({"objectives": ["cost"]}, [], 2, "cost needs a price"),
    "no region": ({"objectives": ["carbon"]}, [], 2, "carbon needs a region"),
    "a storage that is a folder": ({}, ["--storage", "."], 2, "cannot be used: "),
    "such a storage, dry": ({}, ["--storage", ".", "--dry-run"], 2, "cannot be used: "),
    "money without a price": ({"budget": {"usd": 3}}, [], 2, "budget: usd needs a price"),
    "energy without a meter": (
        {"objectives": ["energy"], "defaults": SMALL["defaults"] | {"meters": []}},
        [],
        2,
        "energy and carbon need a meter",
    ),
    "a grid that cannot be listed": (
        {"space": {"batch_size_per_device": [1], "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2}}},
        ["--sampler", "grid"],
        2,
        "sampler grid: the space cannot be listed",
    ),
    "show and confirm": ({}, ["--show", "--confirm"], 2, "give only one of --show, --dry-run and --confirm"),
    "dry and confirm": ({}, ["--dry-run", "--confirm"], 2, "give only one of --show, --dry-run and --confirm"),
    "show and new": ({}, ["--show", "--new"], 2, "no --new with --show"),
    "a wrong sampler": ({}, ["--sampler", "best"], 2, "sampler: must be"),
    "a wrong price": ({}, ["--price", "-1"], 2, "--price"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_searched_is_told(name: str, tmp_path: Path) -> None:
    changes, arguments, code, message = CANNOT[name]
    done = asked(tmp_path, *arguments, **changes)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr
    assert not list(tmp_path.glob("runs/*/*/execution.json"))


def test_optuna_dashboard_reads_the_study(done: Done) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna_dashboard import wsgi

    folder, process = done
    app = wsgi(JournalStorage(JournalFileBackend(str(folder / "runs" / "small" / "study.journal"))))
    asked = {"REQUEST_METHOD": "GET", "SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
    asked |= {"PATH_INFO": "/api/studies", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr}
    (study, *_) = json.loads(b"".join(app(asked, lambda *_: None)))["study_summaries"]
    assert study["study_name"] == document(process)["study"]

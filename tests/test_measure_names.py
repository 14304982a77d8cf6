"""Named, repeated and labelled measurements of commands, which are compared as suites are."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from analytics.judge.matched import Changes
from analytics.judge.sides import Side, Sources, compared
from analytics.runs.frame import frame, summary
from analytics.say.names import named
from bench.figures.metrics import row
from bench.files import held
from bench.folder import LOCK, OWN_RUNS
from bench.record import RunRecord
from bench.run import measure as measuring
from bench.run.program import FOLDER, program_hashes
from bench.schema import MEASURE, RunSpec
from bench.workloads.command import fill
from tests import commands
from tests import rows as rows_of_tests
from tests.stores import empty_store
from tests.test_measure import one_gpu  # noqa: F401  a fixture

SCRIPT = """
import sys, time
from bench.steps import step
for i in range(8):
    time.sleep(float(sys.argv[1]))
    step(samples=4)
"""


def argv(seconds: str = "0.005", *more: str) -> list[str]:
    return ["--idle-seconds", "0", *more, "--", sys.executable, "-c", SCRIPT, seconds]


def kept(folder: Path) -> list[RunRecord]:
    return [
        RunRecord.model_validate_json(path.read_text()) for path in sorted(folder.glob(f"{OWN_RUNS}/*/*/*/record.json"))
    ]


@pytest.mark.usefixtures("one_gpu")
def test_later_calls_add_repeats_to_their_name(tmp_path: Path) -> None:
    for options in (["--repeats", "2"], []):
        done = commands.bench("measure", "--no-store", "--name", "one", *options, *argv())
        assert done.exit_code == 0, done.stderr
    records = kept(tmp_path)
    assert sorted(record.spec.repeat for record in records) == [0, 1, 2]
    assert len({(record.suite, record.execution, record.config_id) for record in records}) == 1
    assert records[0].suite == "one"


@pytest.mark.usefixtures("one_gpu")
def test_two_names_are_compared_though_their_commands_differ(tmp_path: Path) -> None:
    empty_store(tmp_path)
    for name, seconds in (("one", "0.03"), ("two", "0.002")):
        done = commands.bench("measure", "--name", name, "--repeats", "3", *argv(seconds))
        assert done.exit_code == 0, done.stderr
    assert "bench compare one two" in done.stderr
    again = commands.bench("measure", "--name", "two", *argv("0.002"))
    assert "two: 4 runs" in again.stderr, "the answer is that of all runs of the name"
    other = commands.bench("measure", "--name", "other", "--idle-seconds", "0", "--", "sleep", "0.01")
    assert "bench fit other" in other.stderr
    assert "bench compare" not in other.stderr, "it ran another program"
    said = commands.bench("compare", "one", "two")
    assert "Next: bench compare one two --explain" in said.stdout
    first = next(line for line in said.stdout.splitlines()[1:] if line.strip())
    assert "samples/s" in first
    found = json.loads(commands.bench("compare", "one", "two", "--json").stdout)
    (comparison,) = found["comparisons"]
    effect = next(effect for effect in comparison["effects"] if effect["metric"] == "samples_per_second")
    assert effect["verdict"] == "better"
    assert effect["repeats"] == 3
    assert effect["ratio"] > 2
    together = json.loads(commands.bench("fit", "one", "two", "--json").stdout)
    assert {run["suite"] for run in together["runs"]} == {"one and two"}
    assert len(together["configurations"]) == 2
    (front,) = json.loads(commands.bench("pareto", "one", "two", "--by", "time", "--json").stdout)["fronts"]
    assert [(row["name"], row["front"]) for row in front["configurations"]] == [("argv=two", True), ("argv=one", False)]
    apart = json.loads(commands.bench("pareto", "--by", "time", "--json").stdout)["fronts"]
    assert sorted(len(front["configurations"]) for front in apart) == [1, 1, 1], (
        "nobody says that they do the same work"
    )
    (advised,) = json.loads(commands.bench("advise", "one", "two", "--json").stdout)["executions"]
    assert (advised["suite"], advised["runs"]) == ("one and two", 7)
    reported = json.loads(commands.bench("report", "one", "two", "--json").stdout)
    assert [run["suite"] for run in reported["runs"]].count("two") == 4
    assert not any(run["suite"] == "other" for run in reported["runs"])


@pytest.mark.usefixtures("one_gpu")
def test_configurations_of_two_names_are_compared_by_their_own_arguments(tmp_path: Path) -> None:
    empty_store(tmp_path)
    for name in ("one", "two"):
        for lr in ("3e-4", "1e-3"):
            more = ["--name", name, "--set", f"lr={lr}"]
            assert commands.bench("measure", *argv("0.001", *more), name, "{lr}").exit_code == 0
    sources = Sources(None, tmp_path)
    matched = compared([sources.find("one"), sources.find("two")], ["samples_per_second"], 0.02)
    assert (len(matched.comparisons), matched.only_baseline, matched.only_candidate) == (2, [], [])


@pytest.mark.usefixtures("one_gpu")
def test_a_setting_fills_its_braces_only_and_is_recorded_as_it_was_typed(tmp_path: Path) -> None:
    more = ["--set", "lr=3e-4", "--set", "note=plain"]
    command = ["sh", "-c", 'printf %s "$*" > typed', "sh", "--lr={lr}", '{"a": {b}}', "{{other}}"]
    done = commands.bench("measure", "--no-store", "--idle-seconds", "0", *more, "--", *command)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "typed").read_text() == '--lr=3e-4 {"a": {b}} {other}'
    (record,) = kept(tmp_path)
    assert record.spec.workload_args["lr"] == "3e-4"
    assert record.spec.workload_args["note"] == "plain"
    assert record.suite == MEASURE


FILLED = {
    "{lr}": "3",
    "--lr={lr}": "--lr=3",
    "a{lr}b{wd}": "a3b4",
    "{}": "{}",
    '{"a": 1}': '{"a": 1}',
    '{"lr": {lr}}': '{"lr": 3}',
    "${HOME}": "${HOME}",
    "${lr}": "${lr}",
    "{a,b}": "{a,b}",
    "{1..3}": "{1..3}",
    "stash@{upstream}": "stash@{upstream}",
    "%{http_code}": "%{http_code}",
    "{{.ID}}": "{{.ID}}",
    "{{lrr}}": "{lrr}",
    "{{lr}}": "{lr}",
    "print(f'{x} {{y}}')": "print(f'{x} {{y}}')",
    "for i in a; do echo {lr} ${i} {b}; done": "for i in a; do echo 3 ${i} {b}; done",
    "}{": "}{",
}


@pytest.mark.parametrize("word", FILLED)
def test_braces_that_are_no_placeholders_pass_unchanged(word: str) -> None:
    asked = measuring.MeasureOptions(argv=["x", word], settings={"lr": "3", "wd": "4"})
    assert asked.filled == ["x", FILLED[word]]
    assert fill(measuring.specification(asked, rows_of_tests.environment().machine)) == asked.filled, (
        "as the record says"
    )
    plain = measuring.MeasureOptions(argv=["x", word])
    assert plain.filled == ["x", word], "without a setting there are no placeholders"
    assert fill(measuring.specification(plain, rows_of_tests.environment().machine)) == plain.filled


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("command", "code", "messages"),
    [
        (["touch", "{lrr}"], 2, ["{lrr}", "did you mean 'lr'?", "{{lrr}}"]),
        (["touch", "--lr={seed}"], 2, ["{seed}", "allowed: lr"]),
        (["pyhton3", "train.py"], 127, ["cannot start pyhton3", "did you mean 'python3'?"]),
        (["./trian.sh"], 127, ["did you mean './train.sh'?"]),
        (["no-such-command"], 127, ["cannot start no-such-command: there is no such program\n"]),
    ],
)
def test_a_command_that_cannot_be_meant_ends_before_anything_is_measured(
    command: list[str], code: int, messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("python3", "train.sh"):
        (tmp_path / name).write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(measuring, "session", lambda *_: pytest.fail("it is measured"))
    done = commands.bench("measure", "--set", "lr=3", "--", *command)
    assert (done.exit_code, done.stdout) == (code, "")
    assert all(message in done.stderr for message in messages)
    assert {path.name for path in tmp_path.iterdir()} == {"python3", "train.sh"}


@pytest.mark.usefixtures("one_gpu")
def test_a_secret_in_a_setting_is_not_kept(tmp_path: Path) -> None:
    done = commands.bench("measure", *argv("0.001", "--no-store", "--set", "api_key=abc123"), "{api_key}")
    assert done.exit_code == 0, done.stderr
    assert "abc123" not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "lr"], "--set: 'lr': write NAME=VALUE"),
        (["--set", "devices=2"], "is a field of every run"),
        (["--set", "argv=2"], "is a field of every run"),
        (["--name", "../up"], "a name has lower-case letters"),
    ],
)
def test_wrong_names_and_settings_end_before_anything_runs(options: list[str], message: str, tmp_path: Path) -> None:
    done = commands.bench("measure", *options, "--", "touch", "ran")
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_gpu")
def test_the_first_repeat_that_fails_is_the_last(tmp_path: Path) -> None:
    done = commands.bench("measure", *argv("x", "--no-store", "--repeats", "3"))
    assert done.exit_code == 1
    assert [str(record.status) for record in kept(tmp_path)] == ["failed"]
    assert "run 1 did not end well: runs 2 to 3 were not made" in done.stderr


@pytest.mark.usefixtures("one_gpu")
def test_a_name_is_measured_by_one_process_at_a_time(tmp_path: Path) -> None:
    assert commands.bench("measure", *argv("0.001", "--no-store", "--name", "one")).exit_code == 0
    (execution,) = tmp_path.glob(f"{OWN_RUNS}/one/*")
    with held(execution / LOCK, "busy"):
        done = commands.bench("measure", *argv("0.001", "--no-store", "--name", "one"))
    assert done.exit_code == 2
    assert "choose another --name" in done.stderr


def test_devices_are_those_that_were_seen_for_names_and_for_stored_records() -> None:
    """A record that an earlier version made has the suite `measure` and no `open_devices`."""
    record = rows_of_tests.record(2)
    spec = RunSpec(workload="command", workload_args={"argv": "x"}, device_type="gpu", devices_per_node=8)
    seen = {"devices": ["a", "b"]}
    expected = {("named", True): (2, False), (MEASURE, False): (2, False), ("commands", False): (8, True)}
    for (suite, open_devices), (billed, differ) in expected.items():
        run = record.changed(suite=suite, spec=spec.changed(open_devices=open_devices), **seen)
        assert (run.device_count, run.billed_devices, run.devices_differ) == (2, billed, differ)


def test_a_value_is_a_number_where_it_is_shown_as_it_was_typed() -> None:
    typed = {
        "a": "3",
        "b": "nan",
        "c": "0.001",
        "d": "true",
        "e": "1.0",
        "f": "1e-3",
        "g": "007",
        "h": "1_000",
        "i": "-0",
        "j": "1e+06",
        "k": "-2",
    }
    asked = measuring.MeasureOptions(argv=["x"], settings=typed)
    spec = measuring.specification(asked, rows_of_tests.environment().machine)
    own = {name: value for name, value in spec.workload_args.items() if name != "argv"}
    assert own == {**typed, "a": 3, "c": 0.001, "k": -2}


def test_typed_values_are_named_as_typed_and_sorted_as_numbers() -> None:
    machine, names = rows_of_tests.environment().machine, {"2e-3": 0.5, "1.0e-3": 1.0, "1.0": 2.0}
    records = []
    for typed, speed in names.items():
        spec = measuring.specification(
            measuring.MeasureOptions(argv=["x"], name="one", settings={"lr": typed}), machine
        )
        record = rows_of_tests.record(v=speed * 1e9, suite="one")
        records += [record.changed(spec=spec, config_id=spec.config_id, run_id=spec.run_id)]
    df = frame(map(row, records))
    assert set(named(summary(df))["change"]) == {f"lr {typed}" for typed in names}
    assert {(change.option, change.baseline) for change in Changes(df)} == {("2e-3", "1.0e-3"), ("1.0", "1.0e-3")}


def test_an_argument_is_the_same_in_a_column_of_numbers_and_of_text() -> None:
    machine, sides = rows_of_tests.environment().machine, []
    for name, values in (("one", ("0.001",)), ("two", ("0.001", "3e-4"))):
        asked = [measuring.MeasureOptions(argv=[name], name=name, settings={"lr": value}) for value in values]
        specs = [measuring.specification(one, machine) for one in asked]
        records = [
            rows_of_tests.record(suite=name).changed(spec=s, config_id=s.config_id, run_id=s.run_id) for s in specs
        ]
        sides.append(Side("suite", name, frame(map(row, records))))
    matched = compared(sides, ["samples_per_second"], 0.02)
    assert (len(matched.comparisons), len(matched.only_candidate)) == (1, 1)


PROGRAM = "import sys, time\nfor i in range(6):\n    time.sleep({})\n    print(f'iter {{i}} loss 1.0', flush=True)\n"


def _train(script: Path, name: str = "one", python: str = sys.executable) -> str:
    """Run `python train.py` in the folder of the script; return what bench says."""
    runs = script.parent.parent / "runs"
    options = ["--no-store", "--idle-seconds", "0", "--runs", str(runs), "--name", name]
    with contextlib.chdir(script.parent):
        done = commands.bench("measure", *options, "--", python, script.name)
    assert done.exit_code == 0, done.stderr
    return done.stderr


def _scripts(folder: Path, *names: str) -> list[Path]:
    made = [folder / name / "train.py" for name in names]
    for script in made:
        script.parent.mkdir()
        script.write_text(PROGRAM.format("0.001"))
    return made


def _series(folder: Path) -> list[list[int]]:
    """Return the numbers of the repeats in each execution."""
    executions = sorted(folder.glob("runs/one/*/"))
    return [sorted(int(run.parent.name.rpartition("-r")[2]) for run in e.glob("*/record.json")) for e in executions]


@pytest.mark.usefixtures("one_gpu")
def test_an_edited_script_begins_a_new_series_under_its_name(tmp_path: Path) -> None:
    (script,) = _scripts(tmp_path, "a")
    first, again = _train(script), _train(script)
    script.write_text(PROGRAM.format("0.002"))
    edited, after = _train(script), _train(script)
    assert _series(tmp_path) == [[0, 1], [0, 1]]
    assert "train.py has changed since the last runs of one: a new series begins" in edited
    assert not any("a new series" in text for text in (first, again, after))


@pytest.mark.usefixtures("one_gpu")
def test_another_folder_or_interpreter_begins_a_new_series(tmp_path: Path) -> None:
    here, there = _scripts(tmp_path, "a", "b")
    _train(here)
    assert "the working folder has changed" in _train(there)
    link = there.parent / "python"
    link.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    link.chmod(0o755)
    _train(there, python="./python")  # another command: it only joins
    link.write_text(f'#!/bin/sh\nexec {sys.executable} -u "$@"\n')
    assert "./python has changed" in _train(there, python="./python")
    assert _series(tmp_path) == [[0], [0, 0], [0]]
    assert str(tmp_path) not in "".join(path.read_text() for path in tmp_path.glob("runs/one/*/programs.json"))


def test_parts_of_a_command_that_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "config", "weights.pt"):
        Path(name).write_text(name)
    parts = {
        ("sh", "-c", "true"): {"sh"},
        ("sh", "config", "weights.pt"): {"sh", "config"},
        ("sh", "weights.pt", "train.py"): {"sh", "train.py"},
        ("sh", "-m", "train", "weights.pt"): {"sh"},
        ("sh", "-m", "torch.distributed.run", "train.py"): {"sh", "train.py"},
        ("no-such-program", "x" * 5000, "\0"): set(),
    }
    assert {argv: set(program_hashes(argv)) - {FOLDER} for argv in parts} == parts


@pytest.mark.usefixtures("one_gpu")
def test_a_deleted_run_does_not_cost_another_one(tmp_path: Path) -> None:
    (script,) = _scripts(tmp_path, "a")
    for _ in range(3):
        _train(script)
    (first,) = tmp_path.glob("runs/one/*/*-r0")
    shutil.rmtree(first)
    kept_before = {path: path.read_bytes() for path in tmp_path.glob("runs/one/*/*/record.json")}
    _train(script)
    assert _series(tmp_path) == [[1, 2, 3]]
    assert {path: path.read_bytes() for path in kept_before} == kept_before


def test_the_length_of_measuring_makes_no_other_configuration_of_a_command() -> None:
    machine = rows_of_tests.environment().machine
    asked = [measuring.MeasureOptions(argv=["x"], **length) for length in ({}, {"seconds": 9.0}, {"steps": 5})]
    specs = [measuring.specification(one, machine) for one in asked]
    assert [(spec.measure_seconds, spec.measure_steps) for spec in specs] == [(None, None), (9.0, None), (None, 5)]
    assert len({spec.config_id for spec in specs}) == 1
    assert len({spec.changed(open_devices=False).config_id for spec in specs}) == 3, "a suite asks for its length"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--meters", "none", "--", "touch", "ran"], "No such option '--meters'"),
        (["--secnds", "5", "touch", "ran"], "--seconds"),
        (["-x", "touch", "ran"], "No such option '-x'"),
    ],
)
def test_an_unknown_option_is_not_taken_for_the_command(words: list[str], message: str, tmp_path: Path) -> None:
    done = commands.bench("measure", "--no-store", *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("one_gpu")
def test_options_of_a_command_need_no_dashes_before_it(tmp_path: Path) -> None:
    done = commands.bench("measure", "--no-store", "--idle-seconds", "0", "sh", "-c", "echo $0 > typed", "--name")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "typed").read_text() == "--name\n"

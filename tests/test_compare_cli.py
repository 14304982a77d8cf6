"""`bench compare` and `bench baseline`: what names mean, what the gate says, and what is refused."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from analytics.judge.comparable import LOST, VANISHED, Repeats
from analytics.judge.compare import compare, effect_of, judged
from analytics.judge.gate import Condition, Outcome, outcomes
from analytics.judge.sides import Sources, compared, compared_metrics
from analytics.runs.frame import frame
from analytics.runs.imported import imported
from analytics.say.blocks import Block, Sentence, Table
from analytics.say.compare import blocks
from bench.cli import main
from bench.record import Status
from bench.schema import Scalar
from bench.store.tracker import News, StoreError
from tests import commands, rows
from tests.rows import HOSTILE, START

Row = dict[str, Scalar]
OLD, NEW = "20260102T030405-aaaa", "20260103T030405-bbbb"
A, B = "aaaa11112222", "bbbb33334444"


def runs(
    factor: float = 1.0,
    n: int = 5,
    noise: float = 0.005,
    *,
    execution: str = OLD,
    commit: str = A,
    suite: str = "mine",
    **fields: Any,
) -> list[Row]:
    """Launches of one configuration, `factor` times as fast, and later in a later execution."""
    random = np.random.default_rng([round(1000 * factor), n, execution == NEW])
    begun = START + timedelta(days=int(execution[7]), hours="precision" in fields)
    return [
        rows.make(
            repeat=r,
            v=rows.V * factor * float(np.exp(random.normal(0, noise))),
            suite=suite,
            execution=execution,
            **fields,
        )
        | {"commit": commit, "started_at": (begun + timedelta(minutes=r)).isoformat()}
        for r in range(n)
    ]


def later(factor: float = 1.0, **fields: Any) -> list[Row]:
    return runs(factor, execution=NEW, commit=B, **fields)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def holds(*parts: list[Row]) -> None:
        found = [("part", str(i), row) for i, row in enumerate(row for part in parts for row in part)]
        monkeypatch.setattr("bench.store.tracker.news", lambda *_: News(found, {}))

    return holds


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> News:
        raise StoreError("there is no store at /nowhere")

    monkeypatch.setattr("bench.store.tracker.news", absent)


def bench(*arguments: str) -> Result:
    done = commands.bench(*arguments)
    assert done.exit_code != 70, done.output
    return done


def document(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = bench("compare", *arguments, "--json")
    assert done.exit_code == code, done.output
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def ratio(told: dict[str, Any]) -> float:
    ((effect,),) = (c["effects"] for c in told["comparisons"])
    return float(effect["ratio"])


SPEED = ["--metric", "tokens_per_second"]
GATE = ["--fail-if", "tokens_per_second < 0.97"]


@pytest.mark.parametrize(
    ("base", "new"),
    [
        (f"mine@{OLD}", "mine"),
        (f"mine:{OLD[:8]}", f"suite:mine@{NEW}"),
        (A[:4], B),
        (f"commit:{A}{'0' * 28}", f"commit:{B[:7]}"),
        ("old-host", "host:new-host"),
        ("old.csv", "new.parquet"),
        ("file:old.json", "baseline:new"),
        ("old.json", "new"),
        (f"suite:mine@{OLD}", "mine.yaml"),
    ],
)
def test_every_kind_of_name(base: str, new: str, store: Callable[..., None]) -> None:
    old, young = runs(host="old-host"), later(1.2, host="new-host")
    store(old, young)
    table = frame(old)
    table.to_csv("old.csv")
    frame(young).to_parquet("new.parquet")
    Path("old.json").write_text(json.dumps({"runs": json.loads(table.to_json(orient="records", date_format="iso"))}))
    Path("mine.yaml").write_text("name: mine\ndefaults: {workload: decoder_lm}\n")
    assert bench("baseline", "save", "new", "mine").exit_code == 0
    told = document(base, new, *SPEED)
    assert ratio(told) == pytest.approx(1.2, rel=0.02)
    assert told["comparisons"][0]["effects"][0]["verdict"] == "better"
    assert (told["base"]["runs"], told["new"]["runs"]) == (5, 5)


def test_a_git_name_means_its_commit(store: Callable[..., None], tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.invalid", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    store(runs(commit=head[:12]), later(1.2))
    assert ratio(document("commit:HEAD", B, *SPEED)) == pytest.approx(1.2, rel=0.02)
    assert "no commit here" in bench("compare", "commit:--all", B).output


def test_changes_that_were_not_committed_are_another_state(store: Callable[..., None]) -> None:
    dirty = [row | {"commit": f"{A}+changed.12345678"} for row in runs(1.5, execution=NEW)]
    store(runs(), dirty)
    assert ratio(document(A, f"{A}+changed.12345678", *SPEED)) == pytest.approx(1.5, rel=0.02)
    two = [row | {"commit": f"{A}+changed.99999999"} for row in runs(suite="other")]
    store(dirty, two)
    done = bench("compare", A, A)
    assert (done.exit_code, "matches 2 commits" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mine", "mien"], "did you mean 'mine'"),
        (["host:mine", "mine"], "'host:mine' is no host here"),
        (["baseline:x", "mine"], "is no baseline here"),
        (["twice", "mine"], "'twice' is a suite and a host: write suite:twice or host:twice"),
        (["mine@1999", "mine"], "no executions '1999'; there are: 2026"),
        (["mine@2026", "mine"], "2 executions"),
        (["mine", "suite:twice"], "no configuration in common: they differ in precision (fp32 against bf16)"),
        (["mine", "mine", "--metric", "tokens_per_secnd"], "did you mean 'tokens_per_second'"),
        (["mine", "mine", "--fail-if", "loss < 0.9"], "no run of suite mine and of suite mine has a metric 'loss'"),
        (["mine", "mine", "--metric", "devices"], "'devices'"),
        (["mine", "mine", "--metric", "time"], "did you mean 'samples_per_second'"),
        (["mine", "mine", "--metric", "zzz"], "there are tokens_per_second"),
        (["mine"], "give two configurations of the same work"),
        (["mine", "mine", "--equivalence", "2"], "--equivalence"),
        (["file:gone.csv", "mine"], "cannot be read: No such file"),
        (["x" * 5000, "mine"], "name too long"),
        (["file:.", "mine"], "of another kind; supported are CSV, Parquet and JSON"),
    ],
)
def test_wrong_use_is_told_in_a_line(names: list[str], message: str, store: Callable[..., None]) -> None:
    store(runs(), later(), runs(suite="twice", host="twice", precision="bf16"))
    done = bench("compare", *names)
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.splitlines()) <= 5


@pytest.mark.parametrize(
    "text",
    [
        "tokens_per_second",
        "tokens_per_second = 1",
        "tokens_per_second < x",
        "a < 0",
        "a < -1",
        "a < 1 < 2",
        "",
        "a<1%",
        "a < nan",
    ],
)
def test_conditions_that_cannot_be_read_are_refused(text: str, store: Callable[..., None]) -> None:
    store(runs(), later())
    done = bench("compare", "mine", "mine", "--fail-if", text)
    assert done.exit_code == 2
    assert "METRIC OP RATIO" in done.output


@pytest.mark.parametrize(
    ("text", "low", "high", "state"),
    [
        ("m < 0.97", 0.90, 0.96, "fails"),
        ("m < 0.97", 0.90, 0.98, "cannot tell"),
        ("m < 0.97", 0.97, 0.99, "holds"),
        ("m < 0.97", 0.90, 0.97, "cannot tell"),
        ("m <= 0.97", 0.90, 0.97, "fails"),
        ("m <= 0.97", 0.97, 0.98, "cannot tell"),
        ("m > 1.05", 1.06, 1.2, "fails"),
        ("m > 1.05", 1.0, 1.05, "holds"),
        ("m > 1.05", 1.05, 1.2, "cannot tell"),
        ("m >= 1.05", 1.05, 1.2, "fails"),
        ("m >= 1.05", 1.0, 1.05, "cannot tell"),
        ("m>=.5", 0.1, 0.4, "holds"),
    ],
)
def test_a_condition_fails_only_where_all_of_the_interval_does(text: str, low: float, high: float, state: str) -> None:
    assert Condition.parse(text).state(low, high) == state


def gate(code: int, *extra: str) -> dict[str, Any]:
    return document(f"mine@{OLD}", "mine", *GATE, *extra, code=code)


def states(made: dict[str, Any]) -> list[str]:
    return [outcome["state"] for outcome in made["gate"]]


def test_the_gate_fails_a_slower_candidate_and_passes_others(store: Callable[..., None]) -> None:
    store(runs(), later(0.9))
    assert states(gate(1)) == ["fails"]
    store(runs(), later(1.0))
    assert states(gate(0)) == ["holds"]
    store(runs(noise=0.1), later(0.96, noise=0.1))
    (outcome,) = gate(0)["gate"]
    assert outcome["state"] == "cannot tell"
    assert outcome["more_repeats"] > 0
    gate(1, "--fail-if-unsure")
    for few in (1, 2):
        store(runs(n=few), later(0.5, n=few))
        assert states(gate(0)) == ["cannot tell"], "three repeats of each are needed"
    assert gate(0)["comparisons"][0]["effects"][0]["verdict"] == "worse"


def test_doubts_stand_beside_a_failure(store: Callable[..., None]) -> None:
    store(runs(), [row | {"flags": "noisy_host", "grade": "B"} for row in later(0.8)])
    (outcome,) = gate(1)["gate"]
    assert outcome["state"] == "fails"
    assert len(outcome["doubts"]) == 1


def test_configurations_that_vanished_fail_the_gate(store: Callable[..., None]) -> None:
    failed = [rows.make(suite="mine", precision="fp8", status=Status.FAILED)]
    store(runs(), runs(precision="bf16"), failed, later())
    made = gate(1)
    assert made["missing"] == ["bf16"], "fp8 did not end well in BASE either"
    assert states(made) == ["holds"]
    shown = bench("compare", f"mine@{OLD}", "mine", *GATE).output.splitlines()[0]
    assert "bf16" in shown
    assert "fp8" not in shown
    gate(0, "--allow-missing")
    assert bench("compare", f"mine@{OLD}", "mine", *SPEED).exit_code == 0


def test_no_throughput_at_all_fails_the_gate(store: Callable[..., None]) -> None:
    store(runs(), [row | {"tokens_per_second": 0.0} for row in later()])
    assert states(gate(1)) == ["fails"]
    assert bench("compare", f"mine@{OLD}", "mine", "--fail-if", "tokens_per_second > 1.1").exit_code == 0


def test_failures_of_half_the_runs_fail_the_gate_where_base_had_none(store: Callable[..., None]) -> None:
    bad = [row | {"status": "failed"} for row in later()]
    store(runs(), [*bad[:3], *later()[3:]])
    assert len(gate(1)["broken"]) == 1
    store(runs(), [*bad[:2], *later()[2:]])
    assert gate(0)["broken"] == []
    once = [*runs()[1:], runs()[0] | {"status": "failed"}]
    store(once, [*bad[:3], *later()[3:]])
    assert len(gate(1)["broken"]) == 1, "one failure of BASE excuses no three of NEW"
    assert "runs of new did not end well, and 1 of" in bench("compare", f"mine@{OLD}", "mine", *GATE).output
    store([row | {"status": "failed"} for row in runs()[:3]] + runs()[3:], [*bad[:3], *later()[3:]])
    assert gate(0)["broken"] == [], "as many as before"


def decided(condition: str, old: list[Row], *new: list[Row]) -> list[Outcome]:
    """What becomes of a condition that is put to several candidates."""
    condition_, base = Condition.parse(condition), Repeats(frame(old))
    frames = {id(one): Repeats(frame(one)) for one in new}
    sides = {place: frames[id(one)] for place, one in enumerate(new)}
    plain = {place: effect_of(condition_.metric, side, base) for place, side in sides.items()}
    outcomes_ = {**plain, **judged(plain)}
    compared_ = [compare(sides[i], base, "new", "base", {condition_.metric: one}) for i, one in outcomes_.items()]
    return outcomes([condition_], compared_)


def test_chance_among_many_fails_no_gate() -> None:
    """Of 40 candidates near their limit, one whose interval alone is beyond it may be chance."""
    condition, near, equal = "tokens_per_second < 0.995", later(0.985), later(1.0, noise=0.02)
    assert decided(condition, runs(), near)[0].state == "fails"
    first, *_ = decided(condition, runs(), near, *[equal] * 39)
    assert (first.state, first.reason, first.among) == ("cannot tell", "chance", 40)


@pytest.mark.parametrize("value", [None, float("nan"), 0.0])
def test_a_metric_that_the_candidate_lost_fails_the_gate(value: float | None) -> None:
    lost = [row | {"tokens_per_second": value} for row in later()]
    (outcome,) = decided("tokens_per_second < 0.97", runs(), lost)
    assert outcome.state == "fails"
    assert outcome.reason == (VANISHED if value == 0 else LOST)
    never = [row | {"tokens_per_second": None} for row in runs()]
    assert decided("tokens_per_second < 0.97", never, lost)[0].state == "cannot tell"


def test_every_condition_is_put(store: Callable[..., None]) -> None:
    store(runs(), later(0.9))
    made = gate(1, "--fail-if", "joules_per_sample > 1.05", "--fail-if", "peak_memory_bytes > 1.5")
    assert states(made) == ["fails", "fails", "holds"]
    assert made["gate"][2]["ratio"] == 1.0


def test_one_slow_configuration_of_many_is_enough(store: Callable[..., None]) -> None:
    store(runs(), runs(precision="bf16"), later(1.0), later(0.8, precision="bf16"))
    assert {outcome["name"]: outcome["state"] for outcome in gate(1)["gate"]} == {"fp32": "holds", "bf16": "fails"}


@pytest.mark.parametrize("status", [Status.FAILED, Status.OUT_OF_MEMORY, Status.SKIPPED])
def test_a_configuration_that_broke_is_a_regression(status: Status, store: Callable[..., None]) -> None:
    broke = [rows.make(suite="mine", execution=NEW, status=status, message=HOSTILE + "\nboom")]
    broke[0]["started_at"] = (START + timedelta(days=9)).isoformat()
    store(runs(), broke)
    assert len(gate(1)["broken"]) == 1
    assert f"{HOSTILE} boom" in bench("compare", f"mine@{OLD}", "mine", *GATE).output
    assert bench("compare", f"mine@{OLD}", f"mine@{NEW}", *SPEED).exit_code == 0, "without a gate nothing fails"
    assert bench("compare", f"mine@{NEW}", f"mine@{OLD}", *GATE).exit_code == 2, "nothing could be compared"


def test_a_gate_that_could_compare_nothing_is_wrong_use(store: Callable[..., None]) -> None:
    store(runs(readings="m"), later(readings="e"))
    done = bench("compare", f"mine@{OLD}", "mine", "--fail-if", "joules_per_sample > 1.1")
    assert done.exit_code == 2
    assert "measured and estimated energy are never compared" in done.output
    assert "no configuration could be compared by joules_per_sample" in done.output
    assert done.stdout.startswith("The gate cannot decide.")
    assert "passes" not in done.output


def test_energy_of_nothing_passes_no_gate(store: Callable[..., None]) -> None:
    """A meter that reads 0 J has failed; no speed at all is a figure."""
    store(runs(), [row | {"joules_per_sample": 0.0} for row in later()])
    condition = ("--fail-if", "joules_per_sample > 1.05")
    made = document(f"mine@{OLD}", "mine", *condition, code=2)
    assert states(made) == ["cannot tell"]
    assert (made["failed"], made["not_compared"]) == (False, ["joules_per_sample > 1.05"])
    assert bench("compare", f"mine@{OLD}", "mine", *condition).stdout.startswith("The gate cannot decide.")
    document(f"mine@{OLD}", "mine", *condition, "--fail-if-unsure", code=1)


def test_a_gate_on_figures_without_a_ratio_cannot_tell() -> None:
    old, new = ([row | {"validation_loss": loss} for row in side] for side, loss in ((runs(), 0.0), (later(), -1.0)))
    (outcome,) = decided("validation_loss > 1.1", old, new)
    assert (outcome.state, outcome.ratio) == ("cannot tell", None)
    assert "no ratio" in outcome.reason


def test_one_suite_compares_with_its_first_configuration(store: Callable[..., None]) -> None:
    skipped = [rows.make(suite="mine", precision="fp8", status=Status.SKIPPED, message="no fp8 here")]
    store(runs(), runs(1.5, precision="bf16"), skipped)
    done = bench("compare", "mine", *GATE)
    assert done.exit_code == 0, "skipped for a reason is no regression of a suite against itself"
    assert "against fp32" in done.output
    assert "no fp8 here" in done.output
    assert document("mine")["comparisons"][0]["effects"][0]["verdict"] == "better"
    failed = [rows.make(suite="mine", precision="fp8", status=Status.FAILED, message="boom")]
    store(runs(), runs(1.5, precision="bf16"), failed)
    assert bench("compare", "mine", *GATE).exit_code == 1


def test_what_stands_on_one_side_only_is_listed(store: Callable[..., None]) -> None:
    store(runs(), runs(precision="bf16"), later(), later(precision="fp16"))
    told = document(f"mine@{OLD}", "mine", *SPEED)
    assert (told["only_base"], told["only_new"]) == (["bf16"], ["fp16"])


def test_two_sides_that_did_not_run_side_by_side_are_compared_with_care(store: Callable[..., None]) -> None:
    store(runs(), later(1.1))
    assert "did not run side by side" in bench("compare", f"mine@{OLD}", "mine").output
    store(runs(), runs(1.2, precision="bf16"))
    assert document("mine")["comparisons"][0]["effects"][0]["paired"]
    same = bench("compare", "mine", "mine")
    assert (same.exit_code, same.output.count("the same runs stand on both sides")) == (0, 1)


def test_configurations_of_one_name_that_did_not_run_side_by_side(store: Callable[..., None]) -> None:
    both = [*runs(), *runs(1.2, precision="bf16")]
    store(both)
    assert "side by side" not in bench("compare", "mine").output
    store([row | {"open_devices": True} for row in both])
    assert "The configurations did not run side by side" in bench("compare", "mine").output


def test_what_one_side_alone_has_names_the_side(store: Callable[..., None]) -> None:
    good, bad = (
        [row | {"grade": grade} for row in (runs(), runs(1.2, precision="bf16"))[grade == "C"]] for grade in "AC"
    )
    store(good, bad)
    assert "new alone has grade C (bf16)" in bench("compare", "mine").output
    store([row | {"grade": "C"} for row in good], [row | {"grade": "A"} for row in bad])
    assert "base (fp32) alone has grade C (against bf16)" in bench("compare", "mine").output
    old, new = ([row | {"grade": grade} for row in part] for part, grade in ((runs(), "C"), (later(), "A")))
    store(old, new)
    assert "Careful: base alone has grade C (1 device)" in bench("compare", f"mine@{OLD}", "mine").output


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", '{"runs": [1]}'),
        ("a.json", '[{"tokens_per_second": 1}]'),
        ("a.json", "[" * 100_000),
        ("a.csv", ""),
        ("a.csv", "config_id,x\n"),
        ("a.csv", "devices,tokens_per_second\n1,2\n"),
        ("a.csv", 'config_id,x\na,"b\n'),
        ("a.csv", "\xff\xfe\0"),
        ("a.parquet", "PAR1"),
    ],
)
def test_files_that_hold_no_runs_are_refused(name: str, text: str, no_store: None) -> None:
    Path(name).write_text(text, encoding="latin-1")
    done = bench("compare", name, name)
    assert done.exit_code == 2
    assert name in done.output
    assert "supported are" in done.output
    assert len(done.output.splitlines()) <= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config_id,devices\na,3.5\n", "devices is a whole number, not 3.5"),
        ("config_id,repeat\na,inf1\na,1e300\n", "repeat is a whole number, not '1e300'"),
        ("config_id,status\na,OK\n", "unknown status 'OK'; allowed: ok"),
        ("config_id,tokens_per_second\na,fast\nb,inf\n", "have no metric in common"),
    ],
)
def test_cells_that_mean_nothing_are_told(text: str, message: str, no_store: None) -> None:
    Path("a.csv").write_text(text)
    done = bench("compare", "a.csv", "a.csv")
    assert (done.exit_code, message in done.output) == (2, True), done.output


def test_a_bare_table_is_enough_and_needs_no_store(no_store: None) -> None:
    table = pd.DataFrame({"config_id": ["1e5"] * 3 + ["012"] * 3, "tokens_per_second": [10.0, 10.1, 9.9, 5, 5.1, 4.9]})
    table.to_csv("old.csv", index=False)
    table.assign(tokens_per_second=[8.0, 8.1, 7.9, np.nan, np.inf, -1]).to_csv("new.csv", index=False)
    told = document("old.csv", "new.csv", *GATE, code=1)
    first, second = told["comparisons"]
    assert first["effects"][0]["ratio"] == pytest.approx(0.8, rel=0.01)
    assert (second["effects"], list(second["not_compared"])) == ([], ["tokens_per_second"])
    assert bench("compare", "old.csv", "mine").exit_code == 2


def test_baselines_are_saved_listed_and_removed(store: Callable[..., None]) -> None:
    store(runs(), later(), runs(suite="other"))
    assert "no baselines in baselines" in bench("baseline", "list").output
    done = bench("baseline", "save", "main", "mine")
    assert "5 runs" in done.output
    text = Path("baselines/main.json").read_text()
    assert bench("baseline", "save", "main", "mine").exit_code == 2
    assert bench("baseline", "save", "main", "mine", "--force").exit_code == 0
    assert Path("baselines/main.json").read_text() == text, "the same runs make the same file"
    assert [row["execution"] for row in json.loads(text)["runs"]] == [NEW] * 5
    assert len(text.splitlines()) == 7
    shown = bench("baseline", "list").output.splitlines()[1].split()
    assert shown == ["baseline", "main", "5", "mine", "bbbb33334444", "synthetic-host"]
    (listed,) = json.loads(bench("baseline", "list", "--json").stdout)["baselines"]
    assert (listed["name"], listed["suites"]) == ("main", ["mine"])
    assert "did you mean 'main'" in bench("baseline", "remove", "mian").output
    assert bench("baseline", "remove", "main").exit_code == 0
    assert not Path("baselines/main.json").exists()


def test_a_baseline_outlives_the_store(store: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    store(runs(), runs(1.3, precision="bf16"))
    bench("baseline", "save", "main", "mine", "--folder", "kept")
    store(later(0.9), later(1.3, precision="bf16"))
    told = document("main", "mine", *GATE, "--folder", "kept", code=1)
    assert [outcome["state"] for outcome in told["gate"]] == ["fails", "holds"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "x" * 80, "a b"])
def test_names_that_are_no_file_in_the_folder_are_refused(name: str, store: Callable[..., None]) -> None:
    store(runs())
    for verb in (["save", name, "mine"], ["remove", name]):
        done = bench("baseline", *verb)
        assert (done.exit_code, "cannot be called" in done.output) == (2, True)
    assert not Path("baselines").exists()


def test_imported_runs_in_the_store_harm_nothing(store: Callable[..., None]) -> None:
    Path("theirs.csv").write_text("devices,samples_per_second\n1,10\n2,19\n")
    theirs = imported(Path("theirs.csv"), (), (), "theirs", START).rows
    assert not any("host" in row or "commit" in row for row in theirs)
    store(theirs, runs(), later(1.2))
    assert ratio(document(f"mine@{OLD}", "mine", *SPEED)) == pytest.approx(1.2, rel=0.02)
    assert ratio(document(A, B, *SPEED)) == pytest.approx(1.2, rel=0.02)
    assert "did you mean 'mine'" in bench("compare", "mien", "mine").output
    assert "no host here" in bench("compare", "host:theirs", "mine").output
    assert bench("compare", "theirs", "--metric", "samples_per_second").exit_code == 0


def test_a_fault_of_ours_is_no_regression(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (KeyError("host"), OSError("the disk is full")):
        monkeypatch.setattr("bench.cli.cli.main", Mock(side_effect=error))
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == 70
        told = capsys.readouterr().err
        assert ("Traceback" in told, "please report it" in told) == (isinstance(error, KeyError),) * 2


def test_numbers_and_text_that_nothing_can_hold_are_cleaned(no_store: None) -> None:
    row = '{"config_id": "a\\ud800", "repeat": %d, "tokens_per_second": %d, "my\\udfff": 9%s, "label": "\\ud83d"}'
    Path("a.json").write_text("[" + ", ".join(row % (r, 10 + r, "9" * 400) for r in range(3)) + "]")
    Path("b.json").write_text(Path("a.json").read_text().replace(": 1", ": 2"))
    told = bench("compare", "a.json", "b.json", *SPEED)
    assert told.exit_code == 0, told.output
    Path("c.json").write_text('[{"config_id": "a", "repeat": 1%s, "tokens_per_second": 1}]' % ("0" * 400))
    assert "no configuration in common" in bench("compare", "c.json", "b.json", *SPEED).output


def test_what_is_no_baseline_in_the_folder_harms_nothing(store: Callable[..., None]) -> None:
    store(runs(), later(1.2))
    bench("baseline", "save", "main", "mine")
    text = Path("baselines/main.json").read_text()
    Path("baselines/folder.json").mkdir()
    Path("baselines/a b.json").write_text(text)
    Path("baselines/broken.json").write_text(text[:60])
    os.mkfifo("baselines/pipe.json")
    done = bench("baseline", "list")
    assert done.exit_code == 0
    assert "main" in done.output
    assert "broken: " in done.output
    assert [one["name"] for one in json.loads(bench("baseline", "list", "--json").stdout)["baselines"]] == ["main"]
    assert bench("compare", "main", f"mine@{OLD}").exit_code == 0
    assert "of another kind" in bench("compare", "file:baselines/pipe.json", "mine").output


def answer(*sides: str, equivalence: float = 0.02) -> list[Block]:
    found = [Sources(None, Path("baselines")).find(side) for side in sides]
    matched = compared(found, compared_metrics(found, (), ()), equivalence)
    return list(blocks(found, matched, equivalence))


def test_the_answer_comes_first_and_evidence_only_for_those_who_ask(store: Callable[..., None]) -> None:
    store(runs(), runs(1.5, precision="bf16"), runs(0.5, precision="fp16"))
    made = answer("mine")
    title, better, worse, *_ = (block.text for block in made if isinstance(block, Sentence))
    assert [getattr(block, "role", "") for block in made[:3]] == ["title", "answer", "answer"]
    assert "against fp32" in title
    assert "5 runs each" in title
    assert better.startswith("Better: samples/s with bf16 1.50 (")
    assert worse.startswith("Worse: samples/s with fp16 0.50")
    tables = [block for block in made if isinstance(block, Table)]
    assert [table.detail for table in tables] == [False, True]
    assert tables[0].columns[:2] == ("change", "samples/s")
    assert [row[0] for row in tables[0].rows] == ["bf16", "fp16"]
    assert len(tables[1].rows) == len(tables[0].rows) * (len(tables[0].columns) - 1)


def test_an_open_comparison_says_how_many_repeats_would_tell(store: Callable[..., None]) -> None:
    store(runs(noise=0.1), runs(1.07, noise=0.15, precision="bf16"))
    effect = document("mine")["comparisons"][0]["effects"][0]
    made = answer("mine")
    table = next(block for block in made if isinstance(block, Table))
    (cell, *_) = [row[table.columns.index("samples/s")] for row in table.rows]
    assert effect["verdict"] == "cannot tell"
    assert cell.endswith(f" undecided +{effect['more_repeats']}")
    Path("suites").mkdir()
    Path("suites/mine.yaml").touch()
    text = " ".join(block.text for block in answer("mine") if isinstance(block, Sentence))
    count = re.search(r"bench run suites/mine.yaml --set repeats=(\d+)", text)
    assert count is not None, "the suite is there to be run again"
    assert int(count[1]) > effect["repeats"]

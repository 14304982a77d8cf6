"""Searches for the loss and the own metrics of a command: declared with a direction, and judged by it."""

from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from analytics.judge.objectives import Goal, Objective, objective
from analytics.quantities import quantity
from analytics.runs.frame import frame
from analytics.search.file import Search, load_search
from analytics.search.result import Spent, Tried, result
from analytics.search.searcher import Scores
from analytics.search.space import Space
from bench.figures.metrics import row
from bench.schema import Machine
from bench.suites import yaml as yamlfile
from bench.suites.load import SuiteError
from bench.workloads.command import fill
from tests.test_own_arguments import record

CPU = Machine(cpu_model="Synthetic", cpu_count=2)
AMP = {"fp32": [], "bf16": ["--amp"]}


def search(objectives: Any, **fields: Any) -> Search:
    defaults = {"workload": "command", "workload_args.argv": "train {amp}"}
    document = {"name": "s", "defaults": defaults, "space": {"workload_args.amp": AMP}, "budget": {"trials": 2}}
    return Search.model_validate(document | {"objectives": objectives} | fields)


@pytest.mark.parametrize(
    ("given", "goals"),
    [
        ({"minimise": "own.val_bpb"}, [("own.val_bpb", "minimize")]),
        ({"own.reward": "maximize", "time": "minimize"}, [("own.reward", "maximize"), ("time", "minimize")]),
        (["time", {"maximize": "own.reward"}], [("time", "minimize"), ("own.reward", "maximize")]),
        ([{"minimize": ["loss", "own.x"]}], [("loss", "minimize"), ("own.x", "minimize")]),
        ("loss", [("loss", "minimize")]),
    ],
)
def test_own_metrics_are_objectives_with_a_direction(given: Any, goals: list[tuple[str, str]]) -> None:
    found = search(given)
    assert [(goal.name, goal.direction) for goal in found.objectives] == goals
    assert Search.model_validate(found.model_dump()) == found
    assert found.for_quality
    assert not found.trains_to_the_end  # the command decides on its length


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["own.val_bpb"], "say which way is better: {minimize: own.val_bpb}"),
        ("own.val_bpb", "say which way is better"),
        ({"own.val_bpb": "down"}, "say which way is better"),
        ({"maximize": "time"}, "time: minimize, not 'maximize'"),
        ([{"minimize": "own.x"}, {"maximize": "own.x"}], "stands twice"),
        (["fun"], "no objective 'fun'"),
        ({"minimize": "own.a b"}, "objectives"),
    ],
)
def test_an_own_metric_without_a_direction_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        search(given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": ["accuracy"]}, "{maximize: own.accuracy}"),
        (
            {"defaults": {"workload": "decoder_lm"}, "space": {"precision": ["fp32"]}},
            "own metrics are those of the workload",
        ),
        ({"probe": {"warmup_steps": 1}}, "probe"),
    ],
)
def test_what_a_search_cannot_know_is_told(tmp_path: Any, change: dict[str, Any], message: str) -> None:
    defaults = {"workload": "command", "workload_args.argv": "train {amp}"}
    document: dict[str, Any] = {"name": "s", "defaults": defaults, "space": {"workload_args.amp": AMP}}
    document |= {"budget": {"trials": 2}, "objectives": {"minimize": "own.x"}} | change
    path = tmp_path / "search.yaml"
    path.write_text(yamlfile.write(document))
    with pytest.raises(SuiteError) as caught:
        load_search(path)
    assert any(message in found for found in caught.value.messages), caught.value.messages


def test_values_of_a_search_have_words() -> None:
    space = Space.of(search("loss"), CPU)
    assert space.possible is not None
    assert [fill(space.spec(params)) for params in space.possible.values()] == [["train"], ["train", "--amp"]]


def run(amp: str, repeat: int = 0, **measured: Any) -> dict[str, Any]:
    return dict(row(record(1, 1, amp, repeat, **measured)))


def test_runs_are_scored_by_their_loss_and_their_own_metrics() -> None:
    rows_ = [run("fp32", r, loss_last=9.0, loss_medians=(4.0, 2.0), own={"reward": -1.0 - r}) for r in (0, 1)]
    scored = Scores(search({"minimize": "loss", "maximize": "own.reward"}))(rows_)
    assert scored.values == {"loss": pytest.approx(2.0), "own.reward": -1.5}  # the median, not the last step
    missing = Scores(search({"maximize": "own.reward"}))([run("fp32")])
    assert missing.absent
    assert "(?P<reward>...)" in (missing.why or "")
    assert "step(loss=...)" in (Scores(search("loss"))([run("fp32")]).why or "")


@pytest.mark.parametrize(("direction", "best"), [("minimize", "fp32"), ("maximize", "bf16")])
def test_the_best_is_that_of_the_direction(direction: Any, best: str) -> None:
    records = {amp: record(1, 1, amp, own={"bpb": value}) for amp, value in (("fp32", 1.0), ("bf16", 2.0))}
    df = frame(row(one) for one in records.values())
    over = Space.of(search({direction: "own.bpb"}), CPU)
    tried = [
        Tried(number, "complete", "full", "search", {"workload_args.amp": amp}, {}, {}, (f"{one.execution}/{one.run_id}",),
              1.0, None, False, None, None)
        for number, (amp, one) in enumerate(records.items())
    ]  # fmt: skip
    found = result(over, "s", tried, df, {}, Spent(2, 2, 2.0, None, False, None), "")
    assert [point.params["workload_args.amp"] for point in found.front] == [best]
    (one,) = found.objectives
    assert (one.name, one.title, one.unit, one.rising) == ("own.bpb", "bpb", "bpb", direction == "minimize")


def test_an_own_metric_has_no_unit_and_is_a_column() -> None:
    df = frame([run("fp32", own={"val_accuracy": 91.5})])
    assert df["own.val_accuracy"].tolist() == [91.5]
    about = quantity("own.val_accuracy")
    assert (about.title, about.unit, about.factor, about.better, about.quality) == (
        "val_accuracy",
        "",
        1.0,
        "more",
        True,
    )
    assert objective(Goal(name="loss", direction="minimize"), search("loss").work, df) is None
    assert Objective("own.x", "own.x").values(pd.DataFrame({"own.x": [3.0]})).tolist() == [3.0]

"""Steps from several sources: what the script reports, what hooks see and what it prints are compared."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.process import boot_id
from bench.run.command import execute
from bench.run.own_steps import Ended, measurement
from bench.workloads.printed import Printed
from tests.test_hooks import JOINED, S, measured, process, step


def printed(folder: Path, times: Iterable[float], each: int = 1, **more: Any) -> None:
    """Write lines of the output that arrived at these times in s, with a counter that grows by `each`."""
    fields = {"integers": [], "kind": "", "total": "", "words": 0, "step_error": 0}
    lines = (
        {"t_ns": round(t * S), "rank": -1, "read": i, "text": i, "step": i * each, **fields, **more}
        | {f"{name}_error": 0 for name in more}
        for i, t in enumerate(times)
    )
    (folder / "steps-command.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def reported(folder: Path, *, ranks: int = 1, every: float = 1.0, samples: int | None = 4, until: int = 8) -> None:
    times = [(1 + i * every + rank / 100, rank) for rank in range(ranks) for i in range(round(until / every))]
    lines = ({"t_ns": int(t * S) + 1, "rank": rank, "pid": rank, "samples": samples} for t, rank in times)
    (folder / "steps-command.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("lines", "flagged", "samples"),
    [
        ({"ranks": 2}, False, 152),
        ({"ranks": 1}, True, 76),  # the other rank says nothing
        ({"ranks": 1, "samples": 8}, False, 152),  # one rank says it of both
        ({"ranks": 1, "samples": None}, False, 152),  # hooks see it of both
        ({"ranks": 2, "samples": 8}, True, 304),  # each says it of both
        ({"ranks": 2, "every": 0.25}, True, 680),  # parts of a step
        ({"ranks": 2, "until": 11, "samples": 4}, False, 64),  # hooks see more than is reported
    ],
)
def test_steps_that_the_script_reports_are_compared_with_those_seen(
    tmp_path: Path, lines: dict[str, Any], flagged: bool, samples: int
) -> None:
    for rank in range(2):
        facts: dict[str, Any] = JOINED | {"rank": rank}
        process(tmp_path, rank, steps=22, **facts)
    reported(tmp_path, **({"until": 22} | lines))
    found = measured(tmp_path)
    assert (found.step_source, found.samples, "sources_differ" in found.step_flags) == ("script", samples, flagged)


def test_steps_that_the_script_reports_need_none_that_hooks_see(tmp_path: Path) -> None:
    process(tmp_path, 0, *(step(i + 1) for i in range(8)), {"captured": True})  # CUDA graphs hide steps
    reported(tmp_path)
    found = measured(tmp_path)
    assert (found.step_source, found.steps, found.samples) == ("script", 5, 20)
    assert found.step_flags == []


def test_steps_after_the_end_of_the_command_are_of_no_source(tmp_path: Path) -> None:
    process(tmp_path, 0, steps=22)
    reported(tmp_path, samples=None, until=22)
    end = Ended(0, 0, round(8.5 * S), 1.0)
    found = measurement(tmp_path / "steps-command.jsonl", end, 3, "cpu")
    assert (found.step_source, found.steps, found.samples, found.tokens) == ("script", 5, 20, 40)


@pytest.mark.parametrize(
    ("facts", "flag", "samples"),
    [
        (JOINED | {"world_size": 4}, "partial_world", None),
        (JOINED | {"world_size": 4, "local_world_size": 2}, "this_node_only", 40),
        ({}, "separate_trainings", 40),
    ],
)
def test_flags_of_processes_hold_for_steps_of_the_script_and_of_its_output(
    tmp_path: Path, facts: dict[str, Any], flag: str, samples: int | None
) -> None:
    lines = [step(i + 1, passes=[[0, 2, 4, 8]]) for i in range(8)]
    for rank in range(2):
        process(tmp_path, rank, *lines, rank=rank, **facts)
    reported(tmp_path, ranks=2)
    found = measured(tmp_path)
    assert (found.step_source, found.samples, flag in found.step_flags) == ("script", samples, True)
    printed(tmp_path, (1.1 + i for i in range(8)), samples=8)
    found = measured(tmp_path, Printed("(?P<step>.)(?P<samples>.)"))
    assert flag in found.step_flags
    assert (found.step_source, found.samples) == (("hooks", None) if flag == "partial_world" else ("output", 40))


@pytest.mark.parametrize(("validation", "flags"), [(0.0, []), (8.0, ["times_differ"])])
def test_times_that_the_script_prints_must_add_up_to_the_window(
    tmp_path: Path, validation: float, flags: list[str]
) -> None:
    times = [i + validation * (i // 10) for i in range(40)]
    printed(tmp_path, times, each=10, milliseconds=100.0)
    how = Printed("(?P<step>.)(?P<milliseconds>.)")
    assert measured(tmp_path, how).step_flags == flags
    phases = [
        {"t_ns": round((times[i] - t) * S), "rank": 0, "phase": "eval", "begin": t > 1}
        for i in (10, 20, 30)
        for t in (0.5 + validation, 0.5)
    ]
    with (tmp_path / "steps-command.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in phases))
    if validation:
        assert measured(tmp_path, how).step_flags == []  # as the script marks it


def test_steps_on_another_host_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    printed(tmp_path, (1.1 + i for i in range(8)), samples=8)
    how = Printed("(?P<step>.)(?P<samples>.)")
    assert not {"other_hosts", "this_node_only"} & {*measured(tmp_path, how).step_flags}
    (tmp_path / "seen-gpu3-11.elsewhere").touch()
    found = measured(tmp_path, how)
    assert (found.step_source, found.steps, "other_hosts" in found.step_flags) == ("output", 5, True)
    assert "other_hosts" in measured(tmp_path).step_flags  # no steps at all
    process(tmp_path, 0)
    found = measured(tmp_path)
    assert (found.step_source, "this_node_only" in found.step_flags) == ("hooks", True)


@pytest.mark.parametrize(("boot", "here"), [("", True), ("own", True), ("0a1b", False)])
@pytest.mark.parametrize("how", ["hooks", "script"])
def test_a_process_on_another_host_only_tells_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str, how: str, *, here: bool
) -> None:
    code = "import wattbench; [wattbench.step(samples=4) for _ in range(8)]"
    if how == "hooks":
        code = (
            "import torch; model = torch.nn.Linear(2, 1); o = torch.optim.SGD(model.parameters())\n"
            "for _ in range(8): model(torch.ones(4, 2)).sum().backward(); o.step(); o.zero_grad()"
        )
    monkeypatch.setattr("bench.run.command.boot_id", lambda: boot_id() if boot == "own" else boot)
    steps = tmp_path / "steps-command.jsonl"
    end = execute([sys.executable, "-c", code], steps)
    found = measurement(steps, end, 3, "cpu")
    assert (end.exitcode, found.steps, found.step_source) == (0, 5 if here else 0, how if here else None)
    assert ("other_hosts" in found.step_flags) is not here
    assert len([*tmp_path.glob("*.elsewhere")]) == (not here)
    assert not [*tmp_path.glob("*.failed")]

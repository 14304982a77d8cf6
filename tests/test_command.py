"""Commands of the user: what becomes of their words, their steps and their ends."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench.figures.metrics import parameters
from bench.record import Measurement
from bench.run.command import execute, failure_of, run
from bench.run.ending import WindowLength
from bench.run.launcher import CHANGED, STARTED_IN, LaunchOptions, LocalLauncher
from bench.run.node import user_environment
from bench.run.own_steps import Ended, measurement
from bench.schema import Machine, RunSpec
from bench.steps import VARIABLE, phase, step
from bench.suites import yaml as yamlfile
from bench.suites.expand import expand
from bench.suites.load import SuiteError, load_suite, override
from bench.workloads.command import CommandArgs, fill
from bench.workloads.printed import Printed
from tests.processes import PATIENCE

S = 10**9
CPU = Machine(cpu_model="Synthetic", cpu_count=2)


def command(argv: str, device_type: str = "cpu", devices: int = 1, **more: Any) -> RunSpec:
    fields = {name: more.pop(name) for name in list(more) if name in RunSpec.model_fields}
    arguments = {"argv": argv, **more}
    spec = {"workload": "command", "workload_args": arguments, "device_type": device_type, "devices_per_node": devices}
    return RunSpec.model_validate(spec | fields)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# --- the words of a command


def test_names_in_braces_become_values() -> None:
    argv = "torchrun --n={devices} train.py --precision {precision} --layers {layers:03d} --seed {seed} {{kept}}"
    words = fill(command(argv, devices=4, precision="bf16", layers=12, seed=7))
    assert words == ["torchrun", "--n=4", "train.py", "--precision", "bf16", "--layers", "012", "--seed", "7", "{kept}"]


def test_a_value_with_blanks_stays_one_word_and_quotes_are_those_of_a_shell() -> None:
    words = fill(command("""sh -c 'echo "$X"' "two words" {note} a\\ b""", note="one; rm -rf $HOME"))
    assert words == ["sh", "-c", 'echo "$X"', "two words", "one; rm -rf $HOME", "a b"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("train --layers {layer}", r"argv: \{layer\} is not known.*layers"),
        ("train {folder}", r"\{folder\} is not known"),
        ("train {}", "argv: .*write {{ and }} for literal braces"),
        ("train {layers", "argv: .*write {{ and }} for literal braces"),
        ("train layers}", "argv: .*write {{ and }} for literal braces"),
        ("train {seed[0]}", "argv: .*write {{ and }} for literal braces"),
        ("train {precision:d}", "argv: .*write {{ and }} for literal braces"),
    ],
)
def test_a_mistake_in_braces_is_told_and_is_no_traceback(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(command(argv, layers=12, folder="."))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "argv"),
        ({"argv": "  "}, "argv is empty"),
        ({"argv": "echo 'open"}, "No closing quotation"),
        ({"argv": "x", "step_pattern": "("}, "not a regular expression"),
        ({"argv": "x", "step_pattern": "(?P<sampels>.)"}, "unknown group 'sampels': did you mean 'samples'"),
        ({"argv": "x", "devices": 3}, "devices: a run has a field of this name"),
        ({"argv": "x", "precision": "bf16"}, "precision: a run has a field of this name"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CommandArgs.model_validate(arguments)


def test_what_a_command_is_not_told_is_no_parameter_of_it() -> None:
    told = parameters(command("train {precision}", precision={"name": "bf16"}, layers=2))
    assert (told["precision"], told["workload_args.layers"]) == ("bf16", 2)
    assert not {"parallelism", "optimizer"} & set(told)
    assert "precision" not in parameters(command("train"))
    assert "precision" not in parameters(command("train {{precision}}"))
    assert fill(command("train {precision:>5}")) == ["train", " fp32"]
    assert "global_batch_size" not in parameters(command("train"))


# --- suites of commands


def suite(folder: Path, **changes: Any) -> Any:
    defaults = {"workload": "command", "workload_args.argv": "train --layers {layers} {devices}"}
    path = folder / "suite.yaml"
    text = {"name": "s", "defaults": defaults | changes, "matrix": {"workload_args.layers": [1, 2], "devices": [1, 2]}}
    path.write_text(yamlfile.write(text))
    return load_suite(path)


def test_a_suite_of_commands_is_multiplied_out(tmp_path: Path) -> None:
    plan = expand(suite(tmp_path), CPU)
    assert sorted(fill(spec)[2:] for spec in plan.runs) == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    assert len({spec.run_id for spec in plan.runs}) == 4
    assert {spec.measure_seconds for spec in plan.runs} == {None}
    more = expand(override(suite(tmp_path), ["workload_args.layers=[5,6,7]", "devices=1"]), CPU)
    assert [spec.workload_args["layers"] for spec in more.runs] == [5, 6, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workload_args.argv": "train {layer}"}, "workload_args: argv: {layer} is not known"),
        ({"measure_seconds": 3.0, "measure_steps": 3}, "give measure_steps or measure_seconds, not both"),
        ({"workload_args.list": [1, 2]}, "workload_args.list"),
    ],
)
def test_mistakes_in_a_suite_of_commands_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        expand(suite(tmp_path, **changes), CPU)
    assert any(message in found for found in caught.value.messages), caught.value.messages


def test_a_command_gets_the_environment_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MINE", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    launcher = LocalLauncher(LaunchOptions(tmp_path))
    for name, value in launcher._environment.items():
        monkeypatch.setenv(name, value)
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["OMP_NUM_THREADS"] == os.environ["PYTHONSAFEPATH"] == "1"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    found = user_environment()
    assert (found["OMP_NUM_THREADS"], found["MINE"], found["CUDA_VISIBLE_DEVICES"]) == ("7", "1", "GPU-1")
    strangers = {"HF_HUB_OFFLINE", "PYTHONSAFEPATH", "CUDA_DEVICE_ORDER", "DO_NOT_TRACK", CHANGED, STARTED_IN}
    assert strangers & set(found) == {"DO_NOT_TRACK"} & set(os.environ)  # conftest sets that one, as a user may


# --- the end of a command


@pytest.mark.parametrize("code", [0, 1, 77, 255])
def test_the_exit_code_is_that_of_the_command(tmp_path: Path, code: int) -> None:
    assert execute(python(f"raise SystemExit({code})"), tmp_path / "steps").exitcode == code


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "SIGTERM"), (signal.SIGRTMIN + 6, "signal 40")]
)
def test_a_signal_is_named_even_if_it_has_no_name(tmp_path: Path, number: int, said: str) -> None:
    ended = execute(python(f"import os; os.kill(os.getpid(), {int(number)})"), tmp_path / "steps")
    assert ended.exitcode == -number
    failure = failure_of(ended, tmp_path / "none.log")
    assert (failure.kind, failure.message.endswith(said)) == ("failed", True)


@pytest.mark.parametrize(
    ("words", "partial"),
    [
        ("--nnodes=2", True),
        ("--nnodes 1:4", True),
        ("--num_machines 2", True),
        ("srun --nodes=2", True),
        ("srun -n 8 -N 2", True),
        ("--nnodes=1", False),
        ("", False),
    ],
)
def test_what_all_nodes_print_is_not_the_work_of_one(tmp_path: Path, words: str, partial: bool) -> None:
    code = "import time\nfor i in range(6): print(i, flush=True); time.sleep(0.01)"
    argv = f"{shlex.join(python(code))} {words}".replace("{", "{{").replace("}", "}}")
    spec = command(argv, step_pattern=r"(?P<step>\d)", samples_per_step=8, warmup_steps=1)
    assert run(spec, tmp_path, dict(os.environ), tmp_path) == 0
    measured = Measurement.model_validate_json((tmp_path / "result.json").read_text())
    assert ("partial_world" in measured.step_flags, measured.samples) == (partial, None if partial else 40)


def test_memory_that_ran_out_is_read_off_the_log(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n")
    ended = Ended(1, 0, S, 0.0)
    assert failure_of(ended, log).kind == "out_of_memory"
    log.write_text("ValueError: no\n")
    assert (failure_of(ended, log).kind, failure_of(ended, log).type) == ("failed", "ExitCode")
    assert failure_of(replace(ended, killed_for_memory=True), log).kind == "out_of_memory"


def test_a_command_that_is_not_there_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        execute(["/nowhere/x"], tmp_path / "steps")
    spec = command("/nowhere/x")
    assert run(spec, tmp_path, os.environ, tmp_path) == 127
    assert "cannot be started" in json.loads((tmp_path / "error-0.json").read_text())["message"]
    assert run(command("true", folder="nowhere"), tmp_path, os.environ, tmp_path) == 127
    assert "nowhere" in json.loads((tmp_path / "error-0.json").read_text())["message"]


def test_it_is_told_before_a_command_is_interrupted(tmp_path: Path) -> None:
    """Its script may show a traceback then: nobody should wonder why."""
    done = tmp_path / "interrupted"
    loop = "for i in range(10**6): print('step', flush=True); time.sleep(0.01)"
    code = f"import pathlib, time\ntry:\n    {loop}\nexcept KeyboardInterrupt:\n    pathlib.Path({str(done)!r}).touch()"
    before: list[bool] = []
    options = {"limit": WindowLength(3, None), "before_end": lambda: before.append(done.exists())}
    ended = execute(python(code), tmp_path / "steps-command.jsonl", how=Printed("^step"), **options)
    assert (before, done.exists(), ended.by) == ([False], True, "limit")


def test_time_cpu_and_memory_are_those_of_the_command(tmp_path: Path) -> None:
    code = "import time; x = bytearray(400_000_000); time.sleep(0.2); sum(range(3_000_000))"
    ended = execute(python(code), tmp_path / "steps")
    assert (ended.end_ns - ended.start_ns) / 1e9 > 0.2
    assert 0 < ended.cpu_seconds < (ended.end_ns - ended.start_ns) / 1e9 + 0.1
    assert ended.peak_memory_bytes is None or ended.peak_memory_bytes > 400_000_000
    assert execute(["true"], tmp_path / "steps").peak_memory_bytes is None  # less than this process had: not known


def test_a_run_leaves_a_result_or_the_way_it_failed(tmp_path: Path) -> None:
    code = "import os; assert os.getcwd().endswith('sub') and os.environ['A'] == '1'"
    (tmp_path / "sub").mkdir()
    spec = command(f'"{sys.executable}" -c "{code}"', folder="sub")
    assert run(spec, tmp_path, {"A": "1"}, tmp_path) == 0
    measured = Measurement.model_validate_json((tmp_path / "result.json").read_text())
    assert (measured.steps, measured.phases[0].name) == (0, "steady")
    assert run(command("false"), tmp_path, {"PATH": os.environ["PATH"]}, tmp_path) == 1
    assert "exit code 1" in json.loads((tmp_path / "error-0.json").read_text())["message"]


# --- steps in the output


def watched(folder: Path, code: str, pattern: str, output: Any = None) -> tuple[list[dict[str, Any]], bytes]:
    taken = io.BytesIO() if output is None else output
    path = folder / "steps.jsonl"
    path.unlink(missing_ok=True)
    ended = execute(python(code), path, how=Printed(pattern), output=taken)
    assert ended.exitcode == 0
    return [json.loads(line) for line in path.read_text().splitlines()], b"" if output else taken.getvalue()


def test_lines_of_output_are_steps_and_are_passed_on_unchanged(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.buffer.write(b'start\\xff\\nstep 1 loss 2.5 n 1,024\\nstep 2 loss 2.25 n 2,048')"
    lines, output = watched(tmp_path, code, r"loss (?P<loss>\S+) n (?P<samples>[\d,]+)$")
    assert output == b"start\xff\nstep 1 loss 2.5 n 1,024\nstep 2 loss 2.25 n 2,048"
    assert [(line["loss"], line["samples"], line["rank"]) for line in lines] == [(2.5, 1024, -1), (2.25, 2048, -1)]


def test_what_a_progress_bar_draws_over_is_a_line(tmp_path: Path) -> None:
    lines, output = watched(tmp_path, r"print('\r1/3 it\r2/3 it\r3/3 it\r\nend')", r"^\d/3 it$")
    assert (len(lines), output) == (3, b"\r1/3 it\r2/3 it\r3/3 it\r\nend\n")


def test_errors_are_looked_at_too_and_a_number_that_is_none_is_left_out(tmp_path: Path) -> None:
    code = "import sys; print('loss 2.5loss 2.4', file=sys.stderr); print('loss nan'); print('loss 1.5')"
    lines, _ = watched(tmp_path, code, r"loss (?P<loss>\S+)")
    assert sorted(line.get("loss", 0.0) for line in lines) == [0.0, 0.0, 1.5]


def test_a_reader_that_is_gone_does_not_end_the_command(tmp_path: Path) -> None:
    receiver, sender = os.pipe()
    os.close(receiver)
    with open(sender, "wb", buffering=0) as closed:  # noqa: PTH123  a descriptor
        lines, _ = watched(tmp_path, "print('step\\n' * 100_000)", "^step$", closed)
    assert len(lines) == 100_000


def test_steps_of_the_script_and_of_the_output_are_whole_lines_of_one_file(tmp_path: Path) -> None:
    code = "from bench.steps import step\nfor i in range(500): print('step', i, flush=True); step(samples=2)"
    lines, _ = watched(tmp_path, code, "^step")
    assert sorted(line["rank"] for line in lines) == [-1] * 500 + [0] * 500


# --- steps that a script reports


def test_reporting_does_nothing_without_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    step(samples=1)
    with phase("eval"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/dev/full", "/nowhere/x", "/"])
def test_a_disk_that_takes_nothing_costs_a_training_neither_its_life_nor_a_file(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(50):
        step(samples=1, loss=2.0)
        with phase("eval"):
            pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_numbers_of_other_libraries_and_odd_ranks_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch

    monkeypatch.setenv(VARIABLE, str(tmp_path / "steps"))
    monkeypatch.setenv("RANK", "none")
    step(samples=np.int64(3), tokens=torch.tensor(4), loss=torch.tensor(2.5))  # type: ignore[arg-type]
    (line,) = [json.loads(text) for text in (tmp_path / "steps").read_text().splitlines()]
    assert line.pop("t_ns") > 0
    assert line == {"rank": 0, "pid": os.getpid(), "samples": 3, "tokens": 4, "loss": 2.5}


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    code = "from bench.steps import step\nfor i in range(2000): step(samples=i, tokens=10**12, loss=1.5)"
    path = tmp_path / "steps"
    environment = os.environ | {VARIABLE: str(path)}
    started = [subprocess.Popen(python(code), env=environment | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(PATIENCE) for process in started] == [0, 0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((line["rank"], line["samples"]) for line in lines) == [(r, i) for r in range(2) for i in range(2000)]


# --- what the steps say


def mark(t: float, rank: int = 0, **more: Any) -> dict[str, Any]:
    return {"t_ns": round(t * S), "rank": rank, **more}


def told(
    folder: Path,
    *lines: Any,
    warmup: int = 1,
    end: float = 100,
    device_type: str = "cpu",
    how: Printed | None = None,
) -> Measurement:
    """Measure a command that ran from 0 to `end` seconds and left these lines."""
    path = folder / "steps"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    ended = Ended(0, 0, round(end * S), cpu_seconds=3.0, peak_memory_bytes=5000)
    found = measurement(path, ended, warmup, device_type, how)
    return Measurement.model_validate_json(found.model_dump_json())  # what is written can be read


def names(found: Measurement) -> list[tuple[str, float, float]]:
    return [(part.name, part.start_ns / S, part.end_ns / S) for part in found.phases]


def test_the_window_is_from_the_last_step_of_the_warmup_to_the_last_step(tmp_path: Path) -> None:
    lines = [mark(10 + t, samples=4, tokens=40, loss=9 - t) for t in range(6)]
    found = told(tmp_path, *lines, warmup=3)
    assert (found.window_seconds, found.steps, found.step_seconds) == (3, 3, [1, 1, 1])
    assert (found.samples, found.tokens) == (12, 120)  # of the three steps in the window
    assert (found.loss_first, found.loss_last, found.peak_memory_bytes) == (7, 4, [5000])
    assert names(found) == [("start", 0, 10), ("warmup", 10, 12), ("steady", 12, 15)]
    assert told(tmp_path, *lines, warmup=3, device_type="gpu").peak_memory_bytes == []


def test_ranks_with_unequal_counts_are_cut_to_the_steps_that_all_made(tmp_path: Path) -> None:
    mine = [mark(t, 0, samples=1) for t in (1, 2, 3, 4, 5)]
    theirs = [mark(t + 0.5, 1, samples=10) for t in (1, 2.5, 4)]
    found = told(tmp_path, *theirs, *mine)
    assert (found.steps, found.samples, found.step_seconds) == (2, 22, [1, 1])
    assert [(rank.rank, rank.window_seconds) for rank in found.ranks] == [(0, 2), (1, 3)]
    assert found.window_seconds == 3  # the slowest


def test_a_pause_in_the_window_is_a_phase_of_its_own_and_no_time_of_a_step(tmp_path: Path) -> None:
    pause = [mark(2.2, phase="eval", begin=True), mark(2.7, phase="eval", begin=False)]
    before = [mark(0.2, phase="eval", begin=True), mark(0.7, phase="eval", begin=False)]
    after = [mark(4.2, phase="checkpoint", begin=True), mark(4.7, phase="checkpoint", begin=False)]
    of_others = [mark(3.2, 1, phase="eval", begin=True), mark(3.7, 1, phase="eval", begin=False)]
    found = told(tmp_path, *[mark(t) for t in (1, 2, 3, 4)], *pause, *before, *after, *of_others, end=5)
    assert found.step_seconds == pytest.approx([1, 0.5, 1])
    assert found.window_seconds == pytest.approx(sum(found.step_seconds))
    assert names(found) == [
        *[("start", 0, 1), ("steady", 1, 2.2), ("eval", 2.2, 2.7), ("steady", 2.7, 4)],
        *[("tail", 4, 4.2), ("checkpoint", 4.2, 4.7)],  # after the last step
    ]


def test_a_pause_within_a_pause_is_counted_once(tmp_path: Path) -> None:
    pauses = [
        mark(1.1, phase="eval", begin=True),
        mark(1.3, phase="checkpoint", begin=True),
        mark(1.5, phase="checkpoint", begin=False),
        mark(1.9, phase="eval", begin=False),
    ]
    found = told(tmp_path, *[mark(t) for t in (1, 2, 3)], *pauses)
    assert found.step_seconds == pytest.approx([0.2, 1])
    assert names(found)[1:] == [("steady", 1, 1.1), ("eval", 1.1, 1.9), ("steady", 1.9, 3)]


def test_a_pause_within_one_of_its_own_name_is_part_of_it(tmp_path: Path) -> None:
    edges = [(1.1, True), (1.3, True), (1.5, False), (1.9, False)]
    pauses = [mark(t, phase="eval", begin=begin) for t, begin in edges]
    found = told(tmp_path, *[mark(t) for t in (1, 2, 3)], *pauses)
    assert found.step_seconds == pytest.approx([0.2, 1])
    stale = [mark(1.1, phase="eval", begin=True), mark(2.5, phase="eval", begin=False)]  # nothing ends it before a step
    assert told(tmp_path, *[mark(t) for t in (1, 2, 3)], *stale).window_seconds == 2


@pytest.mark.parametrize("apart", [0.5, 10])
def test_of_two_processes_with_one_rank_the_first_counts(tmp_path: Path, apart: float) -> None:
    lines = [mark(t + 1 + late, pid=pid, samples=8) for pid, late in ((7, 0), (6, apart)) for t in range(6)]
    found = told(tmp_path, *lines)
    assert (found.steps, found.samples, found.window_seconds) == (5, 40, 5)
    assert found.step_flags == ["separate_trainings"]
    ranks = [mark(t + 1, rank, pid=rank, samples=8) for rank in range(2) for t in range(6)]
    assert told(tmp_path, *ranks).step_flags == []


def test_time_in_which_steps_end_is_no_pause(tmp_path: Path) -> None:
    inside = [mark(1.5, phase="train", begin=True), mark(3.5, phase="train", begin=False)]
    found = told(tmp_path, *[mark(t) for t in (1, 2, 3, 4)], *inside)
    assert found.step_seconds == [1, 1, 1]
    assert [name for name, *_ in names(found)] == ["start", "steady"]


def test_a_phase_of_the_user_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    pauses = []
    for t, name in ((1.2, "steady"), (2.2, "Eval loss/all %"), (3.2, "warmup"), (4.2, "")):
        pauses += [mark(t, phase=name, begin=True), mark(t + 0.1, phase=name, begin=False)]
    found = told(tmp_path, *[mark(t) for t in (1, 2, 3, 4, 5)], *pauses)
    others = [name for name, *_ in names(found) if name not in ("start", "steady")]
    assert others == ["user_steady", "eval_loss_all", "user_warmup", "pause"]
    assert found.window_seconds == pytest.approx(3.6)


def test_work_that_a_step_does_not_tell_is_not_known(tmp_path: Path) -> None:
    found = told(tmp_path, mark(1), mark(2, samples=4, tokens=8), mark(3, samples=4))
    assert (found.samples, found.tokens) == (8, None)
    assert told(tmp_path, mark(1), mark(2, samples=0)).samples is None
    for odd in ("many", None, True, float("inf"), float("nan"), -3, [1]):
        assert told(tmp_path, mark(1), mark(2, samples=odd)).samples is None


def test_a_loss_that_becomes_no_number_is_missing_at_last(tmp_path: Path) -> None:
    found = told(tmp_path, mark(1, loss=3.0), mark(2, loss=2.0), mark(3, loss=float("nan")))
    assert (found.loss_first, found.loss_last) == (3.0, None)
    found = told(tmp_path, mark(1, loss="high"), mark(2), mark(3))
    assert (found.loss_first, found.loss_last) == (None, None)


def test_damaged_lines_cost_only_themselves(tmp_path: Path) -> None:
    broken = ["{", "[]", "3", '{"rank": 0}', '{"t_ns": "x", "rank": 0}', '{"t_ns": Infinity, "rank": 0}', "\x00", ""]
    found = told(tmp_path, broken[0], mark(1), *broken, mark(2), '{"t_ns": 2500000000, "ra', mark(3))
    assert found.step_seconds == [1, 1]
    # marks out of order, or at one time, are put right
    assert told(tmp_path, mark(3), mark(1), mark(2), mark(2)).step_seconds == [1, 1]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_without_steps_beyond_the_warmup_the_window_is_all_of_the_command(tmp_path: Path, count: int) -> None:
    found = told(tmp_path, *[mark(t + 1) for t in range(count)], warmup=3)
    assert (found.steps, found.step_seconds, found.samples, found.window_seconds) == (0, [], None, 100)
    assert names(found) == [("steady", 0, 100)]
    assert found.ranks[0].cpu_seconds == 3
    assert told(tmp_path, *[mark(t + 1) for t in range(4)], warmup=3).steps == 1
    assert measurement(tmp_path / "none", Ended(0, 0, S, 0.0, None), 3, "cpu").steps == 0


def test_metrics_get_names_that_a_store_takes_and_of_equal_ones_the_last_value_counts(tmp_path: Path) -> None:
    own = {"val/acc@1": 0.1, "../x": 1.0, "a//b": 2.0, "a_b": 3.0, "a@b": 4.0, "ä: 1\n": 5.0, "/": 6.0, "x" * 400: 7.0}
    expected = {"val/acc_1": 0.2, "x": 1.0, "a/b": 2.0, "a_b": 4.0, "ä: 1_": 5.0, "unnamed": 6.0, "x" * 200: 7.0}
    found = told(tmp_path, mark(1), mark(2, own=own), mark(3, own={"val/acc@1": 0.2}))
    assert found.own == expected
    line = {"text": 0, "integers": [], "kind": "", "total": "", "words": 0}
    printed = [mark(t, -1, read=t, **line, own=own) for t in range(1, 4)]
    found = told(tmp_path, *printed, how=Printed("x", steps_per_line=1))
    assert found.own == expected | {"val/acc_1": 0.1}


@pytest.mark.parametrize(("largest", "above"), [(10**18, 10**18 + 1000), (10**18, 10**30), (1, 10**400), (1, -1)])
def test_numbers_that_cannot_be_meant_are_of_no_step(tmp_path: Path, largest: int, above: int) -> None:
    assert told(tmp_path, mark(1), mark(2, samples=largest)).samples == largest
    found = told(tmp_path, mark(1), mark(2, samples=above, tokens=above, loss=10**400, own={"a": 10**400, "b": 1}))
    assert (found.steps, found.samples, found.tokens, found.loss_last, found.own) == (1, None, None, None, {"b": 1})


def test_steps_of_the_script_go_before_those_in_the_output(tmp_path: Path) -> None:
    line = {"text": 0, "integers": [], "kind": "", "total": "", "words": 0}
    output = [mark(t / 10, -1, read=t, **line) for t in range(10, 40)]
    assert told(tmp_path, *output, how=Printed("x", steps_per_line=2)).steps == 58
    assert told(tmp_path, *output, *[mark(t) for t in (1, 2, 3)], how=Printed("x")).steps == 2


@pytest.mark.filterwarnings("ignore:.*is no number")
def test_a_report_that_is_no_number_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "steps"))
    step(samples=float("nan"), loss=[1.0, 2.0], accuracy="n/a", reward=10**400, tokens=8)  # type: ignore[arg-type]
    step(samples=10**5000)  # no JSON has it
    line, other = map(json.loads, (tmp_path / "steps").read_text().splitlines())
    assert (line["tokens"], "samples" in other) == (8, False)
    assert not {"samples", "loss", "own"} & set(line)

"""Records of commands state what was asked for and what was seen, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bench import folder as files
from bench.figures.metrics import parameters, row
from bench.meters.conditions import EVENT, HOST
from bench.meters.meter import Reading
from bench.record import Measurement, Phase, Rank, RunRecord, SeenFacts
from bench.renamed import current_row
from bench.run.collect import Context, collect
from bench.run.command import leave
from bench.run.node import THREADS, thread_variables
from bench.run.own_steps import Ended
from bench.schema import UNKNOWN_OF_COMMANDS, Gpu, Machine, RunSpec, Site, program_name
from bench.suites import yaml as yamlfile
from bench.suites.expand import expand, only
from bench.suites.load import SuiteError, load_suite, override
from bench.workloads.command import fill
from tests import rows

S = 10**9
CPU = Machine(cpu_model="Synthetic", cpu_count=64)


def command(argv: str, **fields: Any) -> RunSpec:
    own = {"argv": argv, **fields.pop("own", {})}
    return RunSpec.model_validate({"workload": "command", "workload_args": own, "device_type": "cpu", **fields})


def collected(
    folder: Path, spec: RunSpec, suite: str = "commands", ranks: int = 1, source: str = "script", **measured: Any
) -> RunRecord:
    """Return the record of a command of 100 samples in 10 steps of 1 s."""
    folder.mkdir(parents=True)
    files.EXIT.write(folder, files.Exit(how="ended", exitcode=0, start_ns=0, end_ns=10 * S))
    lines = {"ranks": [Rank(rank=rank, window_seconds=10) for rank in range(ranks)], "step_source": source}
    steady = [Phase(name="steady", start_ns=0, end_ns=10 * S)]
    result = {"window_seconds": 10, "samples": 100, "steps": 10, "phases": steady, **lines}
    files.RESULT.write(folder, Measurement.model_validate(result | measured))
    return collect(Context(suite, "e", Site(usd_per_device_hour=3600), rows.environment(), []), spec, folder)


# --- what was asked


def test_fields_that_nobody_asked_for_are_absent(tmp_path: Path) -> None:
    record = collected(tmp_path / "run", command("train"), steps=0)
    absent = {*UNKNOWN_OF_COMMANDS, "threads_per_device"}
    assert not absent & set(row(record))
    assert not absent - {"threads_per_device"} & set(json.loads(record.model_dump_json())["spec"])
    assert RunRecord.model_validate_json(record.model_dump_json()) == record
    told = parameters(command("train {precision} {global_batch_size}", batch_size_per_device=4, threads_per_device=2))
    assert (told["precision"], told["global_batch_size"], told["threads_per_device"]) == ("fp32", 4, 2)


def test_the_configuration_of_a_command_is_what_it_was() -> None:
    """Runs that are stored keep their configuration."""
    told = command("train {devices} {precision}", own={"layers": 2}, precision="bf16", warmup_steps=2)
    batch = command("train {batch_size_per_device}", batch_size_per_device=2)
    assert [spec.config_id for spec in (command("train"), told, batch)] == ["a15cf44048", "3820048a6a", "83346ca052"]
    assert command("train", seed=3, work=["workload_args.argv"]).config_id == command("train").config_id
    assert command("train", threads_per_device=1).config_id != command("train").config_id
    assert command("train", words={"amp": ["--amp"]}).config_id != command("train").config_id


def test_threads_are_fixed_only_where_a_suite_asks_for_them() -> None:
    assert thread_variables(command("train")) == {}
    assert thread_variables(command("train", threads_per_device=3)) == dict.fromkeys(THREADS, "3")
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} <= set(THREADS)
    with pytest.raises(ValidationError, match="threads_per_device"):
        RunSpec(workload="x", device_type="cpu", batch_size_per_device=1, measure_steps=1, threads_per_device=None)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("python train.py --lr {lr}", "train.py"),
        ("torchrun --nproc-per-node={devices} examples/run_clm.py --config x.yaml", "run_clm.py"),
        ("python -m torch.distributed.run -m pkg.train", "pkg.train"),
        ("/usr/bin/env A=1 ./start.sh", "start.sh"),
        ("/opt/{name}/bin/train --x", "train"),
        ("sh -c 'true'", "sh"),
    ],
)
def test_a_command_is_called_by_what_it_runs(argv: str, name: str) -> None:
    assert program_name(argv) == name


def test_a_label_names_the_program_and_what_was_set() -> None:
    argv = (
        "torchrun --a-long-option=that-nobody-wants-to-read /a/very/long/path/train.py {layers} {precision} {devices}"
    )
    spec = command(argv, own={"layers": 12}, precision="bf16", devices_per_node=2)
    assert spec.label == "train.py layers=12 d2 bf16"


# --- what was seen


def test_what_hooks_saw_stands_in_the_row(tmp_path: Path) -> None:
    seen = SeenFacts(
        processes=2, devices=["cpu", "cpu"], precision="bf16", parallelism="ddp", optimizer="AdamW", compiled=True,
        threads=4, batch_size=5, torch="2.9.0", python="3.12.1",
    )  # fmt: skip
    record = collected(tmp_path / "run", command("train", devices_per_node=2), seen=seen)
    flat = row(record)
    names = ("precision", "parallelism", "optimizer", "compile", "script_torch", "script_python")
    assert [flat[name] for name in names] == ["bf16", "ddp", "adamw", "default", "2.9.0", "3.12.1"]
    assert (flat["threads_seen"], flat["batch_size_per_device"], flat["global_batch_size"]) == (4, 5, 10)
    assert record.flags.count("precision_differs") == 0  # nobody asked for one


@pytest.mark.parametrize(
    ("asked", "argv", "seen", "differs"),
    [
        ("bf16", "train {precision}", "bf16", False),
        ("bf16", "train {precision}", "fp32", True),
        ("tf32", "train {precision}", "fp32", False),
        ("bf16_params", "train {precision}", "bf16", False),
        ("fp32", "train", "bf16", False),
        ("bf16", "train {precision}", None, False),
    ],
)
def test_another_precision_than_the_asked_one_is_flagged(
    tmp_path: Path, asked: str, argv: str, seen: str | None, differs: bool
) -> None:
    facts = SeenFacts(processes=1, devices=["cpu"], precision=seen)
    record = collected(tmp_path / "run", command(argv, precision=asked), seen=facts)
    assert ("precision_differs" in record.flags, record.grade == "C") == (differs, differs)
    used = {"precision": seen} if seen else {"precision": asked} if "{" in argv else {}
    assert {name: value for name, value in row(record).items() if name == "precision"} == used


@pytest.mark.parametrize(
    ("asked", "ranks", "source", "seen", "used"),
    [
        (2, 1, "script", None, 1),  # accelerate launch --num_processes 2 that ran one process
        (2, 2, "script", None, 2),
        (1, 2, "script", None, 2),  # torchrun --nproc-per-node=2
        (2, 1, "output", None, 2),  # a line does not say how many processes there are
        (2, 1, "hooks", 1, 1),
        (1, 1, "output", 4, 4),
    ],
)
def test_figures_count_the_devices_that_were_used(
    tmp_path: Path, asked: int, ranks: int, source: str, seen: int | None, used: int
) -> None:
    facts = None if seen is None else SeenFacts(processes=seen, devices=["cpu"] * seen)
    spec = command("train", devices_per_node=asked)
    for suite in ("commands", "measure"):
        record = collected(tmp_path / suite, spec, suite, ranks, source, seen=facts)
        flat = row(record)
        billed = used if suite == "measure" else max(asked, used)
        assert (flat["devices"], flat["samples_per_second_per_device"]) == (used, 10 / used)
        assert flat["cost_usd"] == 10 * billed
        assert ("devices_differ" in record.flags) == (suite == "commands" and used != asked)


def test_a_flag_of_earlier_versions_has_its_name_of_today(tmp_path: Path) -> None:
    document = json.loads(collected(tmp_path / "run", command("train")).model_dump_json())
    assert "devices_differ" in RunRecord.model_validate(document | {"flags": ["fewer_devices", "no_steps"]}).flags
    assert current_row({"flags": "fewer_devices no_steps"})["flags"] == "devices_differ no_steps"


# --- suites


def suite(folder: Path, argv: str, defaults: dict[str, Any] | None = None, **parts: Any) -> Any:
    path = folder / "suite.yaml"
    path.write_text(
        yamlfile.write(
            {"name": "s", "defaults": {"workload": "command", "workload_args.argv": argv, **(defaults or {})}, **parts}
        )
    )
    return load_suite(path)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ({"devices": [1, 2, 4]}, "the same command would run as 1, 2 and 4 devices; write {devices} into it"),
        (
            {"precision": ["fp32", "bf16"]},
            "argv does not use {precision}, so precision bf16 would not reach the command",
        ),
        ({"batch_size_per_device": [8]}, "argv does not use {batch_size_per_device}"),
        ({"optimizer.learning_rate": [0.1]}, "argv does not use {optimizer}"),
        ({"workload_args.layers": [1, 2]}, "argv does not use 'layers'"),
    ],
)
def test_what_is_varied_and_not_used_is_a_mistake(tmp_path: Path, matrix: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        expand(suite(tmp_path, "train", matrix=matrix), CPU)
    assert sum(message in found for found in caught.value.messages) == 1, caught.value.messages


def test_all_that_is_not_used_is_told_at_once(tmp_path: Path) -> None:
    matrix = {"devices": [1, 2], "precision": ["fp32", "bf16"], "workload_args.layers": [1, 2]}
    with pytest.raises(SuiteError) as caught:
        expand(suite(tmp_path, "train", matrix=matrix), CPU)
    found = " ".join(caught.value.messages)
    assert all(text in found for text in ("{precision}", "'layers'", "as 1 and 2 devices"))
    assert "twice" not in found
    assert len(caught.value.messages) == len(set(caught.value.messages))


def test_gpus_are_told_by_what_a_command_sees(tmp_path: Path) -> None:
    gpus = [Gpu(index=place, uuid=f"GPU-{place}", name="NVIDIA Synthetic") for place in range(2)]
    machine = CPU.changed(gpus=gpus)
    assert len(expand(suite(tmp_path, "train", matrix={"devices": [1, 2]}), machine).runs) == 2


def test_fixed_devices_need_no_name_and_a_batch_may_be_that_of_all(tmp_path: Path) -> None:
    assert len(expand(suite(tmp_path, "torchrun --nproc-per-node=2 x.py", {"devices": 2}), CPU).runs) == 1
    matrix = {"devices": [1, 2], "global_batch_size": [8]}
    plan = expand(suite(tmp_path, "train {devices} {global_batch_size}", matrix=matrix), CPU)
    assert [fill(spec) for spec in plan.runs] == [["train", "1", "8"], ["train", "2", "8"]]


AMP: dict[Any, Any] = {"fp32": [], "bf16": ["--amp", "--amp-dtype", "bfloat16"]}


@pytest.mark.parametrize(
    "parts",
    [
        {"matrix": {"workload_args.amp": AMP}},
        {"defaults": {"workload_args.amp": AMP}, "matrix": {"workload_args.amp": ["fp32", "bf16"]}},
        {"matrix": {"workload_args.amp": ["fp32", "bf16"]}, "words": {"amp": AMP}},
    ],
)
def test_a_map_says_which_words_stand_for_a_value(tmp_path: Path, parts: dict[str, Any]) -> None:
    plan = expand(suite(tmp_path, "train {amp} -n {devices}", **parts), CPU)
    assert [fill(spec) for spec in plan.runs] == [
        ["train", "-n", "1"],
        ["train", "--amp", "--amp-dtype", "bfloat16", "-n", "1"],
    ]
    assert [parameters(spec)["workload_args.amp"] for spec in plan.runs] == ["fp32", "bf16"]
    assert [fill(spec)[1:2] for spec in only(plan, ["amp=bf16"]).runs] == [["--amp"]]
    again = RunSpec.model_validate_json(plan.runs[1].model_dump_json())
    assert (fill(again), again.config_id) == (fill(plan.runs[1]), plan.runs[1].config_id)
    (fixed,) = expand(override(suite(tmp_path, "train {amp}", **parts), ["amp=bf16"]), CPU).runs
    assert fill(fixed)[1] == "--amp"


def test_fields_of_a_run_have_words_too_and_a_switch_is_a_map(tmp_path: Path) -> None:
    matrix = {
        "precision": {"fp32": [], "bf16": ["--amp"]},
        "devices": {1: ["python"], 2: ["torchrun", "--nproc-per-node=2"]},
        "workload_args.compile_it": {True: ["--compile"], False: []},
    }
    plan = expand(suite(tmp_path, "{devices} x.py {precision} {compile_it}", matrix=matrix), CPU)
    words = {(str(s.precision), s.world_size, s.workload_args["compile_it"]): fill(s) for s in plan.runs}
    assert words["bf16", 2, True] == ["torchrun", "--nproc-per-node=2", "x.py", "--amp", "--compile"]
    assert words["fp32", 1, False] == ["python", "x.py"]
    assert len(words) == 8


@pytest.mark.parametrize(
    ("argv", "parts", "message"),
    [
        ("train --x={amp}", {"matrix": {"workload_args.amp": AMP}}, "{amp} stands for a list of words"),
        ("train", {"matrix": {"workload_args.amp": AMP}}, "argv does not use 'amp'"),
        ("train {amp}", {"defaults": {"workload_args.amp": AMP}}, "give one of fp32, bf16"),
        ("train {amp}", {"words": {"amp": AMP}, "matrix": {"workload_args.amp": ["fp16"]}}, "no words for 'fp16'"),
        (
            "train {x}",
            {"matrix": {"workload_args.x": [1]}, "work": ["workload_args.y"]},
            "work: 'workload_args.y' is no",
        ),
        (
            "train {x}",
            {"matrix": {"workload_args.x": [1]}, "work": ["x"]},
            "allowed: workload_args.argv, workload_args.x",
        ),
    ],
)
def test_mistakes_in_words_and_work_are_told(tmp_path: Path, argv: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        expand(suite(tmp_path, argv, **parts), CPU)
    assert any(message in found for found in caught.value.messages), caught.value.messages


def test_what_is_trained_is_a_key_of_the_suite(tmp_path: Path) -> None:
    plan = expand(suite(tmp_path, "train {x}", matrix={"workload_args.x": [1, 2]}, work=["workload_args.x"]), CPU)
    assert [spec.work for spec in plan.runs] == [["workload_args.x"]] * 2
    assert row(collected(tmp_path / "run", plan.runs[0]))["work"] == "workload_args.x"
    assert "work" not in row(collected(tmp_path / "other", command("train")))


def test_a_command_that_trained_on_processors_beside_gpus_says_so(tmp_path: Path) -> None:
    gpu = [Gpu(index=0, uuid="GPU-0", name="NVIDIA Synthetic")]
    machine = Machine(cpu_model="Synthetic", cpu_count=4, gpus=gpu)
    environment = rows.environment().changed(machine=machine)
    spec = command("train", device_type="gpu")
    facts = SeenFacts(processes=1, devices=["cpu"])
    for seen, devices in ((facts, ["cpu"]), (None, ["GPU-0"]), (facts.changed(devices=["GPU-0"]), ["GPU-0"])):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        files.EXIT.write(folder, files.Exit(how="ended", exitcode=0, start_ns=0, end_ns=10 * S))
        files.RESULT.write(folder, Measurement(window_seconds=10, steps=5, samples=10, seen=seen))
        record = collect(Context("commands", "e", Site(), environment, ["GPU-0"]), spec, folder)
        assert record.devices == devices
        flat = row(record)
        used = ("cpu", "Synthetic") if devices == ["cpu"] else ("gpu", "NVIDIA Synthetic")
        assert (flat["device_type"], flat["device_name"]) == used
        assert ("devices_differ" in record.flags) == (devices == ["cpu"])
        assert record.gpus == [device for device in devices if device != "cpu"]


@pytest.mark.parametrize(("busy", "noisy"), [(0.5, False), (2.0, True)])
def test_other_programs_are_seen_beside_a_command_with_steps_too(tmp_path: Path, busy: float, noisy: bool) -> None:
    """The command takes half a processor of four for all of its 10 s; more than 5 % of all is noise."""
    folder = tmp_path / "run"
    folder.mkdir()
    files.EXIT.write(folder, files.Exit(how="ended", exitcode=0, start_ns=0, end_ns=10 * S))
    steady = [Phase(name="steady", start_ns=2 * S, end_ns=9 * S)]
    measured = Measurement(window_seconds=7, steps=7, samples=7, phases=steady, cpu_seconds=5, step_source="script")
    files.RESULT.write(folder, measured)
    facts = [json.dumps({"busy": busy * t, "steal": 0, "all": 4 * t}) for t in range(11)]
    events = (Reading(t_ns=t * S, wall_ns=t * S, device=HOST, event=EVENT, message=m) for t, m in enumerate(facts))
    readings = (event.to_json() + "\n" for event in events)
    files.RAW_METERS.path(folder, 0).write_text("".join(readings))
    record = collect(Context("commands", "e", Site(), rows.environment(), []), command("train"), folder)
    assert record.measurement is not None
    assert record.measurement.host is not None
    assert record.measurement.host.other_share == pytest.approx(max(0.0, busy - 0.5) / 4)
    assert ("noisy_host" in record.flags) == noisy


@pytest.mark.parametrize(
    ("source", "world", "partial"),
    [("output", 4, True), ("output", 2, False), ("script", 4, False), ("hooks", 4, False)],
)
def test_lines_of_a_larger_world_are_not_the_work_of_this_node(
    tmp_path: Path, source: str, world: int, partial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = SeenFacts(processes=2, world_size=world)
    result = Measurement.model_validate(
        {"window_seconds": 1, "steps": 1, "samples": 8, "seen": seen, "step_source": source}
    )
    monkeypatch.setattr("bench.run.command.measurement", lambda *_: result)
    spec = command("train", own={"step_pattern": "x"})
    leave(spec, Ended(0, 0, S, 1.0, None), tmp_path)
    left = files.RESULT.read(tmp_path)
    assert (left.samples, "partial_world" in left.step_flags) == ((None, True) if partial else (8, False))

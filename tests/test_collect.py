"""What becomes of the files of a run: every way to end is a record with the first cause."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bench.figures.metrics import metrics
from bench.record import RunRecord, Status
from bench.redact import redact, redact_argv
from bench.run.collect import Context, collect, log_tail
from bench.run.node import stops_noticed
from bench.schema import Gpu, RunSpec, Site
from tests import rows

S = 10**9
SPEC = RunSpec(workload="synthetic", device_type="cpu", devices_per_node=2, batch_size_per_device=1, measure_steps=1)
END = {"how": "ended", "exitcode": 1, "start_ns": 10**9, "end_ns": 3 * 10**9, "started_at": "2026-01-02T03:04:05+00:00"}


def context(**site: Any) -> Context:
    return Context("s", "e", Site(**site), rows.environment(), gpus=[])


def left(folder: Path, end: dict[str, Any] | None = None, **files: Any) -> Path:
    for name, value in {"exit.json": END | (end or {}), **files}.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def error(rank: int, kind: str, message: str) -> dict[str, Any]:
    return {f"error-{rank}.json": {"kind": kind, "type": "SomeError", "message": message, "rank": rank}}


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        (error(1, "out_of_memory", "no more") | error(0, "peer", "closed"), Status.OUT_OF_MEMORY, "rank 1: no more"),
        (error(0, "peer", "closed") | error(1, "failed", "cause"), Status.FAILED, "rank 1: cause"),
        (error(0, "peer", "closed"), Status.FAILED, "rank 0: closed"),
        (error(0, "unsupported", "no tf32 here"), Status.SKIPPED, "no tf32 here"),
        (error(0, "invalid", "loss is nan"), Status.INVALID, "rank 0: loss is nan"),
        ({"ranks.json": [{"rank": 1, "exitcode": -9}]}, Status.FAILED, "rank 1 was ended by SIGKILL"),
        ({"ranks.json": [{"rank": 1, "exitcode": -40}]}, Status.FAILED, "rank 1 was ended by signal 40"),
        (
            {"ranks.json": [{"rank": 0, "exitcode": 1}, {"rank": 1, "exitcode": -11}]} | error(0, "peer", "closed"),
            Status.FAILED,
            "rank 1 was ended by SIGSEGV",
        ),
        ({"ranks.json": [{"rank": 0, "exitcode": 77}]}, Status.FAILED, "rank 0 ended with exit code 77"),
        ({}, Status.FAILED, "the run ended with exit code 1 and left no result"),
        ({"exit.json": END | {"how": "timeout"}}, Status.TIMEOUT, "the run exceeded timeout_seconds = 600"),
        ({"exit.json": {"how": "node_died"}}, Status.FAILED, "the node process ended during the run"),
    ],
)
def test_failures_are_told_by_their_first_cause(
    tmp_path: Path, files: dict[str, Any], status: Status, message: str
) -> None:
    log = {"worker.log": "one\ntwo\nTOKEN=abc123 https://me:pw@host/x\n"}
    record = collect(context(usd_per_device_hour=3600), SPEC, left(tmp_path, **(log | files)))
    assert (record.status, record.measurement) == (status, None)
    assert record.error.message.startswith(message)
    assert record.error.log_tail == "one\ntwo\nTOKEN=*** https://***@host/x"
    if "start_ns" in json.loads((tmp_path / "exit.json").read_text()):
        assert record.duration_seconds == 2
        assert record.cost.cost_usd == 4  # a failed run is paid for too
    assert (tmp_path / "record.json").exists()
    if record.error.message == "rank 1 was ended by SIGKILL":
        left(tmp_path, {"killed_for_memory": True})
        assert collect(context(), SPEC, tmp_path).status is Status.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB", 2 * 2**30),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has", 20 * 2**20),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 824633720832 bytes. Error code 12",
            824633720832,
        ),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", None),
    ],
)
def test_what_was_asked_for_in_vain_is_recorded(tmp_path: Path, message: str, size: int | None) -> None:
    record = collect(context(), SPEC, left(tmp_path, **error(0, "out_of_memory", message)))
    assert record.error.attempted_bytes == size
    if size:
        again = RunRecord.model_validate_json((tmp_path / "record.json").read_text())
        assert again.error == record.error


def test_a_result_that_cannot_be_read_is_invalid(tmp_path: Path) -> None:
    record = collect(context(), SPEC, left(tmp_path, {"exitcode": 0}, **{"result.json": {"steps": 0}}))
    assert record.status is Status.INVALID


def test_the_log_tail_is_short(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text("x" * 1000 + "\n" + "line\n" * 100_000)
    assert len(log_tail(tmp_path)) < 16_384
    assert log_tail(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://user:hunter2@example.org/x", "hunter2"),
        ("git+https://ghp_abcdefgh12345678@example.org", "ghp_"),
        ("https://me:hun@ter2@example.org/x", "ter2"),
        ("MY_API_KEY=hunter2", "hunter2"),
        ("--password hunter2", "hunter2"),
        ('{"access_token": "hunter2"}', "hunter2"),
        ("Authorization: Bearer hunter2", "hunter2"),
        ("AKIAABCDEFGHIJKLMNOP", "AKIAA"),
        ("hf_abcdefghijklmnop", "hf_abc"),
        ("scp me:hunter2@example.org", "hunter2"),
        ("curl -u me:hunter2 http://example.org", "hunter2"),
        ("curl --user=me:hunter2 x", "hunter2"),
        ("mysql -uroot -phunter2 db", "hunter2"),
        ("--token 512x", "512x"),
        ("https://bucket/x?X-Amz-Signature=hunter2&a=1", "hunter2"),
    ],
)
def test_credentials_are_taken_out(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


def test_words_of_a_command_are_redacted_one_by_one() -> None:
    argv = [
        "bench",
        "--token",
        "abc",
        "--max-tokens",
        "512",
        "--password",
        "a b",
        "sh",
        "-c",
        "true --token 'x y'",
        "-v",
    ]
    found = redact_argv(argv)
    assert found[:7] == ["bench", "--token", "***", "--max-tokens", "512", "--password", "***"]
    assert (len(found), found[-1], "x y" in found[-2]) == (len(argv), "-v", False)
    assert redact_argv(["x", "--token", "1234567"])[-1] == "***"
    assert redact_argv(["curl", "-u", "me:pw", "http://x"]) == ["curl", "-u", "***", "http://x"]


def test_other_text_stays() -> None:
    texts = ("tokens_per_second 12.5", "12 tokens", "/home/x/y.py:12", "the tokenizer of user@host", "a=1 b=2")
    options = ("--max-tokens 512", "max_tokens: 512,", "tokens=1.4e12", "python -u train.py -p 3", "scp me@host:/x")
    options += ("1000 tokens in 2 s", "python -u run.py:main", "docker run -u 1000:1000 x", "git@github.com:x/y.git")
    for text in (*texts, *options, "nvcr.io/nvidia/pytorch:24.01@sha256:abc", "2026-01-02T03:04:05"):
        assert redact(text) == text


# --- the energy of a run that ended well


def counter(device: str, watts: float, source: str = "nvml", component: str = "gpu", until: int = 60) -> list[str]:
    interval = 0.09 if source == "nvml" else 1.0
    times = [10 + i * interval for i in range(int((until - 10) / interval) + 1)]
    common = {"wall_ns": 0, "source": source, "component": component, "device": device}
    return [json.dumps({"t_ns": round(t * S), "energy_uj": round(watts * t * 1e6), **common}) for t in times]


def seen(device: str, **facts: Any) -> list[str]:
    common = {"wall_ns": 0, "device": device, "event": "conditions", "message": json.dumps(facts)}
    return [json.dumps({"t_ns": t * S, **common}) for t in range(10, 61)]


def phase(name: str, start: float, end: float) -> dict[str, Any]:
    return {"name": name, "start_ns": round(start * S), "end_ns": round(end * S)}


PHASES = [phase("start", 12, 15), phase("warmup", 15, 20), phase("steady", 20, 30), phase("eval", 30, 33)]
PHASES += [phase("steady", 33, 40)]
GPUS = [f"GPU-{i}" for i in range(3)]


def ended_well(
    folder: Path, lines: list[str], spec: RunSpec = SPEC, site: Site | None = None, **changes: Any
) -> RunRecord:
    measured = rows.record(2, readings="").measurement
    result = measured.model_dump(mode="json") | {"phases": PHASES, "window_seconds": 17} | changes
    end = {"exitcode": 0, "start_ns": 11 * S, "end_ns": 50 * S}
    left(folder, end, **{"result.json": result, "meters-0.jsonl": "\n".join(lines) + "\n"})
    record = collect(Context("s", "e", site or Site(), rows.environment(), gpus=GPUS), spec, folder)
    assert RunRecord.model_validate_json((folder / "record.json").read_text()) == record
    return record


def on_gpus(workload: str = "synthetic", devices: int = 2) -> RunSpec:
    changes = {"workload": workload, "device_type": "gpu", "devices_per_node": devices}
    batch = {"batch_size_per_device": None, "measure_steps": None} if workload == "command" else {}
    return RunSpec.model_validate(SPEC.model_dump() | changes | batch)


def everything() -> list[str]:
    return [line for i, uuid in enumerate(GPUS) for line in counter(uuid, 100 * (i + 1))] + counter(
        "p0", 40, "rapl", "cpu"
    )


def test_phases_fill_the_run_and_their_energies_add_up_to_it(tmp_path: Path) -> None:
    record = ended_well(tmp_path, everything(), on_gpus())
    parts = record.measurement.phases
    assert [p.name for p in parts] == ["launch", "start", "warmup", "steady", "eval", "steady", "tail"]
    for index in range(3):
        sums = sum(round(p.energy[index].energy_joules * 1e6) for p in parts)
        assert sums == round(record.energy[index].energy_joules * 1e6)
    whole = {r.device: r.energy_joules for r in record.energy}
    assert whole == {"GPU-0": pytest.approx(3900), "GPU-1": pytest.approx(7800), "p0": pytest.approx(1560)}
    assert [(r.device, r.energy_joules) for r in record.unused] == [("GPU-2", pytest.approx(300 * 39))]


def test_the_startup_is_measured_as_one_even_if_a_part_of_it_is_too_short_for_a_meter(tmp_path: Path) -> None:
    parts = [phase("start", 11.3, 11.4), phase("probe", 11.4, 12), phase("build", 12, 12.2), phase("warmup", 12.2, 20)]
    record = ended_well(tmp_path, everything(), on_gpus(), phases=[*parts, *PHASES[2:]])
    assert [r.component for r in record.measurement.startup] == ["gpu", "gpu", "cpu"]  # RAPL between its readings
    assert metrics(record)["startup_energy_joules"] == pytest.approx(340 * (0.4 + 8), rel=0.03)
    shorter = [phase("start", 11.3, 11.4), phase("warmup", 11.4, 20)]
    record = ended_well(tmp_path, everything(), on_gpus(), phases=[*shorter, *PHASES[2:]])
    assert metrics(record)["startup_energy_joules"] == pytest.approx(340 * 9, rel=0.01)
    assert metrics(record)["startup_seconds"] == pytest.approx(9)


def test_the_energy_of_the_window_leaves_its_pauses_out(tmp_path: Path) -> None:
    record = ended_well(tmp_path, [*everything(), '{"t_ns": 5'], on_gpus(), Site(region="FR"))
    assert not (tmp_path / "meters-0.jsonl").exists()
    assert (tmp_path / "meters-0.parquet").exists()
    assert (record.carbon.energy_missing, "pue_unknown" in record.flags) == (["dram"], True)
    assert [r.energy_joules for r in record.measurement.energy] == pytest.approx([1700, 3400, 680], rel=1e-3)
    assert [r.seconds for r in record.measurement.energy] == [17, 17, 17]
    assert metrics(record)["power_watts"] == pytest.approx(340, rel=1e-3)


def quality(step: int, seconds: float, read: float, loss: float) -> dict[str, Any]:
    return {"step": step, "seconds": seconds, "read_ns": round(read * S), "samples": 8, "loss": loss}


def test_quality_has_its_price_from_the_first_step_on_without_probes(tmp_path: Path) -> None:
    """Training begins with the warm-up at 15 s; a probe from 20 to 21 s is no part of it."""
    spec = RunSpec.model_validate(
        SPEC.model_dump() | {"validation": {"every_steps": 5}, "target": {"metric": "validation_loss", "value": 3.0}}
    )
    parts = [*PHASES[:2], phase("probe", 20, 21), phase("steady", 21, 30), phase("validation", 30, 33), *PHASES[4:]]
    points = [quality(5, 17, 33, 3.5), quality(10, 24, 40, 2.9)]
    lines = counter("p0", 40, "rapl", "cpu")
    site = Site(usd_per_device_hour=3600, region="FR", pue=1.0)
    record = ended_well(tmp_path, lines, spec, site, phases=parts, quality=points, stopped_by="target")
    joules = [point.energy_joules for point in record.measurement.quality]
    assert joules == [pytest.approx(40 * 17), pytest.approx(40 * 24)]
    found = metrics(record)
    expected = {"target_reached": 1, "seconds_to_target": 24, "steps_to_target": 10, "energy_to_target_joules": 960}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["cost_to_target_usd"] == pytest.approx(2 * 24)
    assert found["emissions_to_target_kg"] == pytest.approx(960 / 3.6e6 * record.carbon.intensity.kg_per_kwh)
    assert found["validation_loss"] == 2.9


def test_a_target_that_was_not_reached_has_no_price(tmp_path: Path) -> None:
    changes = {"validation": {"every_steps": 5}, "target": {"metric": "validation_accuracy", "value": 0.5}}
    spec = RunSpec.model_validate(SPEC.model_dump() | changes)
    record = ended_well(tmp_path, [], spec, quality=[quality(5, 17, 33, 3.5)])
    found = metrics(record)
    assert found["target_reached"] == 0
    assert not any("to_target" in name for name in found)


def test_the_energy_of_inference_is_that_of_its_passes(tmp_path: Path) -> None:
    served = {"samples": 10, "seconds": 3, "start_ns": 42 * S, "end_ns": 45 * S, "model_bytes": 1, "zeros_share": 0}
    parts = [*PHASES, phase("inference", 40, 46)]
    record = ended_well(tmp_path, everything(), on_gpus(), phases=parts, inference=served)
    assert [r.energy_joules for r in record.measurement.inference.energy] == pytest.approx([300, 600, 120], rel=0.01)
    assert metrics(record)["inference_joules_per_sample"] == pytest.approx(102, rel=0.01)
    assert sum(r.energy_joules for r in record.measurement.energy) == pytest.approx(340 * 17, rel=1e-3)


def test_a_command_used_the_gpus_on_which_its_processes_were_seen(tmp_path: Path) -> None:
    lines = everything() + seen("GPU-0", own=0, foreign=0, unknown=0) + seen("GPU-1", own=1, foreign=0, unknown=0)
    record = ended_well(tmp_path, lines, on_gpus("command", 3), ranks=[])
    assert (record.devices, [r.device for r in record.energy]) == (["GPU-1"], ["GPU-1", "p0"])
    assert [r.device for r in record.unused] == ["GPU-0", "GPU-2"]
    assert [(gpu.device, gpu.shared) for gpu in record.measurement.gpus] == [("GPU-1", False)]


def test_a_command_whose_processes_cannot_be_seen_used_all_gpus(tmp_path: Path) -> None:
    lines = everything() + seen("GPU-0", own=0, foreign=0, unknown=2)
    record = ended_well(tmp_path, lines, on_gpus("command", 3), ranks=[])
    assert (record.devices, record.unused) == (GPUS, [])
    assert "exclusivity_unknown" in record.flags


def test_a_cpu_run_beside_idle_gpus_does_not_take_their_energy(tmp_path: Path) -> None:
    record = ended_well(tmp_path, everything())
    assert [r.device for r in record.energy] == ["p0"]
    assert [r.device for r in record.unused] == GPUS
    assert record.measurement.gpus == []


@pytest.mark.parametrize(
    "lines", [[], ['{"torn'], counter("GPU-0", 100)[:1], seen("GPU-0", own=1, foreign=0), seen("host", busy=1)]
)
def test_a_trace_that_tells_nothing_is_no_energy_and_no_error(tmp_path: Path, lines: list[str]) -> None:
    site = Site(usd_per_kwh=0.2, usd_capital_per_device_hour=1, pue=1.1)
    record = ended_well(tmp_path, lines, on_gpus(), site)
    assert (record.status, record.energy, record.unused) == (Status.OK, [], [])
    assert {"energy_absent", "electricity_unknown"} <= set(record.flags)


def test_a_result_without_phases_has_the_energy_of_the_run_alone(tmp_path: Path) -> None:
    record = ended_well(tmp_path, everything(), on_gpus(), phases=[])
    assert record.status is Status.OK
    assert (record.measurement.energy, len(record.energy)) == ([], 3)


def test_a_measurement_is_graded_and_a_failed_meter_is_told(tmp_path: Path) -> None:
    record = ended_well(tmp_path, everything(), on_gpus())
    assert (record.grade, "meter_failed" in record.flags) == ("B", False)
    (tmp_path / "exit.json").write_text(
        json.dumps(END | {"exitcode": 0, "sidecar_error": "the meter sidecar has died"})
    )
    again = collect(context(), on_gpus(), tmp_path)
    assert (again.grade, "meter_failed" in again.flags) == ("C", True)


def test_a_run_that_was_suspended_has_no_figures(tmp_path: Path) -> None:
    with stops_noticed() as stops:
        assert not stops
        os.kill(os.getpid(), signal.SIGCONT)
        assert stops
    assert ended_well(tmp_path, everything(), on_gpus()).status is Status.OK
    (tmp_path / "exit.json").write_text(json.dumps(END | {"exitcode": 0, "suspended": True}))
    record = collect(context(), on_gpus(), tmp_path)
    assert (record.status, record.measurement, record.partial) == (Status.INVALID, None, None)
    assert "suspended during the run" in record.error.message


def test_a_record_with_an_impossible_figure_is_invalid(tmp_path: Path) -> None:
    gpu = Gpu(index=0, uuid="GPU-0", name="NVIDIA H100 80GB HBM3")
    where = rows.environment()
    where = where.changed(machine=where.machine.changed(gpus=[gpu]))
    measured = rows.record(1, readings="").measurement
    result = measured.changed(flops_per_sample=1e18).model_dump(mode="json")
    folder = left(tmp_path, {"exitcode": 0}, **{"result.json": result})
    record = collect(Context("s", "e", Site(region="FR"), where, ["GPU-0"]), on_gpus(devices=1), folder)
    assert (record.status, record.measurement, record.grade) == (Status.INVALID, None, None)
    assert record.error.type == "ImpossibleFigure"
    assert record.flags == ["pue_unknown"]

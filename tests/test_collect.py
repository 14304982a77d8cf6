"""What becomes of the files of a run: every way to end is a record with the first cause."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.collect import Context, collect, log_tail
from bench.redact import redact
from bench.schema import RunSpec, Site, Status
from tests import rows

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
        (error(0, "unsupported", "no tf32 here"), Status.SKIPPED, "rank 0: no tf32 here"),
        (error(0, "invalid", "loss is nan"), Status.INVALID, "rank 0: loss is nan"),
        ({"ranks.json": [{"rank": 1, "exitcode": -9}]}, Status.FAILED, "rank 1 was ended by SIGKILL"),
        (
            {"ranks.json": [{"rank": 0, "exitcode": 1}, {"rank": 1, "exitcode": -11}]} | error(0, "peer", "closed"),
            Status.FAILED,
            "rank 1 was ended by SIGSEGV",
        ),
        ({"ranks.json": [{"rank": 0, "exitcode": 77}]}, Status.FAILED, "rank 0 ended with exit code 77"),
        ({}, Status.FAILED, "the run ended with exit code 1 and left no result"),
        ({"exit.json": END | {"how": "timeout"}}, Status.TIMEOUT, "did not end within timeout_seconds = 600"),
        ({"exit.json": {"how": "node_died"}}, Status.FAILED, "the node process ended during the run"),
    ],
)
def test_failures_are_told_by_their_first_cause(
    tmp_path: Path, files: dict[str, Any], status: Status, message: str
) -> None:
    log = {"worker.log": "one\ntwo\nTOKEN=abc123 https://me:pw@host/x\n"}
    record = collect(context(usd_per_device_hour=3600), SPEC, left(tmp_path, **(log | files)))
    assert (record.status, record.measurement) == (status, None)
    assert record.error is not None
    assert record.error.message.startswith(message)
    assert record.error.log_tail == "one\ntwo\nTOKEN=*** https://***@host/x"
    if "start_ns" in json.loads((tmp_path / "exit.json").read_text()):
        assert record.duration_seconds == 2
        assert record.cost is not None
        assert record.cost.cost_usd == 4  # a failed run is paid for too
    assert (tmp_path / "record.json").exists()


def test_a_kill_for_memory_is_out_of_memory(tmp_path: Path) -> None:
    folder = left(tmp_path, **{"ranks.json": [{"rank": 1, "exitcode": -9}]})
    assert collect(context(), SPEC, folder, killed_for_memory=True).status is Status.OUT_OF_MEMORY


def test_energy_of_the_window_and_of_the_whole_run(tmp_path: Path) -> None:
    measured = rows.record(2, readings="").measurement
    assert measured is not None
    result = measured.model_dump(mode="json")
    result["phases"] = [{"name": "steady", "start_ns": 20 * 10**9, "end_ns": 30 * 10**9}]
    lines = [
        json.dumps(
            {
                "t_ns": t * 10**9,
                "wall_ns": 0,
                "source": "rapl",
                "component": "cpu",
                "device": "p0",
                "energy_uj": t * 50_000_000,
            }
        )
        for t in range(10, 51)
    ]
    end = {"exitcode": 0, "start_ns": 10 * 10**9, "end_ns": 50 * 10**9}
    folder = left(tmp_path, end, **{"result.json": result, "meters-0.jsonl": "\n".join(lines) + '\n{"t_ns": 5'})
    record = collect(context(region="FR"), SPEC, folder)
    assert record.status is Status.OK, record.error
    assert record.measurement is not None
    assert sum(r.energy_joules for r in record.measurement.energy) == pytest.approx(500)
    assert sum(r.energy_joules for r in record.energy) == pytest.approx(2000)
    assert record.carbon is not None
    assert record.carbon.energy_missing == ["dram"]
    assert "pue_unknown" in record.flags
    assert not (tmp_path / "meters-0.jsonl").exists()
    assert (tmp_path / "meters-0.parquet").exists()


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
        ("https://bucket/x?X-Amz-Signature=hunter2&a=1", "hunter2"),
    ],
)
def test_credentials_are_taken_out(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


def test_other_text_stays() -> None:
    for text in ("tokens_per_second 12.5", "12 tokens", "/home/x/y.py:12", "the tokenizer of user@host", "a=1 b=2"):
        assert redact(text) == text

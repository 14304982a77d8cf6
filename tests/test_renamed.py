"""What version 0.1 stored is read under today's names."""

import json
from pathlib import Path

import pytest

from analytics.runs.files import read_rows
from bench.figures.metrics import row
from bench.record import RunRecord
from bench.renamed import current_record, current_row
from bench.schema import COMMAND, Gpu, Machine, RunSpec
from bench.store.sqlite import whole
from bench.suites.expand import expand, only
from bench.suites.load import load_suite

STORED = Path(__file__).parent / "data" / "version-0.1"
RECORDS = [RunRecord.model_validate_json(line) for line in (STORED / "records.jsonl").read_text().splitlines()]


def test_records_of_version_0_1_are_read() -> None:
    specs = [record.spec for record in RECORDS]
    assert sorted(spec.memory.name for spec in specs if spec.memory.name != "none") == ["recompute", "recompute"]
    assert {record.grade for record in RECORDS} == {"C", None}
    points = [p for record in RECORDS if record.measurement for p in record.measurement.quality]
    assert points
    assert any(point.energy_joules_estimated for point in points)
    for record in RECORDS:
        assert RunRecord.model_validate_json(record.model_dump_json()) == record


def test_rows_of_a_store_of_version_0_1_equal_those_of_their_records() -> None:
    made = {record.run_id: row(record) for record in RECORDS}
    stored = [json.loads(line) for line in (STORED / "store.jsonl").read_text().splitlines()]
    rows = [whole(run["tags"]["bench.row"], run["metrics"]) for run in stored if "bench.row" in run["tags"]]
    assert len(rows) == len(made)
    for known in rows:
        today = made[str(known["run_id"])]
        added = {"machine_devices", "site"} | (
            {"batch_size_per_device", "global_batch_size"} if today["workload"] == COMMAND else set()
        )
        assert known.keys() | added >= today.keys() >= known.keys(), "what was not a column then is not filled in"
        own = {"label"} if today["workload"] == COMMAND else set()
        for name in known.keys() - {"environment"} - own:  # a hash over the name of the host, which was taken out
            want = today[name]
            assert known[name] == (pytest.approx(want) if isinstance(want, float) else want), name


def test_a_baseline_of_version_0_1_is_read() -> None:
    rows = read_rows(STORED / "baseline.json")
    assert {"recompute", "none"} == {known["memory"] for known in rows}
    assert not any("estimated_joules" in name or name == "quality" for known in rows for name in known)


def test_what_is_of_today_stays_as_it_is() -> None:
    for record in RECORDS:
        assert current_row(row(record)) == row(record)


def test_a_choice_with_options_and_a_pretrained_folder() -> None:
    spec = {"memory": {"name": "checkpoint", "every": 2}, "workload_args": {"checkpoint": "x", "data": "y"}}
    today = current_record({"schema_version": 1, "spec": spec})["spec"]
    assert today == {"memory": {"name": "recompute", "every": 2}, "workload_args": {"pretrained": "x", "data": "y"}}


def test_a_stored_configuration_is_known_by_the_hash_of_its_old_names() -> None:
    """Records keep the hash that they were stored with."""
    seen = {record.spec.memory.name for record in RECORDS}
    assert "recompute" in seen
    for record in RECORDS:
        if record.spec.workload != COMMAND:  # the path in its command was taken out
            assert record.config_id == record.spec.former_config_id, record.spec.label


OLD_SUITE = """
name: old
defaults:
  {workload: decoder_lm, workload_args.preset: {on: {cpu: tiny, cuda: base}}, batch_size_per_device: 2, measure_steps: 3}
matrix: {device_type: [cpu, cuda], precision: {on: {cpu: [fp32], cuda: [fp32, bf16]}}}
exclude: [{device_type: [cuda], precision: fp32}]
include: [{device_type: cuda, precision: bf16_params}]
"""


def test_suites_and_runs_that_call_gpus_cuda_are_read(tmp_path: Path) -> None:
    machine = Machine(cpu_model="x", cpu_count=2, gpus=[Gpu(index=0, uuid="GPU-1", name="x")])
    texts = {"old": OLD_SUITE, "new": OLD_SUITE.replace("cuda", "gpu")}
    plans = []
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        plans.append(expand(load_suite(tmp_path / f"{name}.yaml"), machine))
    old, new = plans
    assert old.runs == new.runs
    assert old.skipped == new.skipped
    kinds = {(run.device_type, run.workload_args["preset"], run.precision.name) for run in new.runs}
    assert ("gpu", "base", "bf16") in kinds
    assert ("gpu", "base", "fp32") not in kinds
    run = next(run for run in new.runs if run.device_type == "gpu")
    stored = run.model_dump_json().replace('"device_type":"gpu"', '"device_type":"cuda"')
    assert RunSpec.model_validate_json(stored) == run
    assert current_row({"device_type": "cuda"}) == {"device_type": "gpu"}
    assert run.former_config_id == run.config_id
    known = RunSpec(
        workload="decoder_lm", batch_size_per_device=8, device_type="gpu", devices_per_node=2, measure_steps=5
    )
    assert known.config_id == "011b914844", "stored runs and baselines of GPUs keep their configuration"
    assert only(new, ["device_type=cuda"]).runs == only(new, ["device_type=gpu"]).runs

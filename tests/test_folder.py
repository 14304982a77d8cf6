"""Models are copied with validation; the files of a run are written, read, and read when they are torn or older."""

import json
import math
from pathlib import Path

import pytest

from bench import folder as files
from bench.record import Phase, RunRecord
from bench.schema import Choice, RunSpec, Site
from tests import rows

SPEC = RunSpec(workload="synthetic", device_type="cpu", batch_size_per_device=1, measure_steps=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"devices_per_node": -3},
        {"timeout_seconds": math.nan},
        {"nonsense": 1},
        {"measure_seconds": 1.0},  # with measure_steps
        {"workload": "../x"},
        {"precision": {"name": "../x"}},
    ],
)
def test_a_change_that_the_model_forbids_is_refused(fields: dict[str, object]) -> None:
    for copy in (lambda: SPEC.changed(**fields), lambda: SPEC.model_copy(update=fields)):
        with pytest.raises(ValueError, match="validation error"):
            copy()


def test_a_record_stays_consistent_when_it_is_changed() -> None:
    record = rows.record()
    with pytest.raises(ValueError, match="status ok"):
        record.changed(measurement=None)
    assert record.changed(site=Site(region="FR")).site.region == "FR"
    assert record.changed() == record


def test_a_change_keeps_the_identity_of_the_same_configuration_only() -> None:
    identity = SPEC.config_id, SPEC.label
    again = SPEC.changed(repeat=3, seed=7)
    assert (again.repeat, again.seed, again.config_id, again.label) == (3, 7, *identity)
    other = SPEC.changed(precision="bf16")
    assert other.precision == Choice(name="bf16")
    assert other.config_id != SPEC.config_id
    assert "bf16" in other.label
    assert RunSpec.model_validate(other.model_dump()).config_id == other.config_id


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    record = rows.record()
    files.RECORD.write(tmp_path, record)
    files.SPEC.write(tmp_path, SPEC)
    files.RANK_EXITS.write(tmp_path, [files.RankExit(rank=1, exitcode=-9)])
    assert (files.RECORD.read(tmp_path), files.SPEC.read(tmp_path)) == (record, SPEC)
    assert json.loads((tmp_path / "ranks.json").read_text()) == [{"rank": 1, "exitcode": -9}]
    assert RunRecord.model_validate_json((tmp_path / "record.json").read_text()) == record


def test_a_file_that_is_absent_or_torn_is_not_found(tmp_path: Path) -> None:
    assert files.EXIT.find(tmp_path) is files.EXIT.find(tmp_path / "none") is None
    with pytest.raises(FileNotFoundError):
        files.EXIT.read(tmp_path)
    (tmp_path / "exit.json").write_text('{"how": "ended", "exit')
    assert files.EXIT.find(tmp_path) is None
    with pytest.raises(ValueError, match="validation error"):
        files.EXIT.read(tmp_path)


def test_errors_of_ranks_are_found_by_their_number(tmp_path: Path) -> None:
    for rank in (0, 11):
        files.write_error(tmp_path, files.RankError(kind="failed", type="E", message=f"{rank}", rank=rank))
    (tmp_path / "error-2.json").write_text("{")
    assert [error.rank for error in files.read_errors(tmp_path)] == [0, 11]
    assert files.METERS.path(tmp_path, 3).name == "meters-3.parquet"


def test_facts_of_an_older_execution_are_read(tmp_path: Path) -> None:
    (tmp_path / "execution.json").write_text(json.dumps({"fingerprint": "f", "plan_digest": "p", "of_old": 1}))
    facts = files.EXECUTION.read(tmp_path)
    assert (facts.fingerprint, facts.plan_digest, facts.study) == ("f", "p", None)


def test_parts_of_a_copy_are_those_of_the_original() -> None:
    phase = Phase(name="steady", start_ns=0, end_ns=1)
    measured = rows.record().measurement
    assert measured.changed(phases=[phase]).phases[0] is phase

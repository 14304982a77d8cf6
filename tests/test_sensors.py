import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.figures import sensors
from bench.figures.sensors import REQUIRED, Check, checks_folder, find_check, fresh, save_check
from bench.schema import Gpu

NOW = datetime(2026, 5, 1, tzinfo=UTC)
GPU = Gpu(index=0, uuid="GPU-00000000-1111", name="NVIDIA H100 80GB HBM3")
PASSED = [Check(check=f"{name} something", found="1", expected="1", ok=True) for name in REQUIRED]


def test_the_folder_is_given_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("WATTBENCH_SENSOR_CHECKS", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checks_folder() == tmp_path / "here"
    monkeypatch.delenv("WATTBENCH_SENSOR_CHECKS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert checks_folder() == tmp_path / "data/wattbench/sensor-checks"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert checks_folder() == tmp_path / ".local/share/wattbench/sensor-checks"


def test_what_is_saved_is_found(tmp_path):
    assert find_check(GPU.uuid, "580", NOW) is None
    counter = {"counter_period_seconds": 0.1, "counter_continuous": True}
    path = save_check(GPU, "580", PASSED, commit="abc", facts={"rise_seconds": 0.9}, date=NOW, **counter)
    assert path.parent == checks_folder() == tmp_path / "sensor-checks"
    assert list(checks_folder().iterdir()) == [path]
    found = find_check(GPU.uuid, "580", NOW)
    assert (found.uuid, found.name, found.driver, found.commit, found.date) == (GPU.uuid, GPU.name, "580", "abc", NOW)
    assert (found.wattbench, found.results) == (sensors.version(), PASSED)
    assert (found.counter_period_seconds, found.counter_continuous) == (0.1, True)
    assert found.facts == {"rise_seconds": 0.9}


def test_it_is_fresh_for_30_days_with_the_same_gpu_and_driver():
    save_check(GPU, "580", PASSED, date=NOW)
    assert fresh(GPU.uuid, "580", NOW + timedelta(days=30))
    assert not fresh(GPU.uuid, "580", NOW + timedelta(days=30, seconds=1))
    assert not fresh(GPU.uuid, "580", NOW - timedelta(days=2))  # from the future: some clock was wrong
    assert not fresh(GPU.uuid, "581", NOW)
    assert not fresh(GPU.uuid, None, NOW)
    assert not fresh("GPU-0", "580", NOW)


@pytest.mark.parametrize("missing", REQUIRED)
def test_required_checks_must_be_there_and_ok(missing):
    others = [check for check in PASSED if not check.check.startswith(f"{missing} ")]
    for lines in ([], [Check(check=missing, found="", ok=None)], [Check(check=missing, found="", ok=False)]):
        save_check(GPU, "580", others + lines, date=NOW)
        assert not fresh(GPU.uuid, "580", NOW)
    more = [Check(check=f"{missing} shown only", found="2"), Check(check=f"{missing}0 another", found="3", ok=False)]
    save_check(GPU, "580", [*PASSED, *more], date=NOW)
    assert fresh(GPU.uuid, "580", NOW)
    save_check(GPU, "580", [*PASSED, Check(check=f"{missing} too", found="3", ok=False)], date=NOW)
    assert not fresh(GPU.uuid, "580", NOW)


def test_the_newest_decides_whatever_version_wrote_it(monkeypatch):
    save_check(GPU, "580", PASSED, date=NOW)
    monkeypatch.setattr(sensors, "version", lambda: "9.0")
    save_check(GPU, "580", [], date=NOW + timedelta(days=1))
    assert len(list(checks_folder().iterdir())) == 2
    assert not fresh(GPU.uuid, "580", NOW + timedelta(days=1))
    save_check(GPU, "580", PASSED, date=NOW + timedelta(days=2))
    assert len(list(checks_folder().iterdir())) == 2
    assert fresh(GPU.uuid, "580", NOW + timedelta(days=2))


def test_damaged_and_foreign_files_are_ignored():
    path = save_check(GPU, "580", PASSED, date=NOW)
    whole = path.read_text()
    (checks_folder() / "half.json").write_text(whole[:100])
    (checks_folder() / "list.json").write_text("[1]")
    (checks_folder() / "other.json").write_text(json.dumps({"uuid": GPU.uuid, "driver": "580"}))
    (checks_folder() / "latin.json").write_bytes(b"\xff\xfe{}")
    (checks_folder() / "naive.json").write_text(whole.replace('2026-05-01T00:00:00Z"', '2026-05-01T00:00:00"'))
    (checks_folder() / "folder.json").mkdir()
    assert fresh(GPU.uuid, "580", NOW)
    path.write_text(whole.replace('"V2 something"', "2"))
    (checks_folder() / "naive.json").unlink()
    assert find_check(GPU.uuid, "580", NOW) is None


@pytest.mark.parametrize("uuid", ["../../etc/passwd", "GPU-a/b", ".hidden", "MIG 1\n", "", "é" * 300])
def test_a_uuid_cannot_leave_the_folder(uuid):
    gpu = GPU.changed(uuid=uuid)
    path = save_check(gpu, "../5", PASSED, date=NOW)
    assert path != save_check(GPU.changed(uuid=f"{uuid} "), "../5", PASSED, date=NOW)
    assert path.resolve().parent == checks_folder().resolve()
    assert fresh(uuid, "../5", NOW)


def test_a_folder_that_is_a_file_holds_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WATTBENCH_SENSOR_CHECKS", str(tmp_path / "file"))
    assert find_check(GPU.uuid, "580", NOW) is None
    assert Path(checks_folder()).is_file()

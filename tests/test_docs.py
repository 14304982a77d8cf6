"""The one-page version of wattbench: what it computes is what was planted in it, whatever the machine does."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MINI = Path(__file__).parent.parent / "docs" / "mini.py"


@pytest.fixture(scope="module")
def mini() -> dict[str, Any]:
    """Its functions and constants; nothing runs."""
    threads = os.environ.get("OMP_NUM_THREADS")
    names = runpy.run_path(str(MINI))
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = threads
    return names


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """What it prints, and the records that it writes."""
    folder = tmp_path_factory.mktemp("mini")
    done = subprocess.run([sys.executable, "-W", "error", MINI, folder], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_it_is_one_page_and_needs_numpy_alone() -> None:
    lines = MINI.read_text().splitlines()
    assert len(lines) <= 150
    modules = {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert modules - set(sys.stdlib_module_names) == {"numpy"}


def test_the_answer_comes_first_and_holds_the_planted_speed(
    run: tuple[str, list[dict[str, Any]]], mini: dict[str, Any]
) -> None:
    text, records = run
    speed, low, high = mini["law"](records)
    assert low < mini["SPEED"] < high
    assert speed == pytest.approx(mini["SPEED"], rel=0.01)
    assert text.splitlines()[0].startswith(f"2 devices do 1 GFLOP in {1e9 / (2 * speed):.0f} s (")
    assert f"({low / 1e6:.2f}-{high / 1e6:.2f}): 95 %, 12 runs." in text.splitlines()[1]
    assert len(text.splitlines()) == 5 + 12


def test_records_hold_the_planted_time_and_energy_without_the_warm_up(
    run: tuple[str, list[dict[str, Any]]], mini: dict[str, Any]
) -> None:
    records = run[1]
    plan = mini["expand"](mini["SUITE"])
    assert sorted(map(str, (r["spec"] for r in records))) == sorted(map(str, plan))
    assert [(s["size"], s["devices"]) for s in plan[:4]] == [(s["size"], s["devices"]) for s in plan[4:8]][::-1]
    for record in records:
        spec, (start, end) = record["spec"], record["window"]
        step = mini["step_seconds"](spec, spec["warmup_steps"])
        assert start == pytest.approx(3 * mini["WARMUP_FACTOR"] * step)
        assert end - start == record["window_seconds"] == pytest.approx(8 * step)
        assert record["samples"] == 8 * 64 * spec["devices"]
        middle = (start + end) / 2  # power rises along a line, so its mean is that of the middle
        watts = sum(mini["WATTS"] + 10 * n + mini["WATTS_PER_SECOND"] * middle for n in range(spec["devices"]))
        assert record["energy_joules"] == pytest.approx(watts * (end - start), rel=1e-9)
        assert record["loss"] < 0.01  # it starts at 1: the processes did train
    two = {(r["spec"]["size"], r["spec"]["devices"]): r["loss"] for r in records}
    assert two[64, 2] < two[64, 1], "ranks share their gradients"


def test_a_window_of_the_meter_begins_and_ends_between_readings(mini: dict[str, Any]) -> None:
    times, watts = mini["np"].array([0.0, 1.0, 2.0]), mini["np"].array([100.0, 200.0, 100.0])
    assert mini["joules"](times, watts, 0.5, 1.5) == pytest.approx(175)  # 87.5 each side of the peak
    assert mini["joules"](times, watts, 0.25, 0.75) == pytest.approx(75)


@pytest.mark.parametrize("planted", [1e6, 3e9])
def test_a_planted_speed_is_found_again(planted: float, mini: dict[str, Any]) -> None:
    records = [
        {"spec": {"devices": d}, "flop": n, "window_seconds": n / (d * planted) * luck}
        for d in (1, 2)
        for n in (1e9, 5e9)
        for luck in (1.02, 1.0, 1 / 1.02)
    ]
    speed, low, high = mini["law"](records)
    assert speed == pytest.approx(planted)
    assert low < planted < high
    assert high / low == pytest.approx(1.0217, abs=0.001)

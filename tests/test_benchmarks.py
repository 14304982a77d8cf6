"""The parts of the benchmarks that need no quiet machine: pairs, gate, verdicts, table, and loops that train."""

import math
import os
import time

import pytest

from analytics.interval import Interval
from tests.benchmarks import dashboard
from tests.benchmarks.observer import (
    ORDER,
    Share,
    Window,
    cpu_seconds,
    extra_cpu,
    fake_powercap,
    missed,
    speed_ratio,
    table,
    verdict,
)


def windows(blocks, effect, drift=1.0, cpu=0.0):
    """Windows of a training that `effect` slows and that itself changes by `drift` from window to window."""
    found = []
    for i in range(blocks * len(ORDER)):
        tracked = ORDER[i % len(ORDER)]
        found.append(Window(tracked, 100 * drift**i * (effect if tracked else 1), 0.25 + (cpu if tracked else 0)))
    return found


def test_a_slow_drift_cancels_in_each_block():
    speed = speed_ratio(windows(5, 0.97, drift=0.98))
    assert (speed.n, speed.low, speed.value, speed.high) == (5, *[pytest.approx(0.97)] * 3)


def test_the_interval_is_that_of_the_blocks():
    factors = [0.98, 1.0, 1.02]
    found = [w for factor in factors for w in windows(1, factor)]
    logs = [math.log(f) for f in factors]
    centre = sum(logs) / 3
    spread = math.sqrt(sum((x - centre) ** 2 for x in logs) / 2)
    assert speed_ratio(found).value == pytest.approx(math.exp(centre))
    assert speed_ratio(found).low == pytest.approx(math.exp(centre - 4.302653 * spread / math.sqrt(3)))


@pytest.mark.parametrize("wrong", [[], windows(1, 1)[:3], windows(2, 1)[1:5]])
def test_half_a_block_is_refused(wrong):
    with pytest.raises(ValueError, match="whole blocks"):
        speed_ratio(wrong)


def test_extra_cpu_is_what_the_tracker_adds():
    assert extra_cpu(windows(2, 0.9, cpu=0.03)) == pytest.approx(0.03)


def test_the_gate_judges_one_gpu_or_rapl_and_needs_one_of_them():
    gpu, rapl = Share("one GPU", True, 0.0049), Share("RAPL", True, absent="no RAPL package")
    both = Share("all three", False, 0.9)
    assert missed([gpu, rapl, both]) == []
    assert missed([Share("one GPU", True, 0.0051), rapl]) == ["one GPU: 0.51% of a core, limit 0.5%"]
    assert missed([gpu, Share("RAPL", True, 0.02)]) == ["RAPL: 2.00% of a core, limit 0.5%"]
    assert len(missed([Share("one GPU", True, math.nan)])) == 1
    assert missed([rapl, both]) == ["nothing was measured"]
    assert missed([Share("one GPU", True, error="it died"), Share("RAPL", True, 0.001)]) == ["one GPU: it died"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.95, 0.99, "slows the training by 1.00% to 5.00%"),
        (0.996, 1.002, "no slowdown seen, one of more than 0.40% is excluded"),
        (1.01, 1.03, "noise"),
        (None, None, "nothing can be said"),
    ],
)
def test_a_verdict_says_what_the_interval_says(low, high, said):
    assert said in verdict("zeus", Interval(1.0, low, high, 5))


def test_a_table_is_aligned():
    assert table(("", "CPU"), [("one GPU", "1%"), ("a", "100%")]) == "          CPU\none GPU    1%\na        100%"


def test_the_dashboard_misses_what_is_slower_than_its_target():
    found = {name: [1.0, 9.0, 0.4] for name in dashboard.LIMITS} | {"cold, all runs seen": [2.0]}
    found["filter, Runs: suite"] = [0.1, 0.2, 0.9]
    assert dashboard.missed(found) == ["filter, Overview: suite", "filter, Runs: typed"], "the median counts"
    said = {line[0]: line[1:] for line in dashboard.lines(found)}
    assert said["filter, Runs: typed"] == ("1.00", "9.00", "0.5")
    assert said["cold, all runs seen"] == ("2.00", "2.00", "")


def test_cpu_time_of_a_process_counts_its_work():
    before, spent = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - spent < 0.2:
        pass
    found = cpu_seconds(os.getpid()) - before
    assert 0.18 <= found <= time.process_time() - spent + 0.02  # both count in hundredths of a second of this process


def test_the_fake_powercap_tree_is_one_that_the_meter_reads(tmp_path):
    from bench.meters.rapl import RaplMeter

    meter = RaplMeter(fake_powercap(tmp_path))
    assert [row.component for row in meter.read()] == ["cpu", "dram"]


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone, as the loops want it."""
    pytest.importorskip("torch")
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield tmp_path
    dist.destroy_process_group()


def loops_train(names, folder):
    import torch

    from tests.benchmarks import loop

    asked, device = loop.spec("tiny", "cpu", 1), torch.device("cpu")
    made = {"ours": loop.ours, "by_hand": loop.by_hand}
    made["theirs"] = lambda asked, device: loop.trainer_of_transformers(asked, device, str(folder))
    for name in names:
        assert loop.seconds(made[name](asked, device), 2, device) > 0


def test_our_loop_and_the_one_by_hand_train(one_rank):
    loops_train(("ours", "by_hand"), one_rank)


@pytest.mark.slow
def test_the_loop_of_transformers_trains(one_rank):
    loops_train(("theirs",), one_rank)

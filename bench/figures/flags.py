"""Flags of a measurement, what each means, and the grade that follows from them.

A: fit to be published. B: sound, with the limits that its flags name. C: a figure may be wrong. The grade is that of the
worst flag. Thresholds are those of good practice where there is one, named beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import mean, median, stdev
from typing import Literal, NamedTuple

from bench.figures.metrics import SLOWDOWNS, metrics, missing_components, split_energy, used_gpus
from bench.figures.sensors import fresh
from bench.record import RunRecord
from bench.schema import Gpu, Site

Grade = Literal["A", "B", "C"]

PUBLISH_SECONDS, PUBLISH_STEPS = 60.0, 50
"""MLPerf Training's power rules ask for 60 samples at one a second; 50 steps make a distribution."""
PUBLISH_WARMUP_SECONDS, PUBLISH_WARMUP_STEPS = 30.0, 10
"""Before a steady state may be expected: caches, autotuning and clocks have settled, and the GPUs are warm."""
PUBLISH_REPEATS = 5
"""Independent runs, with which an interval of 95 % is about 1.2 standard deviations to each side."""
PUBLISH_IDLE_SECONDS = 60.0
PUBLISH_TIMEOUT_SECONDS = 600.0
STEADY_SHARE = 0.02
"""Blocks of steps vary by less in a steady state; a drift of half of it over the window is none."""
TEMPERATURE_DRIFT = 2.0
THROTTLED_SHARE = 0.01
NOISE_SHARE = 0.02
"""Share of the processors' time that went to other virtual machines, or change of speed of a fixed matrix product."""
OTHER_SHARE = 0.05
STRAGGLER_RATIO = 1.1
COVERED = 0.98
"""Share of a window that readings must span to be taken for all of it."""
RISE = 0.1
"""By how much the loss of a step may be above that of the first one where a training begins with trained weights."""
FOREIGN_BYTES = 200 * 2**20


class Flag(NamedTuple):
    """The best grade that a measurement with this flag can have, and what the flag means."""

    grade: Grade
    meaning: str


FLAGS = {
    "shared_gpu": Flag("C", "other processes used the GPU, or held memory on it: its energy is not the run's alone"),
    "throttled": Flag("C", "heat or a power brake held the clocks of a GPU down for more than 1 % of the window"),
    "gap": Flag("C", "the meter's readings have a gap"),
    "window_too_short": Flag("C", "the window is too short for the meter's readings (2 s at least): measure longer"),
    "energy_partly_covered": Flag("C", "the meters' readings do not span the whole window"),
    "energy_components_differ": Flag("C", "repeats measured different components"),
    "meter_failed": Flag("C", "the meters' process failed during the run"),
    "mig_shared": Flag("C", "the GPU is cut into slices: its energy is that of the whole board"),
    "loss_not_decreasing": Flag("C", "the loss did not go down: the training does not learn, however fast it is"),
    "above_matmul_peak": Flag("C", "faster than plain matrix products on the same device: work or time is miscounted"),
    "exclusivity_unknown": Flag("B", "whether others used the GPU cannot be told: NVML lists no process of the run"),
    "unvalidated_sensor": Flag(
        "B", "this GPU's sensor was not checked in the last 30 days (python -m tests.gpu_check)"
    ),
    "sampled_power": Flag("B", "power samples of the GPU were integrated: a load in step with them can be far off"),
    "wide_edges": Flag(
        "B", "the readings leave more than 10 % of the window's energy open at its edges: measure longer"
    ),
    "electricity_unknown": Flag("B", "the cost lacks electricity: no meter could say anything about energy"),
    "counter_reset": Flag("B", "the energy counter was reset; power samples were used"),
    "counter_stuck": Flag("B", "the energy counter stood still; power samples were used"),
    "module_scope": Flag("B", "the GPU's sensor spans its whole module, the CPU beside it included"),
    "energy_absent": Flag("B", "no meter could read any energy"),
    "energy_estimated": Flag("B", "no energy was measured; what is shown is the figure of a model"),
    "partial_total": Flag("B", "some of GPU, CPU and memory could not be measured: the sum lacks them"),
    "idle_unknown": Flag("B", "idle power was not measured, so energy above idle is not known"),
    "short_window": Flag("B", "a quick look: a figure to publish takes 60 s and 50 steps (bench run --publish)"),
    "steady_unknown": Flag("B", "too few steps to tell whether the speed was steady"),
    "not_steady": Flag("B", "speed, temperature or clocks changed during the window: warm up or measure longer"),
    "noisy_host": Flag("B", "others took processor time, or the machine itself changed its speed, during the run"),
    "straggler": Flag("B", "one rank takes more than 10 % longer for a forward pass than the others, who wait for it"),
    "no_steps": Flag(
        "B", "the command reported no steps beyond its warm-up: the window is all of it, start and end included"
    ),
    "imported": Flag("B", "figures of someone else, from a file: how they were measured is not known here"),
    "pue_unknown": Flag("B", "the power of cooling is left out, as no PUE was given (--pue)"),
}


def grade(flags: Iterable[str]) -> Grade:
    """Return the grade of a measurement with these flags; an unknown flag counts as C."""
    return max((FLAGS[flag].grade if flag in FLAGS else "C" for flag in flags), default="A")


def meaning(flag: str) -> str:
    """Return what a flag means, for people."""
    return FLAGS[flag].meaning if flag in FLAGS else "see the record"


def site_flags(site: Site) -> set[str]:
    """Flags that follow from what is known of the place: carbon and the price of electricity take a PUE."""
    asked = site.region is not None or site.usd_per_kwh is not None
    return {"pue_unknown"} if asked and site.pue is None else set()


def judge(record: RunRecord, site: Site, *, meter_failed: bool) -> RunRecord:
    """Return the record with the flags of its measurement and the grade; one without a measurement is not graded."""
    if record.measurement is None:
        return record
    flags = {*_energy_flags(record), *_condition_flags(record), *_speed_flags(record)}
    if meter_failed:
        flags.add("meter_failed")
    flags |= site_flags(site)
    return record.model_copy(update={"flags": sorted(flags), "grade": grade(flags)})


def _energy_flags(record: RunRecord) -> Iterator[str]:
    """What is to be known of the energy: where it comes from, what it lacks, how well it covers the window."""
    measured = record.measurement
    assert measured is not None  # noqa: S101  judge() asks before
    hardware, model = split_energy(measured.energy)
    for reading in hardware or model:
        yield from reading.flags
    if any(reading.coverage < COVERED for reading in hardware or model):
        yield "energy_partly_covered"
    if not record.spec.meters:
        return
    if not hardware:
        yield "energy_estimated" if model else "energy_absent"
        return
    if missing_components(hardware, used_gpus(record)):
        yield "partial_total"
    known = {(part.component, part.device) for part in record.idle}
    if any((reading.component, reading.device) not in known for reading in hardware):
        yield "idle_unknown"
    driver = record.environment.machine.driver_version
    if any(r.component == "gpu" and not fresh(r.device, driver or "") for r in hardware):
        yield "unvalidated_sensor"


def _condition_flags(record: RunRecord) -> Iterator[str]:
    """What surrounded the window: other users, heat, a busy host."""
    measured = record.measurement
    assert measured is not None  # noqa: S101
    there: dict[str, Gpu] = {gpu.uuid: gpu for gpu in record.environment.machine.gpus}
    for gpu in measured.gpus:
        before = there[gpu.device].foreign_memory_bytes if gpu.device in there else None
        if gpu.shared or (before or 0) > FOREIGN_BYTES:
            yield "shared_gpu"
        elif gpu.shared is None:
            yield "exclusivity_unknown"
        if any(gpu.throttled_share.get(reason, 0) > THROTTLED_SHARE for reason in SLOWDOWNS):
            yield "throttled"
        if abs(gpu.temperature_celsius_drift or 0) > TEMPERATURE_DRIFT or abs(gpu.sm_clock_drift or 0) > STEADY_SHARE:
            yield "not_steady"
    host = measured.host
    if host is not None and ((host.steal_share or 0) > NOISE_SHARE or (host.other_share or 0) > OTHER_SHARE):
        yield "noisy_host"
    for rank in measured.ranks:
        for before_, after in pairwise(rank.matmul_flops_per_second):
            changed = abs(after / before_ - 1)
            if changed > max(NOISE_SHARE, rank.matmul_spread or 0):  # more than such a probe varies by itself
                yield "noisy_host"


def _speed_flags(record: RunRecord) -> Iterator[str]:
    """Whether the speed was steady, long enough and plausible."""
    measured = record.measurement
    assert measured is not None  # noqa: S101
    steps = measured.step_seconds
    if not steps:
        yield "no_steps"
    if measured.window_seconds < PUBLISH_SECONDS or (steps and len(steps) < PUBLISH_STEPS):
        yield "short_window"
    state = steady(steps)
    if state is not True and steps:
        yield "steady_unknown" if state is None else "not_steady"
    first, last = measured.loss_first, measured.loss_last
    # Weights that were trained before are near their best: one step's loss may then be above another's.
    trained = record.spec.needs is not None or "checkpoint" in record.spec.workload_args
    if first is not None and (last is None or last >= (1 + RISE * trained) * first):
        yield "loss_not_decreasing"
    try:
        known = metrics(record)
    except ValueError:
        return  # an impossible figure: the record becomes invalid
    if known.get("straggler_ratio", 1) > STRAGGLER_RATIO:
        yield "straggler"
    emulated = record.spec.device_type == "cpu" and record.spec.precision.name == "fp16"  # its products are no peak
    if known.get("matmul_utilization", 0) > 1.1 and not emulated:
        yield "above_matmul_peak"


def steady(step_seconds: Sequence[float]) -> bool | None:
    """Whether the speed of a window was steady; None for fewer than 12 steps, which do not tell.

    Steps are joined to blocks, of 5 s where the window is long enough for six. Steady: the blocks' coefficient of variation
    is below 2 %, and the Theil-Sen slope over them has 0 in its 95 % interval, or amounts to less than 1 % over the
    window (Theil 1950, Sen 1968; `scipy.stats.theilslopes`).
    """
    if len(step_seconds) < 12:
        return None
    from scipy.stats import theilslopes

    blocks = min(12, max(6, int(sum(step_seconds) / 5)), len(step_seconds) // 2)
    borders = [round(i * len(step_seconds) / blocks) for i in range(blocks + 1)]
    means = [mean(step_seconds[a:b]) for a, b in pairwise(borders)]
    slope, _, low, high = theilslopes(means, range(blocks), alpha=0.95)
    drift = abs(slope) * (blocks - 1) / median(means)
    return bool(stdev(means) / mean(means) < STEADY_SHARE and (low <= 0 <= high or drift < STEADY_SHARE / 2))

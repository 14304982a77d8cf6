"""Flags of a measurement, their meaning, and the grade that follows from them.

A: fit to be published. B: sound, within the limits that its flags name. C: a figure may be wrong. The worst flag decides.
Thresholds follow good practice where there is one; comments name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import nan
from statistics import mean, median, stdev
from typing import Literal, NamedTuple

from bench import registry
from bench.figures.metrics import SLOWDOWNS, missing_components, precision_of, split_energy
from bench.figures.nodes import passes_infiniband
from bench.figures.sensors import fresh
from bench.record import Measurement, Observation
from bench.schema import Gpu, Site

Grade = Literal["A", "B", "C"]

PUBLISH_SECONDS, PUBLISH_STEPS = 60.0, 50
"""MLPerf Training's power rules ask for 60 samples at one a second; 50 steps make a distribution."""
PUBLISH_WARMUP_SECONDS, PUBLISH_WARMUP_STEPS = 30.0, 10
"""Least warm-up after which a steady state may be expected: caches, autotuning, clocks and temperature have settled."""
PUBLISH_REPEATS = 5
"""Independent runs; with five, a 95 % interval extends about 1.2 standard deviations to each side."""
PUBLISH_IDLE_SECONDS = 60.0
PUBLISH_TIMEOUT_SECONDS = 600.0
STEADY_SHARE = 0.02
"""Blocks of steps vary by less in a steady state; a drift by less than half of it over the window is ignored."""
TEMPERATURE_DRIFT = 2.0
THROTTLED_SHARE = 0.01
NOISE_SHARE = 0.02
"""Share of processor time taken by other virtual machines, or change in speed of a fixed matrix product."""
OTHER_SHARE = 0.05
STRAGGLER_RATIO = 1.1
WINDOWS_SHARE = 0.01
"""Share by which the windows of nodes may differ: they differ by a step at their edges."""
CLOCK_SECONDS = 1.0
"""Seconds by which the wall clocks of nodes may differ."""
COVERED = 0.98
"""Share of a window that readings must span to count as the whole window."""
RISE = 0.1
"""Share by which the last loss may exceed the first one where the training starts from trained weights."""
FOREIGN_BYTES = 200 * 2**20


class Flag(NamedTuple):
    """The best grade that a measurement with this flag can have, and what the flag means."""

    grade: Grade
    meaning: str


STEP_FLAGS = {
    "no_line_matched": Flag("C", "no line of the output matches the step pattern: steps are not known"),
    "slow_pattern": Flag("C", "the step pattern took more than a second for one line and was given up"),
    "steps_in_disorder": Flag("C", "the counter of steps goes up and down: steps are not known"),
    "lines_are_not_steps": Flag(
        "C",
        "the lines that match are not single steps: name their counter (?P<step>\\d+), or give --steps-per-line",
    ),
    "steps_unchecked": Flag(
        "B", "each line that matches is taken for a step: name their counter (?P<step>\\d+) to be sure"
    ),
    "lines_repeat": Flag("C", "several lines print one step: it is counted once, without what other processes may add"),
    "counts_only_grow": Flag(
        "C",
        "samples or tokens only grow, so they are totals: name them samples_total, tokens_total, or report those of a step",
    ),
    "counts_are_rates": Flag(
        "C",
        "the step pattern takes a rate, such as samples/s, for a count: it is left out; give --samples-per-step or "
        "--tokens-per-step, or name a time of each step (?P<seconds>...)",
    ),
    "counter_restarts": Flag(
        "B", "the counter of steps began anew: the time between is left out, and lines of a validation count as steps"
    ),
    "passes_differ": Flag(
        "C", "lines of a validation may count as steps: let the step pattern match those of the training alone"
    ),
    "validation_left_out": Flag(
        "B", "lines of a validation match the step pattern: they and the steps around are left out"
    ),
    "bar_unchecked": Flag(
        "C", "the steps are those of a progress bar, which may count something else: give --step-pattern"
    ),
    "batches_are_steps": Flag("B", "the bar counts batches: with gradient accumulation, a step consumes several"),
    "times_differ": Flag(
        "C",
        "the script's own times of steps do not add up to the clock: check their unit, and mark evaluation as a phase",
    ),
    "times_of_script": Flag(
        "B", "the output came in blocks: times of steps are the script's own, whose sum agrees with the clock"
    ),
    "counts_missing": Flag("C", "some lines lack their samples or tokens, so these are left out"),
    "totals_fall": Flag("C", "a total of samples or tokens does not grow: it is left out"),
    "totals_are_rounded": Flag("C", "totals such as 12.3k are rounded too much: they are left out"),
    "partial_world": Flag("C", "processes take part that are not measured here: samples are left out"),
    "samples_unclear": Flag(
        "C",
        "the samples of a step are not sure, so they are left out: give --samples-per-step, or call step(samples=...)",
    ),
    "samples_from_input": Flag(
        "B",
        "samples and tokens are inferred from the model's input: --samples-per-step and --tokens-per-step confirm them",
    ),
    "much_left_out": Flag(
        "B", "passes without gradients (validation, rollouts) took more than a twentieth of the time: it is left out"
    ),
    "passes_unclear": Flag(
        "C",
        "passes without gradients in training mode count as part of their steps: call model.eval() for a validation",
    ),
    "sources_differ": Flag("C", "two sources of steps or samples disagree by more than 2 %: one of them is wrong"),
    "separate_trainings": Flag(
        "C", "several trainings or optimizers ran side by side or in turn: steps are those of the first alone"
    ),
    "phases_of_training": Flag("C", "other parameters were trained later in the run: parameters and FLOP are left out"),
    "hooks_failed": Flag("C", "the hooks failed during the run: what came later was not seen"),
    "steps_captured": Flag("C", "steps ran inside CUDA graphs and cannot be seen: call wattbench.step()"),
    "this_node_only": Flag("B", "other nodes take part: samples, devices and energy are those of this node"),
    "other_hosts": Flag(
        "C", "the command trained on other hosts, which are not measured: energy and devices are those of this one"
    ),
    "world_unknown": Flag(
        "C", "whether the nodes trained together was not seen: samples are left out, or as they are stated"
    ),
    "nodes_disagree": Flag("C", "the nodes do not count the same steps: samples and energy of the window are left out"),
    "restarted": Flag(
        "B",
        "workers were started again after a loss: its time and energy are those of the phase restart, or of the start-up",
    ),
    "repeats_unknown": Flag(
        "C",
        "workers were started again, and which steps they repeated is not known: repeated ones count as progress; "
        "number them by wattbench.step(number=...)",
    ),
    "flops_estimated": Flag("B", "the FLOP of a sample are estimated: 6 for each parameter and token"),
    "output_in_blocks": Flag("C", "the output came in blocks, so steps have no times: start the command by stdbuf -oL"),
}
"""Flags of the steps of a command."""
FLAGS = {
    "shared_gpu": Flag("C", "other processes used the GPU or its memory: the energy is not that of the run alone"),
    "throttled": Flag("C", "heat or a power brake lowered the clocks of a GPU for more than 1 % of the window"),
    "gap": Flag("C", "the meter's readings have a gap"),
    "window_too_short": Flag("C", "the window is too short for the meter (at least 2 s): measure longer"),
    "energy_partly_covered": Flag("C", "the meters' readings do not cover the whole window"),
    "energy_components_differ": Flag("C", "repeats measured different components"),
    "lengths_differ": Flag("C", "repeats were measured for different lengths, and only their whole runs are compared"),
    "costs_differ": Flag("B", "repeats have no common price, so no cost is shown: bench report --price gives all one"),
    "carbon_differs": Flag(
        "B", "repeats have no common region and PUE, so no carbon is shown: bench report --region gives all one"
    ),
    "meter_failed": Flag("C", "the process of the meters failed during the run"),
    "mig_shared": Flag("C", "the GPU is split into slices (MIG): its energy is that of the whole board"),
    "board_scope": Flag("C", "the sensor spans both dies of its board, and the run may have used one of them"),
    "unverified_meter": Flag("B", "this kind of meter was not yet checked on real hardware"),
    "loss_not_decreasing": Flag("C", "the loss did not decrease: the training does not learn, however fast it is"),
    "above_matmul_peak": Flag("C", "faster than plain matrix products on the same device: work or time is miscounted"),
    "exclusivity_unknown": Flag(
        "B", "the driver lists no process of the run, so other users of the GPU cannot be excluded"
    ),
    "disk_full": Flag("C", "the disk of the run's folder was full for a time, so steps may be missing"),
    **STEP_FLAGS,
    "ended_early": Flag("B", "the command was ended before its end: figures are of what it did until then"),
    "devices_differ": Flag(
        "C", "the command used more or fewer devices than its suite asks for; figures count those that it used"
    ),
    "precision_differs": Flag(
        "C", "the command trained in another precision than its suite asks for; figures are those of the one it used"
    ),
    "unvalidated_sensor": Flag("B", "this GPU's sensor was not checked within 30 days (python -m tests.gpu_check)"),
    "sampled_power": Flag("B", "GPU energy is integrated from power samples: a load in step with them can be far off"),
    "wide_edges": Flag("B", "the edges of the window leave more than 10 % of its energy uncertain: measure longer"),
    "electricity_unknown": Flag("B", "the cost lacks electricity, as no meter gave an energy figure"),
    "counter_reset": Flag("B", "the energy counter was reset; power samples were used instead"),
    "counter_stuck": Flag("B", "the energy counter did not advance; power samples were used instead"),
    "module_scope": Flag("B", "the GPU's sensor covers its whole module, including the CPU"),
    "energy_absent": Flag("B", "no meter could read any energy"),
    "energy_estimated": Flag("B", "no energy was measured; the figure is estimated by a model"),
    "partial_total": Flag("B", "GPU, CPU or memory could not be measured: the sum lacks it"),
    "idle_unknown": Flag("B", "idle power was not measured, so energy above idle is unknown"),
    "short_window": Flag("B", "a quick look: a figure to publish takes 60 s and 50 steps"),
    "steady_unknown": Flag("B", "too few steps to tell whether the speed was steady"),
    "not_steady": Flag("B", "speed, temperature or clocks changed during the window: warm up or measure longer"),
    "noisy_host": Flag("B", "other programs took processor time, or the machine changed its speed, during the run"),
    "straggler": Flag(
        "B", "one rank needs more than 10 % longer for a forward pass than the others, which wait for it"
    ),
    "straggler_node": Flag(
        "B", "the ranks of one node need more than 10 % longer for a forward pass than those of others"
    ),
    "mixed_nodes": Flag("B", "the nodes of the run are of different kinds: the slowest decides for all"),
    "shared_node": Flag(
        "C", "the job has a part of a node, of which others may use the rest: energy and speed may be theirs, too"
    ),
    "slow_network": Flag(
        "C", "the ranks use plain sockets (gloo, or NCCL by its variables) although a node has active InfiniBand"
    ),
    "windows_differ": Flag("B", "the windows of the nodes differ by more than 1 %: energy is that of each node's own"),
    "clocks_differ": Flag(
        "B", "the wall clocks of the nodes differ by more than 1 s: times of day are those of the first"
    ),
    "other_nodes": Flag("B", "the two sides ran on different nodes of the cluster, which may differ by themselves"),
    "tensor_parallel_across_nodes": Flag(
        "B", "the layers are divided among devices of several nodes: each of them waits for the network between nodes"
    ),
    "no_steps": Flag("B", "the command reported no steps after its warm-up: the window is the whole command"),
    "imported": Flag("B", "figures from a file: how they were measured is unknown"),
    "pue_unknown": Flag("B", "cooling power is left out, as no PUE was given (--pue)"),
}


def grade(flags: Iterable[str]) -> Grade:
    """Return the grade of a measurement with these flags; an unknown flag counts as C."""
    return max((FLAGS[flag].grade if flag in FLAGS else "C" for flag in flags), default="A")


def meaning(flag: str) -> str:
    """Return what a flag means, for people."""
    return FLAGS[flag].meaning if flag in FLAGS else "see the record"


def site_flags(site: Site) -> set[str]:
    """Return the flags that follow from a site: carbon and the price of electricity need a PUE."""
    needed = site.region is not None or site.usd_per_kwh is not None
    return {"pue_unknown"} if needed and site.pue is None else set()


def judge(run: Observation, figures: dict[str, float], *, meter_failed: bool = False) -> set[str]:
    """Return the flags of a measurement; none without one. `figures` are those of `bench.figures.metrics.window`."""
    measured = run.measurement
    if measured is None:
        return set()
    flags = {*_energy_flags(run, measured), *_condition_flags(run, measured), *_speed_flags(run, measured, figures)}
    flags |= {*_node_flags(run, figures)}
    return flags | {*_request_flags(run)} | ({"meter_failed"} if meter_failed else set())


_SAME_PRECISION = {"tf32": "fp32", "bf16_params": "bf16"}
"""Precisions that look like others from outside: the types of numbers are the same."""


def _request_flags(run: Observation) -> Iterator[str]:
    """Yield flags of a command that did something else than it was asked for."""
    if run.devices_differ:
        yield "devices_differ"
    asked, used = run.spec.precision.name, precision_of(run)
    if "precision" in run.spec.placeholders and used not in (asked, _SAME_PRECISION.get(asked)):
        yield "precision_differs"


def _node_flags(run: Observation, figures: dict[str, float]) -> Iterator[str]:
    """Yield flags of a run on nodes of a cluster."""
    if "shared" in run.environment.cluster:
        yield "shared_node"
    if len({node.kind for node in run.nodes}) > 1:
        yield "mixed_nodes"
    if passes_infiniband(run):
        yield "slow_network"
    windows = [node.window_seconds for node in run.nodes if node.window_seconds is not None]
    if windows and max(windows) > (1 + WINDOWS_SHARE) * min(windows):
        yield "windows_differ"
    if figures.get("straggler_node_ratio", 1) > STRAGGLER_RATIO:
        yield "straggler_node"
    if any(abs(node.clock_skew_seconds or 0) > CLOCK_SECONDS for node in run.nodes):
        yield "clocks_differ"
    kind = registry.strategies("parallelism").get(run.spec.parallelism.name)
    if kind and kind.cuts_matrices and run.spec.num_nodes > 1 and run.spec.devices_per_node % run.spec.devices_per_copy:
        yield "tensor_parallel_across_nodes"


def _energy_flags(run: Observation, measured: Measurement) -> Iterator[str]:
    """Yield flags of the energy: its source, what it lacks, and how well it covers the window."""
    hardware, model = split_energy(measured.energy)
    for reading in hardware or model:
        yield from reading.flags
    if any(reading.coverage < COVERED for reading in hardware or model):
        yield "energy_partly_covered"
    if not run.spec.meters:
        return
    if not hardware:
        yield "energy_estimated" if model else "energy_absent"
        return
    if missing_components(hardware, run.gpus):
        yield "partial_total"
    idle = {(part.component, part.device) for part in run.idle}
    if any((reading.component, reading.device) not in idle for reading in hardware):
        yield "idle_unknown"
    driver = run.environment.machine.driver_version
    if any(r.component == "gpu" and not fresh(r.device, driver or "") for r in hardware):
        yield "unvalidated_sensor"


def _condition_flags(run: Observation, measured: Measurement) -> Iterator[str]:
    """Yield flags of the conditions during the window: other users, heat, a busy host."""
    listed: dict[str, Gpu] = {gpu.uuid: gpu for gpu in run.environment.machine.gpus}
    for gpu in measured.gpus:
        foreign = listed[gpu.device].foreign_memory_bytes if gpu.device in listed else None
        if gpu.shared or (foreign or 0) > FOREIGN_BYTES:
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
        for before, after in pairwise(rank.matmul_flops_per_second):
            change = abs(after / before - 1)
            if change > max(NOISE_SHARE, rank.matmul_spread or 0):  # more than the spread within one probe
                yield "noisy_host"


def _speed_flags(run: Observation, measured: Measurement, figures: dict[str, float]) -> Iterator[str]:
    """Yield flags of the speed: whether it was steady, plausible, and measured for long enough."""
    yield from measured.step_flags
    steps = measured.step_seconds
    if not steps:
        yield "no_steps"
    if measured.window_seconds < PUBLISH_SECONDS or (steps and len(steps) < PUBLISH_STEPS):
        yield "short_window"
    state = steady(steps)
    if state is not True and steps:
        yield "steady_unknown" if state is None else "not_steady"
    first, last = measured.loss_first, measured.loss_last
    if last is not None and measured.loss_medians is not None:
        first, last = measured.loss_medians
    # With trained weights the loss hardly falls any more, so that of one step may exceed that of an earlier one.
    trained = run.spec.needs is not None or "pretrained" in run.spec.workload_args
    if first is not None and (last is None or last >= (1 + RISE * trained) * first):
        yield "loss_not_decreasing"
    if figures.get("straggler_ratio", 1) > STRAGGLER_RATIO:
        yield "straggler"
    emulated = run.spec.device_type == "cpu" and run.spec.precision.name == "fp16"  # its products are no peak
    if figures.get("matmul_utilization", 0) > 1.1 and not emulated:
        yield "above_matmul_peak"


def loss_medians(losses: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last tenth of losses, of at least three each where there are six.

    One unusual batch moves neither. Not a number without a loss.
    """
    if not losses:
        return nan, nan
    few = max(1, min(len(losses) // 2, max(3, len(losses) // 10)))
    return median(losses[:few]), median(losses[-few:])


def steps_in_blocks(step_seconds: Sequence[float]) -> list[float]:
    """Return the mean seconds of a step in 6 to 12 blocks of a window, of 5 s where it is long enough.

    Return [] for fewer than 12 steps.
    """
    if len(step_seconds) < 12:
        return []
    blocks = min(12, max(6, int(sum(step_seconds) / 5)), len(step_seconds) // 2)
    borders = [round(i * len(step_seconds) / blocks) for i in range(blocks + 1)]
    return [mean(step_seconds[a:b]) for a, b in pairwise(borders)]


def steady(step_seconds: Sequence[float]) -> bool | None:
    """Return whether the speed of a window was steady; None for fewer than 12 steps, which are too few to tell.

    Steps are joined into blocks, of 5 s where the window is long enough for six. The speed is steady if the coefficient of
    variation of the blocks is below 2 %, and the 95 % interval of their Theil-Sen slope contains 0 or the slope amounts to
    less than 1 % over the window (Theil 1950, Sen 1968; `scipy.stats.theilslopes`).
    """
    if not (means := steps_in_blocks(step_seconds)):
        return None
    from scipy.stats import theilslopes

    slope, _, low, high = theilslopes(means, range(len(means)), alpha=0.95)
    drift = abs(slope) * (len(means) - 1) / median(means)
    return bool(stdev(means) / mean(means) < STEADY_SHARE and (low <= 0 <= high or drift < STEADY_SHARE / 2))

"""`bench show SUITE`: what would be done here, what it takes, and what is skipped and why."""

from __future__ import annotations

import json
from typing import Any

import click

from bench.cli.options import Asked, json_option, read_suite, suite_options
from bench.schema import COMMAND, RunSpec

_SCALING = {
    "weak": "weak scaling: every device gets the same work, so ideal scaling keeps the time of a step",
    "strong": "strong scaling: the work of all devices together stays the same, so ideal scaling divides the time",
    "mixed": "batch sizes differ by more than the number of devices: neither weak nor strong scaling",
    "none": "one number of devices: scaling over devices is not measured",
}


def estimate(asked: Asked) -> dict[str, Any]:
    """Estimate seconds, and the rent where a price is given; null where a run has no time to go by."""
    from bench.run.runner import START_SECONDS, estimate_seconds

    runs = asked.narrowed.to_do
    seconds = [estimate_seconds(run) for run in runs]
    price = asked.plan.suite.usd_per_device_hour
    known = [s for s in seconds if s is not None]
    total = START_SECONDS + _idle_seconds(asked) + sum(known) if len(known) == len(seconds) else None
    cost = None
    if price is not None and total is not None:
        cost = sum(s * run.world_size for s, run in zip(known, runs, strict=True)) / 3600 * price
    return {"seconds": total, "cost_usd": cost}


def _idle_seconds(asked: Asked) -> float:
    """Seconds in which idle power is measured before the runs: on GPUs without and with a context."""
    from bench.meters.meter import usable

    if asked.machine.gpus:
        return 2 * asked.plan.suite.idle_seconds
    meters = {meter for run in asked.narrowed.to_do for meter in run.meters}
    return asked.plan.suite.idle_seconds if usable(meters) else 0.0


def lines(asked: Asked, estimated: dict[str, int]) -> list[str]:
    """The plan as text: configurations with their repeats, memory a device, reasons of the skipped, time and cost."""
    too_large = _too_large(asked, estimated)
    plan = asked.narrowed
    out = [f"{plan.suite.name}: {len(plan.to_do)} runs on {asked.machine.cpu_model}"]
    out += [f"  {gpu.index}: {gpu.name} {gpu.uuid}" for gpu in asked.machine.gpus]
    out.append(f"  {_SCALING[asked.plan.scaling]}")
    out += [f"  {note}" for note in plan.notes]
    repeats: dict[str, list[RunSpec]] = {}
    for run in plan.runs:
        repeats.setdefault(run.config_id, []).append(run)
    for config_id, runs in repeats.items():
        reason = plan.skipped.get(config_id)
        what = f"skipped: {reason}" if reason else f"× {len(runs)}"
        if config_id in estimated:
            what += f"  ~{estimated[config_id] / 1e9:.3g} GB a device"
        if config_id in too_large:
            what += f", {too_large[config_id]}"
        out.append(f"  {config_id}  {runs[0].label}  {what}")
    if estimated:
        out.append("  memory: an estimate of the tensors; none where shapes do not tell; a CPU process grows by more")
    return [*out, f"  {takes(asked)}"]


def takes(asked: Asked) -> str:
    """Say in one line what the runs will take in time, and in rent where a price is given."""
    expected = estimate(asked)
    if expected["seconds"] is None:
        return "time: unknown before it was run once (commands, and measure_steps instead of measure_seconds)"
    cost = "" if expected["cost_usd"] is None else f", cost: about {expected['cost_usd']:.3g} USD"
    return f"time: about {expected['seconds'] / 60:.1f} min{cost}"


def memory(asked: Asked) -> dict[str, int]:
    """Estimate the peak of memory of a device for each configuration, where it can be; takes seconds, and imports torch."""
    trained = {run.config_id: run for run in asked.narrowed.to_do if run.workload != COMMAND}
    if not trained:
        return {}
    import logging

    logging.disable(logging.WARNING)  # what libraries say of themselves when they are imported
    try:
        from bench.train.footprint import peak_bytes

        found = {config_id: peak_bytes(run) for config_id, run in trained.items()}
    finally:
        logging.disable(logging.NOTSET)
    return {config_id: size for config_id, size in found.items() if size is not None}


def _too_large(asked: Asked, estimated: dict[str, int]) -> dict[str, str]:
    """Say which configurations do not fit into what a device of theirs may take: its memory, or the limit of the run."""
    out = {}
    gpu = [gpu.memory_bytes for gpu in asked.machine.free_gpus if gpu.memory_bytes is not None]
    for run in asked.narrowed.to_do:
        limits = [*(gpu if run.device_type == "cuda" else []), run.memory_limit_bytes]
        there = min((limit for limit in limits if limit is not None), default=None)
        size = estimated.get(run.config_id)
        if size is not None and there is not None and size > there:
            out[run.config_id] = f"does not fit: a device has {there / 1e9:.3g} GB"
    return out


@click.command()
@suite_options
@json_option
@click.option(
    "--memory/--no-memory", "with_memory", default=True, help="Estimate the memory of a device; imports torch."
)
def show(as_json: bool, with_memory: bool, **options: Any) -> None:
    """List the runs that a suite means on this machine, in order, with time, cost and memory. Nothing is started."""
    echo(read_suite(**options), as_json=as_json, with_memory=with_memory)


def echo(asked: Asked, *, as_json: bool, with_memory: bool = True) -> None:
    """Print what would be done."""
    estimated = memory(asked) if with_memory else {}
    if not as_json:
        click.echo("\n".join(lines(asked, estimated)))
        return
    plan = asked.narrowed
    document = {
        "suite": plan.suite.model_dump(mode="json"),
        "machine": asked.machine.model_dump(mode="json"),
        "scaling": asked.plan.scaling,
        "runs": [
            {"run_id": run.run_id, "config_id": run.config_id, **run.model_dump(mode="json")} for run in plan.runs
        ],
        "skipped": plan.skipped,
        "notes": plan.notes,
        "estimate": estimate(asked),
        "memory_estimated_bytes": estimated,
        "does_not_fit": _too_large(asked, estimated),
    }
    click.echo(json.dumps(document, indent=1, allow_nan=False))

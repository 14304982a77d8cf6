"""`bench show SUITE`: what would be done here, what it takes, and what is skipped and why."""

from __future__ import annotations

import json
from typing import Any

import click

from bench.cli.options import Asked, json_option, read_suite, suite_options
from bench.schema import RunSpec

_SCALING = {
    "weak": "weak scaling: every device gets the same work, so ideal scaling keeps the time of a step",
    "strong": "strong scaling: the work of all devices together stays the same, so ideal scaling divides the time",
    "mixed": "batch sizes differ by more than the number of devices: neither weak nor strong scaling",
    "none": "one number of devices: scaling over devices is not measured",
}


def estimate(asked: Asked) -> dict[str, Any]:
    """Estimate seconds, and the rent where a price is given; null where a run has no time to go by."""
    from bench.runner import START_SECONDS, estimate_seconds

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
    from bench.meters.rapl import RaplMeter

    if asked.machine.gpus:
        return 2 * asked.plan.suite.idle_seconds
    return 0.0 if RaplMeter().reason else asked.plan.suite.idle_seconds


def lines(asked: Asked) -> list[str]:
    """The plan as text: configurations with their repeats, reasons of the skipped, time and cost."""
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
        out.append(f"  {config_id}  {runs[0].label}  {what}")
    return [*out, f"  {takes(asked)}"]


def takes(asked: Asked) -> str:
    """Say in one line what the runs will take in time, and in rent where a price is given."""
    expected = estimate(asked)
    if expected["seconds"] is None:
        return "time: unknown before it was run once (commands, and measure_steps instead of measure_seconds)"
    cost = "" if expected["cost_usd"] is None else f", cost: about {expected['cost_usd']:.3g} USD"
    return f"time: about {expected['seconds'] / 60:.1f} min{cost}"


@click.command()
@suite_options
@json_option
def show(as_json: bool, **options: Any) -> None:
    """List the runs that a suite means on this machine, in order, with time and cost. Nothing is started."""
    echo(read_suite(**options), as_json=as_json)


def echo(asked: Asked, *, as_json: bool) -> None:
    """Print what would be done."""
    if not as_json:
        click.echo("\n".join(lines(asked)))
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
    }
    click.echo(json.dumps(document, indent=1, allow_nan=False))

"""`bench plan`: what a training would take on different numbers of devices, which of them meet what is asked, and why."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from analytics.amounts import amount, seconds
from bench.cli import fail
from bench.cli.options import device_counts, json_option, reading, site_fields, site_options, store_option
from bench.schema import Site

if TYPE_CHECKING:
    import pandas as pd

_number = reading(amount)


def _known(text: str) -> dict[str, float]:
    """Read a known training: hours=3000,params=340e6,devices=8,speed=2e9."""
    names = ("hours", "params", "tokens", "devices", "speed")
    pairs = [part.partition("=") for part in text.split(",")]
    if any(name.strip() not in names or not value for name, _, value in pairs) or not text.startswith("hours="):
        raise click.BadParameter(f"{text!r}: give hours=... and what else is known of {', '.join(names[1:])}")
    found = {name.strip(): _number(value) for name, _, value in pairs}
    if len(found) < len(pairs):
        raise click.BadParameter(f"{text!r}: each of {', '.join(found)} once only")
    return found


_OPTIONS = (
    ("--params", _number, "N", "Parameters of a language model: 7e9, 7B."),
    ("--tokens", _number, "D", "Tokens that it is trained on: 1e12, 1T."),
    ("--active-params", _number, "N", "Parameters that work on one token, of a mixture of experts."),
    ("--layers", _number, "L", "Layers, with --hidden; otherwise a typical shape is assumed, and said."),
    ("--hidden", _number, "H", "Hidden size."),
    ("--sequence", _number, "S", "Tokens of a sequence."),
    ("--flops-per-sample", _number, "FLOP", "Other work: FLOP of one sample, forward and backward."),
    ("--samples", _number, "N", "... and how many samples."),
    ("--device", str, "NAME", "H100-SXM, A100-80GB, RTX-4090 ... or NVML's name."),
    ("--devices", device_counts, "N,N", "Numbers of devices: 8,64,512 or 8-512 (doubling)."),
    ("--peak-flops", _number, "FLOP/S", "Dense peak of a device that is not known here."),
    ("--power-watts", _number, "W", "Power of one device with its share of the node; otherwise estimated."),
    ("--batch", _number, "N", "Sequences in a batch of all devices: more devices are of no use."),
    ("--deadline", reading(seconds), "TIME", "30d, 12h, 45m."),
    ("--budget", _number, "USD", "What it may cost."),
    ("--embodied", _number, "KG", "kg CO2e of making a device, per hour of its use (164 kg / 26280 h: 0.00624)."),
    ("--tokens-per-second", _number, "X", "A known rate, of all devices together."),
    ("--tokens-per-second-per-device", _number, "X", "... of one device."),
    ("--flops-per-second-per-device", _number, "X", "... in FLOP/s that one device really does."),
    ("--accelerator-hours", _number, "H", "Known hours of all devices together: what follows, and can they be?"),
    ("--known", _known, "K=V,...", "Scale a known training: hours=3000,params=340e6,devices=8,speed=2e9."),
    ("--speed", _number, "V", "With --known: speed of one device, in the same unit."),
    ("--claim", reading(seconds), "TIME", "With --known: what it would mean to take this time."),
)
_SCALED, _FLAGS = ("known", "params", "tokens", "devices", "speed", "claim"), {"ask_next": "next"}


def _plan_options(command: Any) -> Any:
    for flag, kind, metavar, sentence in reversed(_OPTIONS):
        command = click.option(flag, type=kind, metavar=metavar, help=sentence)(command)
    return command


@click.command()
@_plan_options
@click.option("--precision", default="bf16", show_default=True, help="bf16, fp16, tf32, fp32 or fp8.")
@click.option("--recompute", is_flag=True, help="Activations are computed twice: 4/3 of the work.")
@site_options
@click.option("--regions", metavar="FR,SE", help="Compare the carbon of these regions.")
@click.option("--next", "ask_next", is_flag=True, help="Say which runs to make next to narrow the interval most.")
@click.option("--priors", is_flag=True, help="Published trainings only; your own runs are not looked at.")
@store_option
@json_option
def plan(as_json: bool, **options: Any) -> None:
    """Say what a training takes on different numbers of devices: time, cost, energy and carbon, with 80 % intervals.

    Speeds are those of your own runs where they apply, otherwise those of published trainings, or as given.
    """
    try:
        document, lines = _scaled(options) if options["known"] else _planned(options)
    except ValueError as error:
        fail(*str(error).splitlines())
    if as_json:
        click.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    for line in lines:
        click.echo(line)


def _scaled(options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Answer by T = n / (d · v) from a known training."""
    from analytics.work import scaled

    context = click.get_current_context()
    given = (name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE)
    if others := [f"--{_FLAGS.get(name, name).replace('_', '-')}" for name in given if name not in _SCALED]:
        raise ValueError(
            f"{' and '.join(others)} cannot go with --known, which takes --params, --tokens, --devices, --speed"
        )
    devices = options["devices"] or (None,)
    if len(devices) > 1:
        raise ValueError("--known takes one number of --devices")
    wanted = {name: options[name] for name in ("params", "tokens", "speed")} | {"devices": devices[0]}
    hours, lines = scaled(options["known"], {name: value for name, value in wanted.items() if value is not None})
    document: dict[str, Any] = {"duration_seconds": hours * 3600, "arithmetic": list(lines)}
    if options["claim"] is not None:
        share = hours * 3600 / options["claim"]
        document |= {"claim_seconds": options["claim"], "claim_relative_efficiency": share}
        beyond = ": faster than the law allows" if share > 1 else ""
        lines.append(f"{options['claim'] / 3600:,.4g} h would mean a relative efficiency of {share:.2f}{beyond}.")
    return document, lines


def _planned(options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Answer for each number of devices."""
    from analytics.plan import Plan
    from analytics.question import Given, question
    from bench.cli.plan_answer import answer
    from bench.suites.load import SuiteError, with_site

    try:
        site = with_site(Site(), site_fields(options))
    except SuiteError as error:
        fail(*error.messages)
    if options["speed"] or options["claim"]:
        raise ValueError("--speed and --claim belong to --known")
    given = {field.name: options[field.name] for field in fields(Given) if field.name in options}
    asked, notes = question(Given(site=site, **given), lambda: _runs(options["store"]))
    regions = options["regions"].split(",") if options["regions"] else []
    return answer(Plan(asked), notes, regions, ask_next=options["ask_next"])


def _runs(store: str | None) -> pd.DataFrame:
    """Return the runs of the store; none where nobody named a store and there is none here."""
    from analytics.frame import frame
    from analytics.store import load
    from bench.store import tracker as tracking

    where = tracking.location(store)
    if store is None and where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
        return frame([])
    try:
        return load(store)
    except tracking.StoreError as error:
        fail(str(error))

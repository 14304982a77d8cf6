"""`bench plan`: what a training takes on different numbers of devices, which of them meet the limits, and why."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import partial
from typing import Any

import click
from click.core import ParameterSource

from analytics.amounts import amount, counts_on, hardware, known_training, length, seconds, usd
from bench.cli.options import Read, json_option, print_json, site_fields, site_options, store_option
from bench.errors import UserError
from bench.schema import Site

_number, _time = Read(amount), Read(seconds)
_watts = Read(partial(amount, units={"w": 1.0, "kw": 1e3}))
_flops = Read(partial(amount, units={"flop/s": 1.0, "flops": 1.0, "tflop/s": 1e12, "tflops": 1e12, "pflops": 1e15}))
_OPTIONS = (
    ("--params", _number, "N", "Parameters of a language model: 7e9, 7B."),
    ("--tokens", _number, "D", "Tokens to train on: 1e12, 1T."),
    ("--active-params", _number, "N", "Parameters used per token, for a mixture of experts."),
    ("--layers", _number, "L", "Layers, together with --hidden. Default: a typical shape, which is stated."),
    ("--hidden", _number, "H", "Hidden size."),
    ("--sequence", Read(length), "S", "Tokens per sequence."),
    ("--flops-per-sample", _number, "FLOP", "Other work: FLOP of one sample, forward and backward."),
    ("--samples", _number, "N", "Number of samples, for --flops-per-sample."),
    ("--device", str, "NAME", "H100-SXM, A100-80GB, RTX-4090 ..., or the name that its driver gives."),
    ("--devices", Read(counts_on), "N,N", "Numbers of devices: 8,64,512 or 8-512 (doubling); also 8xH100-SXM."),
    ("--peak-flops", _flops, "FLOP/S", "Dense peak of a device that is not in the table."),
    ("--power-watts", _watts, "W", "Power of one device with its share of the node. Default: estimated."),
    ("--batch", _number, "N", "Sequences in the global batch, which limits the number of devices."),
    ("--deadline", _time, "TIME", "Time limit: 30d, 3 weeks, 1d12h, 45m."),
    ("--budget", Read(usd), "USD", "Cost limit: 20000, $20k."),
    ("--embodied", _number, "KG", "Embodied kg CO2e of a device per hour of use (164 kg / 26280 h: 0.00624)."),
    ("--tokens-per-second", _number, "X", "Known tokens per second, of all devices together."),
    ("--tokens-per-second-per-device", _number, "X", "Known tokens per second, of one device."),
    ("--flops-per-second-per-device", _number, "X", "Known FLOP/s that one device really does."),
    ("--accelerator-hours", _number, "H", "Known device-hours, of all devices together."),
    (
        "--known",
        Read(known_training),
        "K=V,...",
        "Scale a known training: hours=3000,params=340e6,devices=8,speed=2e9.",
    ),
    ("--speed", _number, "V", "With --known: speed of one device, in the same unit."),
    ("--claim", _time, "TIME", "With --known: the relative efficiency that this time would imply."),
)
_SCALED = ("known", "params", "tokens", "devices", "speed", "claim")


def _plan_options(command: Any) -> Any:
    for flag, kind, metavar, sentence in reversed(_OPTIONS):
        command = click.option(flag, type=kind, metavar=metavar, help=sentence)(command)
    return command


@click.command()
@_plan_options
@click.option("--precision", default="bf16", show_default=True, help="bf16, fp16, tf32, fp32 or fp8.")
@click.option("--recompute", is_flag=True, help="Recompute activations: 4/3 of the work.")
@site_options
@click.option("--regions", metavar="FR,SE", help="Compare the carbon of these regions.")
@click.option("--next", "ask_next", is_flag=True, help="Name the runs that would narrow the interval most.")
@click.option("--priors", is_flag=True, help="Use published trainings only, not your own runs.")
@store_option
@click.option("--explain", is_flag=True, help="Add how it was computed, and what would change the choice.")
@json_option
def plan(as_json: bool, explain: bool, **options: Any) -> None:
    """Predict time, cost, energy and carbon of a training on different numbers of devices, with 80 % intervals.

    Speeds come from your own runs where they apply, else from published trainings, or are given.
    """
    options["devices"], options["device"] = _on(options["devices"], options["device"])
    document, blocks = _scaled(options) if options["known"] else _planned(options, explain=explain)
    if as_json:
        print_json(document)
    else:
        from bench.cli.options import print_blocks

        print_blocks(blocks, explain=explain)


def _on(several: tuple[tuple[int, ...], str] | None, device: str | None) -> tuple[tuple[int, ...] | None, str | None]:
    """Return numbers of devices and their name, which either option may give: 8xH100-SXM."""
    numbers, name = several or (None, "")
    parts = hardware(device) if device is not None and re.match(r"\d+\s*[x×*]", device) else None
    if parts is None:
        if name and device is not None:
            raise UserError(f"--device {device} and the {name} of --devices are given: name the device once")
        return numbers, name or device
    if name or numbers not in (None, (parts.devices,)):
        raise UserError(f"--device {device} and --devices are both numbers of devices: give one of them")
    return (parts.devices,), parts.name or None


def _scaled(options: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Answer by T = n / (d · v) from a known training."""
    from analytics.say.plan import scaled_answer

    context = click.get_current_context()
    flags = {str(parameter.name): parameter.opts[0] for parameter in context.command.params}
    given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if others := [flags[name] for name in given if name not in _SCALED]:
        allowed = "--params, --tokens, --devices, --speed"
        raise UserError(f"{' and '.join(others)} cannot be combined with --known, which takes {allowed}")
    return scaled_answer(**{name: options[name] for name in _SCALED})


def _planned(options: dict[str, Any], *, explain: bool) -> tuple[dict[str, Any], list[Any]]:
    """Answer for each number of devices."""
    from analytics.plan.plan import Plan
    from analytics.plan.question import Given, question
    from analytics.plan.tipping import tips
    from analytics.runs.selection import own_runs
    from analytics.say import plan as said
    from analytics.say.blocks import command, unnamed
    from analytics.say.plan_next import more, proposed
    from bench.suites.load import with_site

    site = with_site(Site(), site_fields(options))
    if options["speed"] or options["claim"]:
        raise UserError("--speed and --claim belong to --known")
    given = Given(site=site, **{field.name: options[field.name] for field in fields(Given) if field.name in options})
    asked, remarks = question(given, lambda: own_runs(options["store"]))
    planned = Plan(asked)
    document, blocks = said.answer(planned, remarks, options["regions"].split(",") if options["regions"] else [])
    if options["ask_next"]:
        document["next"], proposals = proposed(planned, command("run", store=options["store"]))
        blocks += [*proposals, *unnamed(options["store"])]
    blocks += said.explained(planned, tips(given, asked)) if explain else []
    return document, [*blocks, *([] if explain or options["ask_next"] else [more(planned)])]

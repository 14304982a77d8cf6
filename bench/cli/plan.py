"""`bench plan`: what a training would take on different numbers of devices, which of them meet what is asked, and why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bench.cli import fail
from bench.cli.options import device_counts, json_option, site_fields, site_options, store_option
from bench.schema import Site

if TYPE_CHECKING:
    import pandas as pd

    from analytics.hardware import Device
    from analytics.speed import Speed
    from analytics.work import Work

_SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_UNITS = {"w": 7 * 86400.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def _number(text: str) -> float:
    """Read a number above 0: 7e9, or 7B with k, M, B or T for thousands to trillions."""
    found = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)([kMBT]?)", text.strip())
    try:
        value = float(found[1]) * _SUFFIXES[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if not 1e-12 < value < 1e40:
        raise click.BadParameter(f"{text!r} is no number above 0 such as 7e9 or 7B")
    return value


def _time(text: str) -> float:
    """Read a time, 30d, 12h or 45m, as seconds."""
    number = re.fullmatch(r"[\d.]+(e\d+)?", text[:-1])
    if text[-1:] not in _UNITS or number is None or not _number(text[:-1]) < 1e9:
        raise click.BadParameter(f"{text!r} is no time: give a number above 0 and w, d, h, m or s: 2w, 30d, 12h, 45m")
    return _number(text[:-1]) * _UNITS[text[-1]]


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
    ("--deadline", _time, "TIME", "30d, 12h, 45m."),
    ("--budget", _number, "USD", "What it may cost."),
    ("--embodied", _number, "KG", "kg CO2e of making a device, per hour of its use (164 kg / 26280 h: 0.00624)."),
    ("--tokens-per-second", _number, "X", "A known rate, of all devices together."),
    ("--tokens-per-second-per-device", _number, "X", "... of one device."),
    ("--flops-per-second-per-device", _number, "X", "... in FLOP/s that one device really does."),
    ("--accelerator-hours", _number, "H", "Known hours of all devices together: what follows, and can they be?"),
    ("--known", _known, "K=V,...", "Scale a known training: hours=3000,params=340e6,devices=8,speed=2e9."),
    ("--speed", _number, "V", "With --known: speed of one device, in the same unit."),
    ("--claim", _time, "TIME", "With --known: what it would mean to take this time."),
)
_LIMITS = {
    "price": 1e6,
    "capital_price": 1e6,
    "electricity_price": 1e3,
    "power_watts": 1e6,
    "embodied": 1e6,
    "peak_flops": 1e21,
}
_SCALED, _FLAGS = ("known", "params", "tokens", "devices", "speed", "claim"), {"ask_next": "next"}
_GIVEN = ("tokens_per_second", "tokens_per_second_per_device", "flops_per_second_per_device", "accelerator_hours")


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
        _bounded(options)
        document, lines = _scaled(options) if options["known"] else _planned(options)
    except ValueError as error:
        fail(*str(error).splitlines())
    if as_json:
        click.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    for line in lines:
        click.echo(line)


def _bounded(options: dict[str, Any]) -> None:
    """Refuse what cannot be meant. Raises ValueError."""
    for name, most in _LIMITS.items():
        if (options[name] or 0) > most:
            raise ValueError(f"--{name.replace('_', '-')} {options[name]:g} cannot be meant: at most {most:,.0f}")


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
    from analytics.frame import frame
    from analytics.plan import Plan, Question
    from analytics.speed import OwnSpeed
    from bench.cli.plan_answer import answer
    from bench.suite import SuiteError, with_site

    try:
        site = with_site(Site(), site_fields(options))
    except SuiteError as error:
        fail(*error.messages)
    given = [name for name in _GIVEN if options[name] is not None]
    _check(options, given, site)
    work = _work(options, given)
    if options["devices"] is None and not given:
        raise ValueError("on how many devices? give --devices 8,64,512")
    runs = frame([]) if given or options["priors"] else _runs(options["store"])
    device, notes = _device(options, runs, given)
    if device is None or given:
        speed, why = _given(options, given[0], work), ""
    else:
        speed, why = _speed(runs, device, work, options["precision"])
    notes += [why] if why else []
    if isinstance(speed, OwnSpeed) and speed.sequence and options["sequence"] is None:
        # A length that was measured is a better guess than a typical one.
        work = _work(options | {"sequence": speed.sequence}, given)
        speed = replace(speed, per_sample=work.per_sample)
    question = Question(
        work,
        speed,
        options["devices"] or (1,),
        device,
        options["precision"],
        site,
        watts=options["power_watts"] or getattr(speed, "watts", None),
        deadline_seconds=options["deadline"],
        budget_usd=options["budget"],
        batch=options["batch"],
        embodied_kg_per_hour=options["embodied"],
        counted=options["devices"] is not None,
    )
    regions = options["regions"].split(",") if options["regions"] else []
    return answer(Plan(question), notes, regions, ask_next=options["ask_next"])


def _check(options: dict[str, Any], given: list[str], site: Site) -> None:
    """Refuse what does not go together. Raises ValueError."""
    if options["speed"] or options["claim"]:
        raise ValueError("--speed and --claim belong to --known")
    if len(given) > 1:
        raise ValueError(f"give one of {' and '.join('--' + name.replace('_', '-') for name in given)}")
    if given and given[0].startswith("tokens") and options["tokens"] is None:
        raise ValueError(f"--{given[0].replace('_', '-')} takes --tokens")
    per_device = site != Site() or any(options[name] for name in ("power_watts", "device", "peak_flops", "deadline"))
    if given == ["tokens_per_second"] and (len(options["devices"]) > 1 if options["devices"] else per_device):
        raise ValueError("--tokens-per-second is of all devices together: give one number of --devices with it")


def _work(options: dict[str, Any], given: list[str]) -> Work:
    from analytics.work import Work, language_model, sample_work

    language, other = (options["params"], options["tokens"]), (options["flops_per_sample"], options["samples"])
    if any(language) and any(other):
        raise ValueError("give --params and --tokens, or --flops-per-sample and --samples, not both")
    if all(language):
        shape = {name: options[name] for name in ("layers", "hidden", "sequence", "recompute")}
        return language_model(*language, active=options["active_params"], plain=bool(given), **shape)
    if all(other):
        return sample_work(*other)
    # Without the parameters, hours of one device or tokens are counted instead of FLOP.
    hours = options["accelerator_hours"]
    amount = hours * 3600 if hours else options["tokens"] if given and given[0].startswith("tokens") else None
    if amount is None:
        raise ValueError("what is trained? give --params and --tokens (7e9, 1e12), or --flops-per-sample and --samples")
    return Work(amount, amount, 1.0, None, ())


def _runs(store: str | None) -> pd.DataFrame:
    """Return the runs of the store; none where nobody named a store and there is none here."""
    from analytics.frame import frame
    from analytics.store import load
    from bench import tracking

    where = tracking.location(store)
    if store is None and where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
        return frame([])
    try:
        return load(store)
    except tracking.StoreError as error:
        fail(str(error))


def _device(options: dict[str, Any], runs: pd.DataFrame, given: list[str]) -> tuple[Device | None, list[str]]:
    """Find the device: in the table, among one's own runs, or as given by its peak; and say which one was taken."""
    from analytics.hardware import Device, find
    from analytics.words import printable
    from bench.record import Status

    name, peak = options["device"], options["peak_flops"]
    ran = sorted(set(runs.loc[runs["status"] == Status.OK, "device_name"].dropna()) - {"unknown"})
    known = f"; your runs were on {', '.join(map(printable, ran))}" if ran else ""
    if name is None and peak is not None:
        return Device("device", peak=peak), []
    if name is None and len(ran) != 1:
        if given:
            return None, []
        raise ValueError(f"on which device? give --device H100-SXM, or --peak-flops and --power-watts{known}")
    wanted = ran[0] if name is None else name
    try:
        found = replace(find(wanted), peak=peak)
    except ValueError as error:
        if peak is None and wanted not in ran:
            raise ValueError(f"{error}{known}") from error
        found = Device(wanted, device_name=wanted, peak=peak)
    said = "that of all your runs" if name is None else printable(name)
    means = found.name if found.name == found.device_name else f"{found.name} ({found.device_name})"
    return found, [f"Device: {printable(means) if name == found.name else f'{said} -> {printable(means)}'}."]


def _speed(runs: pd.DataFrame, device: Device, work: Work, precision: str) -> tuple[Speed, str]:
    """Take one's own runs where they apply, else published trainings and a sentence on why."""
    from analytics.speed import PriorSpeed, own_speed

    own, why = own_speed(runs, device, precision, work) if len(runs) else (None, "")
    if own is not None:
        return own, f"Some of your runs are left out: {why}." if why else ""
    said = f"Your {len(runs)} runs do not apply: {why}." if why else ""
    try:
        device.peak_flops(precision)  # told before anything is drawn
    except ValueError as error:
        raise ValueError(f"{said}\n{error}".strip()) from error
    return PriorSpeed(device, precision, work.parameters), said


def _given(options: dict[str, Any], name: str, work: Work) -> Speed:
    """Turn a rate that is given into FLOP/s, and say it."""
    from analytics.speed import GivenSpeed

    value = options[name]
    if name == "accelerator_hours":
        return GivenSpeed(work.flops / value / 3600, (f"as given, {value:,.10g} hours of all devices together",))
    if name == "flops_per_second_per_device":
        return GivenSpeed(value, (f"as given, one device really does {value:.4g} FLOP/s",))
    together = name == "tokens_per_second"
    who = "all devices together do" if together else "one device does"
    says = f"as given, {who} {value:,.10g} tokens/s"
    return GivenSpeed(value * work.flops / options["tokens"], (says,), together)

"""`bench plan`: what a training would take on different numbers of devices, which of them meet what is asked, and why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import fail
from bench.cli.options import json_option, site_fields, site_options, store_option
from bench.schema import Site

if TYPE_CHECKING:
    import pandas as pd

    from analytics.hardware import Device
    from analytics.speed import Speed
    from analytics.work import Work

_SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_UNITS = {"w": 7 * 86400.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_MOST_DEVICES, _MOST_OPTIONS = 1_000_000, 50


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
    if text[-1:] not in _UNITS or not _number(text[:-1]) < 1e9:
        raise click.BadParameter(f"{text!r} is no time such as 30d, 12h or 45m")
    return _number(text[:-1]) * _UNITS[text[-1]]


def _counts(text: str) -> tuple[int, ...]:
    """Read numbers of devices: 8,64,512, or 8-512 for 8, 16, 32 ... 512."""
    counts: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high <= _MOST_DEVICES:
            wanted = f"whole numbers from 1 to {_MOST_DEVICES:,}: 8,64,512 or 8-512 (doubling)"
            raise click.BadParameter(f"{text!r}: give {wanted}")
        counts |= {low * 2**k for k in range(21) if low * 2**k < high} | {high}
    if len(counts) > _MOST_OPTIONS:
        raise click.BadParameter(f"{len(counts)} numbers of devices; at most {_MOST_OPTIONS} are allowed")
    return tuple(sorted(counts))


def _known(text: str) -> dict[str, float]:
    """Read a known training: hours=3000,params=340e6,devices=8,speed=2e9."""
    names = ("hours", "params", "tokens", "devices", "speed")
    pairs = [part.partition("=") for part in text.split(",")]
    if any(name.strip() not in names or not value for name, _, value in pairs) or not text.startswith("hours="):
        raise click.BadParameter(f"{text!r}: give hours=... and what else is known of {', '.join(names[1:])}")
    return {name.strip(): _number(value) for name, _, value in pairs}


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
    ("--devices", _counts, "N,N", "Numbers of devices: 8,64,512 or 8-512 (doubling)."),
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
        document, lines = _scaled(options) if options["known"] else _planned(options)
    except ValueError as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    for line in lines:
        click.echo(line)


def _scaled(options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Answer by T = n / (d · v) from a known training."""
    from analytics.work import scaled

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
    runs = frame([]) if given or options["priors"] else _runs(options["store"])
    device = _device(options, runs)
    speed, why = (_given(options, given[0], work), "") if given else _speed(runs, device, work, options["precision"])
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
    return answer(Plan(question), why, regions, ask_next=options["ask_next"])


def _check(options: dict[str, Any], given: list[str], site: Site) -> None:
    """Refuse what does not go together. Raises ValueError."""
    if options["speed"] or options["claim"]:
        raise ValueError("--speed and --claim belong to --known")
    if len(given) > 1:
        raise ValueError(f"give one of {' and '.join('--' + name.replace('_', '-') for name in given)}")
    if options["devices"] is None and not given:
        raise ValueError("on how many devices? give --devices 8,64,512")
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


def _device(options: dict[str, Any], runs: pd.DataFrame) -> Device | None:
    """Find the device: in the table, among one's own runs, or as given by its peak."""
    from analytics.hardware import Device, find

    name, peak = options["device"], options["peak_flops"]
    if name is None:
        return None if peak is None else Device("device", peak=peak)
    try:
        return replace(find(name), peak=peak)
    except ValueError:
        if peak is None and (runs["device_name"] != name).all():
            raise
        return Device(name, device_name=name, peak=peak)


def _speed(runs: pd.DataFrame, device: Device | None, work: Work, precision: str) -> tuple[Speed, str]:
    """Take one's own runs where they apply, else published trainings and a sentence on why."""
    from analytics.speed import PriorSpeed, own_speed

    if device is None:
        raise ValueError("on which device? give --device H100-SXM, or --peak-flops and --power-watts")
    own, why = own_speed(runs, device, precision, work.parameters, work.per_sample) if len(runs) else (None, "")
    if own is not None:
        return own, ""
    device.peak_flops(precision)  # told before anything is drawn
    return PriorSpeed(device, precision), f"Your own {len(runs)} runs do not apply: {why}." if why else ""


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

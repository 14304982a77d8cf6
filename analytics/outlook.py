"""What more devices would bring, by the law with losses, beside the plain T = n / (d · v); and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analytics import curves, laws
from analytics.scaling import Efficiency, SeriesFit
from analytics.words import FLAGS, between

LEVEL = 0.8
PARTS = {
    "computing": "computing",
    "collective": "exchanging gradients in a node",
    "latency": "exchanging them between nodes",
    "fixed": "work that every pass takes, whatever its size",
    "small": "a model too small for the device",
    "leftover": "what is not explained",
}


@dataclass(frozen=True)
class Outlook:
    """Speed on so many devices, in samples a second of all: median and 80 % interval of the law, and the plain law's.

    `efficiency` is the share of the plain speed-up that is left, against the fewest measured devices. `shares` say where the
    time of a step goes (keys of PARTS, adding up to 1), `flags` what speaks against it (keys of `words.FLAGS`).
    """

    series: str
    law: str
    devices: int
    flops_per_sample: float
    samples_per_second: float
    low: float | None
    high: float | None
    ideal_samples_per_second: float
    efficiency: float
    shares: dict[str, float]
    flags: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        return asdict(self)


def outlook(series: SeriesFit, devices: Sequence[int] = (), law: str = "step") -> list[Outlook]:
    """Predict the speed of the largest measured model of a series on `devices` (otherwise twice and four times the most).

    The batch a device is that of the largest measured configuration of that model. Raises `laws.LawError`.
    """
    table = series.observations()
    largest = table[table["work"] >= 0.999 * table["work"].max()].sort_values("devices").iloc[-1]
    most, fewest = int(table["devices"].max()), int(table["devices"].min())
    wanted = sorted({*(devices or (2 * most, 4 * most))})
    here = largest[["work", "batch_size_per_device", "samples_per_device"]].to_dict()
    at = pd.DataFrame([{"devices": d, **here} for d in [fewest, *wanted]])
    found, plain = laws.fit(table, law), laws.fit(table, "ideal")
    told, work = found.predict(at, LEVEL), float(largest["work"])
    ideal = plain.predict(at)["speed"] / work
    shares = found.explain(at)
    base = float(told["speed"].iloc[0]) / fewest
    out = []
    for i, d in enumerate(wanted, start=1):
        row = told.iloc[i]
        low, high = (None if pd.isna(row[name]) else float(row[name]) / work for name in ("low", "high"))
        speed, flags = float(row["speed"]), tuple(row["flags"].split())
        parts = {str(name): float(share) for name, share in shares.iloc[i].items()}
        out.append(
            Outlook(series.name, law, d, work, speed / work, low, high, float(ideal[i]), speed / d / base, parts, flags)
        )
    return out


def _measured(point: Efficiency) -> str:
    low, high = (None if end is None else 100 * end for end in (point.low, point.high))
    share = between(100 * point.value, low, high, "%")
    return (
        f"Measured on d = {point.devices}: {share} of what d = {point.baseline_devices} does a device ({point.curve})."
    )


def sentences(series: SeriesFit, told: Sequence[Outlook]) -> list[str]:
    """Say what the law predicts, how it does on configurations that it has not seen, and where the time goes."""
    if not told:
        return []
    table, law = series.observations(), told[0].law
    lines = [
        f"On d = {one.devices}: {between(one.samples_per_second, one.low, one.high)} samples/s, "
        f"{100 * one.efficiency:.0f} % of what d = {int(table['devices'].min())} does a device "
        f"(T = n/(d·v) says {between(one.ideal_samples_per_second, None, None)})"
        + (f". Beware: {'; '.join(FLAGS[flag] for flag in one.flags)}." if one.flags else ".")
        for one in told
    ]
    lines += [_measured(point) for point in series.efficiency if point.devices == max(series.devices)]
    missed = {name: error for name in laws.LAWS if (error := laws.left_out(table, name)) is not None}
    if missed:
        by = ", ".join(f"{name} {100 * error:.2g} %" for name, error in missed.items())
        best = min(missed, key=lambda name: missed[name])
        hint = f"; here --law {best} did best" if missed[best] < 0.9 * missed[law] else ""
        lines.append(
            f"What a law misses of a configuration that it has not seen (median, each left out once): {by}{hint}."
        )
    parts = [f"{100 * share:.0f} % {PARTS[name]}" for name, share in told[-1].shares.items() if share >= 0.005]
    if len(parts) > 1:
        lines.append(f"Time of a step on d = {told[-1].devices}, by that law: {', '.join(parts)}.")
    found = series.law(law) if law in laws.LAWS else None
    unknown = [name for name, parameter in (found.parameters if found else {}).items() if not parameter.identified]
    if unknown:
        lines.append(f"Not identified by these runs, so taken from what is usual: {', '.join(unknown)}.")
    if found and found.confounded:
        lines.append(f"These runs cannot tell {found.confounded[0]} from {found.confounded[1]}.")
    return lines + curves.sentences(table)

"""What more devices would bring, by the law with losses, beside the plain T = n / (d · v); and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analytics import curves, laws
from analytics.scaling import Efficiency, SeriesFit
from analytics.words import FLAGS, between

LEVEL, _DRAWS = 0.8, 4000
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

    `efficiency` is the share of the plain speed-up that is left, against the fewest measured devices, with its 80 % interval.
    `shares` say where the time of a step goes (keys of PARTS, adding up to 1), `flags` what speaks against it (keys of
    `words.FLAGS`).
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
    efficiency_low: float | None
    efficiency_high: float | None
    shares: dict[str, float]
    flags: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        return asdict(self)


def outlook(
    series: SeriesFit, devices: Sequence[int] = (), law: str = "step", work: float | None = None
) -> list[Outlook]:
    """Predict the speed of a series on `devices` (otherwise twice and four times the most that were measured).

    The model takes `work` FLOP a sample, otherwise those of the largest measured one. The batch a device is that of the
    measured configuration that is nearest in work, on the most devices. Raises `laws.LawError`.
    """
    table = series.observations()
    wide = float(table["work"].max()) if work is None else work
    away = np.abs(np.log(table["work"] / wide))
    like = table[away <= away.min() + 1e-3].sort_values("devices").iloc[-1]
    most, fewest = int(table["devices"].max()), int(table["devices"].min())
    wanted = sorted({*(devices or (2 * most, 4 * most))})
    here = like[["batch_size_per_device", "samples_per_device"]].to_dict()
    at = pd.DataFrame([{"devices": d, "work": wide, **here} for d in [fewest, *wanted]])
    found, plain = laws.fit(table, law), laws.fit(table, "ideal")
    told = found.predict(at, LEVEL)
    ideal = plain.predict(at)["speed"] / wide
    shares = found.explain(at)
    base = float(told["speed"].iloc[0]) / fewest
    each = found.draws(at, _DRAWS) / at["devices"].to_numpy()
    ends = np.quantile(each / each[:, :1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    out = []
    for i, d in enumerate(wanted, start=1):
        row = told.iloc[i]
        known = pd.notna(row["low"])
        low, high = (float(row[name]) / wide if known else None for name in ("low", "high"))
        least, best = (float(end) if known and d != fewest else None for end in ends[:, i])
        speed, flags = float(row["speed"]), tuple(row["flags"].split())
        parts = {str(name): float(share) for name, share in shares.iloc[i].items()}
        share = (speed / d / base, least, best)
        out.append(
            Outlook(
                series.name, law, d, wide, speed / wide, low, high, float(ideal[i]), *share, shares=parts, flags=flags
            )
        )
    return out


def missed(table: pd.DataFrame) -> dict[str, float]:
    """Return `laws.left_out` of each law over the configurations of a series; empty for one configuration."""
    return {name: error for name in laws.LAWS if (error := laws.left_out(table, name)) is not None}


def preferred(misses: Mapping[str, float], law: str = "step") -> str:
    """Return the law that misses unseen configurations least; `law` where none does so by a tenth of its miss or more."""
    best = min(reversed([*misses]), key=lambda name: round(misses[name], 4))  # of equals the plainest
    return best if misses[best] < 0.9 * misses[law] else law


def time_sentences(one: Outlook) -> list[str]:
    """Say where the time of a step goes by the law; nothing where it has no parts."""
    parts = [f"{100 * share:.0f} % {PARTS[name]}" for name, share in one.shares.items() if share >= 0.005]
    return [f"Time of a step on d = {one.devices}, by that law: {', '.join(parts)}."] if len(parts) > 1 else []


def not_told(series: SeriesFit, law: str) -> list[str]:
    """Say what of a law the runs of a series do not tell."""
    found = series.law(law)
    unknown = [name for name, parameter in found.parameters.items() if not parameter.identified]
    lines = [f"Not identified by these runs, so taken from what is usual: {', '.join(unknown)}."] if unknown else []
    if found.confounded:
        lines.append(f"These runs cannot tell {found.confounded[0]} from {found.confounded[1]}.")
    return lines


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
    if misses := missed(table):
        by = ", ".join(f"{name} {100 * error:.2g} %" for name, error in misses.items())
        best = preferred(misses, law)
        hint = f"; here --law {best} did best" if best != law else ""
        lines.append(
            f"What a law misses of a configuration that it has not seen (median, each left out once): {by}{hint}."
        )
    return [*lines, *time_sentences(told[-1]), *not_told(series, law), *curves.sentences(table)]

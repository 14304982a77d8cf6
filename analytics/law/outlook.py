"""What more devices would bring, by the law with losses, beside the plain T = n / (d · v); and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analytics.interval import Interval, plain
from analytics.law import law as laws
from analytics.law.series import SeriesFit, Unit

LEVEL, _DRAWS = 0.8, 4000
MISSED = 0.15
"""Share by which the law may miss a measured speed: noisy runs leave it to its priors."""
CONTRADICTED = "law_contradicts_measured"
PARTS = {
    "computing": "computing",
    "collective": "exchanging gradients within a node",
    "latency": "exchanging gradients between nodes",
    "fixed": "fixed work of each pass",
    "small": "a model too small for the device",
    "leftover": "unexplained losses",
}


@dataclass(frozen=True)
class Outlook:
    """Speed on so many devices: samples per second of all of them by the law, with an 80 % interval, and by the plain law.

    Where the work of the series is counted in tokens (`unit`), these are meant by samples.

    `efficiency` is the share of the plain speed-up that is left, relative to the fewest measured devices. `shares` say
    where the time of a step goes (keys of PARTS, adding up to 1). `flags` limit the prediction (keys of
    `analytics.say.law.FLAGS`).
    """

    series: str
    devices: int
    flops_per_sample: float
    samples_per_second: Interval
    ideal_samples_per_second: float
    efficiency: Interval
    shares: dict[str, float]
    flags: tuple[str, ...]
    unit: Unit = "FLOP"

    @property
    def refused(self) -> bool:
        """Whether there is no prediction, as the law contradicts what was measured."""
        return CONTRADICTED in self.flags

    def to_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists, numbers and text."""
        return plain(**vars(self))


def contradictions(law: laws.Fit, table: pd.DataFrame) -> tuple[str, ...]:
    """Return the flag of a law that misses the speeds of the configurations that it was fitted to (see `say.law.FLAGS`).

    It contradicts them where it misses the ratio of two numbers of devices by more than MISSED and by more than two standard
    errors of their repeats (`spread`).
    """
    missed = pd.Series(np.log(law.predict(table)["speed"] / table["speed"]))
    by_devices = missed.groupby(table["devices"]).mean()
    noise = 2 * math.sqrt(2) * float(table["spread"].max())
    if by_devices.max() - by_devices.min() > max(math.log1p(MISSED), noise):
        return (CONTRADICTED,)
    return ("law_misses_measured",) if np.abs(np.expm1(missed)).max() > MISSED else ()


def outlook(series: SeriesFit, devices: Sequence[int] = (), work: float | None = None) -> list[Outlook]:
    """Predict the speed of a series on `devices` (otherwise twice and four times the most measured ones).

    The model takes `work` FLOP a sample, otherwise those of the largest measured one. The batch per device is that of the
    measured configuration with the nearest work, on the most devices. Raises `laws.LawError`.
    """
    table = series.observations()
    size = float(table["work"].max()) if work is None else work
    away = np.abs(np.log(table["work"] / size))
    like = table[away <= away.min() + 1e-3].sort_values("devices").iloc[-1]
    fewest, most = int(table["devices"].min()), int(table["devices"].max())
    counts = [fewest, *sorted({*(devices or (2 * most, 4 * most))})]
    nodes = {"num_nodes": 1} if series.host.shares else {}
    batch = like[["batch_size_per_device", "samples_per_device"]].to_dict()
    at = pd.DataFrame([{"devices": count, "work": size, **nodes, **batch} for count in counts])
    law = laws.fit(table)
    rates, shares = law.predict(at, LEVEL), law.explain(at)
    same = (table["work"] / size - 1).abs() < 1e-3
    here = table[same if same.any() else np.isclose(table["work"], like["work"])]
    wrong = contradictions(law, here)
    refused = CONTRADICTED in wrong
    ideal = laws.fit(table, plain=True).predict(at)["speed"] / size
    each = law.draws(at, _DRAWS) / at["devices"].to_numpy()
    ends = np.quantile(each / each[:, :1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    out = []
    for i, count in list(enumerate(counts))[1:]:
        rate, parts = rates.iloc[i], {str(name): float(share) for name, share in shares.iloc[i].items()}
        speed, slow, fast = (float(x) / size for x in rate[["speed", "low", "high"]])
        share = float(rate["speed"] / count / (rates["speed"].iloc[0] / fewest))
        low, high = (None, None) if count == fewest else map(float, ends[:, i])
        absent = Interval(math.nan, level=LEVEL)
        out.append(
            Outlook(
                series=series.name,
                devices=count,
                flops_per_sample=size,
                samples_per_second=absent if refused else Interval(speed, slow, fast, level=LEVEL),
                ideal_samples_per_second=float(ideal[i]),
                efficiency=absent if refused else Interval(share, low, high, level=LEVEL),
                shares={} if refused else parts,
                flags=(*rate["flags"].split(), *wrong, *series.host.flags(count)),
                unit=series.unit,
            )
        )
    return out

"""Published sums of trainings: what the planner must come to, with the figure as published."""

from __future__ import annotations

from dataclasses import dataclass

from analytics.plan.plan import Plan, Question
from analytics.plan.speed import GivenSpeed
from analytics.work import language_model, sample_work, scaled
from bench.schema import Site

DAY = 86400.0


@dataclass(frozen=True)
class Fixture:
    """What the planner says of a published training, and what was published, in the same unit."""

    name: str
    unit: str
    value: float
    published: float


def _days(parameters: float, tokens: float, speed: float, devices: int, *, per: str, recompute: bool = False) -> float:
    """Days by the planner; `speed` in tokens or FLOP a second of one device."""
    work = language_model(parameters, tokens, recompute=recompute, plain=True)
    each = speed * (work.flops / tokens if per == "tokens" else 1)
    found = Plan(Question(work, GivenSpeed(each), (devices,))).options[0].duration_seconds
    return found.value / DAY


def _mwh(hours: float, watts: float, pue: float) -> float:
    """Energy by the planner, of known hours of all devices together."""
    rate, site = GivenSpeed(1e20 / hours / 3600), Site(pue=pue)
    found = Plan(Question(sample_work(1.0, 1e20), rate, (1,), site=site, watts=watts, counted=False)).options[0]
    assert found.facility_energy_joules is not None
    return found.facility_energy_joules.value / 3.6e9


def fixtures() -> list[Fixture]:
    """Times of T = n / (d · v) and energies of hours × watts × PUE."""
    known = {"hours": 3000.0, "params": 340e6, "devices": 8.0, "speed": 2e9}
    textbook, _ = scaled(known, {"params": 100e6, "devices": 16.0, "speed": 4e9})
    return [
        Fixture("NeMo GPT-3 5B", "days", _days(5e9, 300e9, 726_384, 1, per="tokens"), 4.8),
        Fixture("LLaMA-65B", "days", _days(65e9, 1.4e12, 380, 2048, per="tokens"), 21),
        Fixture("Megatron GPT-3", "days", _days(175e9, 300e9, 140e12, 1024, per="FLOP", recompute=True), 34),
        Fixture("Megatron 1T", "days", _days(1.008e12, 450e9, 163e12, 3072, per="FLOP", recompute=True), 84),
        Fixture("textbook BERT", "hours", textbook, 220.6),
        Fixture("LLaMA-7B", "MWh", _mwh(82_432, 400, 1.1), 36),
        Fixture("LLaMA-13B", "MWh", _mwh(135_168, 400, 1.1), 59),
        Fixture("LLaMA-33B", "MWh", _mwh(530_432, 400, 1.1), 233),
        Fixture("LLaMA-65B", "MWh", _mwh(1_022_362, 400, 1.1), 449),
        Fixture("T5", "MWh", _mwh(512 * 20 * 24, 310, 1.12), 85.7),
        Fixture("GPT-3", "MWh", _mwh(10_000 * 14.8 * 24, 330, 1.1), 1287),
    ]

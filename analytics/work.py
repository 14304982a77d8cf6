"""The work of a training in FLOP, and the arithmetic of T = n / (d · v) from a training that is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from analytics.text import counted, number, percent
from bench.errors import BadValue

TYPICAL_SEQUENCE = 4096
SAME_MODEL = 1.1
"""Models whose parameters differ by no more than this factor are the same: 6.7B is sold as 7B."""
_VOCABULARY = 2**18
"""More tokens than vocabularies have: what the tables of embeddings of a model may hold at most."""
IMPLAUSIBLE = (0.01, 0.65)
"""Model FLOP utilization below or above which an input is probably wrong (not all hours counted, or too many)."""
_MOST_FLOPS = 1e33
"""More than a million million million device-hours: the numbers cannot be meant."""


@dataclass(frozen=True)
class Work:
    """Work of a whole training in FLOP; `model_flops` without what recomputing adds, which MFU counts.

    `per_sample` is the model's work on one sample (one sequence); `parameters` are all that a language model trains, None
    for other work, and `shape` its layers, hidden size and sequence; `says` shows the arithmetic, `assumed` what is typical.
    Raises ValueError for more than can be meant.
    """

    flops: float
    model_flops: float
    per_sample: float
    parameters: float | None
    says: tuple[str, ...]
    shape: tuple[float, float, float] | None = None
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.flops < _MOST_FLOPS and (self.parameters is None or self.parameters > 0)):
            raise BadValue(
                f"{number(self.flops)} FLOP cannot be meant (at most {number(_MOST_FLOPS)}): check the numbers"
            )

    @property
    def samples(self) -> float:
        """Return how many samples (sequences) the whole training sees."""
        return self.model_flops / self.per_sample

    @property
    def tokens(self) -> float | None:
        """Return how many tokens a language model sees; None for other work."""
        length = self.shape[2] if self.shape else TYPICAL_SEQUENCE
        return None if self.parameters is None else self.samples * length

    def times(self, factor: float) -> Work:
        """Return the same on so many times as many samples."""
        return replace(self, flops=self.flops * factor, model_flops=self.model_flops * factor)

    def counted(self, parameters: float, sequence: float) -> float:
        """Return the work of one sample of a language model that was measured, by the rule by which this work is counted.

        A model of the same parameters, within SAME_MODEL, is the planned one: it has its shape. Others are typical.
        """
        if self.shape is None or self.parameters is None:
            raise BadValue("the shape of the planned language model is not known")
        if abs(math.log(parameters / self.parameters)) > math.log(SAME_MODEL):
            return language_model(parameters, 1.0, sequence=sequence).per_sample
        deep, wide, length = self.shape
        return (self.per_sample / length + 12 * deep * wide * (sequence - length)) * sequence


def language_model(
    parameters: float,
    tokens: float,
    *,
    active: float | None = None,
    layers: float | None = None,
    hidden: float | None = None,
    sequence: float | None = None,
    recompute: bool = False,
    plain: bool = False,
) -> Work:
    """Return the work of training a language model: 6 N a token, and attention, 12 L h s a token (PaLM, appendix B).

    `active` are the parameters that work on one token (of a mixture of experts); with `recompute` activations are computed
    twice, 4/3 of the work. Where the shape is not given, a typical one is assumed, and said: N = 12 L h² with h = 128 L
    (Kaplan et al. 2020), sequences of 4,096 tokens. `plain` leaves attention out where no shape is given, and says so.
    Raises ValueError for what does not fit together.
    """
    if (layers is None) != (hidden is None):
        raise BadValue("the shape of the model takes both: its layers and its hidden size")
    if parameters < 1000:
        raise BadValue(f"{short(parameters)} parameters are no language model: 7B is written with its B")
    n = active if active is not None else parameters
    if n > parameters:
        raise BadValue(f"{short(n)} active parameters are more than all {short(parameters)}")
    if layers and hidden and active is None:
        _check_shape(parameters, layers, hidden)
    attention, length, shape, assumed = 0.0, sequence or TYPICAL_SEQUENCE, None, list[str]()
    if plain and layers is None and sequence is None:
        small = " (it is a large part for fewer than 1B parameters)" if n < 1e9 else ""
        note = (
            f"attention is left out of the work{small}: give the layers, the hidden size and the sequence to count it"
        )
        assumed = ["work without attention"]
    else:
        deep = layers or max(1.0, (n / (12 * 128**2)) ** (1 / 3))
        wide = hidden or math.sqrt(n / 12 / deep)
        attention, shape = 12 * deep * wide * length, (deep, wide, length)
        assumed = [f"{counted(round(deep), 'layer')} of {number(round(wide))}"] if layers is None else []
        assumed += [f"sequences of {number(length)}"] if sequence is None else []
        note = f"attention is {percent(round(attention / (6 * n + attention), 2))} of the work"
    factor = 4 / 3 if recompute else 1.0
    what = f"(6 × {short(n)}{f' + attention {short(attention)}' if attention else ''})"
    what += " × 4/3 (recompute)" if recompute else ""
    model = (6 * n + attention) * tokens
    says = f"n = {short(tokens)} tokens × {what} = {number(model * factor)} FLOP"
    return Work(model * factor, model, (6 * n + attention) * length, parameters, (says, note), shape, tuple(assumed))


def _check_shape(parameters: float, layers: float, hidden: float) -> None:
    """Refuse a shape that holds less than half or more than twice of the parameters; embeddings may be the rest."""
    blocks, embeddings = 12 * layers * hidden**2, 2 * _VOCABULARY * hidden
    if not (parameters - embeddings) / 2 <= blocks <= 2 * parameters:
        raise BadValue(
            f"{number(layers)} layers of {number(hidden)} hold about {short(blocks)} parameters (12 × layers × hidden²) "
            f"without embeddings, not {short(parameters)}: check them, or give --active-params of a mixture of experts"
        )


def sample_work(flops_per_sample: float, samples: float) -> Work:
    """Return the work of training on `samples` of `flops_per_sample` each."""
    total = flops_per_sample * samples
    says = f"n = {short(samples)} samples × {short(flops_per_sample)} FLOP = {number(total)} FLOP"
    return Work(total, total, flops_per_sample, None, (says,))


def short(value: float) -> str:
    """Print a count as people say it: 7B, 1.4T."""
    for power, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if power <= value < 1e16:
            return f"{number(value / power)}{unit}"
    return number(value)


def implied_mfu(model_flops: float, device_hours: float, peak: float) -> tuple[float, tuple[str, ...]]:
    """Return the MFU that hours imply, and the flag `mfu_implausible` where it can hardly be true.

    `model_flops` is the work of the model, `device_hours` are those of all devices together, `peak` is in FLOP/s of one.
    """
    mfu = model_flops / (device_hours * 3600 * peak)
    return mfu, () if IMPLAUSIBLE[0] <= mfu <= IMPLAUSIBLE[1] else ("mfu_implausible",)


def scaled(known: dict[str, float], wanted: dict[str, float]) -> tuple[float, list[str]]:
    """Scale a known training by T = n / (d · v); return its hours and the arithmetic line by line.

    `known` has `hours`, and both have what differs of `params`, `tokens`, `devices` and `speed` (of one device, any unit).
    Raises ValueError where only one of the two has it.
    """
    words = {
        "params": "work, parameters",
        "tokens": "work, tokens",
        "devices": "devices",
        "speed": "speed of one device",
    }
    lines, factors = ["T = n / (d · v), all else the same:"], []
    for name, what in words.items():
        if (name in known) != (name in wanted):
            raise BadValue(f"{name} is given for one of the two trainings only: give it for both, or for none")
        if name in known:
            a, b = (wanted[name], known[name]) if what.startswith("work") else (known[name], wanted[name])
            factors.append((a / b, f" × ({short(a)} / {short(b)})"))
            lines.append(f"  {what}: {short(a)} / {short(b)} = {number(a / b)}")
    hours = known["hours"] * math.prod(factor for factor, _ in factors)
    product = "".join(text for _, text in factors)
    lines.append(f"T = {number(known['hours'])} h{product} = {number(hours)} h")
    return hours, lines

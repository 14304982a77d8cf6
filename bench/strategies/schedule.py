"""Learning rate schedules: functions `(optimizer, steps, **options) -> scheduler`.

`steps` are the measured steps, with which the schedule begins. The steps before the window have the full rate, because
their number may depend on time. `warmup` is the share of `steps` in which the rate rises from 0 at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


def _scheduler(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float, after: Callable[[float], float]
) -> LRScheduler:

    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return after(min(1.0, (step - rise) / max(1, steps - rise)))

    return LambdaLR(optimizer, factor)


def constant(optimizer: torch.optim.Optimizer, steps: int, *, warmup: float) -> LRScheduler:
    """The same rate throughout."""
    return _scheduler(optimizer, steps, warmup, lambda done: 1.0)


def linear(optimizer: torch.optim.Optimizer, steps: int, *, warmup: float, final: float) -> LRScheduler:
    """Linear decay to `final` times the rate."""
    return _scheduler(optimizer, steps, warmup, lambda done: 1 - (1 - final) * done)


def cosine(optimizer: torch.optim.Optimizer, steps: int, *, warmup: float, final: float) -> LRScheduler:
    """Half a cosine, down to `final` times the rate (Loshchilov and Hutter 2017, without restarts)."""
    return _scheduler(optimizer, steps, warmup, lambda done: final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)


def step(optimizer: torch.optim.Optimizer, steps: int, *, warmup: float, factor: float, stages: int) -> LRScheduler:
    """Multiply the rate by `factor` at the end of each of `stages` equal stages."""
    return _scheduler(optimizer, steps, warmup, lambda done: factor ** min(stages - 1, int(done * stages)))

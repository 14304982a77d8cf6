"""Learning rate over the steps of a training: functions `(optimizer, steps, **options) -> scheduler`.

`steps` are the measured steps: the schedule begins with them, and the steps before the window are made at the full rate, as
their number may depend on time. `warmup` is the share of `steps` in which the rate rises from 0 at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LRScheduler


def _scheduler(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float, after: Callable[[float], float]
) -> LRScheduler:
    from torch.optim.lr_scheduler import LambdaLR

    if not 0 <= warmup < 1:
        raise ValueError(f"schedule: warmup is a share of the measured steps, from 0 to below 1, not {warmup}")
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return after(min(1.0, (step - rise) / max(1, steps - rise)))

    return LambdaLR(optimizer, factor)


def constant(optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.0) -> LRScheduler:
    """The same rate throughout."""
    return _scheduler(optimizer, steps, warmup, lambda done: 1.0)


def linear(optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.1, final: float = 0.0) -> LRScheduler:
    """Straight down to `final` times the rate."""
    return _scheduler(optimizer, steps, warmup, lambda done: 1 - (1 - final) * done)


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.1, final: float = 0.1) -> LRScheduler:
    """Half a cosine down to `final` times the rate (Loshchilov and Hutter 2017, without restarts)."""
    return _scheduler(optimizer, steps, warmup, lambda done: final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)


def step(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.0, factor: float = 0.1, stages: int = 3
) -> LRScheduler:
    """Times `factor` at the end of each of `stages` equal parts."""
    return _scheduler(optimizer, steps, warmup, lambda done: factor ** min(stages - 1, int(done * stages)))

"""Optimizers of torch, with the options that a suite may give: functions `(parameters, **options) -> optimizer`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float = 1e-3, weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    import torch

    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)


def sgd(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float = 0.1, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    import torch

    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)

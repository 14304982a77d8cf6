"""Optimizers of torch, with the options that a suite may give: functions `(parameters, **options) -> optimizer`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float = 1e-3, weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); on a GPU the fused kernel, which does not wait for a gradient scaler."""
    import torch

    held = list(parameters)
    fused = all(parameter.is_cuda for parameter in held)
    return torch.optim.AdamW(held, lr=learning_rate, weight_decay=weight_decay, fused=fused or None)


def sgd(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float = 0.1, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    import torch

    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)

"""The remaining FLOP of a training whose model was changed or is partly frozen."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.strategies.parts import Parts
from bench.workloads.base import Workload

COUNTED = 0.2
"""Relative difference from the workload's own formula beyond which torch does not count some of its layers."""


def on_meta(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model on the meta device, without data."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta", requires_grad=False)
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def counted(workload: Workload, model: torch.nn.Module) -> int:
    """Count the FLOP of the forward and backward pass of one sample.

    torch's FlopCounterMode follows autograd. For a matrix with N weights and T rows, the forward pass takes 2 N T. The
    backward pass takes 2 N T for the gradient of the weights, if they are trained, and 2 N T for that of the activations, if
    anything below is trained. That makes 6 N T for a trained matrix, 4 N T for a frozen one above a trained one, and 2 N T
    below the lowest trained layer. Attention takes a third of its FLOP in the forward pass.
    """
    batch = tuple(tensor.to("meta") for tensor in workload.train.__getitems__([0]))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        workload.loss(model, batch).backward()
    total: int = counter.get_total_flops()
    return total


def count_share(parts: Parts) -> None:
    """Set `flops_share`: the FLOP of the model as it is now, divided by those of the workload's model trained in full."""
    with torch.device("meta"):
        model = parts.workload.build().eval()  # one sample has no batch statistics
    whole = counted(parts.workload, model)
    formula = parts.workload.flops_per_sample()
    if abs(whole / formula - 1) > COUNTED:
        parts.notes["flops"] = "FLOP of the whole training: torch does not count some layers of this model"
        return
    parts.flops_share = counted(parts.workload, on_meta(parts.model).eval()) / whole

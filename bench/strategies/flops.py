"""What is left of the FLOP of a training whose model was changed or is trained in part."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts
    from bench.workloads.base import Workload


COUNTED = 0.2
"""Where torch counts so much less or more than a workload's own formula, it does not know some of its layers."""


def on_meta(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model on the meta device, which neither holds nor computes anything."""
    import torch

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta", requires_grad=False)
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def counted(workload: Workload, model: torch.nn.Module) -> int:
    """Count the FLOP of the forward and backward pass of one sample.

    torch's FlopCounterMode follows autograd. Of a matrix with N weights that T rows go through, the forward pass takes
    2 N T; the backward pass 2 N T for the gradient of the weights, if they are trained, and 2 N T for that of the
    activations, if anything below is trained. So 6 N T of a trained matrix, 4 N T of a frozen one above a trained one, and
    2 N T below the lowest trained layer. Attention takes a third of its FLOP in the forward pass.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    batch = tuple(tensor.to("meta") for tensor in workload.train.__getitems__([0]))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        workload.loss(model, batch).backward()
    total: int = counter.get_total_flops()
    return total


def count_share(parts: Parts) -> None:
    """Set `flops_share`: the FLOP of the model as it is now over those of the workload's own model, trained in full."""
    import torch

    with torch.device("meta"):
        model = parts.workload.build().eval()  # one sample has no statistics of a batch
    whole = counted(parts.workload, model)
    known = parts.workload.flops_per_sample()
    if abs(whole / known - 1) > COUNTED:
        parts.notes["flops"] = "those of the whole training: torch counts none for some layers of this model"
        return
    parts.flops_share = counted(parts.workload, on_meta(parts.model).eval()) / whole

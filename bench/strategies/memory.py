"""The activations that the backward pass needs: functions `(parts, **options)` that change how the blocks store them.

A changed block keeps its place, its parameters and their names. Only its class changes, to a subclass with another
`forward`. So checkpoints are loaded by name, and sharding and compilation work as before. Without gradients a changed block
behaves as the original.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from bench.strategies.parts import Parts, Unsupported

_Around = Callable[..., Any]
_PRODUCTS = (
    *("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_mm"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
)
"""ATen operations with most of the arithmetic of a block: expensive to recompute, with few outputs."""


def put_around(blocks: list[torch.nn.Module], around: _Around) -> None:
    """Let `around(forward, *args, **kwargs)` run the forward pass of these blocks while gradients are recorded.

    Blocks of one class share their new class, and so the compiled code.
    """
    made: dict[type, type] = {}
    for block in blocks:
        cls = type(block)
        if cls not in made:

            def forward(self: Any, *args: Any, _cls: Any = cls, **kwargs: Any) -> Any:
                if not torch.is_grad_enabled():
                    return _cls.forward(self, *args, **kwargs)
                return around(partial(_cls.forward, self), *args, **kwargs)

            made[cls] = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
        block.__class__ = made[cls]


def _blocks(parts: Parts, every: int = 1) -> list[torch.nn.Module]:
    blocks = parts.blocks[every - 1 :: every]
    if not blocks:
        raise Unsupported(f"memory {parts.spec.memory.name} works on repeated layers, and the model has too few")
    return blocks


def _recomputed(**how: Any) -> _Around:

    return partial(checkpoint, use_reentrant=False, **how)


def recompute(parts: Parts) -> None:
    """Keep only the inputs of each block, and recompute the block in the backward pass (Chen et al. 2016)."""
    put_around(_blocks(parts), _recomputed())


def selective(parts: Parts, *, every: int, policy: str) -> None:
    """Recompute every `every`-th block: all of it (`recompute_all`), or all but its products (`save_products`).

    `save_products` keeps the outputs of matrix products, convolutions and attention, and recomputes what is cheap
    (Korthikanti et al. 2022). With `every: 1` it is often called selective recomputation.
    """
    how: dict[str, Any] = {}
    if policy == "save_products":
        saved = [getattr(torch.ops.aten, name).default for name in _PRODUCTS]
        how["context_fn"] = partial(create_selective_checkpoint_contexts, saved)
    put_around(_blocks(parts, every), _recomputed(**how))


def is_weight(tensor: torch.Tensor) -> bool:
    """Tell whether a saved tensor is a parameter, a view of one, or its cast by autocast: memory that is in use anyway."""
    base = tensor._base if tensor._base is not None else tensor
    node = base.grad_fn
    if node is not None and node.name() == "ToCopyBackward0":
        (following, _), *_ = node.next_functions
        return following is not None and following.name().endswith("AccumulateGrad")
    return isinstance(base, torch.nn.Parameter)


def _to_host(tensor: torch.Tensor, *, pinned: bool) -> Any:

    if is_weight(tensor):
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, layout=tensor.layout, pin_memory=pinned)
    host.copy_(tensor, non_blocking=pinned)
    return tensor.device, host


def _to_device(packed: Any) -> torch.Tensor:
    if not isinstance(packed, tuple):
        saved: torch.Tensor = packed
        return saved
    device, host = packed
    back: torch.Tensor = host.to(device, non_blocking=True)
    return back


def through_host(forward: Callable[..., Any], *args: Any, pinned: bool = False, **kwargs: Any) -> Any:
    """Run a forward pass whose saved activations move to the memory of the host; weights stay on the device."""
    with saved_tensors_hooks(partial(_to_host, pinned=pinned), _to_device):
        return forward(*args, **kwargs)


def offload(parts: Parts) -> None:
    """Copy what the blocks save for the backward pass to page-locked memory of the host, and back when needed.

    The copies run in the stream of the computation: the host does not wait, but the GPU computes nothing meanwhile. Weights
    are not copied.
    """
    put_around(_blocks(parts), partial(through_host, pinned=True))

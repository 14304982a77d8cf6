"""What becomes of the activations that the backward pass needs: functions `(parts, **options)` that change the blocks.

A changed block keeps its place, its parameters and their names: only its class is another one, derived from its own, whose
`forward` does the same in another way. So checkpoints are read by name, and sharding and compiling find what they expect.
Outside training (without gradients) a changed block does just what it did before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts

_Around = Callable[..., Any]
_PRODUCTS = (
    *("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_mm"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
)
"""Operations of ATen that do most of the arithmetic of a block: dear to compute again, and their outputs are few."""


def put_around(blocks: list[torch.nn.Module], around: _Around) -> None:
    """Let `around(forward, *args, **kwargs)` run the forward pass of each of these blocks while gradients are recorded.

    Blocks of one class share their new class, so that code compiled for one serves all of them.
    """
    import torch

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


def _blocks(parts: Parts) -> list[torch.nn.Module]:
    blocks = parts.blocks
    if not blocks:
        raise Unsupported(
            f"memory {parts.spec.memory.name} works on repeated layers, and the model of workload {parts.spec.workload} "
            "names none"
        )
    return blocks


def _recomputed(**how: Any) -> _Around:
    from torch.utils.checkpoint import checkpoint

    return partial(checkpoint, use_reentrant=False, **how)


def recompute(parts: Parts) -> None:
    """Keep the inputs of each block alone, and compute the block again in the backward pass (Chen et al. 2016)."""
    put_around(_blocks(parts), _recomputed())


def selective(parts: Parts, every: int = 2, policy: str = "recompute_all") -> None:
    """Recompute every `every`-th block: wholly (`recompute_all`), or all but its products (`save_products`).

    With `save_products` the outputs of matrix products, convolutions and attention are kept, and what is cheap is computed
    again (Korthikanti et al. 2022). `every: 1` with it is what is often called selective recomputation.
    """
    import torch
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    blocks = _blocks(parts)
    if policy not in ("recompute_all", "save_products"):
        raise Unsupported(f"memory selective: policy is recompute_all or save_products, not {policy!r}")
    if not 1 <= every <= len(blocks):
        raise Unsupported(f"memory selective: every must be from 1 to the number of blocks, {len(blocks)}, not {every}")
    how: dict[str, Any] = {}
    if policy == "save_products":
        saved = [getattr(torch.ops.aten, name).default for name in _PRODUCTS]
        how["context_fn"] = partial(create_selective_checkpoint_contexts, saved)
    put_around(blocks[every - 1 :: every], _recomputed(**how))


def is_weight(tensor: torch.Tensor) -> bool:
    """Whether a saved tensor is a parameter, a view of one, or its cast by autocast: memory that is held anyway."""
    import torch

    base = tensor._base if tensor._base is not None else tensor
    node = base.grad_fn
    if node is not None and node.name() == "ToCopyBackward0":
        (following, _), *_ = node.next_functions
        return following is not None and following.name().endswith("AccumulateGrad")
    return isinstance(base, torch.nn.Parameter)


def _to_host(tensor: torch.Tensor, *, pinned: bool) -> Any:
    import torch

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
    """Run a forward pass whose saved activations wait in the memory of the host; weights stay where they are."""
    from torch.autograd.graph import saved_tensors_hooks

    with saved_tensors_hooks(partial(_to_host, pinned=pinned), _to_device):
        return forward(*args, **kwargs)


def offload(parts: Parts) -> None:
    """Copy what the blocks save for the backward pass to page-locked memory of the host, and back when it is needed.

    The copies are in the same stream as the computation: the host waits for nothing, but the GPU computes nothing while it
    copies. Weights are not copied.
    """
    if parts.device.type != "cuda":
        raise Unsupported("memory offload moves activations from a GPU to the host: on a CPU they are there already")
    if parts.spec.compile.name != "eager":
        raise Unsupported("memory offload is done by hooks that a compiled step does not call: use compile eager")
    put_around(_blocks(parts), partial(through_host, pinned=True))

"""The FLOP of a step, from the operations that torch executes."""

from __future__ import annotations

import torch

UNCOUNTED = (
    "mm",
    "conv",
    "attention",
    "rnn",
    "lstm",
    "gru",
    "linear",
    "fft",
    "cdist",
    "mv",
    "dot",
    "sparse",
    "ger",
    "einsum",
)
"""Parts of the names of operations that may take many FLOP, where torch has no formula for them."""


def flop_counter():
    """Return a mode that adds up the FLOP of the operations in it, but for recomputed ones."""
    from torch.utils import flop_counter as formulas
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    known = dict(formulas.flop_registry)
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    if hasattr(aten, fused):
        known.setdefault(
            getattr(aten, fused), lambda q, k, v, *a, **o: formulas.sdpa_flop_count(q.shape, k.shape, v.shape)
        )
        known.setdefault(
            getattr(aten, fused + "_backward"),
            lambda grad, q, k, v, *a, **o: formulas.sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape),
        )

    class Counter(TorchDispatchMode):
        forward = backward = 0
        ceiling = 0  # the most that the backward of the forward takes: two products for each, and one more in attention
        uncounted = False

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            formula = known.get(func.overloadpacket)
            if formula is None:
                space, _, name = func.name().partition("::")
                plain = space in ("aten", "prim", "prims", "c10d", "_c10d_functional", "profiler")
                self.uncounted |= not plain or (space == "aten" and any(part in name for part in UNCOUNTED))
                return out
            try:
                number = formula(*args, **kwargs, out_val=out)
            except TypeError:
                number = formula(*args, **kwargs)
            if torch._C._current_graph_task_id() == -1:
                self.forward += number
                self.ceiling += (2.5 if "attention" in func.name() else 2) * number
            elif not torch.is_grad_enabled():  # what is recomputed in a backward is with gradients
                self.backward += number
            return out

    return Counter()

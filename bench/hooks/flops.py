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
PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors whose products are of their data type."""


def products_of_backward(func, args):
    """Return how many times the FLOP of an operation its backward takes at most: one for each operand with a gradient."""
    if "attention" in func.name():
        return 2.5
    operands = [each for each in args if isinstance(each, torch.Tensor) and each.dim() > 1]
    if not torch.is_grad_enabled() or len(operands) < 2:  # a checkpoint or a function with a backward of its own
        return 2
    operands = operands[-2:] if "mm" in func.name() else operands[:2]  # the others are added
    return sum(each.requires_grad for each in operands)


def _formulas(formulas):
    """Return the formulas of torch by operation, and those of attention on CPUs, which an older torch lacks."""
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
    return known


def flop_counter():
    """Return a mode that adds up the FLOP of the operations in it, but for recomputed ones; None in an older torch.

    There, operators that call functions end with an error in such a mode.
    """
    from torch.utils import flop_counter as formulas
    from torch.utils._python_dispatch import TorchDispatchMode

    if not hasattr(TorchDispatchMode, "supports_higher_order_operators"):
        return None

    known = _formulas(formulas)

    class Counter(TorchDispatchMode):
        supports_higher_order_operators = True
        forward = backward = ceiling = 0  # the last one: the most that the backward of the forward takes
        attends = uncounted = recomputes = False  # a backward without a graph recomputes what it does with gradients

        def __init__(self):
            super().__init__()
            self.products = {}

        @classmethod
        def ignore_compile_internals(cls):
            return True

        @classmethod
        def is_infra_mode(cls):  # what an older torch asks instead, before it compiles
            return not hasattr(TorchDispatchMode, "ignore_compile_internals")

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            try:
                self.add(func, args, kwargs, out)
            except Exception:  # an operation of another kind, or a formula that does not take these values
                self.uncounted = True
            return out

        def add(self, func, args, kwargs, out):
            """Add the FLOP of an operation."""
            formula = known.get(func.overloadpacket)
            if formula is None:
                space, _, name = func.name().partition("::")
                plain = space in ("aten", "prim", "prims", "c10d", "_c10d_functional", "profiler")
                self.uncounted |= not plain or (space == "aten" and any(part in name for part in UNCOUNTED))
                return
            try:
                number = formula(*args, **kwargs, out_val=out)
            except TypeError:
                number = formula(*args, **kwargs)
            kind = next(each for each in args if isinstance(each, torch.Tensor) and each.dim() > 1)
            self.uncounted |= kind.is_complex()  # formulas count products of real numbers
            kind = str(kind.dtype).replace("torch.", "") if type(kind) in PLAIN else type(kind).__name__
            self.products[kind] = self.products.get(kind, 0) + number
            self.attends |= "attention" in func.name()
            if torch._C._current_graph_task_id() == -1:
                self.forward += number
                self.ceiling += products_of_backward(func, args) * number
            elif not torch.is_grad_enabled():
                self.backward += number
            else:
                self.uncounted |= not self.recomputes

    return Counter()

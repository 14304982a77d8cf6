"""The kernel of scaled dot product attention for the whole training: functions `(parts)` that force one kernel.

torch reads forced kernels from flags of the process, and a process trains once. One call with the shape and the type of the
training tells whether the kernel supports the model.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from bench.strategies.parts import Parts, Unsupported

_FLAGS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}
_HEADINGS = {"flash": "Flash attention", "efficient": "Memory efficient", "cudnn": "CuDNN attention"}
"""Beginnings of torch's warnings `... kernel not used because:`, which come before the reasons of each kernel."""


def sdpa(parts: Parts) -> None:
    """Let torch choose the kernel of the attention."""


def flash(parts: Parts) -> None:
    """FlashAttention (Dao 2023), which never stores the attention matrix; on GPUs in 16 bits only."""
    _force(parts, "flash")


def efficient(parts: Parts) -> None:
    """Memory-efficient attention (Rabe and Staats 2021) as in xFormers, on GPUs."""
    _force(parts, "efficient")


def cudnn(parts: Parts) -> None:
    """The fused attention of cuDNN, on GPUs in 16 bits."""
    _force(parts, "cudnn")


def math(parts: Parts) -> None:
    """Plain matrix products and softmax: memory grows with the square of the sequence."""
    _force(parts, "math")


def first_call(parts: Parts) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the arguments of the model's first attention for one sample, on the meta device; None if it has none."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Watch(TorchFunctionMode):  # type: ignore[misc]  # torch's types are not read
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.scaled_dot_product_attention:
                calls.append((args, kwargs or {}))
            return function(*args, **(kwargs or {}))

    batch = tuple(tensor.to("meta") for tensor in parts.workload.train.__getitems__([0]))
    with torch.device("meta"):
        model = parts.workload.build()
    with torch.no_grad(), Watch():
        parts.workload.loss(model, batch)
    return calls[0] if calls else None


def _reason(warnings: list[str], name: str) -> str | None:
    """Return torch's first reason against a kernel; each kernel that torch considered has a heading and its reasons."""
    heading = ""
    for text in warnings:
        if text.endswith("because:"):
            heading = text
        elif heading.lower().startswith(_HEADINGS.get(name, "-").lower()):
            return text
    return None


def _force(parts: Parts, name: str) -> None:
    call = first_call(parts)
    if call is None:
        raise Unsupported(f"attention {name}: the model has no dot product attention")
    backend, dtype = getattr(SDPBackend, _FLAGS[name]), parts.precision.compute_dtype

    def real(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        tensor = torch.ones(value.shape, dtype=value.dtype, device=parts.device)
        return tensor.to(dtype).requires_grad_() if tensor.is_floating_point() else tensor

    args, kwargs = tree_map(real, call)
    why = ""
    with sdpa_kernel(backend), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.nn.functional.scaled_dot_product_attention(*args, **kwargs).sum().backward()
            chosen = torch._fused_sdp_choice(*args, **kwargs) == backend.value
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            chosen, why = False, str(error).splitlines()[0]
    if not chosen:
        reason = _reason([str(warning.message).split(" (Triggered")[0] for warning in caught], name) or why
        on = f"{str(dtype).removeprefix('torch.')} on a {'GPU' if parts.device.type == 'cuda' else 'CPU'}"
        raise Unsupported(f"attention {name} does not support this model in {on}" + (f": {reason}" if reason else ""))
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(name == "efficient")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_math_sdp(name == "math")

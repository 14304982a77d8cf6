"""The kernel of scaled dot product attention for the whole training: functions `(parts)` that force one.

torch takes forced kernels from flags of the process, and a process trains once. Whether a kernel can do what the model asks
for is found out by one call of it, of the shape and in the type of the training.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    from bench.strategies.parts import Parts

_FLAGS = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}


def sdpa(parts: Parts) -> None:
    """Let torch choose the kernel of the attention."""


def flash(parts: Parts) -> None:
    """FlashAttention (Dao 2023): never holds the matrix of weights; on GPUs in 16 bits only."""
    _force(parts, "flash")


def efficient(parts: Parts) -> None:
    """Memory-efficient attention (Rabe and Staats 2021) as in xFormers, on GPUs."""
    _force(parts, "efficient")


def cudnn(parts: Parts) -> None:
    """The fused attention of cuDNN, on GPUs in 16 bits."""
    _force(parts, "cudnn")


def math(parts: Parts) -> None:
    """Plain matrix products and softmax: needs memory for the square of the sequence."""
    _force(parts, "math")


def first_call(parts: Parts) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the arguments of the first attention that the model computes for one sample, on the meta device; or None."""
    import torch
    from torch.overrides import TorchFunctionMode

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


def _force(parts: Parts, name: str) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils._pytree import tree_map

    call = first_call(parts)
    if call is None:
        raise Unsupported(f"attention {name}: the model of workload {parts.spec.workload} has no dot product attention")
    backend, dtype = getattr(SDPBackend, _FLAGS[name]), parts.precision.compute_dtype

    def real(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        made = torch.ones(value.shape, dtype=value.dtype, device=parts.device)
        return made.to(dtype).requires_grad_() if made.is_floating_point() else made

    args, kwargs = tree_map(real, call)
    why = ""
    with sdpa_kernel(backend), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            torch.nn.functional.scaled_dot_product_attention(*args, **kwargs).sum().backward()
            chosen = torch._fused_sdp_choice(*args, **kwargs) == backend.value
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            chosen, why = False, str(error).splitlines()[0]
    if not chosen:
        # The first warnings are headings, one for each kernel that was looked at.
        said = [text for w in told if not (text := str(w.message).split(" (Triggered")[0]).endswith("because:")]
        on = f"{str(dtype).removeprefix('torch.')} on a {'GPU' if parts.device.type == 'cuda' else 'CPU'}"
        reason = next(iter(said), why)
        raise Unsupported(f"attention {name} cannot do this model in {on}" + (f": {reason}" if reason else ""))
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(name == "efficient")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_math_sdp(name == "math")

"""Number formats of training. Each is a function that readies a rank for it: `precision(device) -> Precision`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Unsupported(Exception):
    """This hardware or library cannot do what was asked: the run is skipped with this reason, it does not fail."""


@dataclass
class Precision:
    """How one step computes: the context of the forward pass, and a loss scaler where small gradients would vanish."""

    autocast: tuple[str, torch.dtype] | None = None
    scaler: Any = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type that matrix products are made in."""
        import torch

        return self.autocast[1] if self.autocast else torch.float32

    def context(self) -> AbstractContextManager[Any]:
        """Return the context that the forward pass and the loss run in."""
        import torch

        return torch.autocast(self.autocast[0], dtype=self.autocast[1]) if self.autocast else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass, of the scaled loss where there is a scaler."""
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make one step of the optimizer; the scaler leaves it out when a gradient overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def fp32(device: torch.device) -> Precision:
    """32-bit floats throughout; TF32 is switched off."""
    import torch

    torch.set_float32_matmul_precision("highest")
    return Precision()


def tf32(device: torch.device) -> Precision:
    """32-bit storage, matrix products on TF32 tensor cores (NVIDIA Ampere and newer)."""
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise Unsupported("tf32 needs an NVIDIA GPU of compute capability 8.0 or newer")
    torch.set_float32_matmul_precision("high")
    return Precision()


def bf16(device: torch.device) -> Precision:
    """32-bit parameters; autocast to bfloat16."""
    import torch

    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Unsupported(f"{torch.cuda.get_device_name(device)} has no bfloat16 arithmetic")
    return Precision((device.type, torch.bfloat16))


def fp16(device: torch.device) -> Precision:
    """32-bit parameters; autocast to float16 with a gradient scaler."""
    import torch

    return Precision((device.type, torch.float16), torch.amp.GradScaler(device.type))

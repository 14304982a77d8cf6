"""The trained model in use: quality, size and forward passes of the form in which it would be served."""

from __future__ import annotations

import copy
import math
import time
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bench.record import Inference
from bench.strategies.parts import Parts
from bench.train.trainer import Trainer, agree, synchronize

_WARMUP_PASSES = 3
_WARMUP_SHARE = 0.1
_BATCHES = 4
"""Batches that are moved to the device before the passes are timed, and used in rotation."""


def asked(parts: Parts) -> bool:
    """Whether the served form is measured: its speed on request, its quality after compression."""
    compressed = bool(parts.serve) or parts.spec.pruning.name != "none" or parts.spec.distillation.name != "none"
    return parts.spec.inference_seconds > 0 or compressed


def _whole(parts: Parts) -> bool:
    """Whether this rank holds a whole copy of the model."""
    sharded = any(isinstance(parameter, DTensor) for parameter in parts.model.parameters())
    return not sharded and parts.spec.devices_per_copy == 1


def measure(trainer: Trainer) -> Inference | None:
    """Convert the trained model to its served form and measure that; None if not requested or no rank holds all of it.

    All ranks call it, each serves a copy of its own. With one rank the model is changed in place, and is not trained
    afterwards. Weights of 32 bits compute as in the training (autocast), others in their own format.
    """
    parts = trainer.parts
    if not asked(parts):
        return None
    if not _whole(parts):
        parts.notes["inference"] = (
            f"not measured: with parallelism {parts.spec.parallelism.name} no rank holds the whole model"
        )
        return None
    trainer.optimizer.zero_grad(set_to_none=True)
    trained = parts.model
    try:
        with torch.no_grad():
            parts.model = _served(parts, trained if dist.get_world_size() == 1 else copy.deepcopy(trained))
            context = _context(parts)
            found = trainer.evaluate(context)
            timed = _passes(trainer, context) if parts.spec.inference_seconds else {}
            return Inference(
                **timed,
                model_bytes=model_bytes(parts.model),
                zeros_share=zeros_share(parts.model),
                loss=found[0] if found else None,
                accuracy=found[1] if found else None,
            )
    finally:
        parts.model = trained
        trained.train()


def _served(parts: Parts, model: torch.nn.Module) -> torch.nn.Module:
    """Return the served form, compiled if the training was: kernels of quantised weights need it to be fast."""
    model.eval()
    for serve in parts.serve:
        model = serve(model)
    if parts.spec.compile.name not in ("eager", "cuda_graphs"):
        model.compile(dynamic=False)
    return model.eval()


def _context(parts: Parts) -> AbstractContextManager[Any]:
    plain = all(type(p) is torch.nn.Parameter and p.dtype is torch.float32 for p in parts.model.parameters())
    return parts.precision.context() if plain else nullcontext()


def _passes(trainer: Trainer, context: AbstractContextManager[Any]) -> dict[str, Any]:
    """Time forward passes over batches on the device for `inference_seconds`, without synchronising in between."""
    parts, device = trainer.parts, trainer.device
    seconds = parts.spec.inference_seconds
    batches = list(islice(trainer.batches, _BATCHES))

    def forward(count: int) -> tuple[int, int]:
        synchronize(device)
        start = time.monotonic_ns()
        with context:
            for number in range(count):
                parts.workload.logits(parts.model, batches[number % _BATCHES])
        synchronize(device)
        return start, time.monotonic_ns()

    count = _WARMUP_PASSES
    forward(count)
    for share in (_WARMUP_SHARE, 1.0):
        start, end = forward(count)
        one = agree((end - start) / 1e9 / count, device)
        count = math.ceil(share * seconds / one)
    start, end = forward(count)
    samples = count * trainer.batch_size * trainer.parallel.data_ranks
    return {"samples": samples, "seconds": (end - start) / 1e9, "start_ns": start, "end_ns": end}


class _Counter:
    """A file object that only counts bytes."""

    def __init__(self) -> None:
        self.length = 0

    def write(self, data: bytes) -> int:
        """Count the bytes instead of writing them."""
        self.length += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


def model_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of the weights as `torch.save` writes them; tied weights count once, zeros like other numbers."""
    counter = _Counter()
    torch.save(model.state_dict(), counter)
    return counter.length


def zeros_share(model: torch.nn.Module) -> float:
    """Return the share of zeros among the elements of matrices and convolutions, without biases and norms."""
    zeros = total = 0
    for parameter in model.parameters():
        if parameter.dim() > 1:
            plain = _plain(parameter.detach())
            zeros += plain.numel() - int(torch.count_nonzero(plain))
            total += plain.numel()
    return zeros / total if total else 0.0


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a compressed tensor as a dense floating-point one; packed ones can only be multiplied (by the identity)."""
    for name in ("dequantize", "to_dense"):
        if getattr(type(tensor), name) is not getattr(torch.Tensor, name):
            return getattr(tensor, name)()
    if not is_traceable_wrapper_subclass(tensor):
        return tensor
    return linear(torch.eye(tensor.shape[1], dtype=tensor.dtype, device=tensor.device), tensor)

"""Context parallelism: each sequence is divided among the devices, with ring attention (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.strategies.decoders import Decoder
from bench.strategies.parallelism import Ddp
from bench.strategies.parts import Parts
from bench.workloads.base import Batch


class Section(torch.nn.Module):  # type: ignore[misc]  # torch's types are not read
    """A model that receives a part of each sequence and the positions of its tokens."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (samples, tokens, vocabulary)."""
        logits: torch.Tensor = self.model(input_ids=tokens, position_ids=positions).logits
        return logits


class Cp(Ddp):
    """Context parallelism by torch's `context_parallel`: `size` neighbouring ranks train on the same samples, 0 means all.

    Every rank holds all weights, and gradients are averaged as in ddp. Each rank holds one part from the front and one from
    the back of a sequence, which balances the work under a causal mask. Keys and values travel during the attention, in the
    forward and in the backward pass.
    """

    apart = False

    def __init__(self, parts: Parts, *, size: int, bucket_mb: int) -> None:

        super().__init__(parts, bucket_mb=bucket_mb)
        spec, size = parts.spec, size or parts.spec.world_size
        Decoder(parts.model)  # refuses other models
        self.module = Section(parts.model)
        mesh = init_device_mesh(parts.device.type, (spec.world_size // size, size), mesh_dim_names=("copies", "ring"))
        self.ring = mesh["ring"]
        self.data_rank, self.data_ranks = self.data_rank // size, spec.world_size // size

    @contextmanager
    def _sections(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Divide a batch; yield this rank's tokens and labels of shape (samples, tokens), and positions (1, tokens)."""
        seen: list[torch.Tensor] = []

        def listen(input_ids: torch.Tensor) -> SimpleNamespace:
            seen.append(input_ids.contiguous())
            return SimpleNamespace(logits=None)

        self.parts.workload.logits(listen, batch)  # the inputs of a model
        (inputs,) = seen
        labels = self.parts.workload.labels(batch).contiguous()
        positions = torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)
        buffers = [inputs, labels, positions]
        # The plain kernel would compute on gathered tensors, with the mask of another order of tokens.
        kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        cut = context_parallel(self.ring, buffers=buffers, buffer_seq_dims=[1, 1, 1], no_restore_buffers=set(buffers))
        with cut, sdpa_kernel(kernels):
            yield inputs, labels, positions

    def gradients(self, batches: Iterable[Batch], after_forward: Callable[[], None]) -> torch.Tensor:
        """Accumulate the gradients of the micro-batches of one step; return the mean loss of this rank's tokens."""
        accumulate = self.parts.spec.gradient_accumulation_steps
        total = torch.zeros((), device=self.parts.device)
        for micro, batch in zip(range(accumulate), batches, strict=False):
            with self.exchange(now=micro == accumulate - 1), self._sections(batch) as (inputs, labels, positions):
                with self.parts.precision.context():
                    logits = self.module(inputs, positions)
                    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
                    loss = loss / accumulate
                self.parts.precision.backward(loss)
            total += loss.detach()
        return total

    def score(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sums of `Workload.score` over this rank's tokens."""
        with self._sections(batch) as (inputs, labels, positions):
            logits = self.parts.model(input_ids=inputs, position_ids=positions).logits.flatten(0, 1).float()
            labels = labels.flatten()
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(-1) == labels).sum()
            return loss, correct, torch.full_like(correct, labels.numel())

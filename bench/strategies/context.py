"""Context parallelism: each sequence is cut up over the devices, attention goes round them as a ring (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

from bench.strategies.decoders import Decoder
from bench.strategies.parallelism import WEIGHTS, Ddp, refuse
from bench.strategies.parts import Parallelism, Parts
from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch


class Cp(Ddp):
    """Context parallelism by torch's `context_parallel`: `size` neighbours train on the same samples, 0 means all devices.

    Weights are on every device, and gradients are averaged as in ddp. Each device holds one stretch from the front and one
    from the back of a sequence, so that all have the same work under a causal mask. Keys and values travel during the
    attention, in the forward and in the backward pass.
    """

    apart = False
    needs_gpu = True

    def __init__(self, parts: Parts, size: int = 0, bucket_mb: int = 25) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        from bench.strategies.objective import Section

        Parallelism.__init__(self, parts)
        spec, tokens, size = parts.spec, parts.workload.tokens_per_sample, parts.spec.devices_per_copy
        if self.needs_gpu and parts.device.type != "cuda":
            raise Unsupported("cp needs GPUs: torch has no ring attention for the attention kernel of CPUs")
        queries, keys = Decoder(parts.model).heads()
        refuse(spec, WEIGHTS, "the loss is computed on parts of sequences")
        refuse(spec, ["attention", "compile"], "the ring takes the place of scaled_dot_product_attention, uncompiled")
        if queries != keys:
            raise Unsupported(f"the ring takes as many heads of keys as of queries, not {keys} and {queries}")
        if tokens is None or tokens % (2 * size):
            raise Unsupported(f"sequences of {tokens} tokens cannot be cut into {2 * size} equal stretches")
        self._replicate(Section(parts.model), bucket_mb)
        mesh = init_device_mesh(parts.device.type, (spec.world_size // size, size), mesh_dim_names=("copies", "ring"))
        self.ring = mesh["ring"]
        self.data_rank, self.data_ranks = self.data_rank // size, spec.world_size // size

    @contextmanager
    def _stretches(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Cut a batch up; give this rank's tokens and labels of shape (samples, tokens), and positions (1, tokens)."""
        import torch
        from torch.distributed.tensor.experimental import context_parallel
        from torch.nn.attention import SDPBackend, sdpa_kernel

        given: list[torch.Tensor] = []

        def listen(input_ids: torch.Tensor) -> SimpleNamespace:
            given.append(input_ids.contiguous())
            return SimpleNamespace(logits=None)

        self.parts.workload.logits(listen, batch)  # what it gives a model
        (inputs,) = given
        labels = self.parts.workload.labels(batch).contiguous()
        positions = torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)
        buffers = [inputs, labels, positions]
        # The plain kernel would be computed on gathered tensors, with the mask of another order of tokens.
        kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        cut = context_parallel(self.ring, buffers=buffers, buffer_seq_dims=[1, 1, 1], no_restore_buffers=set(buffers))
        with cut, sdpa_kernel(kernels):
            yield inputs, labels, positions

    def gradients(self, batches: Iterable[Batch], after_forward: Callable[[], None]) -> torch.Tensor:
        """Add up the gradients of the micro-batches of one step; return this rank's tokens' mean loss."""
        import torch

        accumulate = self.parts.spec.gradient_accumulation_steps
        total = torch.zeros((), device=self.parts.device)
        for micro, batch in zip(range(accumulate), batches, strict=False):
            with self.exchange(now=micro == accumulate - 1), self._stretches(batch) as (inputs, labels, positions):
                with self.parts.precision.context():
                    logits = self.module(inputs, positions)
                    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
                    loss = loss / accumulate
                self.parts.precision.backward(loss)
            total += loss.detach()
        return total

    def score(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sums of `Workload.score` over this rank's tokens."""
        import torch

        with self._stretches(batch) as (inputs, labels, positions):
            logits = self.parts.model(input_ids=inputs, position_ids=positions).logits.flatten(0, 1).float()
            labels = labels.flatten()
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(-1) == labels).sum()
            return loss, correct, torch.full_like(correct, labels.numel())

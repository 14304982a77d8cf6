"""Pipeline parallelism: each device holds some layers of a decoder, and micro-batches pass through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import pipelining
from torch.distributed.device_mesh import init_device_mesh

from bench.strategies import catalog
from bench.strategies.decoders import Decoder, to_divide
from bench.strategies.parts import Parallelism, Parts, materialize
from bench.workloads.base import Batch

_SCHEDULES = {"gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B"}


class Stage(torch.nn.Module):  # type: ignore[misc]  # torch's types are not read
    """A stage of a pipeline: samples, or the output of the stage before -> the input of the next stage.

    `model` is the stage's part of a decoder; without the head, its logits are the hidden states. `arrives` is the shape of
    one sample and the type of the last input.
    """

    def __init__(self, parts: Parts, *, first: bool) -> None:
        super().__init__()
        self.model, self.parts, self.first = parts.model, parts, first
        self.arrives: tuple[torch.Size, torch.dtype] | None = None

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """Return hidden states of shape (samples, tokens, hidden size); the last stage returns logits."""
        with self.parts.precision.context():
            if self.first:
                return self.parts.workload.logits(self.model, (data,))
            self.arrives = data.shape[1:], data.dtype
            logits: torch.Tensor = self.model(inputs_embeds=data).logits
            return logits


class Nothing(torch.nn.Module):  # type: ignore[misc]
    """In place of an embedding that another stage holds: adds 0."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return 0."""
        return torch.zeros((), device=indices.device)


def cut(decoder: Decoder, stages: int, index: int) -> int:
    """Leave the part of one stage of a decoder; return the number of its first layer."""
    names, layers = decoder.architecture, decoder.layers
    begin, end = (len(layers) * place // stages for place in (index, index + 1))
    setattr(decoder.base, names.layers, layers[begin:end])
    if index > 0:
        setattr(decoder.base, names.embedding, torch.nn.Identity())
        if names.positions is not None:
            setattr(decoder.base, names.positions, Nothing())
    if index < stages - 1:
        setattr(decoder.base, names.norm, torch.nn.Identity())
        setattr(decoder.model, names.head, torch.nn.Identity())
    return int(begin)


class Pp(Parallelism):
    """Pipeline parallelism: stages with equal numbers of layers, the embedding on the first, norm and head on the last.

    `schedule` is gpipe (Huang et al. 2019: all forward passes, then all backward passes) or 1f1b (Narayanan et al. 2019: in
    turns, with fewer stored activations). `microbatches` is their number per batch of `batch_size_per_device`; 0 chooses.
    All batches of a gradient accumulation pass without a pause. `size` stages make one copy of the model; 0 takes all
    devices. Several copies add up their gradients once, at the end. If embedding and head are one weight, the first and the
    last stage hold a copy each and add up its gradients. Activations travel in the type in which the layers compute them.
    Weights are cast to 16 bits for each micro-batch.
    """

    apart = False
    regional = True

    def __init__(self, parts: Parts, *, size: int, meta: bool, schedule: str, microbatches: int) -> None:
        super().__init__(parts)
        to_divide(parts)  # refuses other models
        spec, rank = parts.spec, self.data_rank
        self.stages = stages = size or spec.world_size
        per_batch = catalog.PpOptions(microbatches=microbatches).count(int(spec.batch_size_per_device or 1), stages)
        self.microbatches = spec.gradient_accumulation_steps * per_batch
        self.data_rank, self.data_ranks = rank // stages, spec.world_size // stages
        self.loss_ranks = self.data_ranks
        mesh = init_device_mesh(parts.device.type, (self.data_ranks, stages), mesh_dim_names=("copies", "stages"))
        self.group = mesh["stages"].get_group()
        self.index = rank % stages
        self.first, self.last = self.index == 0, self.index == stages - 1
        self.pair = _pair(mesh.mesh.tolist())
        self.shared: torch.nn.Parameter | None = None
        self.offset = self._cut(meta=meta)
        self.module = self.stage = Stage(parts, first=self.first)
        self.copies = mesh["copies"].get_group()
        stage = pipelining.PipelineStage(self.stage, self.index, stages, parts.device, group=self.group)
        self.schedule = getattr(pipelining, _SCHEDULES[schedule])(
            stage, self.microbatches, loss_fn=self._loss, scale_grads=False
        )
        self.losses: list[torch.Tensor] = []
        self.made: torch.optim.Optimizer | None = None
        parts.notes |= {
            "pipeline_stages": stages,
            "pipeline_microbatches": self.microbatches,
            "pipeline_bubble_share_ideal": (stages - 1) / (self.microbatches + stages - 1),
        }

    def _cut(self, *, meta: bool) -> int:
        """Reduce the model to this stage's part and fill it if it is on `meta`; return the number of its first layer."""
        decoder = Decoder(self.parts.model)
        shared = decoder.tied and (self.first or self.last)
        begin = cut(decoder, self.stages, self.index)
        if meta:
            decoder.model.all_tied_weights_keys = {}  # one of the two may be on another stage
            materialize(self.parts, self.index)
        if shared:
            self.shared = weight = (decoder.embedding if self.first else decoder.head).weight
            if meta:
                dist.broadcast(weight.detach(), group=self.pair, group_src=0)
        return begin

    def _loss(self, logits: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Return this micro-batch's share of the loss of a step, computed by the workload."""
        parts = self.parts
        with parts.precision.context():
            loss = parts.loss(model_of(logits), (samples,)) / self.microbatches
        self.losses.append(loss.detach())
        loss = loss / self.data_ranks  # gradients of the copies are added up
        scaled: torch.Tensor = loss if parts.precision.scaler is None else parts.precision.scaler.scale(loss)
        return scaled

    def gradients(self, batches: Iterable[Batch], after_forward: Callable[[], None]) -> torch.Tensor:
        """Send the micro-batches of one step through the stages; the loss is on the last one, elsewhere it is 0."""
        taken = [batch for _, batch in zip(range(self.parts.spec.gradient_accumulation_steps), batches, strict=False)]
        samples = torch.cat([batch[0] for batch in taken])
        target = {"target": samples} if self.last else {}
        self.schedule.step(*([samples] if self.first else []), return_outputs=False, **target)
        if self.data_ranks > 1:
            grads = [p.grad for p in self.parts.model.parameters() if p.grad is not None]
            for work in [dist.all_reduce(grad, group=self.copies, async_op=True) for grad in grads]:
                work.wait()
        if self.shared is not None:
            dist.all_reduce(self.shared.grad, group=self.pair)
        self._agree_on_overflow()
        # The first step computes one more to learn the shapes.
        losses, self.losses = self.losses[-self.microbatches :], []
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.parts.device)

    def _agree_on_overflow(self) -> None:
        """With fp16, let all stages omit a step if a gradient of one of them overflowed."""
        scaler = self.parts.precision.scaler
        if scaler is None or self.made is None:
            return
        scaler.scale(torch.zeros((), device=self.parts.device))  # a stage without a loss has scaled nothing yet
        scaler.unscale_(self.made)
        for overflow in scaler._found_inf_per_device(self.made).values():
            dist.all_reduce(overflow, dist.ReduceOp.MAX, group=self.group)

    def optimizer(self, make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """Make the optimizer of this stage's parameters."""
        self.made = super().optimizer(make)
        return self.made

    def score(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Send a whole batch through the stages; the last one returns the sums of `Workload.score`, the others zeros."""
        data = batch[0]
        if not self.first:
            assert self.stage.arrives is not None, "training comes before validation"  # noqa: S101
            shape, kind = self.stage.arrives
            data = torch.empty((len(data), *shape), dtype=kind, device=self.parts.device)
            dist.recv(data, group=self.group, group_src=self.index - 1)
        out = self.stage(data)
        if self.last:
            return self.parts.workload.score(model_of(out), batch)
        dist.send(out.contiguous(), group=self.group, group_dst=self.index + 1)
        zero = torch.zeros((), device=self.parts.device)
        return zero, zero, zero

    def state(self) -> dict[str, torch.Tensor] | None:
        """Send the weights of the first copy's stages to rank 0, tensor by tensor, under the names of the whole model."""
        if self.data_rank:
            return None
        part = {self._whole_name(name): tensor for name, tensor in self.parts.model.state_dict().items()}
        kinds: list[Any] = [None] * self.stages
        dist.all_gather_object(kinds, {n: (t.shape, t.dtype) for n, t in part.items()}, group=self.group)
        state = {name: tensor.cpu() for name, tensor in part.items()} if self.first else None
        for owner in range(1, self.stages):
            for name, (shape, kind) in kinds[owner].items():
                if self.index == owner:
                    dist.send(part[name].contiguous(), group=self.group, group_dst=0)
                elif state is not None:
                    tensor = torch.empty(shape, dtype=kind, device=self.parts.device)
                    dist.recv(tensor, group=self.group, group_src=owner)
                    state[name] = tensor.cpu()
        return state

    def _whole_name(self, name: str) -> str:
        """Return the name of a weight of this stage in the whole model, where layers are counted from the first."""
        names = Decoder(self.parts.model).architecture
        prefix = f"{names.base}.{names.layers}."
        if not name.startswith(prefix):
            return name
        layer, _, rest = name.removeprefix(prefix).partition(".")
        return f"{prefix}{int(layer) + self.offset}.{rest}"


def model_of(logits: torch.Tensor) -> Any:
    """Return a stand-in for a model whose logits were already computed."""
    return lambda **_: SimpleNamespace(logits=logits)


def _pair(pipelines: list[list[int]]) -> Any:
    """Make a group of the first and the last stage of each pipeline; return this rank's group, if it is in one."""
    groups = [dist.new_group([ranks[0], ranks[-1]]) for ranks in pipelines]
    return next((group for group in groups if dist.get_rank(group) >= 0), None)

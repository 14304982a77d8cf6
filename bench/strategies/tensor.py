"""Tensor parallelism: each layer of a decoder is divided among the devices (Shoeybi et al. 2019, Megatron-LM)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor import parallel as styles

from bench.strategies.decoders import is_conv1d, linear_of, to_divide
from bench.strategies.parts import Parallelism, Parts, materialize
from bench.strategies.sharded import Fsdp2, gathered


class Tensors:
    """A decoder whose layers are divided over a mesh of one dimension, with torch's parallel styles and DTensors.

    The attention is divided by whole heads, the MLP by its hidden units, and embedding, output projection and loss by the
    vocabulary. torch divides `nn.Linear`, so the `Conv1D` layers of GPT-2 become linear layers. The rows of a fused
    projection of query, key and value are reordered, so that a rank's part holds its heads of all three. With `sequence`,
    norms and residual stream are divided along the sequence (Korthikanti et al. 2022). All parameters become DTensors of the
    same mesh, so that one kernel of the optimizer updates them all.
    """

    def __init__(self, parts: Parts, mesh: DeviceMesh, *, sequence: bool, loss_parallel: bool) -> None:
        self.parts, self.mesh, self.sequence, self.loss_parallel = parts, mesh, sequence, loss_parallel
        self.size: int = mesh.size()
        self.decoder = to_divide(parts)
        self.converted: dict[torch.nn.Module, int] = {}
        tied = self.decoder.tied
        for block in self.decoder.layers:
            self._cut_block(block)
        self._cut_ends()
        if tied:
            self.decoder.head.weight = self.decoder.embedding.weight

    def _linear(self, layer: Any, fused: int) -> torch.nn.Module:
        """Return a layer as `nn.Linear`; rows of `fused` projections are ordered by rank, then by projection."""
        out: Any = layer
        if is_conv1d(layer):
            out = linear_of(layer)
            self.converted[out] = fused
        if fused > 1:
            for tensor in (out.weight, out.bias):
                tensor.data = self._swap(tensor.data, fused, self.size)
        return out

    @staticmethod
    def _swap(rows: torch.Tensor, outer: int, middle: int) -> torch.Tensor:
        """Reorder rows that are grouped by `outer`, then by `middle`, to be grouped by `middle`, then by `outer`."""
        return rows.unflatten(0, (outer, middle, -1)).transpose(0, 1).flatten(0, 2)

    def _cut_block(self, block: Any) -> None:

        names, fused = self.decoder.architecture, dict(self.decoder.architecture.fused)
        between = Shard(1) if self.sequence else Replicate()
        plan: dict[str, Any] = {name: _norm(between, between) for name in names.norms}
        for name in (*names.column, *names.row):
            owner, _, attribute = name.rpartition(".")
            holder = block.get_submodule(owner)
            setattr(holder, attribute, self._linear(getattr(holder, attribute), fused.get(name, 1)))
            plan[name] = (
                styles.ColwiseParallel() if name in names.column else styles.RowwiseParallel(output_layouts=between)
            )
        if self.sequence:
            whole: dict[str, Any] = {"use_local_output": True}
            inputs = whole | {"input_layouts": (Shard(1),), "desired_input_layouts": (Replicate(),)}
            named = whole | {
                "input_kwarg_layouts": {"hidden_states": Shard(1)},
                "desired_input_kwarg_layouts": {"hidden_states": Replicate()},
            }
            plan[names.mlp] = styles.PrepareModuleInput(**inputs)
            plan[names.attention] = styles.PrepareModuleInput(**(named if names.attention_by_name else inputs))
        styles.parallelize_module(block, self.mesh, plan)
        attention = getattr(block, names.attention)
        if names.fused:
            attention.split_size //= self.size
            attention.num_heads //= self.size

    def _cut_ends(self) -> None:
        """Divide embedding and head by the vocabulary; the residual stream enters and leaves the layers between them."""
        names = self.decoder.architecture
        between = Shard(1) if self.sequence else Replicate()
        plan: dict[str, Any] = {
            f"{names.base}.{names.embedding}": styles.RowwiseParallel(input_layouts=Replicate()),
            f"{names.base}.{names.norm}": _norm(between, Replicate()),
            names.head: styles.ColwiseParallel(
                output_layouts=Shard(-1) if self.loss_parallel else Replicate(), use_local_output=not self.loss_parallel
            ),
        }
        if names.positions is not None:
            plan[f"{names.base}.{names.positions}"] = _norm(Replicate(), Replicate())
        styles.parallelize_module(self.parts.model, self.mesh, plan)
        if self.loss_parallel:
            self.decoder.head.register_forward_hook(_whole_when_validating)
            loss = self.parts.loss
            # Every rank has the sum over the vocabulary.
            self.parts.loss = lambda model, batch: loss(model, batch).to_local()
        if self.sequence:
            self.decoder.layers[0].register_forward_pre_hook(self._enter)

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Take this rank's part of the sequence."""
        whole = DTensor.from_local(args[0], self.mesh, [Replicate()], run_check=False)
        return whole.redistribute(placements=[Shard(1)]).to_local(), *args[1:]

    def agree(self) -> None:
        """Give all ranks of the mesh the same copy of the random weights that each of them holds whole."""
        for parameter in self.parts.model.parameters():
            if parameter.placements[-1].is_replicate():
                dist.broadcast(parameter.detach().to_local(), group=self.mesh.get_group(), group_src=0)

    def context(self) -> AbstractContextManager[Any]:
        """Context of a forward and a backward pass."""
        return styles.loss_parallel() if self.loss_parallel else nullcontext()

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0, in their original form."""
        names = {module: name for name, module in self.parts.model.named_modules()}
        state = gathered(self.parts.model)
        if state is None:
            return None
        for module, fused in self.converted.items():
            weight, bias = (f"{names[module]}.{kind}" for kind in ("weight", "bias"))
            if fused > 1:
                state |= {name: self._swap(state[name], self.size, fused) for name in (weight, bias)}
            state[weight] = state[weight].t().contiguous()
        return state


def _norm(enters: Any, leaves: Any) -> Any:
    """Return the style of a layer whose weights every rank holds, with the placements of its input and output."""

    def arrive(module: Any, args: Any, mesh: DeviceMesh) -> Any:
        return DTensor.from_local(args[0], mesh, [enters], run_check=False), *args[1:]

    def leave(module: Any, out: Any, mesh: DeviceMesh) -> Any:
        return out.redistribute(placements=[leaves]).to_local()

    class Whole(styles.ParallelStyle):  # type: ignore[misc]  # torch's types are not read
        def _apply(self, module: Any, mesh: DeviceMesh) -> Any:
            return distribute_module(module, mesh, None, arrive, leave)

    return Whole()


def _whole_when_validating(module: torch.nn.Module, args: Any, logits: Any) -> Any:
    return logits if module.training else logits.full_tensor()


class Tp(Parallelism):
    """Tensor parallelism over all devices, which train on the same samples. See `Tensors`.

    `sequence` also divides norms and residual stream, along the sequence; torch then adds up the gradients of norms and
    biases one by one, in the step of the optimizer. `loss_parallel` computes the loss from logits that stay divided by the
    vocabulary; otherwise they are gathered.
    """

    apart = False
    regional = True

    def __init__(self, parts: Parts, *, size: int, meta: bool, sequence: bool, loss_parallel: bool) -> None:
        super().__init__(parts)
        to_divide(parts)  # refuses other models
        rank, self.data_rank, self.data_ranks = self.data_rank, 0, 1
        mesh = init_device_mesh(parts.device.type, (parts.spec.world_size,), mesh_dim_names=("tensor",))
        self.tensors = Tensors(parts, mesh, sequence=sequence, loss_parallel=loss_parallel)
        if meta:
            materialize(parts, rank)
            self.tensors.agree()

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Compute the loss on divided logits."""
        return self.tensors.context()

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0."""
        return self.tensors.state()


class FsdpTp(Fsdp2):
    """Both: groups of `size` neighbouring ranks divide the layers (tp), and each part is sharded over the groups (fsdp2)."""

    def __init__(
        self, parts: Parts, *, size: int, meta: bool, sequence: bool, loss_parallel: bool, reshard: bool, mixed: bool
    ) -> None:
        Parallelism.__init__(self, parts)
        to_divide(parts)  # refuses other models
        rank, world = self.data_rank, parts.spec.world_size
        size = size or world
        self.data_rank, self.data_ranks = rank // size, world // size
        mesh = init_device_mesh(parts.device.type, (self.data_ranks, size), mesh_dim_names=("shard", "tensor"))
        self.tensors = Tensors(parts, mesh["tensor"], sequence=sequence, loss_parallel=loss_parallel)
        self._shard(mesh["shard"], rank, reshard=reshard, offload=False, meta=meta, mixed=mixed)
        if meta:
            self.tensors.agree()

    @contextmanager
    def _both(self, *, now: bool) -> Iterator[None]:
        with super().exchange(now=now), self.tensors.context():
            yield

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Keep gradients whole until the last micro-batch; compute the loss on divided logits."""
        return self._both(now=now)

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0."""
        return self.tensors.state()

"""Tensor parallelism: each layer of a decoder is cut up over the devices (Shoeybi et al. 2019, Megatron-LM)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from bench.strategies.decoders import Decoder
from bench.strategies.parallelism import WEIGHTS, gathered, refuse
from bench.strategies.parts import Parallelism, Parts
from bench.strategies.precision import Unsupported
from bench.strategies.sharded import Fsdp2

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


def check(parts: Parts, size: int, *, sequence: bool) -> None:
    """Raise Unsupported if the layers of a model cannot be cut up over so many devices."""
    refuse(parts.spec, WEIGHTS, "it cuts up the layers that were there in the beginning")
    if parts.spec.compile.name != "eager":
        refuse(parts.spec, ["memory"], "torch cannot compile layers that are cut up and computed again")
    tokens, (queries, keys) = parts.workload.tokens_per_sample, Decoder(parts.model).heads()
    if queries % size or keys % size:
        heads = f"{queries} heads" + (f" and {keys} of keys and values" if keys != queries else "")
        raise Unsupported(f"tensor parallelism deals out whole heads: {heads} cannot be dealt out to {size} devices")
    if sequence and (tokens is None or tokens % size):
        raise Unsupported(f"sequences of {tokens} tokens cannot be cut into {size} equal parts: leave sequence out")


class Tensors:
    """A decoder whose layers are cut up over a mesh of one dimension, with torch's parallel styles and DTensors.

    Attention by whole heads, the MLP by its hidden units, embedding, output projection and loss by the vocabulary. torch cuts
    `nn.Linear`, so the `Conv1D` layers of GPT-2 become that; a fused projection of query, key and value has its rows
    reordered so that a rank's part holds its heads of each of the three. With `sequence` what lies between two such layers
    (norms, residual stream) is cut up along the sequence (Korthikanti et al. 2022). All parameters become DTensors of the
    same mesh, so that one kernel of the optimizer updates them all.
    """

    def __init__(self, parts: Parts, mesh: DeviceMesh, *, sequence: bool, loss_parallel: bool) -> None:
        self.parts, self.mesh, self.sequence, self.loss_parallel = parts, mesh, sequence, loss_parallel
        self.size: int = mesh.size()
        self.decoder = Decoder(parts.model)
        self.converted: dict[torch.nn.Module, int] = {}
        tied = self.decoder.tied
        for block in self.decoder.layers:
            self._cut_block(block)
        self._cut_ends()
        if tied:
            self.decoder.head.weight = self.decoder.embedding.weight

    def _linear(self, layer: Any, fused: int) -> torch.nn.Module:
        """Return a layer as `nn.Linear`; of `fused` projections rows are ordered by rank, then by projection."""
        import torch

        if type(layer) is not torch.nn.Linear and type(layer).__name__ != "Conv1D":
            raise Unsupported(f"tensor parallelism cuts up plain linear layers, not {type(layer).__name__}")
        out: Any = layer
        if type(layer) is not torch.nn.Linear:
            out = torch.nn.Linear(layer.nx, layer.nf, device="meta")
            turned = layer.weight.detach().t().contiguous()
            out.weight, out.bias = torch.nn.Parameter(turned, layer.weight.requires_grad), layer.bias
            self.converted[out] = fused
        if fused > 1:
            for held in (out.weight, out.bias):
                held.data = self._swap(held.data, fused, self.size)
        return out

    @staticmethod
    def _swap(rows: torch.Tensor, outer: int, middle: int) -> torch.Tensor:
        """Reorder rows that are grouped by `outer`, then by `middle`, to be grouped by `middle`, then by `outer`."""
        return rows.unflatten(0, (outer, middle, -1)).transpose(0, 1).flatten(0, 2)

    def _cut_block(self, block: Any) -> None:
        from torch.distributed.tensor import Replicate, Shard
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            PrepareModuleInput,
            RowwiseParallel,
            parallelize_module,
        )

        names, fused = self.decoder.architecture, dict(self.decoder.architecture.fused)
        between = Shard(1) if self.sequence else Replicate()
        plan: dict[str, Any] = {name: _norm(between, between) for name in names.norms}
        for name in (*names.column, *names.row):
            owner, _, attribute = name.rpartition(".")
            holder = block.get_submodule(owner)
            setattr(holder, attribute, self._linear(getattr(holder, attribute), fused.get(name, 1)))
            plan[name] = ColwiseParallel() if name in names.column else RowwiseParallel(output_layouts=between)
        if self.sequence:
            whole: dict[str, Any] = {"use_local_output": True}
            given = whole | {"input_layouts": (Shard(1),), "desired_input_layouts": (Replicate(),)}
            named = whole | {
                "input_kwarg_layouts": {"hidden_states": Shard(1)},
                "desired_input_kwarg_layouts": {"hidden_states": Replicate()},
            }
            plan[names.mlp] = PrepareModuleInput(**given)
            plan[names.attention] = PrepareModuleInput(**(named if names.attention_by_name else given))
        parallelize_module(block, self.mesh, plan)
        attention = getattr(block, names.attention)
        if names.fused:
            attention.split_size //= self.size
            attention.num_heads //= self.size

    def _cut_ends(self) -> None:
        """Cut up embedding and head by the vocabulary; between them the residual stream enters and leaves the layers."""
        from torch.distributed.tensor import Replicate, Shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        names = self.decoder.architecture
        between = Shard(1) if self.sequence else Replicate()
        plan: dict[str, Any] = {
            f"{names.base}.{names.embedding}": RowwiseParallel(input_layouts=Replicate()),
            f"{names.base}.{names.norm}": _norm(between, Replicate()),
            names.head: ColwiseParallel(
                output_layouts=Shard(-1) if self.loss_parallel else Replicate(), use_local_output=not self.loss_parallel
            ),
        }
        if names.positions is not None:
            plan[f"{names.base}.{names.positions}"] = _norm(Replicate(), Replicate())
        parallelize_module(self.parts.model, self.mesh, plan)
        if self.loss_parallel:
            self.decoder.head.register_forward_hook(_whole_when_validating)
            loss = self.parts.loss
            self.parts.loss = lambda model, batch: loss(
                model, batch
            ).to_local()  # every rank has the sum over the vocabulary
        if self.sequence:
            self.decoder.layers[0].register_forward_pre_hook(self._enter)

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Take this rank's part of the sequence."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        whole = DTensor.from_local(args[0], self.mesh, [Replicate()], run_check=False)
        return whole.redistribute(placements=[Shard(1)]).to_local(), *args[1:]

    def context(self) -> AbstractContextManager[Any]:
        """Context of a forward and a backward pass."""
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel() if self.loss_parallel else nullcontext()

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0, in the form that they had before."""
        names = {module: name for name, module in self.parts.model.named_modules()}
        found = gathered(self.parts.model)
        if found is None:
            return None
        for module, fused in self.converted.items():
            weight, bias = (f"{names[module]}.{kind}" for kind in ("weight", "bias"))
            if fused > 1:
                found |= {name: self._swap(found[name], self.size, fused) for name in (weight, bias)}
            found[weight] = found[weight].t().contiguous()
        return found


def _norm(enters: Any, leaves: Any) -> Any:
    """Style of a layer whose weights every rank holds: placements in which data arrive and go on."""
    from torch.distributed.tensor import DTensor, distribute_module
    from torch.distributed.tensor.parallel import ParallelStyle

    def arrive(module: Any, args: Any, mesh: DeviceMesh) -> Any:
        return DTensor.from_local(args[0], mesh, [enters], run_check=False), *args[1:]

    def leave(module: Any, out: Any, mesh: DeviceMesh) -> Any:
        return out.redistribute(placements=[leaves]).to_local()

    class Whole(ParallelStyle):  # type: ignore[misc]  # torch's types are not read
        def _apply(self, module: Any, mesh: DeviceMesh) -> Any:
            return distribute_module(module, mesh, None, arrive, leave)

    return Whole()


def _whole_when_validating(module: torch.nn.Module, args: Any, logits: Any) -> Any:
    return logits if module.training else logits.full_tensor()


class Tp(Parallelism):
    """Tensor parallelism over all devices, which train on the same samples. See `Tensors`.

    `sequence` cuts up norms and residual stream too, along the sequence (torch then adds up the gradients of norms and biases
    one by one, in the step of the optimizer); `loss_parallel` computes the loss from logits that
    stay cut up by the vocabulary, otherwise they are gathered.
    """

    apart = False
    regional = True

    def __init__(self, parts: Parts, size: int = 0, sequence: bool = False, loss_parallel: bool = True) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(parts)
        check(parts, parts.spec.world_size, sequence=sequence)
        self.data_rank, self.data_ranks = 0, 1
        mesh = init_device_mesh(parts.device.type, (parts.spec.world_size,), mesh_dim_names=("tensor",))
        self.tensors = Tensors(parts, mesh, sequence=sequence, loss_parallel=loss_parallel)

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Compute the loss on logits that are cut up."""
        return self.tensors.context()

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0."""
        return self.tensors.state()


class FsdpTp(Fsdp2):
    """Both: groups of `size` neighbours cut up the layers (tp), and the groups cut up what each holds of them (fsdp2)."""

    def __init__(
        self,
        parts: Parts,
        size: int = 2,
        sequence: bool = False,
        loss_parallel: bool = True,
        reshard: bool = True,
        mixed: bool = False,
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        Parallelism.__init__(self, parts)
        world = parts.spec.world_size
        check(parts, size, sequence=sequence)
        self.data_rank, self.data_ranks = self.data_rank // size, world // size
        mesh = init_device_mesh(parts.device.type, (self.data_ranks, size), mesh_dim_names=("shard", "tensor"))
        self.tensors = Tensors(parts, mesh["tensor"], sequence=sequence, loss_parallel=loss_parallel)
        self._shard(mesh["shard"], reshard=reshard, offload=False, meta=False, mixed=mixed)

    @contextmanager
    def _both(self, *, now: bool) -> Iterator[None]:
        with super().exchange(now=now), self.tensors.context():
            yield

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Hold gradients back until the last micro-batch; compute the loss on logits that are cut up."""
        return self._both(now=now)

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0."""
        return self.tensors.state()

"""Weights that are removed from a model: zeros that dense kernels still multiply, smaller matrices, or fewer layers.

Matrices and convolutions of the repeated blocks are pruned (of the whole model if it has no blocks), but not embeddings and
weights tied to them. The speed of the pruned model is measured, never deduced from its zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from bench.strategies.decoders import is_conv1d, replace_conv1d
from bench.strategies.flops import count_share
from bench.strategies.parts import Parts, Unsupported, needs_capability

_MLPS = (
    (("mlp.c_fc",), "mlp.c_proj"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    (("intermediate.dense",), "output.dense"),
    (("mlp.fc1",), "mlp.fc2"),
    (("linear1",), "linear2"),
)
"""Names of the layers of an MLP: those into the hidden neurons, and the one out of them."""
_TILE = 8
"""Tensor cores need sizes that are multiples of 8."""


class Masks:
    """Zeros of some weights, restored after each step of the optimizer by one fused kernel.

    A mask is made from a whole weight, even if ranks hold shards of it (renewing the masks gathers each weight once). So the
    number of devices does not change what is pruned. Masks have the type of the weights and use as much memory, which makes
    the multiplication fast.
    """

    def __init__(self, parts: Parts) -> None:

        inside: list[torch.nn.Module] = parts.blocks or [parts.model]
        embedding = {
            id(parameter)
            for module in parts.model.modules()
            if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)
            for parameter in module.parameters()
        }
        places = {
            id(parameter): (module, name)
            for block in inside
            for module in block.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() > 1 and "weight" in name and id(parameter) not in embedding
        }
        self.places = list(places.values())
        self.weights: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []
        if not self.places:
            raise Unsupported("the model has no matrices or convolutions to prune")

    def renew(self, make: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]) -> None:
        """Renew the masks by `make(module, whole weight) -> 0 or 1 for each element`, and apply them."""
        self.weights, self.masks = [], []
        with torch.no_grad():
            for module, name in self.places:
                weight = getattr(module, name).detach()
                whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
                mask = make(module, whole).to(weight.dtype)
                if isinstance(weight, DTensor):
                    mask = distribute_tensor(mask, weight.device_mesh, weight.placements, src_data_rank=None).to_local()
                    weight = weight.to_local()
                self.weights.append(weight)
                self.masks.append(mask.to(weight.device))
        self.apply()

    def apply(self) -> None:
        """Set the pruned weights to 0."""
        if self.masks:
            torch._foreach_mul_(self.weights, self.masks)


def smallest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Return a mask that is 0 for this share of the elements: those of least magnitude, and ties."""
    count = round(share * weight.numel())
    if not count:
        return torch.ones_like(weight)
    size = weight.abs()
    return size > size.flatten().kthvalue(count).values


def two_of_four(module: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Return a mask that keeps the two greatest of each four weights along the input of a linear layer (2:4)."""
    rows = weight if isinstance(module, torch.nn.Linear) else weight.t()  # GPT-2 stores (in, out)
    groups = rows.abs().unflatten(-1, (-1, 4))
    mask = torch.zeros_like(groups).scatter_(-1, groups.topk(2).indices, 1).flatten(-2)
    return mask if rows is weight else mask.t()


def cubic(done: float, sparsity: float) -> float:
    """Return the sparsity after this share of the pruning: sparsity · (1 - (1 - done)³) (Zhu and Gupta 2017)."""
    return sparsity * (1 - (1 - done) ** 3)


def magnitude(parts: Parts, *, sparsity: float, schedule: str, begin: float, end: float, updates: int) -> None:
    """Set the weights of least magnitude to 0, this share of each tensor, and keep them 0 while the others are trained.

    `gradual` prunes from `begin` to `end`, shares of the planned steps, in `updates` steps by a cubic schedule; `once` prunes
    everything at `begin`. With measure_seconds the number of steps is unknown before the window, so pruning begins in it.
    """
    masks, stages = Masks(parts), updates if schedule == "gradual" else 1
    reached = 0

    def after(step: int) -> None:
        nonlocal reached
        first, last = begin * parts.planned_steps, end * parts.planned_steps
        if schedule == "once" or last == first:
            stage = stages if parts.planned_steps and step >= first else 0
        else:
            stage = int(stages * min(1.0, max(0.0, (step - first) / (last - first)))) if parts.planned_steps else 0
        if stage > reached:
            reached = stage
            share = cubic(stage / stages, sparsity)
            masks.renew(lambda _, weight: smallest(weight, share))
        else:
            masks.apply()

    parts.after_step.append(after)


def semi_structured(parts: Parts) -> None:
    """Keep two of each four weights (2:4) from the first step on; sparse tensor cores skip the others in the served model."""
    needs_capability(parts.device, (8, 0), "2:4 sparsity")
    masks = Masks(parts)
    masks.places = [(m, name) for m, name in masks.places if getattr(m, name).dim() == 2 and _fits(m, getattr(m, name))]
    if not masks.places:
        raise Unsupported("2:4 sparsity needs linear layers whose sizes are multiples of 64, and the model has none")

    def after(step: int) -> None:
        if step == 1:
            masks.renew(two_of_four)
        else:
            masks.apply()

    sparse = {id(module): module for module, _ in masks.places}
    names = [name for name, module in parts.model.named_modules() if id(module) in sparse]
    half = parts.precision.compute_dtype if parts.precision.autocast else torch.float16
    parts.after_step.append(after)
    parts.serve.append(lambda model: _to_sparse(model, names, half))


def _fits(module: torch.nn.Module, weight: torch.Tensor) -> bool:
    linear = isinstance(module, torch.nn.Linear) or is_conv1d(module)
    return linear and all(size % 64 == 0 for size in weight.shape)


def _to_sparse(model: torch.nn.Module, names: list[str], dtype: torch.dtype) -> torch.nn.Module:

    replace_conv1d(model)
    model = model.to(dtype)
    for name in names:
        layer: Any = model.get_submodule(name)
        compressed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = torch.nn.Parameter(compressed, requires_grad=False)
    return model


def structured(parts: Parts, *, share: float) -> None:
    """Remove this share of the hidden neurons of each block's MLP before the training, which makes its matrices smaller.

    Neurons whose weights, in and out, have the least L2 norm are removed. The number of the others is a multiple of 8.
    """
    removed = [_shrink(block, share) for block in parts.blocks]
    if not removed or not all(removed):
        raise Unsupported(
            "pruning structured supports the MLPs of GPT-2, Llama, BERT and ViT blocks; the model has others"
        )
    parts.notes["removed_neurons"] = sum(removed)
    count_share(parts)


def _shrink(block: torch.nn.Module, share: float) -> int:
    """Remove hidden neurons of the MLP of a block; return their number."""
    modules = dict(block.named_modules())
    for into, out in _MLPS:
        if out in modules and all(name in modules for name in into):
            layers, last = [modules[name] for name in into], modules[out]
            norms = sum(_rows(layer).square().sum(1) for layer in layers) + _rows(last).square().sum(0)
            width = norms.numel()
            remaining = max(_TILE, round((1 - share) * width / _TILE) * _TILE)
            index = torch.topk(norms, remaining).indices.sort().values
            for layer in layers:
                _keep(layer, index, output=True)
            _keep(last, index, output=False)
            return int(width - remaining)
    return 0


def _rows(layer: Any) -> torch.Tensor:
    """Return the weight of a layer as (out, in)."""
    weight: torch.Tensor = layer.weight.detach()
    return weight if isinstance(layer, torch.nn.Linear) else weight.t()


def _keep(layer: Any, index: torch.Tensor, *, output: bool) -> None:
    """Keep only these outputs or inputs of a linear layer."""
    is_linear = isinstance(layer, torch.nn.Linear)
    axis = 0 if output == is_linear else 1
    weight = layer.weight
    layer.weight = torch.nn.Parameter(weight.detach().index_select(axis, index), requires_grad=weight.requires_grad)
    if output and layer.bias is not None:
        bias = layer.bias
        layer.bias = torch.nn.Parameter(bias.detach().index_select(0, index), requires_grad=bias.requires_grad)
    side = {True: ("in_features", "out_features"), False: ("nx", "nf")}[is_linear][int(output)]
    setattr(layer, side, len(index))


def layers(parts: Parts, *, remove: int) -> None:
    """Remove `remove` blocks from the middle of the model before the training."""
    blocks = parts.blocks
    if remove >= len(blocks):
        raise Unsupported(f"pruning layers: remove is {remove}, the model has {len(blocks)} repeated layers")
    holder = next(
        (
            module
            for module in parts.model.modules()
            if isinstance(module, torch.nn.ModuleList) and [id(m) for m in module] == [id(m) for m in blocks]
        ),
        None,
    )
    if holder is None:
        raise Unsupported("pruning layers needs a model whose repeated layers are in one list")
    first = (len(blocks) - remove) // 2
    del holder[first : first + remove]
    config: Any = getattr(parts.model, "config", None)
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = len(blocks) - remove
    parts.notes["removed_layers"] = remove
    try:
        count_share(parts)
    except RuntimeError as error:
        raise Unsupported(f"pruning layers: the remaining layers do not fit together: {error}") from error

"""Weights that are taken out of a model: zeros that dense kernels go on to multiply, or smaller matrices and fewer layers.

What is pruned are the matrices and convolutions of the repeated blocks (of the whole model where there are none); not
embeddings and what is tied to them. How fast the pruned model is, is measured, never deduced from its zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.strategies.flops import count_share
from bench.strategies.precision import Unsupported
from bench.strategies.quantization import linears, whole_copies_only

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts

_MLPS = (
    (("mlp.c_fc",), "mlp.c_proj"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    (("intermediate.dense",), "output.dense"),
    (("mlp.fc1",), "mlp.fc2"),
    (("linear1",), "linear2"),
)
"""MLPs of a block by the names of their layers: those into the hidden neurons, and that out of them."""
_TILE = 8
"""Tensor cores want sizes that are multiples of 8."""


class Masks:
    """Zeros of some weights, put back after each step of the optimizer by one fused kernel over all of them.

    A mask is made from a whole weight, also where ranks hold shards of it (one gathering a weight whenever masks are
    renewed), so that the number of devices does not change what is pruned. Masks have the type of the weights and take as
    much memory: that makes the multiplication fast.
    """

    def __init__(self, parts: Parts) -> None:
        import torch

        inside: list[torch.nn.Module] = parts.blocks or [parts.model]
        embedding = {
            id(parameter)
            for module in parts.model.modules()
            if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)
            for parameter in module.parameters()
        }
        found = {
            id(parameter): (module, name)
            for block in inside
            for module in block.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() > 1 and "weight" in name and id(parameter) not in embedding
        }
        self.held = list(found.values())
        self.weights: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []
        if not self.held:
            raise Unsupported("this model has no matrices or convolutions to prune")

    def renew(self, make: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]) -> None:
        """Make the masks anew by `make(module, whole weight) -> 0 or 1 for each of its elements`, and apply them."""
        import torch
        from torch.distributed.tensor import DTensor, distribute_tensor

        self.weights, self.masks = [], []
        with torch.no_grad():
            for module, name in self.held:
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
        import torch

        if self.masks:
            torch._foreach_mul_(self.weights, self.masks)


def smallest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Mask of a weight that is 0 for this share of its elements, those of the least magnitude (and their equals)."""
    import torch

    count = round(share * weight.numel())
    if not count:
        return torch.ones_like(weight)
    size = weight.abs()
    return size > size.flatten().kthvalue(count).values


def two_of_four(module: torch.nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Mask that keeps the two greatest of each four weights along the input of a linear layer (2:4)."""
    import torch

    rows = weight if isinstance(module, torch.nn.Linear) else weight.t()  # GPT-2 holds (in, out)
    groups = rows.abs().unflatten(-1, (-1, 4))
    mask = torch.zeros_like(groups).scatter_(-1, groups.topk(2).indices, 1).flatten(-2)
    return mask if rows is weight else mask.t()


def _check(parts: Parts, name: str) -> None:
    if parts.spec.parallelism.options.get("offload"):
        raise Unsupported(f"pruning {name!r} looks at whole weights, which offload keeps in parts on the hosts")
    if parts.spec.parallelism.name == "pp":
        raise Unsupported(f"pruning {name!r} does not go with parallelism 'pp', whose ranks hold different layers")
    if parts.spec.quantization.name == "qat" and name in ("magnitude", "semi_structured"):
        raise Unsupported(f"pruning {name!r} with quantization 'qat': one of them at a time can change the weights")


def cubic(done: float, sparsity: float) -> float:
    """Sparsity when this share of the pruning is done: sparsity · (1 - (1 - done)³) (Zhu and Gupta 2017)."""
    return sparsity * (1 - (1 - done) ** 3)


def magnitude(
    parts: Parts,
    sparsity: float = 0.5,
    schedule: str = "gradual",
    begin: float = 0.0,
    end: float = 0.5,
    updates: int = 16,
) -> None:
    """Set the weights of least magnitude to 0, this share of each tensor, and keep them 0 while the others are trained.

    `gradual` does it from `begin` to `end`, shares of the planned steps, in so many `updates` by a cubic schedule; `once`
    all at `begin`. With measure_seconds the number of steps is not known before the window, so pruning begins in it.
    """
    _check(parts, "magnitude")
    if schedule not in ("gradual", "once") or not (0 < sparsity < 1 and 0 <= begin <= end <= 1 and updates > 0):
        raise Unsupported(
            "pruning 'magnitude' takes schedule gradual or once, 0 < sparsity < 1, 0 <= begin <= end <= 1 and updates > 0, "
            f"not {dict(parts.spec.pruning.options)}"
        )
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
    """Keep two of each four weights (2:4) from the first step on; sparse tensor cores skip the others when it is served."""
    import torch

    _check(parts, "semi_structured")
    if parts.device.type != "cuda" or torch.cuda.get_device_capability(parts.device) < (8, 0):
        raise Unsupported(
            "2:4 sparsity needs an NVIDIA GPU of compute capability 8.0 or newer: no other has kernels for it"
        )
    whole_copies_only(parts, "pruning 'semi_structured'")
    if parts.spec.quantization.name not in ("none", "fp16"):
        raise Unsupported("2:4 sparsity is served in 16 bits: it does not go with another quantization than fp16")
    masks = Masks(parts)
    masks.held = [(m, name) for m, name in masks.held if getattr(m, name).dim() == 2 and _fits(m, getattr(m, name))]
    if not masks.held:
        raise Unsupported("this model has no linear layers whose sizes are multiples of 64, which 2:4 sparsity needs")

    def after(step: int) -> None:
        if step == 1:
            masks.renew(two_of_four)
        else:
            masks.apply()

    sparse = {id(module): module for module, _ in masks.held}
    names = [name for name, module in parts.model.named_modules() if id(module) in sparse]
    half = parts.precision.compute_dtype if parts.precision.autocast else torch.float16
    parts.after_step.append(after)
    parts.serve.append(lambda model: _to_sparse(model, names, half))


def _fits(module: torch.nn.Module, weight: torch.Tensor) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D) and all(size % 64 == 0 for size in weight.shape)


def _to_sparse(model: torch.nn.Module, names: list[str], dtype: torch.dtype) -> torch.nn.Module:
    import torch

    model = linears(model).to(dtype)
    for name in names:
        layer: Any = model.get_submodule(name)
        compressed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        layer.weight = torch.nn.Parameter(compressed, requires_grad=False)
    return model


def structured(parts: Parts, share: float = 0.25) -> None:
    """Remove this share of the hidden neurons of each block's MLP before the training, so that its matrices are smaller.

    Those go whose weights, in and out, have the least L2 norm; what is kept is a multiple of 8.
    """
    _check(parts, "structured")
    if not 0 < share < 1:
        raise Unsupported(f"pruning 'structured': share must be between 0 and 1, not {share}")
    removed = [_shrink(block, share) for block in parts.blocks]
    if not removed or not all(removed):
        raise Unsupported(
            "pruning 'structured' knows the MLPs of GPT-2, Llama, BERT and ViT blocks; this model has others"
        )
    parts.notes["removed_neurons"] = sum(removed)
    count_share(parts)


def _shrink(block: torch.nn.Module, share: float) -> int:
    """Remove hidden neurons of the MLP of a block; return how many."""
    import torch

    modules = dict(block.named_modules())
    for into, out in _MLPS:
        if out in modules and all(name in modules for name in into):
            layers, last = [modules[name] for name in into], modules[out]
            norms = sum(_rows(layer).square().sum(1) for layer in layers) + _rows(last).square().sum(0)
            width = norms.numel()
            kept = max(_TILE, round((1 - share) * width / _TILE) * _TILE)
            index = torch.topk(norms, kept).indices.sort().values
            for layer in layers:
                _keep(layer, index, output=True)
            _keep(last, index, output=False)
            return int(width - kept)
    return 0


def _rows(layer: Any) -> torch.Tensor:
    """Weight of a layer as (out, in)."""
    import torch

    weight: torch.Tensor = layer.weight.detach()
    return weight if isinstance(layer, torch.nn.Linear) else weight.t()


def _keep(layer: Any, index: torch.Tensor, *, output: bool) -> None:
    """Keep only these outputs, or inputs, of a linear layer."""
    import torch

    is_linear = isinstance(layer, torch.nn.Linear)
    axis = 0 if output == is_linear else 1
    weight = layer.weight
    layer.weight = torch.nn.Parameter(weight.detach().index_select(axis, index), requires_grad=weight.requires_grad)
    if output and layer.bias is not None:
        bias = layer.bias
        layer.bias = torch.nn.Parameter(bias.detach().index_select(0, index), requires_grad=bias.requires_grad)
    side = {True: ("in_features", "out_features"), False: ("nx", "nf")}[is_linear][int(output)]
    setattr(layer, side, len(index))


def layers(parts: Parts, remove: int = 1) -> None:
    """Remove so many blocks from the middle of the model, before the training."""
    import torch

    _check(parts, "layers")
    blocks = parts.blocks
    if not 1 <= remove < len(blocks):
        raise Unsupported(
            f"pruning 'layers': the model has {len(blocks)} repeated layers, so remove cannot be {remove}"
        )
    holder = next(
        (
            module
            for module in parts.model.modules()
            if isinstance(module, torch.nn.ModuleList) and [id(m) for m in module] == [id(m) for m in blocks]
        ),
        None,
    )
    if holder is None:
        raise Unsupported("pruning 'layers' needs a model whose repeated layers stand in one list")
    first = (len(blocks) - remove) // 2
    del holder[first : first + remove]
    config: Any = getattr(parts.model, "config", None)
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = len(blocks) - remove
    parts.notes["removed_layers"] = remove
    try:
        count_share(parts)
    except RuntimeError as error:
        raise Unsupported(f"pruning 'layers': the layers that are left do not fit together: {error}") from error

"""Number formats of the weights that are served, by torchao: after the training, or trained for them.

All linear layers are quantised, the output projection among them; embeddings, norms and convolutions are not. What is
not quantised is stored in the type in which the training multiplied. `quantized_share` in the notes is the share of the
parameters that are.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.schema import SHARED_COPY
from bench.strategies.precision import Unsupported, store_as

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts

_INT4_GROUPS = (32, 64, 128, 256)


def whole_copies_only(parts: Parts, what: str) -> None:
    """Refuse parallelism in which no rank has a whole copy of the model."""
    name = parts.spec.parallelism.name
    if name in SHARED_COPY or "fsdp" in name or "hsdp" in name:
        raise Unsupported(
            f"{what} serves a whole copy of the model, which no rank has with parallelism {name!r}: choose ddp"
        )


def linears(model: torch.nn.Module) -> torch.nn.Module:
    """Replace the Conv1D layers of GPT-2, which hold their weights as (in, out), by linear layers that compute the same."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Conv1D):
                made = torch.nn.Linear(1, 1, device="meta")
                made.in_features, made.out_features = layer.nx, layer.nf
                weight = layer.weight.detach().t().contiguous()
                made.weight = torch.nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
                made.bias = layer.bias
                made.train(layer.training)
                setattr(module, name, made)
    return model


def _torchao() -> Any:
    try:
        return import_module("torchao.quantization")
    except ImportError:
        raise Unsupported("quantization needs torchao: pip install 'wattbench[strategies]'") from None


def _check(parts: Parts, inputs: int = 1, outputs: int = 1) -> Callable[[torch.nn.Module, str], bool]:
    """Refuse what cannot be quantised; return which linear layers can: those whose sizes are multiples of a kernel's."""
    import torch
    from transformers.pytorch_utils import Conv1D

    name = parts.spec.quantization.name
    whole_copies_only(parts, f"quantization {name!r}")

    def chosen(module: torch.nn.Module, path: str = "") -> bool:
        if isinstance(module, Conv1D):
            return bool(module.nx % inputs == 0 and module.nf % outputs == 0)
        fits = isinstance(module, torch.nn.Linear)
        return bool(fits and module.in_features % inputs == 0 and module.out_features % outputs == 0)

    if not any(chosen(module) for module in parts.model.modules()):
        raise Unsupported(f"quantization {name!r}: this model has no linear layers of fitting sizes")
    return chosen


def _note_share(parts: Parts, model: torch.nn.Module, chosen: Callable[[torch.nn.Module, str], bool]) -> None:
    taken: dict[int, int] = {
        id(weight): weight.numel()
        for module in model.modules()
        if chosen(module, "") and (weight := module.weight) is not None
    }
    parts.notes["quantized_share"] = sum(taken.values()) / sum(p.numel() for p in model.parameters())


def _serve_as(parts: Parts, config: Any, chosen: Callable[[torch.nn.Module, str], bool], dtype: Any = None) -> None:
    """Have the trained model quantised before it is served."""

    def convert(model: torch.nn.Module) -> torch.nn.Module:
        model = store_as(linears(model), dtype or parts.precision.compute_dtype)
        _note_share(parts, model, chosen)
        _torchao().quantize_(model, config, filter_fn=chosen)
        return model

    parts.serve.append(convert)


def fp16(parts: Parts) -> None:
    """16-bit floats."""
    import torch

    whole_copies_only(parts, "quantization 'fp16'")
    parts.serve.append(lambda model: store_as(model, torch.float16))


def int8(parts: Parts) -> None:
    """8-bit integer weights, symmetric, one scale an output; activations stay floats."""
    torchao = _torchao()
    _serve_as(parts, torchao.Int8WeightOnlyConfig(set_inductor_config=False), _check(parts))


def int8_asymmetric(parts: Parts) -> None:
    """8-bit integer weights with a scale and a zero point an output; activations stay floats."""
    import torch

    torchao = _torchao()
    config = torchao.IntxWeightOnlyConfig(torch.int8, mapping_type=torchao.MappingType.ASYMMETRIC)
    _serve_as(parts, config, _check(parts))


def int8_dynamic(parts: Parts) -> None:
    """8-bit integer weights and activations, both symmetric; each token's scale is found as it comes."""
    _dynamic(parts, "SYMMETRIC")


def int8_dynamic_asymmetric(parts: Parts) -> None:
    """8-bit integer weights, symmetric, and activations with a scale and a zero point for each token."""
    _dynamic(parts, "ASYMMETRIC")


def _dynamic(parts: Parts, mapping: str) -> None:
    torchao = _torchao()
    should_reduce_range = import_module("torchao.utils").should_reduce_range
    tile = 8 if parts.device.type == "cuda" else 1
    config = torchao.Int8DynamicActivationInt8WeightConfig(
        act_mapping_type=torchao.MappingType[mapping],
        set_inductor_config=False,
        reduce_range=should_reduce_range(parts.device),  # without VNNI sums of products of 8 bits overflow on a CPU
    )
    _serve_as(parts, config, _check(parts, tile, tile))


def int4(parts: Parts, group: int = 128) -> None:
    """4-bit integer weights with a scale and a zero point for each `group` of them; the rest in bfloat16."""
    import torch

    if parts.device.type != "cuda" or torch.cuda.get_device_capability(parts.device) < (8, 0):
        raise Unsupported(
            "int4 needs an NVIDIA GPU of compute capability 8.0 or newer: no other has kernels for it here"
        )
    if group not in _INT4_GROUPS:
        raise Unsupported(f"int4: group must be one of {_INT4_GROUPS}, not {group}")
    torchao = _torchao()
    config = torchao.Int4WeightOnlyConfig(
        group_size=group, set_inductor_config=False, int4_packing_format="tile_packed_to_4d"
    )
    _serve_as(parts, config, _check(parts, group), torch.bfloat16)


def qat(parts: Parts, bits: int = 8, activations: bool = True) -> None:
    """Quantisation-aware training (Jacob et al. 2018): each step rounds weights as they will be served, gradients pass.

    Weights are symmetric: of 8 bits with a scale an output, of 4 with one for each 32. `activations` quantises each token
    to 8 bits with a scale and a zero point, too.
    """
    import torch

    torchao = _torchao()
    if bits not in (4, 8):
        raise Unsupported(f"qat: bits must be 4 or 8, not {bits}")
    chosen = _check(parts, 32 if bits == 4 else 1)
    qat_config = torchao.qat.QATConfig
    grain = torchao.PerGroup(32) if bits == 4 else torchao.PerAxis(0)
    dtype = torch.int4 if bits == 4 else torch.int8
    base = (
        torchao.Int8DynamicActivationIntxWeightConfig(dtype, weight_granularity=grain)
        if activations
        else torchao.IntxWeightOnlyConfig(dtype, granularity=grain)
    )
    torchao.quantize_(linears(parts.model), qat_config(base, step="prepare"), filter_fn=chosen)

    def convert(model: torch.nn.Module) -> torch.nn.Module:
        _note_share(parts, model, chosen)
        torchao.quantize_(model, qat_config(base, step="convert"), filter_fn=None)
        return model.to(parts.precision.compute_dtype)

    parts.serve.append(convert)

"""Number formats of the served weights, by torchao: after the training, or with training for them.

All linear layers are quantized, including the output projection; embeddings, norms and convolutions are not. Other weights
are stored in the type of the training's matrix products. `quantized_share` in the notes is the share of the quantized
parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from bench.strategies.decoders import is_conv1d, replace_conv1d
from bench.strategies.parts import Parts, Unsupported, needs_capability
from bench.strategies.precision import store_as


def _check(parts: Parts, inputs: int = 1, outputs: int = 1) -> Callable[[torch.nn.Module, str], bool]:
    """Return a filter of the linear layers whose sizes are multiples of a kernel's. Raises Unsupported if none fits."""

    def chosen(module: torch.nn.Module, path: str = "") -> bool:
        if is_conv1d(module):
            return bool(module.nx % inputs == 0 and module.nf % outputs == 0)
        fits = isinstance(module, torch.nn.Linear)
        return bool(fits and module.in_features % inputs == 0 and module.out_features % outputs == 0)

    if not any(chosen(module) for module in parts.model.modules()):
        sizes = f"multiples of {inputs} and {outputs}"
        raise Unsupported(f"quantization {parts.spec.quantization.name}: no linear layer has sizes that are {sizes}")
    return chosen


def _note_share(parts: Parts, model: torch.nn.Module, chosen: Callable[[torch.nn.Module, str], bool]) -> None:
    quantized: dict[int, int] = {
        id(weight): weight.numel()
        for module in model.modules()
        if chosen(module, "") and (weight := module.weight) is not None
    }
    parts.notes["quantized_share"] = sum(quantized.values()) / sum(p.numel() for p in model.parameters())


def _serve_as(parts: Parts, config: Any, chosen: Callable[[torch.nn.Module, str], bool], dtype: Any = None) -> None:
    """Quantize the trained model before it is served."""

    def convert(model: torch.nn.Module) -> torch.nn.Module:
        replace_conv1d(model)
        store_as(model, dtype or parts.precision.compute_dtype)
        _note_share(parts, model, chosen)
        import_module("torchao.quantization").quantize_(model, config, filter_fn=chosen)
        return model

    parts.serve.append(convert)


def fp16(parts: Parts) -> None:
    """16-bit floats."""
    parts.serve.append(lambda model: store_as(model, torch.float16))


def int8(parts: Parts) -> None:
    """8-bit integer weights, symmetric, with one scale for each output; activations stay floats."""
    torchao = import_module("torchao.quantization")
    _serve_as(parts, torchao.Int8WeightOnlyConfig(set_inductor_config=False), _check(parts))


def int8_asymmetric(parts: Parts) -> None:
    """8-bit integer weights with a scale and a zero point for each output; activations stay floats."""
    torchao = import_module("torchao.quantization")
    config = torchao.IntxWeightOnlyConfig(torch.int8, mapping_type=torchao.MappingType.ASYMMETRIC)
    _serve_as(parts, config, _check(parts))


def int8_dynamic(parts: Parts) -> None:
    """8-bit integer weights and activations, both symmetric, with a scale for each token."""
    _dynamic(parts, "SYMMETRIC")


def int8_dynamic_asymmetric(parts: Parts) -> None:
    """8-bit integer weights, symmetric, and activations with a scale and a zero point for each token."""
    _dynamic(parts, "ASYMMETRIC")


def _dynamic(parts: Parts, mapping: str) -> None:
    torchao = import_module("torchao.quantization")
    should_reduce_range = import_module("torchao.utils").should_reduce_range
    tile = 8 if parts.device.type == "cuda" else 1
    config = torchao.Int8DynamicActivationInt8WeightConfig(
        act_mapping_type=torchao.MappingType[mapping],
        set_inductor_config=False,
        reduce_range=should_reduce_range(parts.device),  # without VNNI sums of products of 8 bits overflow on a CPU
    )
    _serve_as(parts, config, _check(parts, tile, tile))


def int4(parts: Parts, *, group: int) -> None:
    """4-bit integer weights with a scale and a zero point for each `group`; all others in bfloat16."""
    needs_capability(parts.device, (8, 0), "int4")
    torchao = import_module("torchao.quantization")
    config = torchao.Int4WeightOnlyConfig(
        group_size=group, set_inductor_config=False, int4_packing_format="tile_packed_to_4d"
    )
    _serve_as(parts, config, _check(parts, group), torch.bfloat16)


def qat(parts: Parts, *, bits: int, activations: bool) -> None:
    """Quantization-aware training (Jacob et al. 2018): each step rounds the weights as they will be served.

    Gradients pass through the rounding. Weights are symmetric: 8 bits with a scale for each output, or 4 bits with a scale
    for each 32 weights. `activations` also quantizes each token to 8 bits with a scale and a zero point.
    """
    torchao = import_module("torchao.quantization")
    chosen = _check(parts, 32 if bits == 4 else 1)
    qat_config = torchao.qat.QATConfig
    grain = torchao.PerGroup(32) if bits == 4 else torchao.PerAxis(0)
    dtype = torch.int4 if bits == 4 else torch.int8
    base = (
        torchao.Int8DynamicActivationIntxWeightConfig(dtype, weight_granularity=grain)
        if activations
        else torchao.IntxWeightOnlyConfig(dtype, granularity=grain)
    )
    replace_conv1d(parts.model)
    torchao.quantize_(parts.model, qat_config(base, step="prepare"), filter_fn=chosen)

    def convert(model: torch.nn.Module) -> torch.nn.Module:
        _note_share(parts, model, chosen)
        torchao.quantize_(model, qat_config(base, step="convert"), filter_fn=None)
        return model.to(parts.precision.compute_dtype)

    parts.serve.append(convert)

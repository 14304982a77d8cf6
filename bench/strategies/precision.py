"""Number formats of training. Each is a function that prepares a rank for it: `precision(device, **options) -> Precision`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map

from bench.strategies.decoders import replace_conv1d
from bench.strategies.parts import Parts, Precision, Unsupported, needs_capability


def fp32(device: torch.device) -> Precision:
    """32-bit floats throughout; TF32 is off."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # of convolutions and recurrent layers
    return Precision()


def tf32(device: torch.device) -> Precision:
    """32-bit storage, matrix products on TF32 tensor cores (NVIDIA Ampere and newer)."""
    needs_capability(device, (8, 0), "tf32")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return Precision()


def _needs_bf16(device: torch.device) -> None:

    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Unsupported(f"{torch.cuda.get_device_name(device)} has no bfloat16 arithmetic")


def bf16(device: torch.device) -> Precision:
    """32-bit parameters; autocast to bfloat16."""
    _needs_bf16(device)
    return Precision((device.type, torch.bfloat16))


def bf16_params(device: torch.device) -> Precision:
    """Parameters, gradients and all computation in bfloat16, without autocast.

    The optimizer creates its state in the type of the parameters, so its moments are bfloat16 too. There is no copy in 32
    bits: an update of less than about 1/256 of a weight is lost in rounding. A training takes half the memory of fp32, and
    may end at a higher loss.
    """
    _needs_bf16(device)
    return Precision(convert=store_in_bf16, stored=torch.bfloat16)


def store_in_bf16(parts: Parts) -> None:
    """Convert 32-bit parameters to bfloat16."""
    store_as(parts.model, torch.bfloat16)


def store_as(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Convert 32-bit parameters to another type, in place, and cast the inputs of the model to it; return the model.

    Buffers keep their type, except those of batch normalization: tables, such as the frequencies of rotary positions, would
    lose too much accuracy.
    """
    for module in model.modules():
        tensors = [*module.parameters(recurse=False)]
        tensors += [*module.buffers(recurse=False)] if isinstance(module, _NormBase) else []
        for tensor in tensors:
            if tensor.dtype == torch.float32 and not is_traceable_wrapper_subclass(tensor):  # those are quantized
                tensor.data = tensor.data.to(dtype)

    def inputs(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        def cast(value: Any) -> Any:
            floats = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.to(dtype) if floats else value

        return tree_map(cast, args), tree_map(cast, kwargs)

    model.register_forward_pre_hook(inputs, with_kwargs=True)
    return model


def fp16(device: torch.device) -> Precision:
    """32-bit parameters; autocast to float16 with a gradient scaler."""
    return Precision((device.type, torch.float16), torch.amp.GradScaler(device.type))


def fp8(device: torch.device, *, recipe: str) -> Precision:
    """Linear layers of the blocks multiply in 8-bit floats with dynamic scaling (torchao); the rest as in bf16.

    Parameters have 32 bits. The time for scaling is hidden only by compile: eager, fp8 is often slower than bf16. The output
    layer and the attention stay in bfloat16.
    """
    needed = (8, 9) if recipe == "tensorwise" else (9, 0)
    needs_capability(device, needed, f"precision fp8 with recipe {recipe}", amd=("gfx942", "gfx950"))
    recipes = import_module("torchao.float8").Float8LinearConfig
    # Sizes that are not multiples of 16, such as an odd number of tokens, are padded.
    config = replace(recipes.from_recipe_name(recipe), pad_inner_dim=True)

    def convert(parts: Parts) -> None:
        linear_to_fp8(parts, config)

    kind = import_module("torchao.float8.config").e4m3_dtype  # gfx942 has a format of its own
    return Precision((device.type, torch.bfloat16), convert=convert, products=kind)


def linear_to_fp8(parts: Parts, config: Any) -> None:
    """Let the linear layers of the blocks multiply in 8-bit floats. Raises Unsupported if no layer fits.

    The `Conv1D` layers of GPT-2 become linear layers. Their weights are transposed back in the state dict, where names and
    shapes stay those of the original.
    """
    roots = parts.blocks or [parts.model]
    replaced = [place for root in roots for place in replace_conv1d(root)]
    linear = [m for root in roots for m in root.modules() if isinstance(m, torch.nn.Linear)]
    fit = {id(m) for m in linear if m.in_features % 16 == 0 and m.out_features % 16 == 0}
    fit -= set() if parts.blocks else {id(m) for m in linear[-1:]}  # the output layer
    if not fit:
        raise Unsupported("precision fp8: the sizes of a linear layer must be multiples of 16, and none has such sizes")
    convert = import_module("torchao.float8").convert_to_float8_training
    for root in roots:
        convert(root, config=config, module_filter_fn=lambda module, name: id(module) in fit)
    for parent, name in replaced:
        module = getattr(parent, name)
        module.register_state_dict_post_hook(_weight_transposed)
        module.register_load_state_dict_pre_hook(_transpose_weight)
    parts.notes["fp8_layers"] = len(fit)


def _weight_transposed(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()


def _transpose_weight(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"].t()

"""Number formats of training. Each is a function that readies a rank for it: `precision(device, **options) -> Precision`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts


class Unsupported(Exception):
    """This hardware or library cannot do what was asked: the run is skipped with this reason, it does not fail."""


@dataclass
class Precision:
    """How one step computes: the context of the forward pass, and a loss scaler where small gradients would vanish.

    `convert` changes the model itself, after the other strategies have and before it is sharded. `stored` is the type of
    the parameters, `products` that of matrix products where it is narrower than that of everything else.
    """

    autocast: tuple[str, torch.dtype] | None = None
    scaler: Any = None
    convert: Callable[[Parts], None] = lambda parts: None
    stored: torch.dtype | None = None
    products: torch.dtype | None = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type that a layer computes in."""
        import torch

        return self.autocast[1] if self.autocast else self.stored or torch.float32

    @property
    def matmul_dtype(self) -> torch.dtype:
        """Type that most matrix products are made in."""
        return self.products or self.compute_dtype

    def context(self) -> AbstractContextManager[Any]:
        """Return the context that the forward pass and the loss run in."""
        import torch

        return torch.autocast(self.autocast[0], dtype=self.autocast[1]) if self.autocast else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass, of the scaled loss where there is a scaler."""
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make one step of the optimizer; the scaler leaves it out when a gradient overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def fp32(device: torch.device) -> Precision:
    """32-bit floats throughout; TF32 is switched off."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # of convolutions and recurrent layers
    return Precision()


def tf32(device: torch.device) -> Precision:
    """32-bit storage, matrix products on TF32 tensor cores (NVIDIA Ampere and newer)."""
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise Unsupported("tf32 needs an NVIDIA GPU of compute capability 8.0 or newer")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return Precision()


def _needs_bf16(device: torch.device) -> None:
    import torch

    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Unsupported(f"{torch.cuda.get_device_name(device)} has no bfloat16 arithmetic")


def bf16(device: torch.device) -> Precision:
    """32-bit parameters; autocast to bfloat16."""
    import torch

    _needs_bf16(device)
    return Precision((device.type, torch.bfloat16))


def bf16_params(device: torch.device) -> Precision:
    """Parameters and gradients in bfloat16, and everything computed in it; no autocast.

    The optimizer makes its state like the parameters, so its moments are bfloat16 too, and there is no copy in 32 bits: of
    an update that is less than about 1/256 of a weight nothing is left after rounding. A training takes half the memory of
    fp32, and may end at a higher loss.
    """
    import torch

    _needs_bf16(device)
    return Precision(convert=store_in_bf16, stored=torch.bfloat16)


def store_in_bf16(parts: Parts) -> None:
    """Turn 32-bit parameters into bfloat16."""
    import torch

    store_as(parts.model, torch.bfloat16)


def store_as(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Turn 32-bit parameters into another type, in place, and inputs of the model with them; return the model.

    Buffers stay as they are, but for those of batch normalisation: tables (such as the frequencies of rotary positions) lose
    too much.
    """
    import torch
    from torch.nn.modules.batchnorm import _NormBase
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass
    from torch.utils._pytree import tree_map

    for module in model.modules():
        held = [*module.parameters(recurse=False)]
        held += [*module.buffers(recurse=False)] if isinstance(module, _NormBase) else []
        for tensor in held:
            if tensor.dtype == torch.float32 and not is_traceable_wrapper_subclass(tensor):  # those are quantised
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
    import torch

    return Precision((device.type, torch.float16), torch.amp.GradScaler(device.type))


FP8_EXTRA = "precision fp8 needs torchao: pip install 'wattbench[strategies]'"


def fp8(device: torch.device, recipe: str = "tensorwise") -> Precision:
    """Linear layers of the blocks multiply in 8-bit floats (torchao, scaled as they come); the rest as bf16 does.

    32-bit parameters. `recipe` is one of torchao's: tensorwise, rowwise, rowwise_with_gw_hp. Scaling takes time that only
    compile hides: eager it is often slower than bf16. The output layer and the attention stay in bfloat16.
    """
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        here = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, which could only emulate it"
        raise Unsupported(f"precision fp8 needs an NVIDIA GPU of compute capability 8.9 or newer; this is {here}")
    try:
        library = import_module("torchao.float8")
    except ImportError as error:
        raise Unsupported(FP8_EXTRA) from error
    if recipe != "tensorwise" and torch.cuda.get_device_capability(device) < (9, 0):
        raise Unsupported(f"fp8 recipe {recipe} needs an NVIDIA GPU of compute capability 9.0 or newer")
    try:
        # Sizes that are no multiples of 16, such as an odd number of tokens, are padded.
        config = replace(library.Float8LinearConfig.from_recipe_name(recipe), pad_inner_dim=True)
    except ValueError as error:
        raise Unsupported(f"torchao has no fp8 recipe {recipe!r}") from error

    def convert(parts: Parts) -> None:
        linear_to_fp8(parts, config)

    return Precision((device.type, torch.bfloat16), convert=convert, products=torch.float8_e4m3fn)


def linear_to_fp8(parts: Parts, config: Any) -> None:
    """Let the linear layers in the blocks multiply in 8-bit floats; raise Unsupported where there are none.

    GPT-2 of transformers has `Conv1D` in their place, a linear layer whose weight is stored transposed. It is replaced by
    one, and its weight is transposed back in the state dict, where names and shapes stay those of the original.
    """
    import torch

    spec = parts.spec
    for axis, name in (("finetune", "full"), ("quantization", "none"), ("pruning", "none")):
        if getattr(spec, axis).name != name:
            raise Unsupported(f"precision fp8 is not combined with {axis} {getattr(spec, axis).name}")
    if spec.parallelism.name in ("tp", "fsdp_tp", "pp"):
        raise Unsupported(
            f"precision fp8 is not combined with parallelism {spec.parallelism.name}: choose ddp or fsdp2"
        )
    roots = parts.blocks or [parts.model]
    turned = [linear for root in roots for linear in _without_conv1d(root)]
    linear = [m for root in roots for m in root.modules() if isinstance(m, torch.nn.Linear)]
    fit = {id(m) for m in linear if m.in_features % 16 == 0 and m.out_features % 16 == 0}
    fit -= set() if parts.blocks else {id(m) for m in linear[-1:]}  # the output layer
    if not fit:
        raise Unsupported("precision fp8: no linear layer inside the model has sizes that are multiples of 16")
    convert = import_module("torchao.float8").convert_to_float8_training
    for root in roots:
        convert(root, config=config, module_filter_fn=lambda module, name: id(module) in fit)
    for parent, name in turned:
        module = getattr(parent, name)
        module.register_state_dict_post_hook(_weight_transposed)
        module.register_load_state_dict_pre_hook(_transpose_weight)
    parts.notes["fp8_layers"] = len(fit)


def _without_conv1d(root: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Replace each Conv1D of transformers below a module by an equal linear layer; return where they are."""
    import torch
    from transformers.pytorch_utils import Conv1D

    found = [
        (parent, name) for parent in root.modules() for name, m in parent.named_children() if isinstance(m, Conv1D)
    ]
    for parent, name in found:
        old = getattr(parent, name)
        features = old.weight.shape
        new = torch.nn.Linear(*features, device="meta")
        new.weight = torch.nn.Parameter(old.weight.detach().t().contiguous(), requires_grad=old.weight.requires_grad)
        new.bias = old.bias
        setattr(parent, name, new)
    return found


def _weight_transposed(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()


def _transpose_weight(module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"].t()

"""Which weights are trained: all of them, the last layers, or small additions (parameter-efficient fine-tuning).

Where a run starts from the weights of another (`needs`), tensors that were not there, such as the head of another task, are
trained whatever else is frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bench.strategies.flops import count_share
from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    import torch

    from bench.strategies.parts import Parts

CUT_UP = ("tp", "pp", "fsdp_tp")
"""Parallelism that cuts the layers themselves up: by their names, or into ranks that hold different ones."""


def _begin_from(parts: Parts, name: str) -> None:
    """Refuse what makes no sense with fine-tuning in part, and say what the frozen weights are."""
    if parts.spec.distillation.name != "none":
        raise Unsupported(
            f"finetune {name!r} with distillation: the student starts at random, so all of it must be trained"
        )
    if parts.spec.quantization.name == "qat":
        raise Unsupported(
            f"finetune {name!r} with quantization 'qat': frozen weights cannot adapt to their quantisation"
        )
    if parts.needed is None and not getattr(parts.workload.args, "pretrained", None):
        parts.notes["frozen_weights"] = "random: the run needs no other, so its speed can be told, not its quality"


def _train_only(parts: Parts, names: Iterable[str]) -> None:
    """Freeze all parameters but these and those that were not in the checkpoint, and count what is left to compute."""
    names = set(names) | parts.fresh
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(name in names)
    count_share(parts)


def last_layers(parts: Parts, layers: int = 1) -> None:
    """Train the last so many blocks and what comes after them; 0 trains the head alone (linear probing).

    The head is what the model registers after its last block. An output projection that is tied to the embedding below the
    blocks stays frozen with it.
    """
    _begin_from(parts, "last_layers")
    blocks = parts.blocks
    if not 0 <= layers <= len(blocks) or not blocks:
        raise Unsupported(f"last_layers: this model has {len(blocks)} repeated layers, so layers cannot be {layers}")
    order = list(dict.fromkeys(parts.model.parameters()))
    places = {id(parameter): place for place, parameter in enumerate(order)}
    end = 1 + max(places[id(parameter)] for parameter in blocks[-1].parameters())
    trained = {id(p) for p in order[end:]} | {
        id(p) for block in blocks[len(blocks) - layers :] for p in block.parameters()
    }
    _train_only(parts, (name for name, parameter in parts.model.named_parameters() if id(parameter) in trained))


def bitfit(parts: Parts) -> None:
    """Train the biases alone (Ben Zaken et al. 2022)."""
    _begin_from(parts, "bitfit")
    biases = [name for name, _ in parts.model.named_parameters() if re.match("bias(_|$)", name.rpartition(".")[2])]
    if not biases:
        raise Unsupported("bitfit: this model has no biases")
    _train_only(parts, biases)


def lora(parts: Parts, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: str = "auto") -> None:
    """Train low-rank additions to weight matrices (Hu et al. 2022): W + alpha / rank · B A, merged into W to be served.

    `targets` are names of layers, with spaces between; `auto` are those that peft has for the architecture, `all` all
    linear layers of the blocks.
    """
    from_peft = _peft("lora")
    names = _targets(parts, targets, _table("LORA_TARGET"))
    config = from_peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, fan_in_fan_out=_transposed(parts, names)
    )
    _inject(parts, "lora", config)


def ia3(parts: Parts, targets: str = "auto") -> None:
    """Train factors of keys, values and MLP activations (IA3, Liu et al. 2022); `targets` as for lora."""
    from_peft = _peft("ia3")
    names = _targets(parts, targets, _table("IA3_TARGET"))
    down = [name for name in names if name in _table("IA3_FEEDFORWARD").get(_architecture(parts), [])]
    config = from_peft.IA3Config(
        target_modules=names, feedforward_modules=down, fan_in_fan_out=_transposed(parts, names)
    )
    _inject(parts, "ia3", config)


def _peft(name: str) -> Any:
    try:
        import peft
    except ImportError:
        raise Unsupported(f"{name} needs peft: pip install 'wattbench[strategies]'") from None
    return peft


def _table(kind: str) -> dict[str, list[str]]:
    from peft.utils import constants

    table: dict[str, list[str]] = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_MODULES_MAPPING")
    return table


def _architecture(parts: Parts) -> str:
    return str(getattr(getattr(parts.model, "config", None), "model_type", ""))


def _linear(module: torch.nn.Module) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def _targets(parts: Parts, asked: str, table: dict[str, list[str]]) -> list[str]:
    """Ends of the names of the layers that get an addition."""
    if asked not in ("auto", "all"):
        return asked.split()
    if asked == "auto" and _architecture(parts) in table:
        return list(table[_architecture(parts)])
    inside = {id(module) for block in parts.blocks for module in block.modules()}
    found = [name for name, module in parts.model.named_modules() if _linear(module) and (id(module) in inside)]
    if not found:
        raise Unsupported("this model has no linear layers in repeated blocks: name some in targets")
    return found


def _transposed(parts: Parts, names: list[str]) -> bool:
    """Whether the targets hold their weights as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    ends = tuple(f".{name}" for name in names)
    return any(isinstance(module, Conv1D) for name, module in parts.model.named_modules() if f".{name}".endswith(ends))


def _inject(parts: Parts, name: str, config: Any) -> None:
    """Put the additions into the model, freeze the rest, and have them merged before the model is served."""
    _begin_from(parts, name)
    if parts.spec.pruning.name != "none":
        raise Unsupported(
            f"finetune {name!r} with pruning: the weights to prune are frozen; choose full or last_layers"
        )
    if parts.spec.parallelism.name in CUT_UP:
        raise Unsupported(f"finetune {name!r} does not go with parallelism {parts.spec.parallelism.name!r}: choose ddp")
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(config, parts.model)
    except ValueError as error:
        raise Unsupported(f"{name}: {error}") from error
    names = {n for n, p in parts.model.named_parameters() if p.requires_grad}
    renamed = {n for n, _ in parts.model.named_parameters() if n.replace(".base_layer", "") in parts.fresh}
    _train_only(parts, names | renamed)
    parts.serve.append(merged)


def merged(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model with its additions merged into its weights: the layers that it had before, nothing beside them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            outer, _, inner = name.rpartition(".")
            setattr(model.get_submodule(outer), inner, module.get_base_layer())
    return model

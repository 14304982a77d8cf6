"""The trained weights: all of them, the last layers, or small additions (parameter-efficient fine-tuning).

If a run starts from the weights of another one (`needs`), tensors that its checkpoint lacks, such as the head of another
task, are always trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch

from bench.strategies.decoders import is_conv1d
from bench.strategies.flops import count_share
from bench.strategies.parts import Parts, Unsupported


def _note_start(parts: Parts) -> None:
    """Note where frozen weights are random."""
    if parts.needed is None and not getattr(parts.workload.args, "pretrained", None):
        parts.notes["frozen_weights"] = "random: the run starts from no checkpoint, so only its speed is meaningful"


def _train_only(parts: Parts, names: Iterable[str]) -> None:
    """Freeze all parameters except these and those that the checkpoint lacked, and count the remaining FLOP."""
    names = set(names) | parts.fresh
    for name, parameter in parts.model.named_parameters():
        parameter.requires_grad_(name in names)
    count_share(parts)


def last_layers(parts: Parts, *, layers: int) -> None:
    """Train the last `layers` blocks and everything after them; 0 trains only the head (linear probing).

    The head is what the model registers after its last block. An output projection that is tied to the embedding stays
    frozen with it.
    """
    _note_start(parts)
    blocks = parts.blocks
    if layers > len(blocks) or not blocks:
        raise Unsupported(f"finetune last_layers: layers is {layers}, the model has {len(blocks)} repeated layers")
    order = list(dict.fromkeys(parts.model.parameters()))
    places = {id(parameter): place for place, parameter in enumerate(order)}
    end = 1 + max(places[id(parameter)] for parameter in blocks[-1].parameters())
    trained = {id(p) for p in order[end:]} | {
        id(p) for block in blocks[len(blocks) - layers :] for p in block.parameters()
    }
    _train_only(parts, (name for name, parameter in parts.model.named_parameters() if id(parameter) in trained))


def bitfit(parts: Parts) -> None:
    """Train only the biases (Ben Zaken et al. 2022)."""
    _note_start(parts)
    biases = [name for name, _ in parts.model.named_parameters() if re.match("bias(_|$)", name.rpartition(".")[2])]
    if not biases:
        raise Unsupported("finetune bitfit: the model has no biases")
    _train_only(parts, biases)


def lora(parts: Parts, *, rank: int, alpha: float, dropout: float, targets: str) -> None:
    """Train low-rank additions to weight matrices (Hu et al. 2022): W + alpha / rank · B A, merged into W to be served.

    `targets` are names of layers, separated by spaces. `auto` are peft's for the architecture, `all` are all linear layers
    of the blocks.
    """
    peft: Any = import_module("peft")
    names = _targets(parts, targets, _table("LORA_TARGET"))
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, fan_in_fan_out=_transposed(parts, names)
    )
    _inject(parts, "lora", config)


def ia3(parts: Parts, *, targets: str) -> None:
    """Train factors of keys, values and MLP activations (IA3, Liu et al. 2022); `targets` as for lora."""
    peft: Any = import_module("peft")
    names = _targets(parts, targets, _table("IA3_TARGET"))
    down = [name for name in names if name in _table("IA3_FEEDFORWARD").get(_architecture(parts), [])]
    config = peft.IA3Config(target_modules=names, feedforward_modules=down, fan_in_fan_out=_transposed(parts, names))
    _inject(parts, "ia3", config)


def _table(kind: str) -> dict[str, list[str]]:
    from peft.utils import constants

    table: dict[str, list[str]] = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_MODULES_MAPPING")
    return table


def _architecture(parts: Parts) -> str:
    return str(getattr(getattr(parts.model, "config", None), "model_type", ""))


def _linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or is_conv1d(module)


def _targets(parts: Parts, targets: str, table: dict[str, list[str]]) -> list[str]:
    """Return the ends of the names of the layers that get an addition."""
    if targets not in ("auto", "all"):
        return targets.split()
    if targets == "auto" and _architecture(parts) in table:
        return list(table[_architecture(parts)])
    inside = {id(module) for block in parts.blocks for module in block.modules()}
    names = [name for name, module in parts.model.named_modules() if _linear(module) and id(module) in inside]
    if not names:
        raise Unsupported("the model has no linear layers in repeated blocks: name some in targets")
    return names


def _transposed(parts: Parts, names: list[str]) -> bool:
    """Tell whether the targets store their weights as (in, out), as GPT-2 does."""
    ends = tuple(f".{name}" for name in names)
    return any(is_conv1d(module) for name, module in parts.model.named_modules() if f".{name}".endswith(ends))


def _inject(parts: Parts, name: str, config: Any) -> None:
    """Insert the additions, freeze the other weights, and merge the additions before the model is served."""
    _note_start(parts)
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(config, parts.model)
    except ValueError as error:
        raise Unsupported(f"finetune {name}: {error}") from error
    names = {n for n, p in parts.model.named_parameters() if p.requires_grad}
    renamed = {n for n, _ in parts.model.named_parameters() if n.replace(".base_layer", "") in parts.fresh}
    _train_only(parts, names | renamed)
    parts.serve.append(merged)


def merged(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model with its additions merged into its weights, and with its original layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            outer, _, inner = name.rpartition(".")
            setattr(model.get_submodule(outer), inner, module.get_base_layer())
    return model

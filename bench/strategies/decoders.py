"""The structure of decoder language models of `transformers`, for strategies that divide a model by its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bench.strategies.parts import Parts, Unsupported


@dataclass(frozen=True)
class Architecture:
    """Names of the parts. `column` are linear layers with independent outputs, `row` those that add them up again.

    A layer in `fused` holds that number of projections side by side (query, key, value). `attention_by_name`: a layer passes
    its hidden states to the attention as a keyword argument.
    """

    base: str
    layers: str
    embedding: str
    norm: str
    norms: tuple[str, ...]
    attention: str
    mlp: str
    column: tuple[str, ...]
    row: tuple[str, ...]
    fused: tuple[tuple[str, int], ...] = ()
    positions: str | None = None
    attention_by_name: bool = False
    head: str = "lm_head"


_GPT2 = Architecture(
    base="transformer",
    layers="h",
    embedding="wte",
    positions="wpe",
    norm="ln_f",
    norms=("ln_1", "ln_2"),
    attention="attn",
    mlp="mlp",
    column=("attn.c_attn", "mlp.c_fc"),
    row=("attn.c_proj", "mlp.c_proj"),
    fused=(("attn.c_attn", 3),),
)
_LLAMA = Architecture(
    base="model",
    layers="layers",
    embedding="embed_tokens",
    norm="norm",
    norms=("input_layernorm", "post_attention_layernorm"),
    attention="self_attn",
    mlp="mlp",
    column=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    row=("self_attn.o_proj", "mlp.down_proj"),
    attention_by_name=True,
)
ARCHITECTURES = {"GPT2LMHeadModel": _GPT2, "LlamaForCausalLM": _LLAMA}


@dataclass
class Decoder:
    """A decoder and its parts. Raises Unsupported for other models."""

    model: Any

    def __post_init__(self) -> None:
        name = type(self.model).__name__
        if name not in ARCHITECTURES:
            raise Unsupported(f"only the layers of {', '.join(ARCHITECTURES)} can be divided, not those of {name}")
        self.architecture = ARCHITECTURES[name]
        self.base: Any = getattr(self.model, self.architecture.base)

    @property
    def layers(self) -> Any:
        """The list of transformer layers."""
        return getattr(self.base, self.architecture.layers)

    @property
    def embedding(self) -> Any:
        """The token embedding."""
        return getattr(self.base, self.architecture.embedding)

    @property
    def head(self) -> Any:
        """The output projection."""
        return getattr(self.model, self.architecture.head)

    @property
    def tied(self) -> bool:
        """Whether embedding and output projection are one weight."""
        return self.head.weight is self.embedding.weight


def to_divide(parts: Parts) -> Decoder:
    """Return the decoder of a training. Raises Unsupported where its layers cannot be divided."""
    if parts.spec.parallelism.options.get("meta") and getattr(parts.workload.args, "pretrained", None):
        raise Unsupported("meta creates random weights, not pretrained ones: leave it out")
    return Decoder(parts.model)


def is_conv1d(layer: Any) -> bool:
    """Tell whether a layer is the Conv1D of GPT-2: a linear layer whose weight is stored as (in, out)."""
    return type(layer).__name__ == "Conv1D"


def linear_of(layer: Any) -> torch.nn.Linear:
    """Return a linear layer that computes the same as a Conv1D."""
    linear = torch.nn.Linear(layer.nx, layer.nf, device="meta")
    weight = layer.weight.detach().t().contiguous()
    linear.weight = torch.nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    linear.bias = layer.bias
    return linear.train(layer.training)


def replace_conv1d(root: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Replace each Conv1D in a module by an equal linear layer; return their parents and names."""
    places = [(parent, name) for parent in root.modules() for name, m in parent.named_children() if is_conv1d(m)]
    for parent, name in places:
        setattr(parent, name, linear_of(getattr(parent, name)))
    return places

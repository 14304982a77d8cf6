"""Where the parts of decoder language models of `transformers` are, for strategies that cut a model up by its structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.strategies.precision import Unsupported


@dataclass(frozen=True)
class Architecture:
    """Names of the parts. `column` are linear layers whose outputs are independent, `row` those that add them up again.

    A layer of `fused` holds so many projections side by side (query, key, value). `attention_by_name`: whether a layer gives
    the attention its hidden states as a keyword argument.
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
    """A decoder and its parts. Raises Unsupported for a model of another kind."""

    model: Any

    def __post_init__(self) -> None:
        name = type(self.model).__name__
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise Unsupported(
                f"a model is cut up by the names of its layers, which are known of {known}, not of {name}"
            )
        self.architecture = ARCHITECTURES[name]
        self.base: Any = getattr(self.model, self.architecture.base)
        if len(set(self.layers)) < len(self.layers):
            raise Unsupported("a model whose layers share their weights is not cut up layer by layer: choose ddp")

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

    def heads(self) -> tuple[int, int]:
        """Heads of the attention: of queries, and of keys and values."""
        config = self.model.config
        return config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)

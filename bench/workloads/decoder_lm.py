"""A decoder language model, GPT-2 or Llama of `transformers`, trained on the bytes of real text.

Nothing is downloaded. Weights are random or come from a local folder, whose tokenizer is not used as tokens are bytes.
The text is that of the Python standard library or of the user. torch and transformers are imported when a model is
built, not when arguments are checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from bench.schema import Count, Scalar
from bench.workloads.base import Batch, Layout
from bench.workloads.text import TextArgs, unlabelled
from bench.workloads.transformer import CAUSAL, TRANSFORMER_NAMES, Preset, TransformerArgs, TransformerWorkload

if TYPE_CHECKING:
    import torch


def _gpt2(layers: int, hidden: int, heads: int, vocabulary: int) -> Preset:
    return "gpt2", {"n_layer": layers, "n_embd": hidden, "n_head": heads, "vocab_size": vocabulary}


def _llama(layers: int, hidden: int, heads: tuple[int, int], inner: int, vocabulary: int, *, tied: bool) -> Preset:
    fields: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads[0]}
    fields |= {"num_key_value_heads": heads[1], "intermediate_size": inner, "vocab_size": vocabulary}
    return "llama", fields | {"tie_word_embeddings": tied}


PRESETS: dict[str, Preset] = {
    # Layers, hidden size, heads, vocabulary. Bytes need 256; published shapes keep their own vocabulary and head.
    "tiny": _gpt2(4, 128, 4, 256),
    "small": _gpt2(4, 256, 4, 256),
    "base": _gpt2(6, 384, 6, 256),
    "gpt2-124m": _gpt2(12, 768, 12, 50257),
    "gpt2-350m": _gpt2(24, 1024, 16, 50257),
    "gpt2-774m": _gpt2(36, 1280, 20, 50257),
    "gpt2-1.5b": _gpt2(48, 1600, 25, 50257),
    # Layers, hidden size, heads and key-value heads, inner size, vocabulary: Llama 3.2 1B and 3B, Llama 3.1 8B.
    "llama-tiny": _llama(4, 128, (4, 2), 352, 256, tied=False),
    "llama-1b": _llama(16, 2048, (32, 8), 8192, 128256, tied=True),
    "llama-3b": _llama(28, 3072, (24, 8), 8192, 128256, tied=True),
    "llama-8b": _llama(32, 4096, (32, 8), 14336, 128256, tied=False),
}
_NAMES = {
    "gpt2": {"layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "vocabulary": "vocab_size"},
    "llama": TRANSFORMER_NAMES,
}
_POSITIONS = {"gpt2": "n_positions", "llama": "max_position_embeddings"}


class DecoderLMArgs(TransformerArgs, TextArgs):
    """Arguments: a preset, or `layers` and `hidden`; the sequence length; the text; shared parameters.

    `tie_embeddings` uses one matrix for the token embedding and the output (Press and Wolf 2017). Each group of
    `shared_layers` layers shares one set of parameters (Lan et al. 2020, ALBERT), which saves memory but no FLOP.
    """

    model_config = ConfigDict(extra="allow")
    presets = PRESETS
    names = _NAMES
    fixed = TransformerArgs.fixed | {"tie_word_embeddings"}

    vocabulary: Annotated[int, Field(ge=256)] | None = None
    tie_embeddings: bool | None = None
    shared_layers: Count | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        fields, own = self.complete(), self.names[self.architecture]
        layers, heads = fields[own["layers"]], int(fields.get(own["heads"], 0))
        if heads % int(fields.get("num_key_value_heads") or heads or 1):
            raise ValueError(f"heads {heads} is not a multiple of num_key_value_heads {fields['num_key_value_heads']}")
        if layers % (self.shared_layers or 1):
            raise ValueError(f"layers {layers} is not a multiple of shared_layers {self.shared_layers}")
        if int(fields["vocab_size"]) < 256:
            raise ValueError(f"vocab_size must be at least 256, as tokens are bytes, not {fields['vocab_size']}")
        positions = fields.get(_POSITIONS[self.architecture])
        if positions is not None and positions < self.sequence_length:
            raise ValueError(f"sequence_length {self.sequence_length} exceeds the {positions} positions of the model")
        return self

    def layout(self) -> Layout:
        """Return layers, heads and tokens."""
        fields, shared, blocks = self.configuration(), self.shared_layers or 1, super().layout().blocks
        heads = int(fields[self.names[self.architecture]["heads"]])
        keys = int(fields.get("num_key_value_heads") or heads)
        return Layout(blocks // shared, (heads, keys), True, shared > 1, self.sequence_length)

    def configuration(self) -> dict[str, Any]:
        """Return the fields of the configuration; by default tokens are bytes."""
        return {"vocab_size": 256} | super().configuration()

    def scaled(self, shape: dict[str, Scalar]) -> dict[str, Any]:
        """Return the fields that follow. Llama's inner size is 8/3 of the hidden size, rounded up to a multiple of 64."""
        fields = super().scaled(shape)
        if self.architecture == "llama" and "hidden" in shape:
            fields["intermediate_size"] = -(-8 * int(shape["hidden"]) // 192) * 64
        if self.architecture == "llama" and shape.keys() & {"hidden", "heads"}:
            fields["num_key_value_heads"] = fields[TRANSFORMER_NAMES["heads"]]
        return fields


class DecoderLM(TransformerWorkload):
    """The workload of one rank. A sample is a sequence of `sequence_length` tokens, each with a next token to predict."""

    Args = DecoderLMArgs
    args: DecoderLMArgs
    modules = ("transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama")
    classes: ClassVar[dict[str, tuple[str, str]]] = {
        "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
    }

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.tokens_per_sample = self.args.sequence_length
        vocabulary = int(self.args.configuration()["vocab_size"])
        self.use(unlabelled(self.args, self.args.sequence_length + 1, vocabulary))

    def more(self) -> dict[str, Any]:
        """Return fields for: no cache of keys and values, no mask, no special tokens, and no dropout by default."""
        # With a padding token GPT-2 would look for it in each forward pass, which waits for the device.
        fields: dict[str, Any] = {"use_cache": False, "attn_implementation": CAUSAL, "pad_token_id": None}
        if self.args.tie_embeddings is not None:
            fields["tie_word_embeddings"] = self.args.tie_embeddings
        if self.args.pretrained:
            return fields
        chosen = self.args.configuration()
        fields |= {"bos_token_id": 0, "eos_token_id": 0}
        if _POSITIONS[self.args.architecture] not in chosen:
            fields[_POSITIONS[self.args.architecture]] = self.args.sequence_length
        if self.args.architecture == "llama":
            return fields | {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
        return fields | {name: 0.0 for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop") if name not in chosen}

    def finish(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model with the first layer of each group in place of the others."""
        layers, share = self._layers(model), self.args.shared_layers or 1
        for i in range(len(layers)):
            layers[i] = layers[i - i % share]
        return model

    def _layers(self, model: torch.nn.Module) -> Any:
        return model.transformer.h if self.args.architecture == "gpt2" else model.model.layers

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer layers; a shared layer occurs once."""
        return list(dict.fromkeys(self._layers(model)))

    def flops_per_sample(self) -> float:
        """Return the model FLOP of one sequence, forward and backward: T (6 N + 12 L a T), with a = heads × head size.

        PaLM, appendix B (Chowdhery et al. 2022): 6 per parameter of a product, and 12 L a T per token for attention, not
        halved for the causal mask. Embeddings are looked up, so they do not count. The output projection counts, tied or
        not, and a shared layer counts each time it is used.
        """
        import torch

        with torch.device("meta"):
            model = self.build()
        layers, config, tokens = self._layers(model), model.config, self.args.sequence_length
        base = model.transformer.ln_f if self.args.architecture == "gpt2" else model.model.norm
        multiplied = sum(p.numel() for part in (*layers, base, model.lm_head) for p in part.parameters())
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return float(tokens * (6 * multiplied + 12 * len(layers) * config.num_attention_heads * head * tokens))

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the scores of each next token, of shape (samples, sequence_length, vocabulary)."""
        return model(input_ids=batch[0][:, :-1].long()).logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the next tokens, of shape (samples, sequence_length)."""
        return batch[0][:, 1:].long()

"""A decoder language model, GPT-2 or Llama, from a `transformers` configuration, trained on real text byte by byte.

Nothing is downloaded: weights start at random, or come from a local checkpoint (whose tokenizer is not used: tokens are
bytes), and the text is what the Python standard library ships or the user's. torch and transformers are imported when
a model is built, not when the arguments are checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from bench.schema import Count, Scalar
from bench.workloads.text import TextArgs, unlabelled
from bench.workloads.transformer import CAUSAL, TRANSFORMER_NAMES, Preset, TransformerArgs, TransformerWorkload

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch


def _gpt2(layers: int, hidden: int, heads: int, vocabulary: int) -> Preset:
    return "gpt2", {"n_layer": layers, "n_embd": hidden, "n_head": heads, "vocab_size": vocabulary}


def _llama(layers: int, hidden: int, heads: tuple[int, int], inner: int, vocabulary: int, *, tied: bool) -> Preset:
    fields: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads[0]}
    fields |= {"num_key_value_heads": heads[1], "intermediate_size": inner, "vocab_size": vocabulary}
    return "llama", fields | {"tie_word_embeddings": tied}


PRESETS: dict[str, Preset] = {
    # layers, hidden size, heads, vocabulary. Bytes need 256; published shapes keep their own vocabulary and head.
    "tiny": _gpt2(4, 128, 4, 256),
    "small": _gpt2(4, 256, 4, 256),
    "base": _gpt2(6, 384, 6, 256),
    "gpt2-124m": _gpt2(12, 768, 12, 50257),
    "gpt2-350m": _gpt2(24, 1024, 16, 50257),
    "gpt2-774m": _gpt2(36, 1280, 20, 50257),
    "gpt2-1.5b": _gpt2(48, 1600, 25, 50257),
    # layers, hidden size, heads and those of keys and values, inner size, vocabulary: Llama 3.2 1B and 3B, Llama 3.1 8B.
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
    """What may be chosen: a preset, or `layers` and `hidden`; the length of a sequence; the text; shared parameters.

    `tie_embeddings` uses one matrix for the token embedding and the output (Press and Wolf 2017). `shared_layers` layers in a
    row are one and the same (Lan et al. 2020, ALBERT): their parameters are there once, their FLOP are not.
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
        fields, own = self.configuration(), self.names[self.architecture]
        if any(own[name] not in fields for name in ("layers", "hidden")):
            raise ValueError(f"give a preset ({', '.join(PRESETS)}), or layers and hidden")
        hidden, heads, layers = (int(fields[own[name]]) for name in ("hidden", "heads", "layers"))
        if hidden % heads:
            raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
        if heads % int(fields.get("num_key_value_heads") or heads):
            raise ValueError(f"heads {heads} is not a multiple of num_key_value_heads {fields['num_key_value_heads']}")
        if layers % (self.shared_layers or 1):
            raise ValueError(f"layers {layers} is not a multiple of shared_layers {self.shared_layers}")
        if int(fields["vocab_size"]) < 256:
            raise ValueError("vocab_size must be 256 at least: tokens are bytes")
        positions = fields.get(_POSITIONS[self.architecture])
        if positions is not None and positions < self.sequence_length:
            raise ValueError(
                f"sequence_length {self.sequence_length} is more than the {positions} positions of the model"
            )
        return self

    def configuration(self) -> dict[str, Any]:
        """Fields of the configuration; tokens are bytes where nothing else was said."""
        return {"vocab_size": 256} | super().configuration()

    def scaled(self, given: dict[str, Scalar]) -> dict[str, Any]:
        """Llama's inner size is 8/3 of the hidden one, rounded up to 64; keys and values have all heads."""
        fields = super().scaled(given)
        if self.architecture == "llama" and "hidden" in given:
            fields["intermediate_size"] = -(-8 * int(given["hidden"]) // 192) * 64
        if self.architecture == "llama" and given.keys() & {"hidden", "heads"}:
            fields["num_key_value_heads"] = fields[TRANSFORMER_NAMES["heads"]]
        return fields


class DecoderLM(TransformerWorkload):
    """The workload of one rank. A sample is one sequence of `sequence_length` tokens, each with a next one to predict."""

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
        read = unlabelled(self.args, self.args.sequence_length + 1, int(self.args.configuration()["vocab_size"]))
        self.dataset, self.dataset_digest, self.notes = read.dataset, read.digest, read.notes
        self.train, self.validation = read.train, read.validation

    def more(self) -> dict[str, Any]:
        """No cache of keys and values, no mask, no special tokens; no dropout unless it was asked for."""
        # With a token for padding GPT-2 would look for it in each forward pass, and wait for the device.
        fields: dict[str, Any] = {"use_cache": False, "attn_implementation": CAUSAL, "pad_token_id": None}
        if self.args.tie_embeddings is not None:
            fields["tie_word_embeddings"] = self.args.tie_embeddings
        if self.args.pretrained:
            return fields
        held = self.args.configuration()
        fields |= {"bos_token_id": 0, "eos_token_id": 0}
        if _POSITIONS[self.args.architecture] not in held:
            fields[_POSITIONS[self.args.architecture]] = self.args.sequence_length
        if self.args.architecture == "llama":
            return fields | {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
        return fields | {name: 0.0 for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop") if name not in held}

    def finish(self, model: torch.nn.Module) -> torch.nn.Module:
        """Put the first layer of each group in the place of the others."""
        layers, share = self._layers(model), self.args.shared_layers or 1
        for i in range(len(layers)):
            layers[i] = layers[i - i % share]
        return model

    def _layers(self, model: torch.nn.Module) -> Any:
        return model.transformer.h if self.args.architecture == "gpt2" else model.model.layers

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer layers; one that stands in several places is there once."""
        return list(dict.fromkeys(self._layers(model)))

    def flops_per_sample(self) -> float:
        """Model FLOP of one sequence, forward and backward: T (6 N + 12 L a T), with a = heads × size of a head.

        PaLM, appendix B (Chowdhery et al. 2022): 6 for each parameter that is multiplied with, and 12 L a T a token for
        attention, not halved for the causal mask. Embeddings are looked up and left out; the output projection counts, tied
        or not, and a layer that is shared counts in each of its places.
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
        """Scores of each next token, of shape (samples, sequence_length, vocabulary)."""
        logits: torch.Tensor = model(input_ids=batch[0][:, :-1].long()).logits
        return logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """The next tokens."""
        return batch[0][:, 1:].long()

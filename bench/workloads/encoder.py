"""BERT of `transformers`: masked language modelling, or classification of text. Tokens are bytes.

Nothing is downloaded. Weights are random or come from a local folder, whose tokenizer is not used. The text is that of the
Python standard library or of the user. Every sequence has the full length, so there is no padding to mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from bench.workloads.base import Batch, Split, chances, digest
from bench.workloads.text import TextArgs, labelled, unlabelled
from bench.workloads.transformer import TRANSFORMER_NAMES, UNMASKED, Preset, TransformerArgs, TransformerWorkload

if TYPE_CHECKING:
    import torch

CLS, MASK, BYTE_VOCABULARY = 256, 257, 258
"""Token ids above the bytes: the token whose last state represents the sequence, and the mask."""
MASKED_SHARE, REPLACED, RANDOM = 0.15, 0.8, 0.1
"""Share of tokens to predict. Of these, 80 % become MASK, 10 % a random token, 10 % stay (Devlin et al. 2019)."""


def _bert(layers: int, hidden: int, heads: int, vocabulary: int) -> Preset:
    fields: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return "bert", fields | {"intermediate_size": 4 * hidden, "vocab_size": vocabulary}


PRESETS: dict[str, Preset] = {
    "tiny": _bert(4, 128, 4, BYTE_VOCABULARY),
    "bert-base": _bert(12, 768, 12, 30522),
    "bert-large": _bert(24, 1024, 16, 30522),
}


class EncoderArgs(TransformerArgs, TextArgs):
    """Arguments: the objective, a preset or `layers` and `hidden`, the sequence length, the text.

    `classification` takes labelled text. By default it predicts from which of eight packages of the standard library a
    piece of source comes. `data: synthetic` are random tokens.
    """

    model_config = ConfigDict(extra="allow")
    presets = PRESETS
    names: ClassVar[dict[str, dict[str, str]]] = {"bert": TRANSFORMER_NAMES}
    fixed = TransformerArgs.fixed | {"tie_word_embeddings", "type_vocab_size"}

    objective: Literal["masked_lm", "classification"] = "masked_lm"
    vocabulary: Annotated[int, Field(ge=BYTE_VOCABULARY)] | None = None

    @property
    def labelled(self) -> bool:
        """Whether the samples have classes."""
        return self.objective == "classification"

    def configuration(self) -> dict[str, Any]:
        """Return the fields of the configuration; by default tokens are bytes, and positions suffice for a sequence."""
        positions = max(512, self.sequence_length + 1)
        defaults = {"vocab_size": BYTE_VOCABULARY, "max_position_embeddings": positions, "num_attention_heads": 1}
        return defaults | super().configuration()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        fields = self.complete()
        if int(fields["vocab_size"]) < BYTE_VOCABULARY:
            raise ValueError(f"vocab_size must be at least {BYTE_VOCABULARY} (bytes and two special tokens)")
        positions = int(fields["max_position_embeddings"])
        if positions < self.sequence_length + self.labelled:
            raise ValueError(f"sequence_length {self.sequence_length} exceeds the {positions} positions of the model")
        return self


class Masked(Split):
    """Windows of a text with masked tokens: (tokens, original tokens or -100), each of shape (samples, length), int32.

    The same number of tokens, 15 %, is masked in each sequence. The positions change with each training batch and stay the
    same in validation.
    """

    def __init__(self, windows: Split, length: int, vocabulary: int) -> None:
        self.windows, self.vocabulary = windows, vocabulary
        self.count, self.length = max(1, round(MASKED_SHARE * length)), length

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the indices of a training batch, as the text does."""
        return self.windows.draw(count, generator)

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return masked tokens and labels."""
        import torch

        (tokens,) = self.windows.fetch(indices, seed)
        tokens = tokens.int()
        chance = chances(indices, 3 * self.length, seed).view(len(indices), 3, self.length)
        places = chance[:, 0].topk(self.count, dim=1).indices
        original = tokens.gather(1, places)
        labels = torch.full_like(tokens, -100).scatter_(1, places, original)
        kind, random = chance[:, 1].gather(1, places), (chance[:, 2].gather(1, places) * self.vocabulary).int()
        masked = torch.where(kind < REPLACED, MASK, torch.where(kind < REPLACED + RANDOM, random, original))
        return tokens.scatter_(1, places, masked.int()), labels


class Encoder(TransformerWorkload):
    """The workload of one rank. A sample is a sequence of `sequence_length` bytes, partly masked or with a class."""

    Args = EncoderArgs
    args: EncoderArgs
    modules = ("transformers.models.bert.modeling_bert",)
    classes: ClassVar[dict[str, tuple[str, str]]] = {"bert": ("BertConfig", "BertForMaskedLM")}

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        length = self.args.sequence_length
        corpus = labelled(self.args, length) if self.args.labelled else unlabelled(self.args, length)
        self.use(corpus)
        self.class_count, self.tokens_per_sample = len(corpus.classes), length
        if not self.args.labelled:
            self.train, self.validation = (Masked(split, length, 256) for split in (self.train, self.validation))
            self.dataset_digest = digest(corpus.digest, f"masked {MASKED_SHARE}")

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of the configuration class and the model class."""
        return ("BertConfig", "BertForSequenceClassification") if self.args.labelled else self.classes["bert"]

    def more(self) -> dict[str, Any]:
        """Return fields for: no mask, no padding (whose embedding would stay 0), and the classes of the data."""
        fields: dict[str, Any] = {"attn_implementation": UNMASKED, "pad_token_id": None}
        if self.args.labelled:
            fields["num_labels"] = self.class_count
        return fields

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer layers."""
        return list(model.bert.encoder.layer)

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return scores of shape (samples, sequence_length, vocabulary), or (samples, classes)."""
        import torch

        tokens = batch[0].long()
        if self.args.labelled:
            tokens = torch.nn.functional.pad(tokens, (1, 0), value=CLS)
        return model(input_ids=tokens).logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the original tokens where masked and -100 elsewhere; or the classes."""
        return batch[1].long()

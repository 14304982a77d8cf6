"""BERT, from a `transformers` configuration: masked language modelling, or classification of text. Tokens are bytes.

Nothing is downloaded: weights start at random or come from a local checkpoint (whose tokenizer is not used), and the text is
what the Python standard library ships or the user's. Every sequence has its full length, so there is no padding to mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from bench.workloads.base import Split, chances, digest
from bench.workloads.text import TextArgs, labelled, unlabelled
from bench.workloads.transformer import TRANSFORMER_NAMES, UNMASKED, Preset, TransformerArgs, TransformerWorkload

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch

CLS, MASK, BYTE_VOCABULARY = 256, 257, 258
"""Ids after the bytes: the token whose last state stands for the sequence, and the one that hides another."""
MASKED_SHARE, REPLACED, RANDOM = 0.15, 0.8, 0.1
"""Tokens to be predicted, and what stands in their place: MASK, a random token, or the token itself (Devlin et al. 2019)."""


def _bert(layers: int, hidden: int, heads: int, vocabulary: int) -> Preset:
    fields: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return "bert", fields | {"intermediate_size": 4 * hidden, "vocab_size": vocabulary}


PRESETS: dict[str, Preset] = {
    "tiny": _bert(4, 128, 4, BYTE_VOCABULARY),
    "bert-base": _bert(12, 768, 12, 30522),
    "bert-large": _bert(24, 1024, 16, 30522),
}


class EncoderArgs(TransformerArgs, TextArgs):
    """What may be chosen: the objective, a preset or `layers` and `hidden`, the length of a sequence, the text.

    `classification` takes labelled text: by default, which of eight packages of the standard library a piece of source is
    from. `data: synthetic` are random tokens.
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
        """Fields of the configuration; tokens are bytes, and positions as many as are used, where nothing else was said."""
        positions = max(512, self.sequence_length + 1)
        defaults = {"vocab_size": BYTE_VOCABULARY, "max_position_embeddings": positions, "num_attention_heads": 1}
        return defaults | super().configuration()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        fields = self.configuration()
        if "hidden_size" not in fields or "num_hidden_layers" not in fields:
            raise ValueError(f"give a preset ({', '.join(PRESETS)}), or layers and hidden")
        hidden, heads = int(fields["hidden_size"]), int(fields["num_attention_heads"])
        if hidden % heads:
            raise ValueError(f"hidden {hidden} is not a multiple of heads {heads}")
        if int(fields["vocab_size"]) < BYTE_VOCABULARY:
            raise ValueError(f"vocab_size must be {BYTE_VOCABULARY} at least: tokens are bytes and two special ones")
        longest = int(fields["max_position_embeddings"])
        if longest < self.sequence_length + self.labelled:
            raise ValueError(f"sequence_length {self.sequence_length} is too long for {longest} positions")
        return self


class Masked(Split):
    """Windows of a text with tokens hidden: (tokens, what they were or -100), each of shape (samples, length), int32.

    15 % of each sequence are to be predicted, the same number in all; other places in each batch of the training, always the
    same for validation.
    """

    def __init__(self, windows: Split, length: int, vocabulary: int) -> None:
        self.windows, self.vocabulary = windows, vocabulary
        self.count, self.length = max(1, round(MASKED_SHARE * length)), length

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw as the text does."""
        return self.windows.draw(count, generator)

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return hidden and true tokens."""
        import torch

        (tokens,) = self.windows.fetch(indices, seed)
        tokens = tokens.int()
        chance = chances(indices, 3 * self.length, seed).view(len(indices), 3, self.length)
        places = chance[:, 0].topk(self.count, dim=1).indices
        told = tokens.gather(1, places)
        labels = torch.full_like(tokens, -100).scatter_(1, places, told)
        how, other = chance[:, 1].gather(1, places), (chance[:, 2].gather(1, places) * self.vocabulary).int()
        hidden = torch.where(how < REPLACED, MASK, torch.where(how < REPLACED + RANDOM, other, told))
        return tokens.scatter_(1, places, hidden.int()), labels


class Encoder(TransformerWorkload):
    """The workload of one rank. A sample is a sequence of `sequence_length` bytes: some hidden, or all of one class."""

    Args = EncoderArgs
    args: EncoderArgs
    modules = ("transformers.models.bert.modeling_bert",)
    classes: ClassVar[dict[str, tuple[str, str]]] = {"bert": ("BertConfig", "BertForMaskedLM")}

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        length = self.args.sequence_length
        if self.args.labelled:
            read = labelled(self.args, length)
            self.train, self.validation = read.train, read.validation
        else:
            read = unlabelled(self.args, length)
            self.train, self.validation = (Masked(split, length, 256) for split in (read.train, read.validation))
        self.labels_there = read.classes
        self.tokens_per_sample = length
        self.dataset, self.notes = read.dataset, read.notes
        self.dataset_digest = read.digest if self.args.labelled else digest(read.digest, f"masked {MASKED_SHARE}")

    @property
    def class_names(self) -> tuple[str, str]:
        """Names of the configuration and the model class."""
        return ("BertConfig", "BertForSequenceClassification") if self.args.labelled else self.classes["bert"]

    def more(self) -> dict[str, Any]:
        """No mask, no padding, whose embedding would stay 0; as many classes as the data have."""
        fields: dict[str, Any] = {"attn_implementation": UNMASKED, "pad_token_id": None}
        if self.args.labelled:
            fields["num_labels"] = len(self.labels_there)
        return fields

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the transformer layers."""
        return list(model.bert.encoder.layer)

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Scores of shape (samples, sequence_length, vocabulary), or of classes (samples, classes)."""
        import torch

        tokens = batch[0].long()
        if self.args.labelled:
            tokens = torch.nn.functional.pad(tokens, (1, 0), value=CLS)
        logits: torch.Tensor = model(input_ids=tokens).logits
        return logits

    def labels(self, batch: Batch) -> torch.Tensor:
        """Tokens that were hidden, -100 elsewhere; or classes."""
        return batch[1].long()

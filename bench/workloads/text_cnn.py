"""A convolutional network over text (Kim 2014), trained to classify labelled text byte by byte.

Embeddings, convolutions of several widths side by side, the greatest value of each over the text, dropout, a linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from bench.schema import Count
from bench.workloads.base import Workload
from bench.workloads.text import TextArgs, labelled

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch


class TextCNNArgs(TextArgs):
    """What may be chosen: the size of the embedding, `filters` of each of the `widths` (bytes), dropout; the text.

    The paper's network has embeddings of 300, 100 filters of each of the widths 3, 4 and 5, and a dropout of 0.5.
    """

    dimension: Count = 300
    filters: Count = 100
    widths: str = "3,4,5"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @field_validator("widths")
    @classmethod
    def _numbers(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"give widths as whole numbers with commas, as in 3,4,5; not {value!r}")
        return ",".join(parts)

    @property
    def labelled(self) -> bool:
        """Whether the samples have classes."""
        return True

    def refusals(self) -> dict[str, str]:
        """This model is not of transformers."""
        return super().refusals() | {"pretrained": "pretrained weights are for models of transformers"}


class TextCNN(Workload):
    """The workload of one rank. A sample is a piece of `sequence_length` bytes; by default, of one of eight packages."""

    Args = TextCNNArgs
    args: TextCNNArgs
    modules = ("bench.workloads.networks",)

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.widths = [int(width) for width in self.args.widths.split(",")]
        if max(self.widths) > self.args.sequence_length:
            raise ValueError(
                f"a width of {max(self.widths)} is more than the {self.args.sequence_length} bytes of a piece"
            )
        read = labelled(self.args, self.args.sequence_length)
        self.train, self.validation, self.classes = read.train, read.validation, read.classes
        self.dataset, self.dataset_digest, self.notes = read.dataset, read.digest, read.notes
        self.tokens_per_sample = self.args.sequence_length

    def build(self) -> torch.nn.Module:
        """Return the network with random weights."""
        from bench.workloads.networks import ConvolutionalText

        args = self.args
        return ConvolutionalText(args.dimension, args.filters, self.widths, args.dropout, len(self.classes))

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Scores of shape (samples, classes)."""
        scores: torch.Tensor = model(batch[0].long())
        return scores

    def labels(self, batch: Batch) -> torch.Tensor:
        """Classes of shape (samples,)."""
        return batch[1].long()

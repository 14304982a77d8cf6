"""A convolutional network (Kim 2014) that classifies text, on bytes.

Its layers: embeddings, parallel convolutions of several widths, the maximum of each over the text, dropout, linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from bench.schema import Count
from bench.workloads.base import Batch, Workload
from bench.workloads.text import TextArgs, labelled

if TYPE_CHECKING:
    import torch


class TextCNNArgs(TextArgs):
    """Arguments: the embedding size, `filters` of each of the `widths` (bytes), dropout; the text.

    The defaults are those of the paper: embeddings of 300, 100 filters of each of the widths 3, 4 and 5, dropout 0.5.
    """

    plain = True
    dimension: Count = 300
    filters: Count = 100
    widths: str = "3,4,5"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @field_validator("widths")
    @classmethod
    def _numbers(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"widths must be whole numbers separated by commas, such as 3,4,5, not {value!r}")
        return ",".join(parts)

    @property
    def labelled(self) -> bool:
        """Whether the samples have classes."""
        return True


class TextCNN(Workload):
    """The workload of one rank. A sample is a piece of `sequence_length` bytes, by default from one of eight packages."""

    Args = TextCNNArgs
    args: TextCNNArgs
    modules = ("bench.workloads.networks",)

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.widths = [int(width) for width in self.args.widths.split(",")]
        if max(self.widths) > self.args.sequence_length:
            raise ValueError(f"width {max(self.widths)} exceeds sequence_length {self.args.sequence_length}")
        corpus = labelled(self.args, self.args.sequence_length)
        self.use(corpus)
        self.classes = corpus.classes
        self.tokens_per_sample = self.args.sequence_length

    def build(self) -> torch.nn.Module:
        """Return the network with random weights."""
        from bench.workloads.networks import ConvolutionalText

        args = self.args
        return ConvolutionalText(args.dimension, args.filters, self.widths, args.dropout, len(self.classes))

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return scores of shape (samples, classes)."""
        return model(batch[0].long())

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the classes, of shape (samples,)."""
        return batch[1].long()

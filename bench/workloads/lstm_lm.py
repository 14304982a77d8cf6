"""An LSTM language model (Zaremba et al. 2014) on bytes: the reference from before attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from bench.registry import did_you_mean
from bench.schema import Count
from bench.workloads.base import Batch, Workload
from bench.workloads.text import TextArgs, unlabelled

if TYPE_CHECKING:
    import torch

PRESETS = {"tiny": (2, 128, 0.0), "medium": (2, 650, 0.5), "large": (2, 1500, 0.65)}
"""Layers, hidden size, dropout. `medium` and `large` are the models of the paper."""


class LstmLMArgs(TextArgs):
    """Arguments: a preset, or layers, hidden size and dropout instead of its own; the sequence length; the text."""

    plain = True
    preset: str = "tiny"
    layers: Count | None = None
    hidden: Count | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    vocabulary: Annotated[int, Field(ge=256)] = 256

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"unknown preset {value!r}: {did_you_mean(value, PRESETS)}")
        return value

    @property
    def shape(self) -> tuple[int, int, float]:
        """Layers, hidden size, dropout."""
        layers, hidden, dropout = PRESETS[self.preset]
        return self.layers or layers, self.hidden or hidden, dropout if self.dropout is None else self.dropout


class LstmLM(Workload):
    """The workload of one rank. A sample is one sequence of `sequence_length` tokens. Its initial state is 0."""

    Args = LstmLMArgs
    args: LstmLMArgs
    modules = ("bench.workloads.networks",)

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.tokens_per_sample = self.args.sequence_length
        self.use(unlabelled(self.args, self.args.sequence_length + 1, self.args.vocabulary))

    def build(self) -> torch.nn.Module:
        """Return the network with random weights."""
        from bench.workloads.networks import RecurrentText

        layers, hidden, dropout = self.args.shape
        return RecurrentText(self.args.vocabulary, hidden, layers, dropout)

    def flops_per_sample(self) -> float:
        """Return the model FLOP of one sequence: 6 T (8 L h² + h V), as each of four gates has two products.

        It is a formula because torch does not count the fused LSTM of every device.
        """
        layers, hidden, _ = self.args.shape
        return 6.0 * self.args.sequence_length * (8 * layers * hidden**2 + hidden * self.args.vocabulary)

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the scores of each next token, of shape (samples, sequence_length, vocabulary)."""
        return model(batch[0][:, :-1].long())

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the next tokens, of shape (samples, sequence_length)."""
        return batch[0][:, 1:].long()

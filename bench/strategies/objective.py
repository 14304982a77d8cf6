"""The modules of a training step: batch -> loss, or a stage of it."""

from __future__ import annotations

import torch

from bench.strategies.parts import Parts


class Objective(torch.nn.Module):  # type: ignore[misc]  # torch's types are not read
    """Batch -> loss: the module that is replicated, sharded and compiled, so that the loss is compiled with the model."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.model = parts.model
        self.parts = parts

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""
        return self.parts.loss(self.model, batch)


class Stage(torch.nn.Module):  # type: ignore[misc]
    """A stage of a pipeline: samples (the first) or what the stage before it leaves -> what the next one takes.

    `model` is what the stage holds of a decoder; without its head, its logits are the hidden states. `arrives` is the shape
    of one sample and the type of what came last.
    """

    def __init__(self, parts: Parts, *, first: bool) -> None:
        super().__init__()
        self.model, self.parts, self.first = parts.model, parts, first
        self.arrives: tuple[torch.Size, torch.dtype] | None = None

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """Return hidden states of shape (samples, tokens, hidden size); the last stage logits."""
        with self.parts.precision.context():
            if self.first:
                return self.parts.workload.logits(self.model, (data,))
            self.arrives = data.shape[1:], data.dtype
            logits: torch.Tensor = self.model(inputs_embeds=data).logits
            return logits


class Section(torch.nn.Module):  # type: ignore[misc]
    """A model that is given a part of each sequence, and where in the sequence that is."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (samples, tokens, vocabulary)."""
        logits: torch.Tensor = self.model(input_ids=tokens, position_ids=positions).logits
        return logits


class Nothing(torch.nn.Module):  # type: ignore[misc]
    """In place of an embedding that another stage holds: adds 0."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Return 0."""
        return torch.zeros((), device=indices.device)

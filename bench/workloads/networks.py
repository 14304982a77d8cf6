"""Networks that `transformers` does not have, as torch modules. This file imports torch: import it only to build."""

from __future__ import annotations

import torch
from torch import nn


class ConvolutionalText(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """Kim 2014: parallel convolutions of several widths over embeddings, the maximum of each, a linear layer."""

    def __init__(self, dimension: int, filters: int, widths: list[int], dropout: float, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, dimension)
        self.convolutions = nn.ModuleList(nn.Conv1d(dimension, filters, width) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(filters * len(widths), classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from small random embeddings, as the paper does for words without pretrained vectors."""
        nn.init.uniform_(self.embedding.weight, -0.25, 0.25)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape (samples, length) to scores of shape (samples, classes)."""
        embedded = self.embedding(tokens).transpose(1, 2)
        maxima = [torch.relu(convolution(embedded)).amax(-1) for convolution in self.convolutions]
        return self.output(self.dropout(torch.cat(maxima, 1)))


class RecurrentText(nn.Module):  # type: ignore[misc]
    """Zaremba et al. 2014: embeddings, LSTM layers with dropout between them, a linear layer."""

    def __init__(self, vocabulary: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape (samples, length) to scores of the next tokens, (samples, length, vocabulary)."""
        states, _ = self.recurrent(self.dropout(self.embedding(tokens)))
        return self.output(self.dropout(states))


class Interactions(nn.Module):  # type: ignore[misc]
    """DLRM (Naumov et al. 2019): embedding tables and dense features, their pairwise dot products, a perceptron."""

    def __init__(self, tables: int, rows: int, dense: int, dimension: int, hidden: int, *, sparse: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, dimension, sparse=sparse) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(dense, hidden), nn.ReLU(), nn.Linear(hidden, dimension), nn.ReLU())
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(
            *(nn.Linear(dimension + pairs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, 2),
        )
        self.register_buffer("pairs", torch.empty(2, pairs, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from small embeddings. The indices of the pairs stay on the device, so no step copies them there."""
        for table in self.tables:
            nn.init.uniform_(table.weight, -(table.num_embeddings**-0.5), table.num_embeddings**-0.5)
        self.pairs.copy_(torch.triu_indices(len(self.tables) + 1, len(self.tables) + 1, 1, device="cpu"))

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Map dense features (samples, dense) and rows (samples, tables) to scores of no click and click (samples, 2)."""
        below = self.bottom(dense)
        rows = [table(column) for table, column in zip(self.tables, ids.unbind(1), strict=True)]
        vectors = torch.stack([below, *rows], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        return self.top(torch.cat([below, products[:, self.pairs[0], self.pairs[1]]], 1))

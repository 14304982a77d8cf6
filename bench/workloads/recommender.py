"""A recommender (DLRM, Naumov et al. 2019): embedding tables and perceptrons that predict clicks.

The data are synthetic, as no installed package ships ratings under a clear licence. Rows of the tables follow Zipf's
law. Clicks follow a planted structure of low rank, so there is something to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from bench.schema import Count, RunSpec
from bench.workloads.base import SYNTHETIC, Batch, Split, Workload, WorkloadArgs, balanced, chances, digest

if TYPE_CHECKING:
    import torch

RANK = 4
TRAINING, VALIDATION = 1 << 16, 1 << 12


class RecommenderArgs(WorkloadArgs):
    """Arguments: `tables` of `rows` embeddings of size `dimension`, dense features, width of the perceptrons.

    With `sparse` the tables have gradients for the rows of a batch only, which of the optimizers only sgd supports.
    """

    plain = True
    tables: Annotated[int, Field(ge=1, le=256)] = 8
    rows: Count = 10_000
    dimension: Count = 16
    dense: Count = 13
    hidden: Count = 64
    sparse: bool = False

    @field_validator("data")
    @classmethod
    def _only_synthetic(cls, value: str) -> str:
        if value not in ("default", SYNTHETIC):
            raise ValueError(f"no data {value!r}: the recommender has only synthetic data")
        return value

    def refusals(self) -> dict[str, str]:
        """Return the arguments that it does not support, each with the reason."""
        return super().refusals() | {"augmentation": "tables of numbers have none"}


class Clicks(Split):
    """Samples of dense features (samples, dense), rows of the tables (samples, tables) and clicks (samples,)."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return samples; nothing about them is random."""
        return tuple(column[list(indices)] for column in self.columns)


def planted(args: RecommenderArgs, count: int) -> Batch:
    """Make samples whose log-odds of a click are dot products of hidden row vectors plus a linear part."""
    import torch

    from bench.workloads.text import zipf

    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(count, args.dense, generator=generator)
    ids = torch.stack([zipf(count, args.rows, seed).int() for seed in range(args.tables)], 1)
    places = ids.long() + torch.arange(args.tables) * args.rows
    vectors = (chances(places.flatten().tolist(), RANK, None) - 0.5).view(count, args.tables, RANK) * 12**0.5
    total = vectors.sum(1)
    pairs = (total.square().sum(1) - vectors.square().sum((1, 2))) / 2  # of all pairs of tables
    weights = torch.randn(args.dense, generator=generator) / args.dense**0.5
    odds = 1.5 * dense @ weights + pairs / max(1, args.tables)
    clicks = torch.rand(count, generator=generator) < odds.sigmoid()
    return dense, ids, clicks.to(torch.uint8)


class Recommender(Workload):
    """The workload of one rank. A sample is one row of features and its click."""

    Args = RecommenderArgs
    args: RecommenderArgs
    modules = ("bench.workloads.networks",)

    @staticmethod
    def check(spec: RunSpec) -> None:
        """Raise ValueError where the optimizer does not support sparse gradients."""
        options = spec.optimizer.options
        plain = options.get("momentum", 0.9) == 0 and options.get("implementation") in ("foreach", "loop")
        if spec.workload_args.get("sparse") and not (spec.optimizer.name == "sgd" and plain):
            raise ValueError("sparse tables need optimizer {name: sgd, momentum: 0, implementation: foreach}")

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        columns = planted(self.args, TRAINING + VALIDATION)
        self.train = Clicks(tuple(column[:TRAINING] for column in columns))
        self.validation = Clicks(tuple(column[TRAINING:] for column in columns))
        self.train.weights = balanced(self.train.columns[2]) if self.args.balance else None
        self.dataset = f"synthetic clicks, planted rank {RANK}"
        self.dataset_digest = digest(*(c.numpy().tobytes() for c in columns), self.args.sampling)

    def build(self) -> torch.nn.Module:
        """Return the network with random weights."""
        from bench.workloads.networks import Interactions

        args = self.args
        return Interactions(args.tables, args.rows, args.dense, args.dimension, args.hidden, sparse=args.sparse)

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the scores of no click and of a click, of shape (samples, 2)."""
        return model(batch[0], batch[1].long())

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the clicks, of shape (samples,)."""
        return batch[2].long()

"""A recommender (DLRM, Naumov et al. 2019): embedding tables and a perceptron that predict clicks.

No installed package ships ratings under a clear licence, so the data are synthetic, and are called so: rows of the tables
come with the frequencies of Zipf's law, and a click follows from a planted structure of low rank, which can be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from bench.schema import Count, RunSpec
from bench.workloads.base import SYNTHETIC, Split, Workload, WorkloadArgs, balanced, chances, digest

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch

RANK = 4
TRAINING, VALIDATION = 1 << 16, 1 << 12


class RecommenderArgs(WorkloadArgs):
    """What may be chosen: `tables` of `rows` embeddings of size `dimension`, dense features, width of the perceptrons.

    `sparse` gives gradients of the tables for the rows of a batch only, which few optimizers take: sgd without momentum.
    """

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
            raise ValueError(f"no data {value!r}: only synthetic data are there, for want of free ratings")
        return value

    def refusals(self) -> dict[str, str]:
        """Clicks cannot be varied, and this model is not of transformers."""
        return {
            "augmentation": "there is none for tables of numbers",
            "pretrained": "pretrained weights are for models of transformers",
        }


class Clicks(Split):
    """Samples: (dense features, rows of the tables, clicks), of shapes (samples, dense), (samples, tables), (samples,)."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return samples."""
        import torch

        places = torch.tensor(indices)
        return tuple(column[places] for column in self.columns)


def planted(args: RecommenderArgs, count: int) -> Batch:
    """Make samples whose log-odds of a click are dot products of hidden vectors of the rows, and a linear part."""
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
    """The workload of one rank. A sample is one row of features with its click."""

    Args = RecommenderArgs
    args: RecommenderArgs
    modules = ("bench.workloads.networks",)

    @staticmethod
    def check(spec: RunSpec) -> None:
        """Raise ValueError where the optimizer cannot take sparse gradients."""
        options = spec.optimizer.options
        takes = options.get("momentum", 0.9) == 0 and options.get("implementation") in ("foreach", "loop")
        if spec.workload_args.get("sparse") and not (spec.optimizer.name == "sgd" and takes):
            raise ValueError(
                "sparse tables need optimizer {name: sgd, momentum: 0, implementation: foreach}: the others take dense "
                "gradients only"
            )

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
        """Scores of no click and of a click, of shape (samples, 2)."""
        scores: torch.Tensor = model(batch[0], batch[1].long())
        return scores

    def labels(self, batch: Batch) -> torch.Tensor:
        """Clicks, of shape (samples,)."""
        return batch[2].long()

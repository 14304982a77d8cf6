"""ZeRO stage 1: the state of the optimizer is divided among the ranks (Rajbhandari et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from bench.strategies.parallelism import Ddp
from bench.strategies.parts import Unsupported


class Zero1(Ddp):
    """As ddp, but each rank updates its part of the parameters and broadcasts them.

    torch's ZeroRedundancyOptimizer gives whole tensors to ranks; the tensors of a rank travel together. With fp16 it waits
    once a step to know whether a gradient overflowed.
    """

    def optimizer(self, make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """Make this rank's optimizer of its part, inside one that broadcasts the parameters."""
        trained = [p for p in self.parts.model.parameters() if p.requires_grad]
        if len(trained) < self.data_ranks:
            raise Unsupported(
                f"zero1 needs at least one trained tensor for each of {self.data_ranks} devices, not {len(trained)}"
            )

        def of_rank(groups: list[dict[str, Any]], **_: Any) -> torch.optim.Optimizer:
            return make([parameter for group in groups for parameter in group["params"]])

        return ZeroRedundancyOptimizer(trained, of_rank, parameters_as_bucket_view=True)

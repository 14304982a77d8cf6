"""How a step becomes kernels: eager or compiled, and the kernel of the attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.strategies.parts import Parallelism, Parts


def eager(parts: Parts, parallel: Parallelism) -> None:
    """Run each operation as it comes."""


def sdpa(parts: Parts) -> None:
    """Let torch choose the kernel of the attention."""

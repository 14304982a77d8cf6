"""The progress of a search in a terminal: the lines of runs, each with its trial and stage."""

from __future__ import annotations

from analytics.search.session import SearchProgress
from bench.cli.progress import Lines
from bench.schema import RunSpec


class TrialLines(Lines, SearchProgress):
    """Lines of runs that name their trial."""

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """Show what runs now; the time left of a trial is not that of the search."""
        super().start(spec, None)

    def _head(self) -> str:
        return f"[{self.trial}]"

"""The progress of a search in a terminal: the lines of runs, each with its trial and stage."""

from __future__ import annotations

from analytics.search.session import SearchProgress
from bench.cli.progress import Lines
from bench.folder import WORKER_LOG
from bench.record import RunRecord, Status
from bench.schema import RunSpec


class TrialLines(Lines, SearchProgress):
    """Lines of runs that name their trial, and the log of a run that failed."""

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """Show what runs now; the time left of a trial is not that of the search."""
        super().start(spec, None)

    def done(self, record: RunRecord) -> None:
        """Print how a run ended, and where its output is if it failed."""
        super().done(record)
        log = self.folder / record.run_id / WORKER_LOG
        if record.status not in (Status.OK, Status.SKIPPED, Status.OUT_OF_MEMORY) and log.exists():
            self.note(f"  its output: {log}")

    def _head(self) -> str:
        return f"[{self.trial}]"

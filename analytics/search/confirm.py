"""Confirming the front of a search: a suite that repeats the best configurations, and what its runs say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analytics.search.result import SearchResult


def confirm_suite(found: SearchResult, k: int = 5, repeats: int = 5) -> dict[str, Any]:
    """Return a suite, as written in a file, of the whole front, the knee first, filled up to `k` by what is least beaten."""
    search, cells = found.space.search, []
    for trial in found.points[: max(k, len(found.front))]:
        cell = found.space.cell(trial.params)
        if search.trains_to_the_end:
            cell |= {"measure_steps": found.space.spec(trial.params).measure_steps, "warmup_seconds": 0.0}
        cells += [cell] if cell not in cells else []
    suite = search.suite(f"{search.name[:56]}-confirm", include=cells, repeats=repeats)
    return suite.model_dump(mode="json", exclude_defaults=True)

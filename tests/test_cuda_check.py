"""The check of a GPU gives its verdicts."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.gpu_checks import jobs


@pytest.mark.parametrize(("slower", "fine"), [(1.0, True), (1.02, False)])
def test_the_usual_pace_of_the_meters_gets_a_verdict(
    slower: float, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [1.0, slower, slower, 1.0, 1.0001, slower * 1.0001, slower * 1.0001, 1.0001] * 4
    answer: dict[str, Any] = {"error": None, "live": ["nvml"], "times": times, "steps": 9}
    monkeypatch.setattr(jobs, "job", lambda *arguments, **options: answer)
    usual, fast = jobs.v8(SimpleNamespace(no_load=None, uuid="GPU-1"), 1).lines
    assert (usual.ok, fast.ok) == (fine, None)

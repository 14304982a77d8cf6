"""Where the law of scaling says to look first."""

import pytest

from analytics.search.prior import promising
from tests.replay import search, space


def known(over, times):  # type: ignore[no-untyped-def]
    return {over.key(_row(over, params)): (params, seconds, True) for params, seconds in times}


def _row(over, params):  # type: ignore[no-untyped-def]
    from bench.figures.metrics import parameters

    return parameters(over.spec(params))


def config(devices: int, batch: int, precision: str = "fp32") -> dict[str, object]:
    return {"devices": devices, "batch_size_per_device": batch, "precision": precision}


@pytest.fixture
def over():  # type: ignore[no-untyped-def]
    fields = {"devices": [1, 2], "batch_size_per_device": [1, 2, 4, 8], "precision": ["fp32", "bf16"]}
    return space(search("[time]", space=fields, exclude=[]))


def test_it_looks_where_a_series_goes_on_to_be_faster(over) -> None:  # type: ignore[no-untyped-def]
    times = [(config(1, 1), 100.0), (config(1, 2), 60.0), (config(2, 1), 52.0), (config(1, 4, "bf16"), 500.0)]
    found = promising(over, known(over, times))
    assert found is not None
    assert (found["devices"], found["precision"]) == (2, "fp32")
    assert found["batch_size_per_device"] > 1


def test_it_says_nothing_where_nothing_is_expected_to_be_better(over) -> None:  # type: ignore[no-untyped-def]
    assert promising(over, {}) is None
    assert promising(over, known(over, [(config(1, 1), 100.0)])) is None
    best = [(config(2, 8), 1.0), (config(1, 1), 100.0), (config(1, 2), 90.0)]
    assert promising(over, known(over, best)) is None
    energy = space(search("[energy]"))
    assert promising(energy, {}) is None

"""The store of recorded runs holds what tests of the pages count on."""

import pytest

from analytics.runs import store
from bench.record import Status
from bench.store import tracker as tracking

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]


def test_suites_and_outcomes(recorded_uri: str) -> None:
    df = store.load(recorded_uri, named=True)
    assert df.groupby("suite").size().to_dict() == {"batches": 18, "ladder": 14, "scaling": 12}
    failed = df[df["status"] != Status.OK]
    assert len(failed) == 6
    assert set(failed["status"]) == {Status.OUT_OF_MEMORY}
    assert df["ladder"].nunique() == 7
    assert set(df["devices"]) == {1, 2}


def test_records_and_the_search(recorded_uri: str) -> None:
    df = store.load(recorded_uri)
    (record,) = tracking.records([row for _, row in df[df["status"] != Status.OK].head(1).iterrows()], recorded_uri)
    assert record.error is not None
    assert "can't allocate memory" in record.error.message
    (search,) = tracking.searches(recorded_uri)
    assert len(search["trials"]) > 10

"""What people read in a terminal is what a person approved: `make approve` rewrites it."""

import pytest

from tests.approve import APPROVED, FOLDER


@pytest.mark.parametrize("name", APPROVED)
def test_the_output_is_the_approved_one(name: str) -> None:
    assert APPROVED[name]() == (FOLDER / f"{name}.txt").read_text(), "if this is meant: make approve"


def test_every_approved_text_has_its_output() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(APPROVED)

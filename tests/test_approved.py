"""What people read in a terminal is what a person approved: `make approve` rewrites it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.figures.flags import FLAGS
from tests import approve
from tests.approve import APPROVED, FOLDER

MOST_WORDS = {"fit": 230, "compare": 170, "compare ladder": 245, "compare scaling --fail-if": 147, "pareto": 160}
"""By the beginning of a command; the ladder has 22 comparisons, each with its interval, and a command with its prices."""
OUTPUTS = {
    text.split("\n")[0]: text.split("\n", 1)[1]
    for name in ("advise", "compare", "fit", "gate", "pareto")
    for text in re.split(r"(?m)^\$ bench ", (FOLDER / f"{name}.txt").read_text())[1:]
}
"""What commands on recorded runs print."""


@pytest.mark.parametrize("name", APPROVED)
def test_the_output_is_the_approved_one(
    name: str, recorded_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Path(recorded_uri.removeprefix("sqlite:///")).parent  # made once for all tests
    for path in (recorded / "mlflow.db", recorded / "runs", FOLDER.parent.parent / "suites"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(approve, "_recorded", lambda: SimpleNamespace(name=tmp_path))
    assert APPROVED[name]() == (FOLDER / f"{name}.txt").read_text(), "if this is meant: make approve"


def test_every_approved_text_has_its_output() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(APPROVED)


@pytest.mark.parametrize("command", [command for command in OUTPUTS if "--explain" not in command])
def test_an_output_is_short_and_without_codes(command: str) -> None:
    limits = [most for begin, most in MOST_WORDS.items() if command.startswith(begin)]
    assert len(OUTPUTS[command].split()) <= min(limits[-1:], default=230)
    assert not re.search(r"(?<!--set )\b[a-z_.]+=\S", OUTPUTS[command])
    assert not [flag for flag in FLAGS if "_" in flag and flag in OUTPUTS[command]]
    assert "alloc" not in OUTPUTS[command]
    assert OUTPUTS[command].split("\n")[2].startswith("  "), "the answer stands below the title"

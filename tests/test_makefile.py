"""`make test` and `make check`: every part runs whatever failed before it, and the exit code says whether any failed."""

import subprocess
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).parent.parent
PARTS = {
    "lint": "ruff check .",
    "format": "ruff format --check .",
    "types": "mypy",
    "layers": "lint-imports",
    "quick": "python -m pytest -m not slow",
    "slow": "python -m pytest -m slow",
}


def make(goal: str, folder: Path, failing: dict[str, int]) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run make in an environment whose tools only note that they were called; return its end and the calls."""
    tools, calls = folder / "venv" / "bin", folder / "calls"
    tools.mkdir(parents=True)
    cases = "".join(f'  "{PARTS[part]}"*) exit {code};;\n' for part, code in failing.items())
    for name in ("python", "ruff", "mypy", "lint-imports"):
        script = f'#!/bin/sh\ncall="{name} $*"\necho "${{call% }}" >> {calls}\ncase "${{call% }}" in\n{cases}esac\n'
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    for stamp in (".constraints", ".wattbench", ".wattbench-dev"):
        (folder / "venv" / stamp).touch()
    done = run(["make", "-C", str(ROOT), goal, f"VENV={folder / 'venv'}"])
    return done, calls.read_text().splitlines()


@pytest.mark.parametrize(
    ("goal", "failing", "failed"),
    [
        ("test", {}, None),
        ("test", {"quick": 1}, "quick"),
        ("test", {"slow": 1}, "slow"),
        ("test", {"lint": 1, "types": 1, "quick": 2}, "static quick"),
        ("test", {"slow": 5}, None),  # no test was selected
        ("check", {"layers": 1}, "static"),
        ("check", {"quick": 1}, "quick"),
    ],
)
def test_all_parts_run_and_all_failures_are_named(
    goal: str, failing: dict[str, int], failed: str | None, tmp_path: Path
) -> None:
    done, calls = make(goal, tmp_path, failing)
    parts = [part for part in PARTS if goal == "test" or part != "slow"]
    assert len(calls) == len(parts)
    assert all(call.startswith(PARTS[part]) for call, part in zip(calls, parts, strict=True)), calls
    assert (done.returncode == 0) == (failed is None), done.stdout + done.stderr
    if failed is not None:
        assert f"make {goal}: failed: {failed}" in done.stdout

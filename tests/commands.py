"""The command line in this process: what it prints, and the code it exits with."""

import contextlib
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from bench.cli import main
from tests import warm


class _Bench:
    name = "bench"

    def main(self, args: Any, **_: Any) -> None:
        main(list(args))


def bench(*arguments: str, charset: str = "utf-8") -> Result:
    """Return the result of `bench ARGUMENTS`, errors shown as a user sees them."""
    command: Any = _Bench()
    return CliRunner(charset=charset).invoke(command, list(arguments))


def execute(folder: Path, *arguments: str) -> Result:
    """Return the result of `bench ARGUMENTS` in a folder; nodes that it starts have imported torch already."""
    with contextlib.chdir(folder), warm.nodes():
        return bench(*arguments)

"""The command line in this process: what it prints, and the code it exits with."""

from typing import Any

from click.testing import CliRunner, Result

from bench.cli import main


class _Bench:
    name = "bench"

    def main(self, args: Any, **_: Any) -> None:
        main(list(args))


def bench(*arguments: str) -> Result:
    """Return the result of `bench ARGUMENTS`, errors shown as a user sees them."""
    command: Any = _Bench()
    return CliRunner().invoke(command, list(arguments))

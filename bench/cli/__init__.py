"""The command `bench`: each verb is a small file that parses, calls and prints. Verbs are imported when they are used."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from bench.errors import FAULT, STOPPED, WRONG_USE, UserError
from bench.registry import did_you_mean

_GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "run": ("bench.cli.run:run", "Run a suite: train, measure, record, print the answer."),
        "measure": ("bench.cli.measure:measure", "Run any command and measure its time, energy and cost."),
        "search": ("bench.cli.search:search", "Search for good configurations within a budget."),
    },
    "Look": {
        "fit": ("bench.cli.fit:fit", "Print results and how they scale; predict more devices."),
        "compare": ("bench.cli.compare:compare", "Compare runs, with verdicts; a gate for CI jobs."),
        "advise": ("bench.cli.advise:advise", "Recommend what to change, with evidence and limits."),
        "report": ("bench.cli.report:report", "Write a report: HTML, Markdown, CSV, Parquet or JSON."),
        "dashboard": ("bench.cli.dashboard:dashboard", "Open the dashboard in a browser, on 127.0.0.1."),
    },
    "Decide": {
        "plan": ("bench.cli.plan:plan", "Predict time, cost, energy and carbon of a training."),
        "pareto": ("bench.cli.pareto:pareto", "Find the Pareto front of time, energy, cost and quality."),
    },
    "More": {
        "doctor": ("bench.cli.doctor:doctor", "Check what can be measured on this machine."),
        "show": ("bench.cli.show:show", "List the runs of a suite, with time and cost; start nothing."),
        "import": ("bench.cli.imports:import_", "Import a table of results that others measured."),
        "baseline": ("bench.cli.baseline:baseline", "Save runs to a file, to compare later runs with."),
        "sync": ("bench.cli.sync:sync", "Log to MLflow the runs that it lacks."),
        "help": ("bench.cli.terms:help_", "Explain the terms of an answer, the flags of a run, or a verb."),
    },
}
"""Verbs by what they are for: the place of the code, and one line of help."""
_FULL = {errno.ENOSPC: "\nfree some space, then run the same command again"}
_VERBS = {name: verb for verbs in _GROUPS.values() for name, verb in verbs.items()}


class _Lazy(click.Group):
    """A group whose commands are imported on use; help shows them in groups, with the sentences above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, _, attribute = _VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in _VERBS:
            ctx.fail(f"no command {args[0]!r}; {did_you_mean(args[0], _VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, verbs in _GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(f"{name:9}", sentence) for name, (_, sentence) in verbs.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="wattbench", prog_name="bench")
def cli() -> None:
    """Measure how training scales, and what it takes in time, energy, carbon and money.

    For your own script: `bench measure -- python train.py`. For a ready suite: `bench run suites/scaling.yaml`, after
    `bench doctor`. `bench help VERB` explains a verb, and `bench help terms` the words of an answer.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. This is the only place where errors are caught.

    Exit codes: 0 success, 1 runs failed or a comparison is worse than allowed, 2 wrong use, 130 stopped, 70 a fault of
    wattbench or of the machine. `bench measure` passes on the exit code of its command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without · and × gets ? for them
    code = 0
    try:
        typed = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
        cli.main(typed, prog_name="bench", standalone_mode=False, obj=list(typed))
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = WRONG_USE
    except UserError as error:
        _print(*error.messages)
        code = error.code
    except (click.Abort, KeyboardInterrupt):
        _print("Stopped.")
        code = STOPPED
    except BrokenPipeError:
        # The reader (head, less) has left: nothing more can be printed, and that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        _print(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}{_FULL.get(error.errno or 0, '')}"
        )
        code = FAULT
    except Exception:  # noqa: BLE001 - the last resort: Python's own exit code would be 1
        traceback.print_exc()
        _print("this is a fault of wattbench: please report it with the lines above")
        code = FAULT
    sys.exit(code)


def _print(*messages: str) -> None:
    for message in messages:
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in message)
        click.echo(f"bench: {text}", err=True)

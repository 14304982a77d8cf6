"""The command `bench`: each verb is a small file that parses, calls and prints. Verbs are imported when they are used."""

from __future__ import annotations

import io
import os
import shutil
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

_VERBS = {
    "run": ("bench.cli.run:run", "Execute a suite: train, measure, record, and print the answer."),
    "measure": ("bench.cli.measure:measure", "Run any command and measure it: time, energy, carbon, cost, memory."),
    "import": ("bench.cli.imports:import_", "Import a table of someone else's results."),
    "show": ("bench.cli.show:show", "List the runs that a suite means here, with time and cost; start nothing."),
    "fit": ("bench.cli.fit:fit", "Print the results and the fitted T = n / (d · v) of runs in the store."),
    "advise": ("bench.cli.advise:advise", "Say what to do after the runs of a suite, with evidence and limits."),
    "compare": (
        "bench.cli.compare:compare",
        "Compare runs with others, with a verdict; exit with 1 if they are worse than is allowed.",
    ),
    "baseline": ("bench.cli.baseline:baseline", "Keep runs in a file, to compare later ones with."),
    "pareto": ("bench.cli.pareto:pareto", "Say which configurations no other beats in time, energy, cost and quality."),
    "search": ("bench.cli.search:search", "Find good ways to train within a budget, without trying all of them."),
    "plan": ("bench.cli.plan:plan", "Say what a training takes on how many devices: time, cost, energy, carbon."),
    "report": (
        "bench.cli.report:report",
        "Report stored runs: printed, or one file (HTML, Markdown, CSV ...); carbon and cost by other factors.",
    ),
    "dashboard": ("bench.cli.dashboard:dashboard", "Open the dashboard on 127.0.0.1."),
    "doctor": (
        "bench.cli.doctor:doctor",
        "Say what can be measured on this machine, and what to do about what cannot.",
    ),
    "sync": ("bench.cli.sync:sync", "Log records to MLflow that are not there yet."),
}


FAULT = 70
"""Exit code where wattbench or the machine failed, never the answer (EX_SOFTWARE of sysexits.h)."""


class _Lazy(click.Group):
    """A group whose commands are imported on use; help shows the sentences of the table above."""

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
            from bench.registry import did_you_mean

            ctx.fail(f"no command {args[0]!r}; {did_you_mean(args[0], _VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in _VERBS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="wattbench", prog_name="bench")
def cli() -> None:
    """Say how to train, on how many devices, in which precision, and what it takes in time, energy, carbon and money."""


def program() -> str:
    """Return what the user has to type for this command: `bench`, or its path where it is not on PATH."""
    here = Path(sys.argv[0])
    found = shutil.which("bench")
    if here.name != "bench" or (found is not None and Path(found).resolve() == here.resolve()):
        return "bench"
    return os.path.relpath(here)


def fail(*messages: str, code: int = 2) -> NoReturn:
    """Print messages to stderr and end with an exit code; 2 means that what was asked is wrong."""
    for message in messages:
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in message)
        click.echo(f"bench: {text}", err=True)
    sys.exit(code)


def main() -> None:
    """Run the command line. Mistakes of the user end with a message of one or two lines and exit code 2, ours with 70.

    1 is left to answers: runs that failed, a comparison that is worse than allowed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without · and × gets ? for them
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nbench: stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has left: nothing more can be said, and that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except OSError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(FAULT)
    except Exception:  # noqa: BLE001 - the last resort: Python's own exit code would be 1
        traceback.print_exc()
        click.echo("bench: this is a fault of wattbench: please report it with the lines above", err=True)
        sys.exit(FAULT)

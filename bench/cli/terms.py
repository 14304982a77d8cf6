"""`bench help`: definitions of the words that answers use, the flags of runs, and the help of a verb."""

from __future__ import annotations

import click

from bench.cli.options import print_blocks
from bench.errors import UserError
from bench.registry import did_you_mean


@click.command("help")
@click.argument("topic", default="")
@click.pass_context
def help_(context: click.Context, topic: str) -> None:
    """Explain TOPIC: `terms` (the words of an answer), `flags` (of a run), or a verb such as `run`."""
    from analytics.say.terms import TOPICS
    from bench.cli import cli

    root = context.find_root()
    verb = cli.get_command(root, topic)
    if topic in TOPICS:
        print_blocks(TOPICS[topic]())
    elif verb is not None:
        click.echo(verb.get_help(click.Context(verb, root, topic)))
    elif topic:
        raise UserError(f"no topic {topic!r}: {did_you_mean(topic, [*TOPICS, *cli.list_commands(root)])}")
    else:
        click.echo(root.get_help())

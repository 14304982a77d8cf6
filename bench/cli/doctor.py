"""`bench doctor`: what can be measured here."""

from __future__ import annotations

from dataclasses import asdict

import click

from bench.cli.options import explain_option, json_option, print_blocks, print_json, store_option


@click.command()
@store_option
@explain_option
@json_option
def doctor(store: str | None, explain: bool, as_json: bool) -> None:
    """Check what can be measured on this machine, and how to fix what cannot. --explain lists all checks."""
    from analytics.say.doctor import blocks
    from bench.machine.doctor import Finding, findings
    from bench.store.tracker import location, shown, writable

    state = Finding("MLflow store", "ok", shown(store))
    if location(store).startswith("http"):
        state = Finding("MLflow store", "unknown", f"{shown(store)}: a server, not checked")
    elif not writable(location(store)):
        state = Finding("MLflow store", "problem", f"{shown(store)} cannot be written", "name another with --store")
    checks = [*findings(), state]
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_blocks(blocks(checks, store), explain=explain)

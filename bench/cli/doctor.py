"""`bench doctor`: what can be measured here."""

from __future__ import annotations

from dataclasses import asdict

import click

from bench.cli.options import json_option, print_json, store_option


@click.command()
@store_option
@json_option
def doctor(store: str | None, as_json: bool) -> None:
    """Check what can be measured on this machine, from which source, and how to fix what cannot."""
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
        return
    width = max(len(check.subject) for check in checks)
    for check in checks:
        click.echo(f"{check.subject:<{width}}  {check.state:<8} {check.detail}")
        for line in check.remedy.splitlines() if check.remedy else ():
            click.echo(f"{'':<{width}}  {'':<8} -> {line}")

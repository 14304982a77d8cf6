"""`bench doctor`: what can be measured here."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from bench.cli.options import json_option, store_option


@click.command()
@store_option
@json_option
def doctor(store: str | None, as_json: bool) -> None:
    """Say what can be measured on this machine, from which source, and what to do about what cannot."""
    from bench.machine.doctor import Finding, findings
    from bench.store.tracker import location, shown, writable

    where = Finding("MLflow store", "ok", shown(store))
    if location(store).startswith("http"):
        where = Finding("MLflow store", "unknown", f"{shown(store)}: not asked")
    elif not writable(location(store)):
        where = Finding("MLflow store", "problem", f"{shown(store)} cannot be written", "name another with --store")
    found = [*findings(), where]
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
        return
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        click.echo(f"{finding.subject:<{width}}  {finding.state:<8} {finding.detail}")
        if finding.remedy:
            for line in finding.remedy.splitlines():
                click.echo(f"{'':<{width}}  {'':<8} -> {line}")

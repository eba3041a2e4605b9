"""``auditorch schema``."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("what", type=click.Choice(["spec", "record"]))
def schema(what: str) -> None:
    """Prints the JSON Schema of the spec (audit.yaml) or of the record (audit.json)."""
    if what == "spec":
        from ..spec import spec_json_schema

        document = spec_json_schema()
    else:
        from ...reports.schema import record_schema

        document = record_schema()
    click.echo(json.dumps(document, indent=2))

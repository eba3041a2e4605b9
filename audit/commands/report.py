"""``auditorch report``."""

from __future__ import annotations

from pathlib import Path

import click

FORMATS = ("html", "json", "junit", "sarif", "markdown", "cyclonedx", "modelcard")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="What to write; everything but json when left out. json is printed. Repeatable.",
)
def report(directory: Path, formats: tuple[str, ...]) -> None:
    """Writes reports again from the record in DIRECTORY, and prints their paths."""
    from ...reports.render import ALL, render
    from ...reports.schema import read_record

    record = read_record(directory)
    folder = directory if directory.is_dir() else directory.parent
    for path in render(record, folder, [name for name in formats or ALL if name != "json"]):
        click.echo(path)
    if "json" in formats:
        click.echo(record.model_dump_json(indent=2))

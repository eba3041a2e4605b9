"""``auditorch export``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("variant")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write to; `export/VARIANT` inside of DIRECTORY when left out.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of the spec, when it is no longer where the audit was run from.",
)
def export(directory: Path, variant: str, output: Path | None, base: Path | None) -> None:
    """Takes VARIANT out of the audit in DIRECTORY: weights as safetensors, a model card, and its parameters."""
    from ..export import export_variant

    found = export_variant(directory, variant, output or directory / "export" / variant, base=base)
    for path in found.files:
        click.echo(str(path))
    if not found.same_structure:
        click.echo("The structure differs from the model's: its factory cannot load these weights alone.", err=True)

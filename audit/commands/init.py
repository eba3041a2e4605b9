"""``auditorch init``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--model", required=True, metavar="FILE.py:FUNCTION", help="The function that builds the model.")
@click.option("--weights", help="Its weights, a .safetensors or weights-only .pt file.")
@click.option("--data", required=True, help="Samples to audit on: .npz, or a folder with one sub-folder per class.")
@click.option("--train", help="What the model was trained on; adds the membership check.")
@click.option(
    "--modality",
    type=click.Choice(["image", "tabular"]),
    default="image",
    show_default=True,
    help="What the model takes: pictures, or rows of a table.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("audit.yaml"),
    show_default=True,
    help="The spec to write.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(
    model: str, weights: str | None, data: str, train: str | None, modality: str, output: Path, force: bool
) -> None:
    """Writes a first spec with comments, ready to run."""
    from ..errors import OutputError
    from ..first_spec import Wishes, first_spec
    from ..spec import parse_spec
    from ..storage import write_atomic

    if output.exists() and not force:
        raise OutputError(f"{output} exists; choose another name with -o, or overwrite it with --force")
    text = first_spec(Wishes(model, data, weights, train, modality), output.parent)
    parse_spec(text, output.parent)
    write_atomic(output, text.encode())
    click.echo(f"Wrote {output}. Next: auditorch run {output}")

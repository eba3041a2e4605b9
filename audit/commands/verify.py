"""``auditorch verify``."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .run import results_only_on_stdout


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of the spec, when it is no longer where the audit was run from.",
)
@click.option(
    "--public-key", metavar="KEY", help="Also check the signature: a public key of keygen or minisign, file or text."
)
@click.option("--no-model", is_flag=True, help="Check record and evidence only, without loading model and data.")
@options.device_option
@options.quiet_option
@click.pass_context
def verify(
    ctx: click.Context,
    directory: Path,
    base: Path | None,
    public_key: str | None,
    no_model: bool,
    device: str | None,
    quiet: bool,
) -> None:
    """Re-checks every claim of the audit in DIRECTORY: record, evidence, and the model's answers.

    Exit code 0 when all hold, 1 when one does not.
    """
    from ..context import choose_device
    from ..signing import read_public
    from ..verdict import visible
    from ..verify import verify as claims

    held = failed = 0
    key = None if public_key is None else read_public(public_key)
    place = choose_device(device or "cpu")
    with results_only_on_stdout() as out:
        for claim in claims(directory, base=base, device=place, with_model=not no_model, public_key=key):
            held, failed = held + claim.ok, failed + (not claim.ok)
            if not claim.ok or not quiet:
                detail = f" ({claim.detail})" if claim.detail else ""
                click.echo(visible(f"{'ok    ' if claim.ok else 'FAILED'}  {claim.what}{detail}"), file=out)
    click.echo(f"{held} claims hold, {failed} fail")
    ctx.exit(1 if failed else 0)

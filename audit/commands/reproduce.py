"""``auditorch reproduce``."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .run import results_only_on_stdout


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("check")
@click.option("--variant", default="base", show_default=True, help="The variant that the check ran on.")
@click.option(
    "--base",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of the spec, when it is no longer where the audit was run from.",
)
@options.device_option
@options.quiet_option
@click.pass_context
def reproduce(
    ctx: click.Context, directory: Path, check: str, variant: str, base: Path | None, device: str | None, quiet: bool
) -> None:
    """Runs CHECK of the audit in DIRECTORY again, with its spec and seed, and compares every number.

    Nothing in DIRECTORY is changed. Exit code 0 when all are the same, 1 when one is not.
    """
    import sys

    from ..context import choose_device
    from ..progress import display_for
    from ..reproduce import reproduce as claims
    from ..verdict import visible

    same = different = 0
    with results_only_on_stdout() as out:
        display = display_for(sys.stderr, quiet=quiet)
        place = choose_device(device or "cpu")
        for claim in claims(directory, check, variant, base=base, device=place, display=display):
            same, different = same + claim.ok, different + (not claim.ok)
            if not claim.ok or not quiet:
                detail = f" ({claim.detail})" if claim.detail else ""
                click.echo(visible(f"{'same      ' if claim.ok else 'DIFFERENT '}  {claim.what}{detail}"), file=out)
    click.echo(f"{same} the same, {different} different")
    ctx.exit(1 if different else 0)

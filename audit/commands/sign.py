"""``auditorch keygen`` and ``auditorch sign``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("key", type=click.Path(path_type=Path, dir_okay=False))
def keygen(key: Path) -> None:
    """Makes a key pair for signing audits: the secret KEY, and KEY.pub to hand out.

    The files are minisign's. Keep KEY secret: it has no password.
    """
    from ..signing import make_keys

    public = key.with_name(key.name + ".pub")
    made = make_keys(key, public)
    click.echo(f"Secret key: {key} (keep it secret)\nPublic key: {public} (id {made.name})")
    click.echo(public.read_text().splitlines()[-1])


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), help="The secret key, of keygen or minisign -W.")
def sign(directory: Path, key: Path) -> None:
    """Signs the audit in DIRECTORY; the signature covers the record, and with it the hash of each evidence file.

    Whoever has the public key checks it with `auditorch verify DIRECTORY --public-key KEY.pub`, or with minisign.
    """
    from ...reports.schema import read_record
    from ..output import RECORD
    from ..signing import sign as sign_file

    record = read_record(directory)
    file = directory / RECORD if directory.is_dir() else directory
    comment = f"auditorch audit {record.name!a} verdict:{record.verdict} created:{record.created.isoformat()}"
    click.echo(sign_file(file, key, comment))

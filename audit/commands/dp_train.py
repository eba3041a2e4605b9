"""``auditorch dp-train``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from . import options
from .run import as_overrides, results_only_on_stdout, show_record


@click.command("dp-train")
@options.spec_argument
@options.output_option
@options.set_option
@options.limit_option
@options.device_option
@options.seed_option
@options.json_option
@options.quiet_option
@click.pass_context
def dp_train(
    ctx: click.Context,
    spec: Path,
    output: Path,
    overrides: tuple[str, ...],
    limit: int | None,
    device: str | None,
    seed: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Trains the model of SPEC privately, as its `dp_sgd` variants say, and audits the result.

    Writes `weights.safetensors`, `card.md` and `card.json` beside the report; with several epsilons into a folder for
    each. A run that was killed goes on where it was, and every step counts.
    """
    from ..dp_card import private_variants, refuse_several_processes, write_private_models
    from ..progress import display_for
    from ..runner import run_audit
    from ..spec import load_spec
    from ..verdict import exit_code

    refuse_several_processes(os.environ.get("WORLD_SIZE"))
    read = load_spec(spec, [*as_overrides(limit, seed), *overrides])
    wanted = [variant.id for variant in private_variants(read)]
    with results_only_on_stdout():
        record = run_audit(
            read,
            output,
            device=device or read.device or "auto",
            only=wanted,
            display=display_for(sys.stderr, quiet=quiet),
        )
        files = write_private_models(record, read, output)
    show_record(record, output, as_json=as_json, quiet=quiet)
    if not quiet and not as_json:
        click.echo("".join(f"{path}\n" for path in files), nl=False)
    ctx.exit(exit_code(record))

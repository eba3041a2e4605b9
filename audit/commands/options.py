"""Options that several commands share. Precedence: flag, then environment variable, then spec, then default."""

from __future__ import annotations

from pathlib import Path

import click

spec_argument = click.argument("spec", type=click.Path(path_type=Path))

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("auditorch-report"),
    show_default=True,
    envvar="AUDITORCH_OUTPUT",
    show_envvar=True,
    help="Folder for report, record and evidence; a run continues what lies there.",
)
device_option = click.option(
    "--device",
    envvar="AUDITORCH_DEVICE",
    show_envvar=True,
    metavar="DEVICE",
    help="auto, cpu, mps, cuda or cuda:N; the spec's, or auto, when left out.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), envvar="AUDITORCH_SEED", show_envvar=True, help="Overrides the spec's seed."
)
limit_option = click.option(
    "--limit",
    type=click.IntRange(1),
    envvar="AUDITORCH_LIMIT",
    show_envvar=True,
    help="Audit a random subset of N samples.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Overrides a value of the spec, such as linf.eps=4/255. Repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress and no table, only errors.")

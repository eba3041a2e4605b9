"""The command line, ``auditorch``."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import click

from .commands.compare import compare
from .commands.demo import demo
from .commands.dp_train import dp_train
from .commands.export import export
from .commands.init import init
from .commands.report import report
from .commands.reproduce import reproduce
from .commands.run import run
from .commands.scan import scan
from .commands.schema import schema
from .commands.show import list_names, show
from .commands.sign import keygen, sign
from .commands.validate import validate
from .commands.verify import verify
from .errors import AuditError

INTERRUPTED = 130
INCOMPLETE = 3


class Commands(click.Group):
    """A group whose commands never end in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AuditError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output left, as `auditorch show … | head` does: nobody is there to be told.
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (lives until the process ends)
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            click.echo(f"Internal error: {type(error).__name__}: {error}. Traceback: {_log()}", err=True)
            ctx.exit(INCOMPLETE)


def _log() -> str:
    handle, name = tempfile.mkstemp(prefix="auditorch-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return name


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"auditorch {version('auditorch')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Audits PyTorch classifiers for accuracy, adversarial robustness, attribution and privacy.

    Exit codes: 0 every gate passed; 1 a gate failed or is inconclusive; 2 bad usage or spec; 3 incomplete (a check
    did not finish, or a file was refused); 130 interrupted.
    """


for _command in (
    run,
    demo,
    dp_train,
    init,
    validate,
    list_names,
    show,
    scan,
    verify,
    reproduce,
    keygen,
    sign,
    compare,
    export,
    report,
    schema,
):
    main.add_command(_command)

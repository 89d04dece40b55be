"""The command line. Each command has a file, which is imported only when the command is called, so ``--help`` is quick.

Exit codes: 0 well, 1 it failed, 2 wrong usage, 130 interrupted. A user's mistake is one line on stderr, never a
traceback.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final, NoReturn

import click

from asyncjobs.errors import AsyncjobsError, ConfigError, PayloadError, UnknownJobError

INTERRUPTED: Final = 130
COMMANDS: Final = {
    "run": "Run the jobs and tasks of a project (the default).",
    "demo": "Watch an example project run on the embedded store; takes half a minute.",
    "add": "Add one job: add NAME JSON.",
    "stats": "Count the jobs of a project by state.",
    "check": "Load and validate everything, without a store.",
}


class Commands(click.Group):
    """Knows the name and the help of each command, and imports a command when it is called. ``run`` is the default."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"asyncjobs.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("--help", "-h", "--version")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="asyncjobs-runtime", prog_name="asyncjobs")
def cli() -> None:
    """Durable background jobs, per-tenant groups, rate limits and cron tasks on your app's event loop."""


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def main(args: list[str] | None = None) -> Any:
    """Run the command line; never returns normally."""
    try:
        code = cli.main(args, prog_name="asyncjobs", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (ConfigError, PayloadError, UnknownJobError) as error:
        fail(str(error), 2)
    except AsyncjobsError as error:
        fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)

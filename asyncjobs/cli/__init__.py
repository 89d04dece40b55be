"""The command line. Each command has a file, which is imported only when the command is called, so ``--help`` is quick.

Exit codes: 0 well, 1 it failed, 2 wrong usage, 130 interrupted. A user's mistake is one line on stderr, never a
traceback.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NoReturn

import click

from asyncjobs import words
from asyncjobs.cli.command import Commands
from asyncjobs.errors import AsyncjobsError, ConfigError, PayloadError, UnknownJobError

INTERRUPTED: Final = 130
COMMANDS: Final = {
    "run": "Run the jobs and tasks of a project (the default).",
    "demo": "Watch an example project run on the embedded store; takes half a minute.",
    "add": "Add jobs: add NAME JSON.",
    "stats": "Count the jobs by name and state; --watch for a live view.",
    "jobs": "List, show, explain, retry, rerun, promote, cancel and remove jobs.",
    "queues": "List, show, pause, limit, drain, clean and obliterate the queue of a job name.",
    "groups": "List, show, limit, pause and clear the groups of a job name.",
    "tasks": "List, show, run, pause and resume tasks, and tell their next ticks.",
    "processes": "List the processes that work, and ask one to take nothing more.",
    "limits": "Show what is limited, and who waits for it.",
    "events": "Show what happens, as it happens.",
    "audit": "Show who has done what, and undo a setting.",
    "ops": "Show and stop acts on many jobs that go on in the store.",
    "export": "Write jobs as lines of JSON.",
    "import": "Add jobs from such lines, each once.",
    "doctor": "Look for what is wrong with the project, the store and the processes.",
    "health": "Answer a probe: 0 while the store answers and processes work, else 1.",
    "check": "Load and validate everything, without a store.",
    "completion": "Print the completion script of a shell.",
}
WHERE: Final = {"export": "transfer:export", "import": "transfer:add_again", "health": "probe"}

cli = Commands(
    "asyncjobs",
    WHERE,
    COMMANDS,
    default="run",
    help="Durable background jobs, per-tenant groups, rate limits and cron tasks on your app's event loop.",
    epilog="Options of the project, --json, --yes and --reason may stand before the command or behind it.",
)
click.version_option(package_name="asyncjobs-runtime", prog_name="asyncjobs")(cli)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {words.lines(message)}", err=True)
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

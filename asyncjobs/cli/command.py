"""The options that every command takes, before its name or behind it, and the groups of commands by noun."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

HELP: Final = {"help_option_names": ["-h", "--help"]}
WITH_VALUE: Final = ("--jobs", "--tasks", "--app", "--redis", "--prefix", "--reason")
FLAGS: Final = ("--json", "--yes", "-y", "--dry-run")


@dataclass(frozen=True, slots=True)
class Given:
    """What was given of the options that every command takes.

    Attributes:
        jobs, tasks, app, redis, prefix: which project, and which store.
        as_json: whatever is printed is JSON.
        yes: nothing is asked.
        dry_run: nothing is done; the command says what it would do.
        reason: kept in the audit trail with what is done.
    """

    jobs: str | None = None
    tasks: str | None = None
    app: str | None = None
    redis: str | None = None
    prefix: str | None = None
    as_json: bool = False
    yes: bool = False
    dry_run: bool = False
    reason: str = ""


def _options(acts: bool) -> list[click.Option]:
    """`acts`: the command changes something, so the options of acts are shown in its help."""
    return [
        click.Option(["--dry-run"], is_flag=True, hidden=not acts, help="Only say what would be done."),
        click.Option(["--reason"], default="", metavar="TEXT", hidden=not acts, help="Why; kept in the audit trail."),
        click.Option(["--yes", "-y"], is_flag=True, hidden=not acts, help="Do not ask."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
        click.Option(["--jobs"], metavar="FOLDER", help="Where the jobs are; else ./jobs or src/jobs."),
        click.Option(["--tasks"], metavar="FOLDER", help="Where the tasks are; else ./tasks or src/tasks."),
        click.Option(["--app"], metavar="MODULE:RUNTIME", help="A Runtime of your own instead of the folders."),
        click.Option(["--redis"], metavar="URL", help="The store; else ASYNCJOBS_REDIS_URL, else the embedded one."),
        click.Option(["--prefix"], metavar="TEXT", help="In front of every key of the store; else asyncjobs."),
    ]


def made(name: str, *, acts: bool = False) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function, which gets a `Given` first and its own options and arguments by name.

    Args:
        acts: it changes something.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        def call(**values: Any) -> Any:
            known = {one: values.pop(one) for one in Given.__dataclass_fields__}
            return function(Given(**known), **values)

        own: list[click.Parameter] = list(reversed(getattr(function, "__click_params__", ())))
        doc = (function.__doc__ or "").replace("\n    ", "\n")
        return click.Command(name, callback=call, params=[*own, *_options(acts)], help=doc, context_settings=HELP)

    return decorate


def behind(args: list[str]) -> list[str]:
    """`args` with the options that stand before the command's name put behind it, where each command takes them."""
    moved: list[str] = []
    left = list(args)
    while left and left[0].startswith("-"):
        option, equals, _ = left[0].partition("=")
        if option in FLAGS or (option in WITH_VALUE and equals):
            moved.append(left.pop(0))
        elif option in WITH_VALUE and len(left) > 1:
            moved += (left.pop(0), left.pop(0))
        else:
            break
    if not left or left[0].startswith("-"):
        return [*moved, *left]
    stop = left.index("--") if "--" in left else len(left)
    return [*left[:stop], *moved, *left[stop:]]


class Commands(click.Group):
    """Commands that are known by name and help, and imported when they are called.

    Args:
        verbs: name → what it does.
        default: the command that is meant where none is named.
    """

    def __init__(self, name: str, where: Mapping[str, str], verbs: Mapping[str, str], default: str = "", **more: Any):
        super().__init__(name, context_settings=HELP, **more)
        self._where, self._verbs, self._default = where, verbs, default

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._verbs:
            return None
        module, _, attribute = self._where.get(name, name).partition(":")
        found: click.Command = getattr(importlib.import_module(f"asyncjobs.cli.{module}"), attribute or "command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._verbs.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = behind(args)
        if self._default and (not args or (args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"))):
            args = [self._default, *args]
        return super().parse_args(ctx, args)


class Noun(click.Group):
    """The verbs of one noun, as in ``jobs list``; options that every command takes may stand before the verb."""

    default = ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = behind(args)
        if self.default and (not args or (args[0].startswith("-") and args[0] not in ("--help", "-h"))):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def noun(name: str, doc: str, *verbs: click.Command, default: str = "") -> Noun:
    """The commands of a noun. `default`: the verb that is meant where none is named."""
    made = Noun(name, {one.name or "": one for one in verbs}, help=doc, context_settings=HELP)
    made.default = default
    return made

"""What the commands of queues and of groups have in common: limits as they are typed and shown, setting and pausing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from asyncjobs import clock, words
from asyncjobs.cli import output
from asyncjobs.cli.output import Cell
from asyncjobs.cli.when import length
from asyncjobs.errors import ConfigError

if TYPE_CHECKING:
    from asyncjobs.cli.command import Given
    from asyncjobs.declare.definition import JobSpec

STATES: Final = ("waiting", "active", "delayed", "completed", "failed", "cancelled")
RATE: Final = re.compile(r"([0-9]{1,7})\s*/\s*(.+)", re.ASCII)
DEFAULT, NONE = "default", "none"


# Typed -------------------------------------------------------------------------------------------------------------
class Rate(click.ParamType):  # type: ignore[type-arg]
    """``100/60``, ``5/1s``: at most so many starts in any such window; ``none``."""

    name = "max/duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from asyncjobs.declare.options import Limiter

        if not isinstance(value, str) or value == NONE:
            return value
        found = RATE.fullmatch(value.strip())
        window = length(found[2]) if found else None
        if found is None or not window:
            self.fail(f"{value!r}: expected MAX/DURATION such as 100/60 or 5/1s, or none", param, ctx)
        try:
            return Limiter(int(found[1]), window)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Number(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or a word that stands for none."""

    name = "number"

    def __init__(self, word: str) -> None:
        self._word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is None or isinstance(value, int) or value == self._word:
            return value
        if not value.isascii() or not value.isdigit() or len(value) > 12:
            self.fail(f"{value!r}: expected a whole number, or {self._word}", param, ctx)
        return int(value)


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of what can be set. The command takes them as keyword arguments, and gives them to `settings`."""
    for option in (
        click.option(
            "--max-waiting", type=Number(NONE), help="An add is refused while so many wait or are delayed; none."
        ),
        click.option("--weight", type=Number(DEFAULT), help="1 to 1000: jobs that start in its turn; default."),
        click.option("--concurrency", type=Number(DEFAULT), help="Most jobs at once; default: as the code has it."),
        click.option(
            "--limit", "limits", type=Rate(), multiple=True, help="100/60: starts in any window; none; up to four."
        ),
    ):
        function = option(function)
    return function


def settings(limits: Sequence[Any], concurrency: Any, weight: Any, max_waiting: Any) -> dict[str, Any]:
    """What `QueueControls.set` takes.

    Raises:
        click.UsageError: nothing was given, or what cannot stand together.
    """
    found: dict[str, Any] = {}
    if limits:
        if NONE in limits and len(limits) > 1:
            raise click.UsageError("--limit none says that there is no limit; leave out the others")
        found["limiter"] = None if NONE in limits else list(limits)
    for name, value, word in (
        ("concurrency", concurrency, DEFAULT), ("weight", weight, DEFAULT), ("max_waiting", max_waiting, NONE),
    ):  # fmt: skip
        if value is not None:
            found[name] = None if value == word else value
    if not found:
        raise click.UsageError("say what to set: --limit, --concurrency, --weight or --max-waiting")
    return found


# Shown -------------------------------------------------------------------------------------------------------------
def windows(text: str | None) -> str | None:
    """``5/1 s, 100/1 min`` of a limiter as the store has it; None: nothing was set."""
    from asyncjobs.declare.queue_limits import NO_WINDOWS

    if text is None:
        return None
    if text in ("", NO_WINDOWS):
        return NONE
    try:
        parts = (one.partition(":") for one in text.split())
        return ", ".join(f"{most}/{words.duration(int(us) / 1e6)}" for most, _, us in parts)
    except ValueError:
        return text


def limit(info: dict[str, Any], spec: JobSpec | None) -> str:
    """The limiter that holds: what was set, else that of the code."""
    from asyncjobs.declare.queue_limits import windows_text

    found = windows(info["limiter"])
    if found is not None:
        return found
    if spec is None:
        return ""
    named = [str(one) for one in spec.named_limiters]
    own = windows(windows_text(spec.limiters)) if spec.limiters else None
    return ", ".join([*([own] if own else []), *named]) or NONE


def slots(info: dict[str, Any], spec: JobSpec | None) -> str:
    """How many run of how many that may: ``5/10``."""
    most = info["concurrency"] or (spec.concurrency if spec is not None else None)
    active = words.number(info["active"])
    return f"{active}/{most}" if most is not None and not (spec is not None and spec.grouped) else active


def standing(info: dict[str, Any]) -> Cell:
    """Whether it is paused or held."""
    if info["paused"]:
        return output.state("paused")
    until: datetime | None = info["held_until"]
    if until is not None and until > clock.now():
        return Cell(
            f"held for {words.duration((until - clock.now()).total_seconds())}",
            "magenta",
            f"held until {output.at(until)}",
        )
    return Cell("")


def details(info: dict[str, Any], spec: JobSpec | None) -> None:
    """All that holds for a queue now."""
    from asyncjobs.operate.names import IN_THE_STORE

    output.details(
        [
            ("job", info["name"]),
            ("group", info["group_id"]),
            ("registered here", spec is not None and spec.source != IN_THE_STORE),
            ("state", standing(info) if standing(info).text else Cell("open", "green")),
            ("limit", limit(info, spec)),
            ("limit set", windows(info["limiter"])),
            ("limit of the code", None if spec is None else limit({**info, "limiter": None}, spec)),
            ("concurrency", info["concurrency"] or (spec.concurrency if spec is not None else None)),
            ("concurrency set", info["concurrency"]),
            ("weight", info["weight"]),
            ("max waiting", info["max_waiting"]),
            *((state, info[state]) for state in STATES if state in info),
        ]
    )


def tell(given: Given, name: str, group: str | None, done: str, **more: Any) -> None:
    """Say what was done to a queue."""
    if given.as_json:
        output.emit({"name": name, "group": group, "done": done, **more})
        return
    which = name if group is None else f"{name} · {group}"
    parts = [one for one in (which, done, *(f"{key} {value}" for key, value in more.items())) if one]
    click.echo(words.one_line("  ".join(parts)) if output.is_terminal() else "\t".join(map(output.plain, parts)))

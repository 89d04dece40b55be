"""Cron expressions: five fields, six with seconds first, or a nickname; parsed by cronsim, as aiocron does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from cronsim import CronSim, CronSimError

from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError

NICKNAMES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class Ticks(CronSim):
    """The ticks of an expression, one after the other. Six fields follow the clock changes as five do.

    Where clocks change, cronsim treats five fields as Debian's cron does: an expression that names its hour and minute
    fires once in the hour that comes twice, and right after the hour that is left out. This class adds six fields.
    """

    def __init__(self, expression: str, at: datetime, reverse: bool = False) -> None:
        super().__init__(expression, at, reverse)
        fields = expression.split()
        named = len(fields) == 6 and not fields[1].startswith("*") and not fields[2].startswith("*")
        if named and self.fixup_tz is None and self.dt.tzinfo not in (None, UTC):
            self.fixup_tz = self.dt.tzinfo
            self.dt = self.dt.replace(tzinfo=None)


def normalise(expression: Any) -> str:
    """`expression` with its nickname spelt out.

    Raises:
        ConfigError: `expression` is no cron expression, or has no tick.
    """
    if not isinstance(expression, str):
        raise ConfigError(f"cron_time={shown(expression)}: expected a text such as '*/5 * * * *'")
    fields = NICKNAMES.get(expression.strip().lower(), expression.strip())
    next_tick(fields, datetime(2026, 1, 1, tzinfo=UTC))
    return fields


def next_tick(expression: str, after: datetime) -> datetime:
    """The first tick after `after`, which carries the time zone that the fields are read in."""
    try:
        if len(expression.split()) not in (5, 6):
            raise CronSimError("expected five fields, six with seconds first, or @hourly to @yearly")
        return next(Ticks(expression, after))
    except (CronSimError, StopIteration) as error:
        raise ConfigError(f"cron_time={shown(expression)}: {error or 'it never comes'}") from None


def last_tick(expression: str, before: datetime) -> datetime | None:
    """The last tick before `before`, or None where there is none."""
    try:
        return next(Ticks(expression, before, reverse=True))
    except (CronSimError, StopIteration):
        return None

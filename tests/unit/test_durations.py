"""Every place that takes a duration or an instant takes the same values, and refuses the others in words."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asyncjobs import (
    Backoff,
    ConfigError,
    JobOptions,
    Limiter,
    RateLimited,
    Retention,
    RetryLater,
    Runtime,
    WorkerOptions,
)
from asyncjobs.declare.add_options import due_of
from asyncjobs.declare.definition import TaskDefinition
from asyncjobs.work.executor import Held, Later

YEAR = 365 * 86_400
ABOVE, LEAST = "above 0", "at least something above 0"

GOOD: dict[str, tuple[Any, float]] = {
    "int": (5, 5),
    "float": (2.5, 2.5),
    "timedelta": (timedelta(minutes=2, microseconds=500_000), 120.5),
    "a day": (timedelta(days=1), 86_400),
    "ninety-nine years": (timedelta(seconds=99 * YEAR), 99 * YEAR),
}
ZERO: dict[str, Any] = {"0": 0, "0.0": 0.0, "-0.0": -0.0, "timedelta 0": timedelta()}
BAD: dict[str, Any] = {
    "negative": -1,
    "a little negative": -1e-9,
    "negative timedelta": timedelta(seconds=-1),
    "least timedelta": timedelta.min,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "huge float": 1e300,
    "huge int": 10**400,
    "an int that has no repr": 10**6000,
    "greatest timedelta": timedelta.max,
    "more than a century": timedelta(days=40_000),
    "bool": True,
    "text": "5",
    "bytes": b"5",
    "Decimal": Decimal(5),
    "Fraction": Fraction(5, 2),
    "complex": 5j,
    "list": [5],
    "datetime": datetime(2030, 1, 1, tzinfo=UTC),
    "relative datetime": datetime(2030, 1, 1),
}


def steer(made: Any) -> Any:
    """What a handler that raises it comes to."""
    from asyncjobs.work.executor import seconds

    return (
        Later(seconds(made.delay, "RetryLater.delay"))
        if isinstance(made, RetryLater)
        else Held(seconds(made.retry_after, "RateLimited.retry_after"))
    )


async def _no_task() -> None: ...


def config(option: str) -> Callable[[Any], Any]:
    return lambda value: getattr(Runtime("redis://127.0.0.1:1", **{option: value}).config, option)


# Each place: what it makes of a value, its name in the message, and whether 0 is one.
PLACES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "delay": (lambda value: due_of(value, None)[1] / 1000, True),
    "timeout": (lambda value: JobOptions(timeout=value).timeout, False),
    "backoff.delay": (lambda value: Backoff("fixed", value).delay, True),
    "backoff.max_delay": (lambda value: Backoff(max_delay=value).max_delay, True),
    "retention.age": (lambda value: Retention(age=value).age, True),
    "limiter.duration": (lambda value: Limiter(1, value).duration, False),
    "lease": (lambda value: WorkerOptions(lease=value).lease, False),
    "group_idle": (lambda value: WorkerOptions(group_idle=value).group_idle, True),
    "misfire_grace": (lambda value: TaskDefinition(_no_task, "* * * * *", misfire_grace=value).misfire_grace, True),
    "RetryLater.delay": (lambda value: steer(RetryLater(value)).delay, True),
    "RateLimited.retry_after": (lambda value: steer(RateLimited(value)).delay, True),
    "connect_timeout": (config("connect_timeout"), False),
    "grace": (config("grace"), True),
    "sweep_interval": (config("sweep_interval"), False),
    "blocking_warning": (config("blocking_warning"), False),
    "loop_budget": (config("loop_budget"), False),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_takes_the_same_durations(place: str):
    made, takes_zero = PLACES[place]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (value, expected) in GOOD.items():
            assert made(value) == pytest.approx(expected), name
        for name, value in ZERO.items():
            if takes_zero:
                assert made(value) == 0, name
            else:
                with pytest.raises(ConfigError, match=place):
                    made(value)
        for name, value in BAD.items():
            with pytest.raises(ConfigError) as refused:
                made(value)
            assert place in str(refused.value), name
            assert "expected" in str(refused.value), name
            assert len(str(refused.value)) < 300, name


class Nowhere(tzinfo):
    """A timezone that does not say where it is."""

    def utcoffset(self, _: datetime | None) -> None:
        return None


class Broken(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise OSError("no such file")


LISBON = ZoneInfo("Europe/Lisbon")
EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
INSTANTS: dict[str, tuple[datetime, datetime]] = {  # and when that is; what is over is due now
    "past": (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)),
    "year 1": (datetime.min.replace(tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
    "year 1, east": (datetime.min.replace(tzinfo=EAST), datetime(1970, 1, 1, tzinfo=UTC)),
    "before the epoch": (datetime(1969, 12, 31, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
    "elsewhere": (datetime(2040, 1, 1, tzinfo=EAST), datetime(2039, 12, 31, 10, tzinfo=UTC)),
    "a microsecond": (datetime(2040, 1, 1, 0, 0, 0, 1, tzinfo=UTC), datetime(2040, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)),
    "an hour that comes twice": (
        datetime(2030, 10, 27, 1, 30, tzinfo=LISBON), datetime(2030, 10, 27, 0, 30, tzinfo=UTC)),
    "the second time": (
        datetime(2030, 10, 27, 1, 30, tzinfo=LISBON, fold=1), datetime(2030, 10, 27, 1, 30, tzinfo=UTC)),
    "an hour that is left out": (
        datetime(2030, 3, 31, 1, 30, tzinfo=LISBON), datetime(2030, 3, 31, 1, 30, tzinfo=UTC)),
}  # fmt: skip
NO_INSTANTS: dict[str, Any] = {
    "naive": datetime(2030, 1, 1),
    "timezone without an offset": datetime(2030, 1, 1, tzinfo=Nowhere()),
    "timezone that raises": datetime(2030, 1, 1, tzinfo=Broken()),
    "year 9999": datetime.max.replace(tzinfo=UTC),
    "year 9999, west": datetime.max.replace(tzinfo=WEST),
    "in two centuries": datetime(2230, 1, 1, tzinfo=UTC),
    "date": date(2030, 1, 1),
    "number": 1_900_000_000,
    "text": "2030-01-01T00:00:00Z",
    "timedelta": timedelta(seconds=5),
    "nan": math.nan,
    "bool": True,
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_job_is_due_at_its_instant(instant: str):
    given, due = INSTANTS[instant]
    assert due_of(None, given) == ("at", round(due.timestamp() * 1000))


@pytest.mark.parametrize("value", NO_INSTANTS)
def test_what_is_no_instant_is_refused_in_words(value: str):
    with pytest.raises(ConfigError, match=r"^at=.*expected"):
        due_of(None, NO_INSTANTS[value])

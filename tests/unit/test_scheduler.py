"""Ticks on an injected clock: steps, suspends, blocked loops and DST; no Redis, no sleeping."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asyncjobs import ConfigError, TaskDefinition
from asyncjobs.cron.tick import Tick
from asyncjobs.declare.cron_expression import Ticks, last_tick, next_tick, normalise
from asyncjobs.declare.definition import TaskSpec


class Handle:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop whose time is a number: `run_until` calls what is due, in order."""

    def __init__(self, wall: float) -> None:
        self.now, self.offset = 1000.0, wall - 1000.0
        self.calls: list[Any] = []
        self.ties = itertools.count()

    def time(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.offset

    def call_at(self, when: float, callback: Any, *args: Any) -> Handle:
        handle = Handle()
        heapq.heappush(self.calls, (when, next(self.ties), handle, callback, args))
        return handle

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self.calls and self.calls[0][0] <= end:
            when, _, handle, callback, args = heapq.heappop(self.calls)
            self.now = max(self.now, when)
            if not handle.cancelled:
                callback(*args)
        self.now = max(self.now, end)


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class Clocked:
    """One task ticking on a fake loop, with what it fired and missed."""

    def __init__(self, cron: str, zone: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = Loop(at(start))
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self.loop)
        self.fired: list[str] = []
        self.missed: list[str] = []
        spec = TaskSpec("a", TaskDefinition(task=lambda: None, cron_time=cron, is_active=True), zone)
        self.tick = Tick(spec, self._note(self.fired), self._note(self.missed), self.loop.wall)
        self.tick.start()

    @staticmethod
    def _note(where: list[str]) -> Any:
        return lambda due: where.append(due.astimezone(UTC).strftime("%d %H:%M:%S"))


@pytest.fixture
def ticking(monkeypatch):
    return lambda cron, start, zone="UTC": Clocked(cron, zone, start, monkeypatch)


def test_it_fires_at_each_tick_and_never_early(ticking):
    one = ticking("*/5 * * * *", "2026-01-01T00:02:00+00:00")
    one.loop.run_for(179)
    assert one.fired == []
    one.loop.run_for(601)
    assert one.fired == ["01 00:05:00", "01 00:10:00", "01 00:15:00"]


def test_six_fields_have_seconds_first(ticking):
    one = ticking("*/20 * * * * *", "2026-01-01T00:00:01+00:00")
    one.loop.run_for(60)
    assert one.fired == ["01 00:00:20", "01 00:00:40", "01 00:01:00"]


def test_a_clock_stepped_forward_shifts_no_later_tick(ticking):
    one = ticking("0 * * * *", "2026-01-01T00:30:00+00:00")
    one.loop.offset += 300
    one.loop.run_for(3600 * 2)
    assert one.fired == ["01 01:00:00", "01 02:00:00"]
    assert one.loop.wall() == at("2026-01-01T02:35:00+00:00")


def test_a_clock_stepped_back_fires_nothing_twice_and_nothing_early(ticking):
    one = ticking("*/10 * * * *", "2026-01-01T00:00:30+00:00")
    one.loop.run_for(1200)
    assert one.fired == ["01 00:10:00", "01 00:20:00"]
    one.loop.offset -= 900
    one.loop.run_for(900)
    assert one.fired == ["01 00:10:00", "01 00:20:00"]
    one.loop.run_for(900)
    assert one.fired == ["01 00:10:00", "01 00:20:00", "01 00:30:00"]


def test_a_suspended_machine_misses_ticks_and_goes_on(ticking):
    one = ticking("*/10 * * * *", "2026-01-01T00:01:00+00:00")
    one.loop.offset += 3600 * 3
    one.loop.run_for(600)
    assert one.missed == ["01 03:00:00"]
    assert one.fired == ["01 03:10:00"]


def test_a_blocked_loop_fires_once_not_in_a_burst(ticking):
    one = ticking("* * * * * *", "2026-01-01T00:00:00.500000+00:00")
    one.loop.run_for(1)
    one.loop.now += 5  # nothing ran for five seconds
    one.loop.run_for(1)
    assert one.fired == ["01 00:00:01", "01 00:00:02", "01 00:00:07"]


@pytest.mark.parametrize(
    ("cron", "zone", "start", "hours", "fired"),
    [
        # The hour 00 of 2018-11-04 does not exist in São Paulo: once, at the first valid minute.
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T20:00:00-03:00", 30, ["04 03:00:00", "05 02:00:00"]),
        ("30 2 * * *", "America/New_York", "2026-03-08T00:00:00-05:00", 12, ["08 07:00:00"]),
        # 01:30 comes twice on 2026-11-01 in New York: once, in the first pass.
        ("30 1 * * *", "America/New_York", "2026-11-01T00:00:00-04:00", 12, ["01 05:30:00"]),
        # Real time where the hour is starred.
        ("0 * * * *", "America/New_York", "2026-11-01T00:30-04:00", 4, [f"01 0{hour}:00:00" for hour in (5, 6, 7, 8)]),
        # Lord Howe moves by half an hour.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00+10:30", 20, ["03 15:30:00"]),
    ],
)  # fmt: skip
def test_daylight_saving(ticking, cron, zone, start, hours, fired):
    one = ticking(cron, start, zone)
    one.loop.run_for(hours * 3600)
    assert one.fired == fired


def test_starting_in_the_second_pass_of_a_repeated_hour_fires_nothing_of_the_past(ticking):
    one = ticking("30 1 * * *", "2026-11-01T06:10:00+00:00", "America/New_York")
    one.loop.run_for(3600)
    assert one.fired == []
    one.loop.run_for(24 * 3600)
    assert one.fired == ["02 06:30:00"]


@pytest.mark.parametrize("bad", ["", "* * * *", "61 * * * *", "0 0 31 2 *", "@reboot", "* * * * * * *", 5, "every day"])
def test_a_bad_expression_is_refused_with_its_text(bad):
    with pytest.raises(ConfigError, match="cron_time="):
        normalise(bad)


def test_nicknames():
    assert normalise("@hourly") == "0 * * * *"
    assert normalise("@daily") == normalise("@midnight") == "0 0 * * *"
    assert normalise("@weekly") == "0 0 * * 0"
    assert normalise("@monthly") == "0 0 1 * *"
    assert normalise("@yearly") == "0 0 1 1 *"


def test_zero_and_seven_are_sunday():
    after = datetime(2026, 1, 1, tzinfo=UTC)
    assert next_tick("0 0 * * 0", after) == next_tick("0 0 * * 7", after) == datetime(2026, 1, 4, tzinfo=UTC)
    assert last_tick("0 0 * * 0", after) == datetime(2025, 12, 28, tzinfo=UTC)


CHANGES = [
    ("America/Sao_Paulo", "2018-02-17T12:00", "2018-02-19T12:00"),
    ("America/Sao_Paulo", "2018-11-03T12:00", "2018-11-05T12:00"),
    ("America/New_York", "2026-03-07T12:00", "2026-03-09T12:00"),
    ("America/New_York", "2026-10-31T12:00", "2026-11-02T12:00"),
    ("Europe/London", "2026-03-28T12:00", "2026-03-30T12:00"),
    ("Europe/London", "2026-10-24T12:00", "2026-10-26T12:00"),
    ("Australia/Lord_Howe", "2026-04-04T12:00", "2026-04-06T12:00"),
    ("Australia/Lord_Howe", "2026-10-03T12:00", "2026-10-05T12:00"),
]


@pytest.mark.parametrize(("zone", "start", "end"), CHANGES)
@pytest.mark.parametrize(
    "fields", ["30 1 * * *", "0 2 * * *", "15 2 * * *", "30 0 * * *", "0 0 * * *", "0,30 1,2 * * *"]
)
def test_six_fields_have_the_rule_of_five_where_clocks_change(zone, start, end, fields):
    """In the hour that comes twice they fire once; what lies in the one that is left out fires right after it."""

    def ticks(expression: str) -> list[datetime]:
        found, tick = [], datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone))
        last = datetime.fromisoformat(end).replace(tzinfo=ZoneInfo(zone))
        while (tick := next_tick(expression, tick)) < last:
            found.append(tick.astimezone(UTC))
        return found

    assert ticks(f"0 {fields}") == ticks(fields)


@pytest.mark.parametrize("back", [3.0, 86_400.0, 30 * 86_400.0])
def test_a_clock_that_was_ahead_for_a_moment_silences_nothing(ticking, back):
    """The store knows what was claimed, so that nothing fires twice either."""
    clocked = ticking("* * * * *", "2026-06-01T00:00:30")
    clocked.loop.run_for(60)
    clocked.loop.offset += back
    clocked.loop.run_for(40)
    clocked.loop.offset -= back
    clocked.loop.run_for(60)
    clocked.fired.clear()
    clocked.loop.run_for(180)
    assert len(clocked.fired) == 3


def test_a_clock_that_goes_forward_by_a_month_is_not_walked_second_by_second(ticking, monkeypatch):
    clocked = ticking("* * * * * *", "2026-06-01T00:00:00")
    clocked.loop.run_for(2)
    looked = 0
    walk = Ticks.__next__

    def counted(self):
        nonlocal looked
        looked += 1
        return walk(self)

    monkeypatch.setattr(Ticks, "__next__", counted)
    clocked.loop.offset += 30 * 86_400
    clocked.loop.run_for(35)
    assert looked < 5000
    assert clocked.fired[-1].startswith("01 00:00:3")

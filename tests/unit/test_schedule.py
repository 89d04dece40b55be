"""Cron expressions in words, and their next ticks with what changes of the clock do to them."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from asyncjobs.declare.cron_expression import Ticks, normalise
from asyncjobs.operate.schedule import in_words, next_ticks

NEW_YORK = ZoneInfo("America/New_York")
SPRING = datetime(2026, 3, 8, 5, tzinfo=UTC)  # midnight; 02:00 is 03:00 that day
AUTUMN = datetime(2026, 11, 1, 3, tzinfo=UTC)  # 23:00 of the day before; 01:00 to 01:59 come twice


def shown(expression: str, after: datetime, count: int) -> list[str]:
    ticks = next_ticks(normalise(expression), NEW_YORK, count, after)
    return [f"{one.local:%d %H:%M %Z} {one.at:%H:%M} {one.note}".rstrip() for one in ticks]


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("*/5 * * * *", "Every fifth minute of every hour"),
        ("30 2 * * 1-5", "At 02:30 on Monday through Friday"),
        ("@weekly", "At 00:00 on Sunday"),
        ("* * * * * *", "Every second"),
    ],
)
def test_an_expression_in_words(expression, words):
    assert in_words(normalise(expression)) == words


def test_what_has_no_words_stands_for_itself():
    assert in_words("nonsense") == "nonsense"
    assert next_ticks("nonsense", NEW_YORK) == []


def test_a_tick_that_does_not_exist_is_moved_and_says_so():
    assert shown("30 2 * * *", SPRING, 3) == [
        "08 03:00 EDT 07:00 02:30 does not exist on 8 Mar: runs at 03:00",
        "09 02:30 EDT 06:30",
        "10 02:30 EDT 06:30",
    ]
    assert "02:30:00 to 02:30:45 do not exist on 8 Mar: runs at 03:00:00" in shown("*/15 30 2 * * *", SPRING, 1)[0]
    assert shown("15 2,3 * * *", SPRING, 2) == [
        "08 03:00 EDT 07:00 02:15 does not exist on 8 Mar: runs at 03:00", "08 03:15 EDT 07:15",
    ]  # fmt: skip


def test_ticks_that_are_left_out_are_named_at_the_next_one():
    assert shown("*/30 * * * *", SPRING, 5)[2:] == [
        "08 01:30 EST 06:30",
        "08 03:00 EDT 07:00 02:00 to 02:30 do not exist on 8 Mar: left out",
        "08 03:30 EDT 07:30",
    ]


def test_a_tick_that_comes_twice_says_whether_it_runs_twice():
    assert shown("30 1 * * *", AUTUMN, 2) == [
        "01 01:30 EDT 05:30 01:30 comes twice on 1 Nov: runs once",
        "02 01:30 EST 06:30",
    ]
    assert shown("30 * * * *", AUTUMN, 5) == [
        "31 23:30 EDT 03:30",
        "01 00:30 EDT 04:30",
        "01 01:30 EDT 05:30 01:30 comes twice on 1 Nov: this is the first",
        "01 01:30 EST 06:30 01:30 comes twice on 1 Nov: this is the second",
        "01 02:30 EST 07:30",
    ]


@pytest.mark.parametrize("expression", ["* * * * * *", "*/5 * * * *", "30 2 * * *", "0 0 29 2 *", "*/7 15 1,2 * * *"])
@pytest.mark.parametrize("after", [SPRING, AUTUMN, datetime(2026, 6, 1, tzinfo=UTC)])
def test_they_are_the_ticks_that_the_scheduler_fires(expression, after):
    real = [one.astimezone(UTC) for one in islice(Ticks(expression, after.astimezone(NEW_YORK)), 10)]
    assert [one.at for one in next_ticks(expression, NEW_YORK, 10, after)] == real

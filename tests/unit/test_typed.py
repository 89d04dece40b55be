"""What operators type and see: lengths of time, instants, secrets hidden, options before and behind a command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from asyncjobs import clock, redaction
from asyncjobs.cli import acting, choosing, when
from asyncjobs.cli.command import behind
from asyncjobs.cli.output import Cell, as_json, plain
from asyncjobs.job import STATES


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800), ("250ms", 0.25), (" 15 min ", 900),
        ("+5m", 300), ("0", 0), ("", None), ("soon", None), ("1h30", None), ("-5", None), ("5 y", None), ("1e9", None),
        ("9999999999999", None), ("99999w", None), ("٣", None), ("1h 30m", 5400), ("h", None),
    ],
)  # fmt: skip
def test_lengths_of_time(text, seconds):
    assert when.length(text) == seconds


def test_instants():
    assert when.instant("2026-12-01T09:00Z") == datetime(2026, 12, 1, 9, tzinfo=UTC)
    assert when.instant("2026-12-01T09:00+02:00") == datetime(2026, 12, 1, 7, tzinfo=UTC)
    assert when.instant("2026-12-01").tzinfo is UTC
    assert abs(when.instant("1h") - (clock.now() - timedelta(hours=1))) < timedelta(seconds=30)
    assert abs(when.instant("1h ago") - (clock.now() - timedelta(hours=1))) < timedelta(seconds=30)
    assert abs(when.instant("1h", ahead=True) - (clock.now() + timedelta(hours=1))) < timedelta(seconds=30)
    assert when.instant("yesterday") < when.instant("today") <= when.instant("now")
    for text in ("", "tomorrow", "2026-13-01", "9999-99-99", "0001-01-01"):
        assert when.instant(text) is None or text == "0001-01-01"


def test_what_looks_like_a_secret_is_hidden_at_any_depth():
    data = {
        "user": "ana", "password": "x", "apiKey": "x", "nested": [{"Access-Token": "x", "private_key": {"a": 1}}],
        "note": "paid with 4242 4242 4242 4242, ref 1234567890123", "key": "sk_live_abcdefgh", "n": 4242424242424242,
        "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
        "pem": "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nafter",
    }  # fmt: skip
    hidden = redaction.HIDDEN
    assert redaction.redacted(data) == {
        "user": "ana", "password": hidden, "apiKey": hidden,
        "nested": [{"Access-Token": hidden, "private_key": hidden}],
        "note": f"paid with {hidden}, ref 1234567890123", "key": hidden, "n": 4242424242424242, "jwt": hidden,
        "pem": f"{hidden}\nafter",
    }  # fmt: skip
    assert data["password"] == "x"
    deep: list = []
    for _ in range(1000):
        deep = [deep]
    assert redaction.HIDDEN in str(redaction.redacted(deep))
    assert redaction.redacted({"a": 1}, keys=("a",)) == {"a": hidden}


@pytest.mark.parametrize(
    ("args", "moved"),
    [
        (["--json", "jobs", "list"], ["jobs", "list", "--json"]),
        (
            ["--redis", "redis://x", "--yes", "jobs", "retry", "a"],
            ["jobs", "retry", "a", "--redis", "redis://x", "--yes"],
        ),
        (["--redis=redis://x", "add", "n", "--", "-1"], ["add", "n", "--redis=redis://x", "--", "-1"]),
        (["jobs", "list", "--json"], ["jobs", "list", "--json"]),
        (["--grace", "3"], ["--grace", "3"]),
        (["--jobs", "here", "--grace", "3"], ["--jobs", "here", "--grace", "3"]),
        (["--json"], ["--json"]),
        (["--help"], ["--help"]),
        (["--redis"], ["--redis"]),
        ([], []),
    ],
)
def test_options_before_the_command_go_behind_it(args, moved):
    assert behind(args) == moved


def test_cells_and_json_of_a_pipe_are_one_line_whatever_they_hold():
    assert plain("a\tb\nc\x1b") == r"a\tb\nc\x1b"
    assert (plain(None), plain(True), plain(14200)) == ("", "yes", "14200")
    assert plain(Cell("14 s ago", "", "2026-01-01T00:00:00.000Z")) == "2026-01-01T00:00:00.000Z"
    assert as_json({"a": "\x9b\u202e\n", "b": {1, 2}, "c": datetime(2026, 1, 1, tzinfo=UTC)}) == (
        '{"a": "\\u009b\\u202e\\n", "b": [1, 2], "c": "2026-01-01T00:00:00.000Z"}'
    )


def test_changes_of_data():
    data = {"a": {"b": [1, 2]}, "c": 1}
    assert acting.changed(data, [acting.change("a.b.1=7"), acting.change("d=x=y"), acting.change('c="1"')]) == {
        "a": {"b": [1, 7]}, "c": "1", "d": "x=y",
    }  # fmt: skip
    assert data["a"]["b"] == [1, 2]


def test_states_are_those_of_jobs():
    assert set(choosing.STATES) == set(STATES)

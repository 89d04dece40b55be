"""When something is alerted: each condition by itself, and two of three minutes."""

from __future__ import annotations

import pytest

from asyncjobs import Alerts, ConfigError
from asyncjobs.broker import Gauge, Store
from asyncjobs.history.alerts import MOST, Finding, OfName, State, findings
from asyncjobs.history.figures import Slot
from asyncjobs.history.tally import PLACE

WELL = Store("Valkey 9.0", "append-only file (fsync always)", True, "noeviction", 0)


def minute(gauges=(), **counts):
    slot = Slot()
    for name, count in counts.items():
        slot.counts[PLACE[name]] = count
    slot.gauges = list(gauges)
    return slot


def codes(bounds=None, name=None, missed=None, store=WELL):
    found = findings(bounds or Alerts(), {"mail": name or OfName()}, missed or {}, store)
    return [one.code for one in found]


def test_all_is_well():
    assert codes() == []
    assert codes(name=OfName(Gauge(10, 3, 500), True, [minute(completed=100, failed_tries=10)])) == []


def test_nobody_consumes_what_waits():
    assert codes(name=OfName(Gauge(3, 0, 500), False)) == ["no_consumer"]
    assert codes(name=OfName(Gauge(0, 0, None), False)) == [], "nothing waits"
    assert codes(Alerts(no_consumer=False), OfName(Gauge(3, 0, 500), False)) == []


def test_a_job_waits_for_too_long():
    waits = OfName(Gauge(3, 0, 601_000))
    (found,) = findings(Alerts(), {"mail": waits}, {}, WELL)
    assert (found.code, found.name, found.value, found.bound) == ("oldest_waiting", "mail", 601.0, 600.0)
    assert "mail has been waiting for 10 min" in found.text
    assert codes(Alerts(oldest_waiting=None), waits) == []
    assert codes(Alerts(oldest_waiting=700), waits) == []


def test_too_many_tries_fail_of_twenty_at_least():
    assert codes(name=OfName(None, True, [minute(failed_tries=19)])) == [], "too few to say anything"
    assert codes(name=OfName(None, True, [minute(failed_tries=5), minute(failed_tries=4, completed=11)])) == [
        "failure_share"
    ]
    old_and_new = [minute(failed_tries=100), minute(completed=30)]
    assert codes(name=OfName(None, True, old_and_new)) == [], "the newest minute says enough"
    assert codes(name=OfName(None, True, [minute(failed_tries=4, completed=16)])) == [], "exactly the bound"


def test_a_backlog_will_not_drain():
    grows = [minute((0, 900 + 20 * n, 1), added=50, completed=30) for n in range(10)]
    assert codes(name=OfName(Gauge(1100, 1, 5), True, grows)) == ["backlog"]
    assert codes(name=OfName(Gauge(1000, 1, 5), True, grows)) == [], "it has become less"
    assert codes(name=OfName(Gauge(1100, 1, 5), True, grows[:5])) == [], "not yet for ten minutes"
    drains = [minute((0, 900, 1), added=30, completed=50) for n in range(10)]
    assert codes(name=OfName(Gauge(1100, 1, 5), True, drains)) == [], "a burst that is being worked off"
    assert codes(Alerts(backlog=2000), OfName(Gauge(1100, 1, 5), True, grows)) == []


def test_stalls_missed_tasks_and_the_store():
    assert codes(name=OfName(None, True, [minute(stalled=1)])) == ["stalls"]
    assert codes(Alerts(stalls=2), OfName(None, True, [minute(stalled=1)])) == []
    assert codes(missed={"nightly": 120.0}) == ["missed_task"]
    assert codes(Alerts(missed_tasks=False), missed={"nightly": 120.0}) == []
    evicts = WELL._replace(policy="allkeys-lru", durable=False)
    assert codes(store=evicts) == ["store_evicts", "store_loses"]
    assert codes(Alerts(store=False), store=evicts) == []


def walk(*minutes: str) -> list[str]:
    """What is told after each minute in which something held, or did not."""
    told, state = [], State()
    for n, held in enumerate(minutes):
        found = [Finding("stalls", "mail", "text")] if held == "1" else []
        state = State.decode(state.after(found, 1000 * n).encode())
        told.append("".join("r" if one.raised else "c" for one in state.untold) or "-")
        state = state.all_told()
    return told


def test_two_of_three_minutes_raise_and_clear():
    assert walk(*"1") == ["-"]
    assert walk(*"11") == ["-", "r"]
    assert walk(*"101") == ["-", "-", "r"]
    assert walk(*"1001") == ["-"] * 4
    assert walk(*"111011") == ["-", "r", "-", "-", "-", "-"], "one good minute clears nothing"
    assert walk(*"1100") == ["-", "r", "-", "c"]
    assert walk(*"110100") == ["-", "r", "-", "-", "c", "-"]
    assert walk(*"110011") == ["-", "r", "-", "c", "-", "r"]


def test_what_was_not_told_is_told_by_the_next():
    raised = State().after([Finding("stalls", "mail", "text")], 0).after([Finding("stalls", "mail", "text")], 7)
    assert [one.raised for one in raised.untold] == [True]
    again = raised.after([Finding("stalls", "mail", "text")], 9)
    assert [(one.raised, one.since) for one in again.untold] == [(True, 7)]
    assert again.all_told().untold == []
    assert [one.code for one in again.all_told().alerts] == ["stalls"]


def test_nothing_is_remembered_for_ever_nor_without_bound():
    state = State().after([Finding("stalls", f"job-{n}", "text") for n in range(3 * MOST)], 0)
    assert len(state.held) == MOST
    for n in range(3):
        state = state.after([], n)
    assert state.held == []
    assert State.decode(b"{").held == []
    assert State.decode(b'{"held": 3}').held == []


@pytest.mark.parametrize(
    "given",
    [
        {"oldest_waiting": 0}, {"oldest_waiting": "long"}, {"failure_share": 0}, {"failure_share": 1.5},
        {"failure_share": True}, {"backlog": 0}, {"stalls": 0.5}, {"store": 1}, {"no_consumer": None},
    ],
)  # fmt: skip
def test_bad_bounds_are_refused(given):
    with pytest.raises(ConfigError, match="alerts"):
        Alerts(**given)

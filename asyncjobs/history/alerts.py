"""Alerts: what they are, when one holds, and when it is raised or cleared. Pure: of figures that somebody has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Gauge, Store
from asyncjobs.declare.options import Alerts
from asyncjobs.declare.values import duration
from asyncjobs.history.figures import LEAST_SAMPLES, Slot

CODES: Final = (
    "no_consumer", "oldest_waiting", "failure_share", "backlog", "stalls", "missed_task", "store_evicts", "store_loses",
)  # fmt: skip
OF_STORE: Final = "store"  # the name of an alert of the store
LOOKED_AT: Final = 10  # minutes
RAISED_BY: Final = 2  # of the last `REMEMBERED` minutes
REMEMBERED: Final = 3
MOST: Final = 200  # alerts at once


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that somebody should look at.

    Attributes:
        code: one of `no_consumer`, `oldest_waiting`, `failure_share`, `backlog`, `stalls`, `missed_task`,
            `store_evicts`, `store_loses`.
        name: of the job or the task; ``"store"`` for the store.
        text: a sentence.
        value, bound: what was found when it held last, and what is set; None where it is no number.
        since: when it was raised.
    """

    code: str
    name: str
    text: str
    value: float | None
    bound: float | None
    since: datetime


class Finding(msgspec.Struct, frozen=True):
    """An alert that holds in one minute."""

    code: str
    name: str
    text: str
    value: float | None = None
    bound: float | None = None


class Held(msgspec.Struct):
    """What is remembered of a finding: for each of the last minutes, '1' where it held, the newest last.

    Attributes:
        raised: whether it is raised now. since: ms; when it was last.
        told: whether its last change was told.
    """

    finding: Finding
    minutes: str = ""
    raised: bool = False
    since: int = 0
    told: bool = True

    @property
    def alert(self) -> Alert:
        one = self.finding
        return Alert(one.code, one.name, one.text, one.value, one.bound, clock.from_ms(self.since))


class State(msgspec.Struct):
    """All that is remembered, as it stands in the store."""

    held: list[Held] = []

    @classmethod
    def decode(cls, text: bytes) -> State:
        """As it stands in the store; what cannot be read there is begun anew."""
        try:
            return msgspec.json.decode(text, type=cls) if text else cls()
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls()

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @property
    def alerts(self) -> list[Alert]:
        """Those that are raised."""
        return [one.alert for one in self.held if one.raised]

    @property
    def untold(self) -> list[Held]:
        return [one for one in self.held if not one.told]

    def after(self, findings: Sequence[Finding], now_ms: int) -> State:
        """The state after a minute in which `findings` held."""
        new = {(one.code, one.name): one for one in findings}
        known = {(one.finding.code, one.finding.name): one for one in self.held}
        left = []
        for key in [*known, *(key for key in new if key not in known)]:
            before = known.get(key) or Held(new[key])
            one = _after(before, new.get(key), now_ms)
            if "1" in one.minutes or one.raised or not one.told:
                left.append(one)
        left.sort(key=lambda one: not one.raised)
        return State(left[:MOST])

    def all_told(self) -> State:
        """The same, with each change told."""
        told = [msgspec.structs.replace(one, told=True) for one in self.held]
        return State([one for one in told if "1" in one.minutes or one.raised])


def _after(before: Held, finding: Finding | None, now_ms: int) -> Held:
    """One of them after another minute: raised or cleared once two of three minutes say so."""
    minutes = (before.minutes + ("0" if finding is None else "1"))[-REMEMBERED:]
    raised, since, told = before.raised, before.since, before.told
    if not raised and minutes.count("1") >= RAISED_BY:
        raised, since, told = True, now_ms, False
    elif raised and minutes.count("0") >= RAISED_BY:
        raised, told = False, False
    return Held(finding or before.finding, minutes, raised, since, told)


# Looking --------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class OfName:
    """What is known of a name in a minute.

    Attributes:
        gauge: what waits and runs now; None: it was not looked at.
        served: whether a living process consumes it.
        minutes: the last ten, the newest last.
    """

    gauge: Gauge | None = None
    served: bool = True
    minutes: list[Slot] = field(default_factory=list)


def findings(
    bounds: Alerts, names: Mapping[str, OfName], missed: Mapping[str, float], store: Store | None
) -> list[Finding]:
    """All that holds now.

    Args:
        missed: task → seconds since the tick was due that nobody has claimed.
    """
    found: list[Finding] = []
    for name, one in names.items():
        for finding in (
            _no_consumer(bounds, name, one), _oldest_waiting(bounds, name, one), _failure_share(bounds, name, one),
            _backlog(bounds, name, one), _stalls(bounds, name, one),
        ):  # fmt: skip
            if finding is not None:
                found.append(finding)
    if bounds.missed_tasks:
        for task, late in missed.items():
            text = f"the tick of {task} that was due {_seconds(late)} ago was not claimed by any process"
            found.append(Finding("missed_task", task, text, round(late, 3)))
    if bounds.store and store is not None:
        if store.evicts:
            text = f"the store may evict jobs: its maxmemory-policy is {store.policy}; set noeviction"
            found.append(Finding("store_evicts", OF_STORE, text))
        if not store.durable:
            text = f"the store may lose jobs: {store.keeps}; set appendonly to yes"
            found.append(Finding("store_loses", OF_STORE, text))
    return found


def _no_consumer(bounds: Alerts, name: str, one: OfName) -> Finding | None:
    if not bounds.no_consumer or one.served or one.gauge is None or not one.gauge.backlog:
        return None
    text = f"{one.gauge.backlog} jobs of {name} wait, and no process consumes that name"
    return Finding("no_consumer", name, text, one.gauge.backlog)


def _oldest_waiting(bounds: Alerts, name: str, one: OfName) -> Finding | None:
    if bounds.oldest_waiting is None or one.gauge is None or one.gauge.oldest_ms is None:
        return None
    bound, waited = duration(bounds.oldest_waiting), one.gauge.oldest_ms / 1000
    if waited <= bound:
        return None
    text = f"a job of {name} has been waiting for {_seconds(waited)}, longer than {_seconds(bound)}"
    return Finding("oldest_waiting", name, text, waited, bound)


def _failure_share(bounds: Alerts, name: str, one: OfName) -> Finding | None:
    """Over as few of the last minutes as hold enough tries; a name with fewer in ten minutes says nothing."""
    if bounds.failure_share is None:
        return None
    tries = failed = 0
    for minute in reversed(one.minutes):
        tries += minute.tries
        failed += minute["failed_tries"]
        if tries >= LEAST_SAMPLES:
            break
    if tries < LEAST_SAMPLES or failed <= bounds.failure_share * tries:
        return None
    share = failed / tries
    text = f"{failed} of the last {tries} tries of {name} failed, {share:.0%}"
    return Finding("failure_share", name, text, round(share, 4), bounds.failure_share)


def _backlog(bounds: Alerts, name: str, one: OfName) -> Finding | None:
    """It will not drain: over ten minutes no more jobs have ended than were added, and more wait than before."""
    if bounds.backlog is None or one.gauge is None or one.gauge.backlog < bounds.backlog:
        return None
    before = [minute.gauges[1] for minute in one.minutes if len(minute.gauges) == 3]
    if len(before) < LOOKED_AT - 2 or one.gauge.backlog < max(before):
        return None
    added = sum(minute["added"] for minute in one.minutes)
    ended = sum(minute["completed"] + minute["failed"] + minute["cancelled"] for minute in one.minutes)
    if added < ended:
        return None
    text = (
        f"{one.gauge.backlog} jobs of {name} wait and will not drain: in ten minutes {added} were added "
        f"and {ended} have ended"
    )
    return Finding("backlog", name, text, one.gauge.backlog, bounds.backlog)


def _stalls(bounds: Alerts, name: str, one: OfName) -> Finding | None:
    stalled = one.minutes[-1]["stalled"] if one.minutes else 0
    if bounds.stalls is None or stalled < bounds.stalls:
        return None
    return Finding(
        "stalls", name, f"{stalled} jobs of {name} stalled in a minute: a process died", stalled, bounds.stalls
    )


def _seconds(seconds: float) -> str:
    """A duration in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

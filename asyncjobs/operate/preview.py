"""Preview: what other limits would do to a backlog."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from asyncjobs.broker import Backlog, Broker
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import Limits, limiters
from asyncjobs.declare.queue_limits import NO_WINDOWS, QueueLimits, windows_text
from asyncjobs.declare.values import UNSET, Unset, whole
from asyncjobs.errors import ConfigError
from asyncjobs.operate.told import read_told, told_of
from asyncjobs.operate.why import LEASE, Place, span

LEAST_SPAN: Final = 2.0  # seconds by which it is known how fast jobs come


class Pace(msgspec.Struct, frozen=True):
    """What some limits come to.

    Attributes:
        limits: in words.
        rate: most jobs a second; None: nothing bounds it, or how long a job runs is not known.
        drains_in: seconds until nothing waits; None: not known, or never.
        grows_by: jobs a minute by which the backlog grows; 0: it does not.
    """

    limits: str
    rate: float | None
    drains_in: float | None
    grows_by: float = 0.0


class Preview(msgspec.Struct, frozen=True):
    """What a change of limits would do.

    Attributes:
        waiting, active: jobs.
        arriving: jobs a second, measured over the last minute by what waits; None: not known.
        run_time: seconds that the last completed jobs ran on average; None: none are kept.
        now, then: without and with the change.
        over: how many jobs run beyond the new concurrency; they go on to their end.
    """

    name: str
    group_id: str | None
    waiting: int
    active: int
    arriving: float | None
    run_time: float | None
    now: Pace
    then: Pace
    over: int = 0

    def __str__(self) -> str:
        then, now = self.then, self.now
        if not self.waiting:
            what = "nothing waits"
        elif then.grows_by:
            what = f"{self.waiting:,} wait, and grow by {then.grows_by:,.0f} a minute"
        elif then.drains_in is None:
            what = f"{self.waiting:,} wait; how fast they drain is not known"
        else:
            what = f"{self.waiting:,} drain in {span(then.drains_in)}"
        if self.waiting and now.grows_by and not then.grows_by:
            what += f", now grow by {now.grows_by:,.0f} a minute"
        elif now.drains_in is not None and self.waiting:
            what += f", now in {span(now.drains_in)}"
        if self.arriving is None:
            come = "not known how fast jobs arrive"
        else:
            come = f"{self.arriving:.3g}/s arriving" if self.arriving else "nothing arriving"
        over = f"; {self.over} jobs run beyond that, and go on" if self.over else ""
        return f"{now.limits} → {then.limits}: {what} ({come}){over}"


async def preview(
    broker: Broker, place: Place, spec: JobSpec | None, limiter: Limits | Unset, concurrency: int | Unset | None
) -> Preview:
    """What `QueueControls.set` with these values would do.

    Args:
        spec: what this process knows of the name; None: what others have left in the store holds.
    Raises:
        ConfigError: a value that cannot be.
    """
    given = _given(limiter, concurrency)
    known = None if spec is None else told_of(spec)
    service, gauge, own, by_name = await asyncio.gather(
        broker.explain_service(place.name, LEASE, None if known is None else list(known.named)),
        broker.backlog(place.keys),
        broker.settings(place.keys),
        broker.settings(broker.queue_keys(place.name, None)),
    )
    told = read_told(service.told) if known is None else known
    if told.ordered and given[1] not in ("", "1"):
        raise ConfigError(f"concurrency={concurrency!r}: {place.name} keeps its order, which needs concurrency 1")
    limits = code = QueueLimits(told.windows, told.concurrency)
    for found in (by_name, own) if told.grouped else (own,):
        limits = limits.laid_over(found.get("w", ""), found.get("c", ""), "", "")
    changed = limits.laid_over(*given)
    if concurrency is None:
        changed = changed._replace(concurrency=code.concurrency)
    processes = 1 if told.grouped or told.ordered else max(1, service.consumers)
    run_time = gauge.took / gauge.ran if gauge.ran else None
    arriving = _arriving(gauge)
    slots = None if changed.concurrency is None else changed.concurrency * processes
    return Preview(
        name=place.name,
        group_id=place.group_id,
        waiting=gauge.waiting,
        active=gauge.active,
        arriving=arriving,
        run_time=run_time,
        now=_pace(limits, processes, gauge.waiting, run_time, arriving),
        then=_pace(changed, processes, gauge.waiting, run_time, arriving),
        over=0 if slots is None else max(0, gauge.active - slots),
    )


def _given(limiter: Limits | Unset, concurrency: int | Unset | None) -> tuple[str, str]:
    """Windows and concurrency as they would be set."""
    if limiter is UNSET and concurrency is UNSET:
        raise ConfigError("preview() was given nothing; it takes limiter, concurrency")
    windows = "" if isinstance(limiter, Unset) else windows_text(limiters(limiter, "limiter")) or NO_WINDOWS
    given = None if isinstance(concurrency, Unset) else concurrency
    return windows, "" if given is None else str(whole(given, "concurrency", least=1))


def _arriving(gauge: Backlog) -> float | None:
    """Jobs a second; None where nothing waits, or not for long enough to tell."""
    return gauge.came / gauge.over if gauge.waiting and gauge.over >= LEAST_SPAN else None


def _pace(limits: QueueLimits, processes: int, waiting: int, run_time: float | None, arriving: float | None) -> Pace:
    rates = [int(most) / (int(micros) / 1e6) for most, _, micros in _parts(limits.windows)]
    if run_time and limits.concurrency is not None:
        rates.append(limits.concurrency * processes / run_time)
    rate = min(rates, default=None)
    words = [f"{int(most)}/{int(micros) / 1e6:g} s" for most, _, micros in _parts(limits.windows)] or ["no limit"]
    at_once = "any number" if limits.concurrency is None else str(limits.concurrency)
    text = f"{' and '.join(words)}, {at_once} at once"
    if rate is None:
        return Pace(text, None, None)
    left = rate - (arriving or 0.0)
    if left <= 0:
        return Pace(text, rate, None, -left * 60 if left else 0.0)
    return Pace(text, rate, waiting / left)


def _parts(windows: str) -> list[tuple[str, str, str]]:
    return [one.partition(":") for one in windows.split()] if len(windows) > 2 else []

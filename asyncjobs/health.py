"""Health: the state of a runtime, without a question to the store."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypedDict

from asyncjobs.assembly import Assembly
from asyncjobs.counters import Counts
from asyncjobs.events import EventBus
from asyncjobs.history.alerts import Alert
from asyncjobs.invariants import at_a_glance
from asyncjobs.live_updates import LiveUpdates
from asyncjobs.upkeep.watchdog import Lag


class Health(TypedDict, total=False):
    """The result of `Runtime.health`. A stopped runtime has only `status`, `state`, `counters`, `io` and `events`.

    Attributes:
        status: ``ok`` as soon as `start` has returned; ``degraded`` while the store does not answer or a loop is down,
            and after a loss of data until `acknowledge_data_loss`.
        store: the store's address, without a password.
        keeps: which acknowledged writes outlive the store.
        data_lost_at: the instant at which this process noticed that the store had lost its data.
        draining: an operator has asked this process to take nothing.
        process: the name by which other processes know this one.
        loops_down: the runtime's own loops that have ended and are not well again.
        running, unsettled: jobs that run here; outcomes that the store has not acknowledged.
        invariants: the broken invariants of the runtime, a sentence each; empty unless the runtime has a fault.
        groups: job name → open groups.
        tasks: task name → next tick.
        counters: what has happened to jobs in this process since the runtime was made.
        loop: how late the event loop is and was, and the cause; absent without a watchdog.
        io: accepted, sent, dropped.
        alerts: the alerts of the installation, as this process knew them a minute ago at most.
        events: failed, how often subscribers raised; dropped, the events that were too many for slow subscribers.
    """

    status: Literal["ok", "degraded", "stopped"]
    state: Literal["stopped", "starting", "running", "stopping"]
    store: str
    keeps: str
    data_lost_at: datetime | None
    draining: bool
    process: str
    connected: bool
    loops_down: list[str]
    seconds_since_beat: float
    running: int
    unsettled: int
    invariants: list[str]
    groups: dict[str, int]
    tasks: dict[str, Any]
    counters: Counts
    loop: Lag
    alerts: list[Alert]
    io: dict[str, int]
    events: dict[str, int]


def health(parts: Assembly | None, bus: EventBus, io: LiveUpdates) -> Health:
    """The health of a runtime with these `parts`, without its `state`; None: the runtime is stopped."""
    found: Health = {"status": "stopped"} if parts is None else _of_parts(parts)
    found["counters"] = bus.counters.counts()
    found["io"] = {"accepted": io.accepted, "sent": io.sent, "dropped": io.dropped}
    found["events"] = {"failed": bus.failed, "dropped": bus.dropped}
    return found


def _of_parts(parts: Assembly) -> Health:
    connected = parts.broker.subscriber.connected and parts.pump.outage_since is None
    lost_at = parts.heartbeat.data_lost_at
    down = [*parts.supervisor.down(), *parts.lifeline.down()]
    found: Health = {
        "status": "ok" if connected and lost_at is None and not down else "degraded",
        "store": parts.broker.address.text,
        "keeps": parts.store.keeps if parts.store else "unknown",
        "data_lost_at": lost_at,
        "draining": parts.queues.draining,
        "process": parts.heartbeat.process,
        "connected": connected,
        "loops_down": down,
        "seconds_since_beat": round(parts.heartbeat.since_last_beat(), 3),
        "running": parts.queues.running(),
        "unsettled": parts.queues.unsettled(),
        "invariants": at_a_glance(parts),
        "groups": {name: len(registry.open) for name, registry in parts.queues.registries.items()},
        "tasks": parts.scheduler.planned(),
    }
    if parts.watch is not None:
        found["alerts"] = list(parts.watch.alerts)
    if parts.watchdog is not None:
        found["loop"] = parts.watchdog.lag()
    return found

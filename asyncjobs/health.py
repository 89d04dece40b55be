"""Health: how a process is doing, without asking the store."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypedDict

from asyncjobs.assembly import Assembly
from asyncjobs.events import EventBus
from asyncjobs.invariants import at_a_glance
from asyncjobs.live_updates import LiveUpdates
from asyncjobs.upkeep.watchdog import Lag


class Health(TypedDict, total=False):
    """What `Runtime.health` returns; of a stopped runtime `status`, `state`, `io` and `events` alone.

    Attributes:
        status: ``degraded`` while the store does not answer or a loop is down, or lost data until
            `acknowledge_data_loss`.
        store: its address, without a password.
        keeps: what of a write outlives the store.
        data_lost_at: when the store was found to have lost its data.
        draining: an operator has asked this process to take nothing.
        process: the name under which the others know this process.
        loops_down: of the runtime's own loops, those that have ended and are not well again.
        running, unsettled: jobs that run here; outcomes that the store has not acknowledged.
        invariants: what should hold of the runtime and does not; empty unless it has a fault.
        groups: open groups by job name.
        tasks: the next tick by name.
        loop: how late the event loop is and was, and what caused that; without a watchdog it is not told.
        io: accepted, sent, dropped.
        events: failed, how often subscribers raised; dropped, what was too much for slow ones.
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
    loop: Lag
    io: dict[str, int]
    events: dict[str, int]


def health(parts: Assembly | None, bus: EventBus, io: LiveUpdates) -> Health:
    """Of a runtime that consists of `parts`; None: it is stopped. All but its `state`."""
    found: Health = {"status": "stopped"} if parts is None else _of_parts(parts)
    found["io"] = {"accepted": io.accepted, "sent": io.sent, "dropped": io.dropped}
    found["events"] = {"failed": bus.failed, "dropped": bus.dropped}
    return found


def _of_parts(parts: Assembly) -> Health:
    connected = parts.broker.subscriber.connected and parts.pump.outage_since is None
    lost_at, running = parts.heartbeat.data_lost_at, parts.queues.running()
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
        "running": running,
        "unsettled": parts.queues.unsettled(),
        "invariants": at_a_glance(parts, running),
        "groups": {name: len(registry.open) for name, registry in parts.queues.registries.items()},
        "tasks": parts.scheduler.planned(),
    }
    if parts.watchdog is not None:
        found["loop"] = parts.watchdog.lag()
    return found

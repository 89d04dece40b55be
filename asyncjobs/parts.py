"""The Parts: what a started runtime consists of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from asyncjobs import clock
from asyncjobs.broker import Broker, Place, Store
from asyncjobs.config import Limiter
from asyncjobs.consumer import Consumer
from asyncjobs.crew import Crew
from asyncjobs.definition import JobSpec
from asyncjobs.embedded import EmbeddedStore
from asyncjobs.gate import Gate
from asyncjobs.groups import GroupRegistry
from asyncjobs.liveness import Liveness
from asyncjobs.maintenance import Maintenance
from asyncjobs.pump import Pump
from asyncjobs.scheduler import Scheduler
from asyncjobs.shop import Shop


class Parts:
    """What a started runtime consists of; the attributes without a default are set while it is built."""

    broker: Broker
    liveness: Liveness
    pump: Pump
    shop: Shop
    maintenance: Maintenance
    scheduler: Scheduler

    def __init__(self, stack: AsyncExitStack, crew: Crew, embedded: EmbeddedStore | None) -> None:
        self.stack, self.crew, self.embedded = stack, crew, embedded
        self.store: Store | None = None  # what it said of itself
        self.consumers: dict[str, Consumer] = {}
        self.registries: dict[str, GroupRegistry] = {}
        self.gates: dict[str, Gate] = {}

    def gates_of(self, spec: JobSpec) -> tuple[Gate, ...]:
        """The limits that hold over the queues of a job and others, one object each in a process."""
        total, named = self.broker.gate_keys(spec.name, [one.name or "" for one in spec.named_limiters])
        wanted: list[tuple[str, tuple[Limiter, ...], int | None]] = []
        if spec.total_limiters or spec.total_concurrency:
            wanted.append((total, spec.total_limiters, spec.total_concurrency))
        wanted += [(key, (limiter,), None) for key, limiter in zip(named, spec.named_limiters, strict=True)]
        for key, limiters, slots in wanted:
            if key not in self.gates:
                self.gates[key] = Gate(self.broker, key, spec.name, limiters, slots, spec.lease)
                self.stack.callback(self.gates[key].close)
        return tuple(self.gates[key] for key, _, _ in wanted)

    def specs(self) -> list[JobSpec]:
        consumed = [consumer.spec for consumer in self.consumers.values()]
        return consumed + [registry.spec for registry in self.registries.values()]

    def consumer_at(self, place: Place) -> Consumer | None:
        """Whoever consumes here what is added there."""
        if not place.registry:
            return self.consumers.get(place.name)
        registry = self.registries.get(place.name)
        return None if registry is None else registry.open.get(place.keys.group)

    def all_consumers(self) -> list[Consumer]:
        grouped = [consumer for registry in self.registries.values() for consumer in registry.open.values()]
        return [*self.consumers.values(), *grouped]

    def running(self) -> int:
        return sum(len(consumer.attempts.running) for consumer in self.all_consumers())

    def unsettled(self) -> int:
        return sum(consumer.unsettled for consumer in self.all_consumers())

    def at_rest(self) -> bool:
        """Whether nothing runs, nothing waits to be settled, and nothing may be pending of which nobody knows here."""
        return self.running() == 0 and not any(one.unsettled or one.unsure for one in self.all_consumers())

    def health(self) -> dict[str, Any]:
        """How this process is doing; see `Runtime.health`."""
        connected = self.broker.subscriber.connected and self.pump.outage_since is None
        lost_at = self.liveness.data_lost_at
        return {
            "status": "ok" if connected and lost_at is None else "degraded",
            "store": self.broker.address.text,
            "keeps": self.store.keeps if self.store else "unknown",
            "data_lost_at": lost_at,
            "process": self.liveness.process,
            "connected": connected,
            "seconds_since_beat": round(self.liveness.since_last_beat(), 3),
            "running": self.running(),
            "unsettled": self.unsettled(),
            "groups": {name: len(registry.open) for name, registry in self.registries.items()},
            "tasks": self.scheduler.planned(),
        }

    async def settled(self, reached: Callable[[], bool], timeout: float) -> None:
        """Wait until `reached()`, for `timeout` seconds at most."""
        deadline = clock.monotonic() + timeout
        while not reached() and clock.monotonic() < deadline:  # noqa: ASYNC110 - counts of many consumers have no event
            await asyncio.sleep(0.01)

    async def keep_owned(self, process: str) -> None:
        """After a lapse: every try that another process took over meanwhile is cancelled."""
        await asyncio.gather(*(one.keep_owned(process) for one in self.all_consumers() if one.attempts.running))

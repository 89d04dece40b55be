"""Following: the events of all processes, as long as a viewer asks for them.

A viewer asks every few seconds for some types of events. A process that hears that listens to its own bus and publishes
what it hears, no more than `MOST` a second, until nobody has asked for some time. While nobody asks,
nothing is built and nothing is published.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Self, TypeAlias

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.values import shown
from asyncjobs.errors import BrokerError, ConfigError
from asyncjobs.events import EVENT_TYPES, Event, EventBus
from asyncjobs.logs import said

logger = logging.getLogger("asyncjobs")

Run: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]
ASKED_FOR: Final = 10  # seconds that a viewer asks for
ASK_EVERY: Final = 4.0  # seconds between two asks
LONGEST: Final = 60  # seconds that may be asked for
MOST: Final = 50  # a second and process of the many, and as many of the others
MANY: Final = ("job.added", "job.active", "job.completed", "job.progress")
SECOND: Final = 1.0
ROUNDS: Final = 5  # a second, in which what has happened is published
LONGEST_ERROR: Final = 500  # characters
MOST_KEPT: Final = 10_000  # events that a slow viewer has not read; then the oldest are dropped


class Told(msgspec.Struct, omit_defaults=True, rename={"kind": "t", "at_ms": "a", "process": "P"}):
    """An event on its way; `dropped`: how many more of that process there were in the second before."""

    kind: str = ""
    name: str = ""
    at_ms: float = 0
    job_id: str | None = None
    group_id: str | None = None
    attempts_made: int | None = None
    scheduled_ms: float | None = None
    duration: float | None = None
    delay: float | None = None
    error: str | None = None
    process: str = ""
    dropped: int = 0

    def event(self) -> Event:
        return Event(
            self.kind, self.name, clock.from_ms(self.at_ms), self.job_id, self.group_id, self.attempts_made,
            None if self.scheduled_ms is None else clock.from_ms(self.scheduled_ms), self.duration, self.delay,
            self.error, process=self.process,
        )  # fmt: skip


TOLD: Final = msgspec.json.Decoder(list[Told])


def _ms(instant: datetime) -> float:
    return instant.timestamp() * 1000


class Broadcast:
    """Publishes what happens in this process while a viewer asks for it.

    State: `_until`, type → before when it is asked for; `_off`, type → what ends its subscription, while it is listened
    to; `_out`, what is to be published; `_said`, how many of the many and of the others in the present second, and
    `_dropped`, how many more; `_counted`, what the counters said when there were too many of the many to listen.
    """

    def __init__(self, broker: Broker, bus: EventBus, run: Callable[[str, Run], None]) -> None:
        self._broker, self._bus, self._run = broker, bus, run
        self._until: dict[str, float] = {}
        self._off: dict[str, Callable[[], None]] = {}
        self._out: list[Told] = []
        self._said = [0, 0]
        self._dropped = 0
        self._counted: int | None = None
        self._telling = False

    async def begin(self) -> None:
        """Hear of viewers from now on."""
        await self._broker.subscriber.listen(self._broker.channels.watch, self._asked)

    def _asked(self, message: bytes) -> None:
        """A viewer asks, in seconds and types; no type means all."""
        seconds, *types = message.decode().split()
        until = clock.monotonic() + min(int(seconds) if seconds.isdigit() and len(seconds) < 4 else 0, LONGEST)
        for one in types or EVENT_TYPES:
            if one in EVENT_TYPES:
                self._until[one] = max(self._until.get(one, until), until)
        if not self._telling and self._wanted():
            self._telling = True
            self._run("telling those who follow events", self._tell)

    def _wanted(self) -> list[str]:
        now = clock.monotonic()
        self._until = {one: until for one, until in self._until.items() if until > now}
        return list(self._until)

    async def _tell(self) -> None:
        try:
            rounds = 0
            while wanted := self._wanted():
                self._listen(wanted)
                await asyncio.sleep(SECOND / ROUNDS)
                rounds += 1
                if rounds % ROUNDS == 0:
                    self._new_second()
                await self._publish()
        finally:
            self._telling = False
            self._out, self._counted = [], None
            self._listen(())

    def _listen(self, wanted: Collection[str]) -> None:
        for one in [one for one in self._off if one not in wanted]:
            self._off.pop(one)()
        for one in wanted:
            if one not in self._off and not (one in MANY and self._counted is not None):
                self._off[one] = self._bus.on(one, self._heard)

    def _new_second(self) -> None:
        self._said = [0, 0]
        if self._counted is not None:
            self._dropped += max(1, self._count() - self._counted)
            self._counted = None
        if self._dropped:
            self._out.append(Told(process=self._broker.process_id, dropped=self._dropped))
            self._dropped = 0

    def _count(self) -> int:
        """About how many events of the many there have been."""
        counts = self._bus.counters
        found = {"job.added": counts.added, "job.active": counts.started, "job.completed": counts.completed}
        return sum(number for one, number in found.items() if one in self._until)

    def _heard(self, event: Event) -> None:
        kind = int(event.type not in MANY)
        self._said[kind] += 1
        if self._said[kind] > MOST:
            if kind == 1:
                self._dropped += 1
                return
            for one in MANY:
                self._off.pop(one, _nothing)()
            self._counted = self._count()
            return
        error: Any = event.error
        words = error if error is None or issubclass(type(error), str) else said(error)  # an app's may lie of its class
        text = None if words is None else words[:LONGEST_ERROR]
        self._out.append(
            Told(
                event.type, event.name, _ms(event.at), event.job_id, event.group_id, event.attempts_made,
                None if event.scheduled_at is None else _ms(event.scheduled_at), event.duration, event.delay, text,
                self._broker.process_id,
            )
        )  # fmt: skip

    async def _publish(self) -> None:
        out, self._out = self._out, []
        if not out:
            return
        try:
            await self._broker.tell_events(msgspec.json.encode(out))
        except (BrokerError, UnicodeEncodeError) as error:
            logger.debug("events were not told: %s", error)


def _nothing() -> None:
    """Ends nothing."""


class Following:
    """``async for event in runtime.follow()``: events of all processes as they happen, from when it is first awaited.

    What is told is a hint: a message may be lost. Payloads are not told, errors are texts.

    Attributes:
        dropped: about how many more events there were than are told: a process tells `MOST` a second, and a slow
            viewer keeps the last ten thousand.
    """

    def __init__(self, running: Callable[[], Broker], types: Collection[str]) -> None:
        self._running, self._types = running, frozenset(types)
        self._kept: deque[Event] = deque()
        self._news = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self.dropped = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._asking is None:
            broker = self._running()
            await broker.subscriber.listen(broker.channels.events, self._hear)
            await broker.subscriber.confirmed(broker.channels.events)
            self._asking = asyncio.get_running_loop().create_task(self._ask(broker))
        while not self._kept:
            self._news.clear()
            await self._news.wait()
        return self._kept.popleft()

    async def _ask(self, broker: Broker) -> None:
        while True:
            with suppress(BrokerError):
                await broker.ask_for_events(ASKED_FOR, self._types)
            await asyncio.sleep(ASK_EVERY)

    def _hear(self, body: bytes) -> None:
        for told in TOLD.decode(body):
            self.dropped += told.dropped
            if told.kind and (not self._types or told.kind in self._types):
                self._kept.append(told.event())
                if len(self._kept) > MOST_KEPT:
                    self._kept.popleft()
                    self.dropped += 1
        self._news.set()

    async def aclose(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None


class Followed:
    """The part of a runtime that follows events. `_queue`: its front door."""

    _queue: Any

    def follow(self, types: str | Collection[str] | None = None) -> Following:
        """The events of all processes of the installation, as they happen: ``async for event in runtime.follow()``.

        A process publishes them only while they are followed, and no more than fifty a second of those of which there
        may be thousands, and fifty of the others; see `Following.dropped`.

        Args:
            types: one or several types of events; None: all.
        Raises:
            ConfigError: there is no such type.
        """
        return Following(lambda: self._queue._running("follow"), checked_types(types))


def checked_types(given: Any) -> tuple[str, ...]:
    """One or several types of events; all for None.

    Raises:
        ConfigError: there is no such type.
    """
    if given is None:
        return ()
    several = (given,) if isinstance(given, str) else tuple(given)
    for one in several:
        if one not in EVENT_TYPES:
            raise ConfigError(f"follow({shown(one)}): no event is called so; there are: {' '.join(EVENT_TYPES)}")
    return several

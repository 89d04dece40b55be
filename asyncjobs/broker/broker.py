"""The Broker: one method for each transition. Each makes one round trip, and is safe to send again.

The broker has six connections, whatever the number of queues: one for adds, two for work, one for the heartbeat, one
for the subscriber, and one for all other calls.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.broker.add_calls import AddCall, AddReply, FollowUp, Place
from asyncjobs.broker.address import Address
from asyncjobs.broker.adds import LAST_CHANCE, AddBatcher
from asyncjobs.broker.cancelling import Cancelling
from asyncjobs.broker.cluster import ClusterConnection, Topology
from asyncjobs.broker.connection import BYTES_A_PIPELINE, Connection, stopped
from asyncjobs.broker.explaining import Explaining
from asyncjobs.broker.fleet import Fleet
from asyncjobs.broker.keys import (
    Channels,
    groups_key,
)
from asyncjobs.broker.limiting import CHANGED, ROOM, Limiting
from asyncjobs.broker.looking import Looking
from asyncjobs.broker.operating import Operating
from asyncjobs.broker.preflight import Store, examine
from asyncjobs.broker.reach import Reach
from asyncjobs.broker.reading import Finish, Reading
from asyncjobs.broker.subscriber import Subscriber
from asyncjobs.broker.tallying import Tallying
from asyncjobs.broker.telling import Telling
from asyncjobs.broker.ticking import Ticking
from asyncjobs.broker.working import OnWork, WorkCall, Working, work_reply
from asyncjobs.errors import BrokerUnavailableError
from asyncjobs.loop_budget import LoopBudget

WORK_CONNECTIONS: Final = 2


class Broker(Reading, Looking, Operating, Explaining, Cancelling, Working, Fleet, Ticking, Limiting, Tallying, Telling):
    """All access to the store, as verbs."""

    def __init__(
        self,
        target: Any,
        *,
        prefix: str,
        process: str,
        connect_timeout: float,
        replicas: int = 0,
        loop: LoopBudget | None = None,
    ) -> None:
        loop = loop or LoopBudget()
        self.address = Address(target, connect_timeout)
        topology = Topology(self.address, connect_timeout)
        reach = Reach(connect_timeout)

        def connection() -> Connection:
            if self.address.seeds:
                return ClusterConnection(self.address, connect_timeout, topology)
            return Connection(self.address, connect_timeout, reach)

        super().__init__(prefix, process, connection(), connect_timeout, Channels(prefix, self.address.database), loop)
        self._adds = AddBatcher(connection(), process, connect_timeout, replicas, bool(self.address.seeds), loop)
        self._work = [connection() for _ in range(WORK_CONNECTIONS)]
        self._beats = connection()
        self._scattered = bool(self.address.seeds)
        self.subscriber = Subscriber(self.address, None if self._scattered else reach)
        self._abandoned = False
        self._watched: dict[str, list[asyncio.Future[Finish]]] = {}
        self._places: dict[str, Place] = {}

    # Connections ------------------------------------------------------------------------------------------
    async def check(self) -> Store:
        """Reach the store, and ask what it is.

        Raises:
            BrokerUnavailableError: the store was not reached, or not ready, within the connection timeout.
            ConfigError: the store is too old.
            BrokerError: the store refuses the connection or a command.
        """
        deadline, pause = clock.monotonic() + self._timeout, 0.1
        while True:
            try:
                async with asyncio.timeout(max(0.05, deadline - clock.monotonic())):
                    return await examine(self._misc, self.prefix, self.channels)
            except (BrokerUnavailableError, TimeoutError) as error:
                await self._misc.close()  # another server may answer the next connection
                left = deadline - clock.monotonic()
                if left <= 0.1:
                    text = str(error) or f"{self.address.text} is out of reach"
                    raise BrokerUnavailableError(f"{text} (tried for {self._timeout:g} s)") from error
            await asyncio.sleep(min(pause, left - 0.05))
            pause = min(pause * 1.5, 1.0)

    async def listen_for_news(
        self,
        name: str,
        on_news: Callable[[str, float], None],
        on_confirmed: Callable[[], None],
        on_changed: Callable[[], None] = lambda: None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        """Call `on_news` with a group id and the seconds until due, each time an idle queue of `name` got work.

        `on_changed` is called when the settings for all groups of `name` have changed, `on_room` when their shared
        limit has room again. `on_confirmed` is called when listening has begun, or has begun again: then earlier news
        may have been missed.
        """

        def on_message(message: bytes) -> None:
            due, _, group = message.partition(b"|")
            if int(due) == CHANGED:
                on_changed()
            elif int(due) == ROOM:
                on_room()
            else:
                on_news(group.decode(), int(due) / 1000)

        await self.subscriber.listen(self.channels.news(name), on_message, on_confirmed)

    async def listen_for_cancels(self, on_asked: Callable[[bytes], None]) -> None:
        """Call `on_asked` with what is told when the cancel of a job that runs is asked for; see `read_mark`."""
        await self.subscriber.listen(self.channels.cancels, on_asked)

    async def close(self, timeout: float = LAST_CHANCE) -> None:
        """Send the adds on their way for `timeout` seconds at most, then close all connections for good."""
        if self._abandoned:
            with suppress(Exception):
                await self.address.close()
            return
        try:
            await self._adds.close(timeout)
        finally:
            for connection in self._connections():
                await connection.shut()
            for futures in self._watched.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(stopped())
            await self.address.close()

    @property
    def is_cluster(self) -> bool:
        return self._scattered

    def _connections(self) -> list[Connection]:
        return [*self._work, self._misc, self._beats]

    def abandon(self) -> None:
        """The loop of all connections was closed. Drop them, from another loop."""
        self._abandoned = True
        for connection in (*self._connections(), self._adds.connection):
            connection.abandon()
        self.subscriber.abandon()

    # Adding and reading -----------------------------------------------------------------------------------
    async def add(self, calls: Sequence[AddCall]) -> list[AddReply]:
        """Add each job once, however often the call is sent.

        Raises:
            BrokerUnavailableError: no answer. Each job is wholly there or not at all; `job_ids` names the jobs.
            BrokerError: the store refused, and no job was added.
        """
        return await self._adds.add(calls)

    def place(self, name: str, group_id: str | None) -> Place:
        """Where jobs of a name, or of one of its groups, are added; remembered for a name, of which there are few."""
        place = self._places.get(name) if group_id is None else None
        if place is None:
            registry = "" if group_id is None else groups_key(self.prefix, name)
            place = Place(self.queue_keys(name, group_id), name, self.channels.news(name), registry)
            if group_id is None:
                self._places[name] = place
        return place

    def count_for(self, added: Callable[[str, int], None], cancelled: Callable[[str, int], None]) -> None:
        """Call these with a name and how many of its jobs the store has added, or cancelled before they ran."""
        self._adds.on_added, self._count_cancelled = added, cancelled

    def offer_follow_ups(self, make: Callable[[list[Place]], list[tuple[str, WorkCall, OnWork]]]) -> None:
        """Let turns travel behind adds: `make` says which, and by which process, for the places that are added to.

        They settle nothing. Each is told its reply, or the error, as `work` would have returned or raised it.
        """

        def told(call: WorkCall, tell: OnWork, reply: Any) -> None:
            tell(work_reply(call, reply))

        def follow_ups(places: list[Place]) -> list[FollowUp]:
            made = make(places)
            size = BYTES_A_PIPELINE // max(1, len(made))
            return [
                FollowUp(
                    call.keys.tag, self.work_command(process, call, size, "1"), functools.partial(told, call, tell)
                )
                for process, call, tell in made
            ]

        self._adds.follow_ups = follow_ups

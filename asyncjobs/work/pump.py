"""The Pump: gives every queue that has something to do its turn, many turns a round trip.

Ready consumers stand in a ring; a turn settles what has finished and takes a bounded batch, and who wants more
goes to the back, so that one tenant's hundred thousand jobs do not delay another's one. A consumer that has
nothing to do costs nothing: no aio_task, no timer, no command.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.broker import Broker, Excess, OnWork, Place, WorkCall, WorkReply
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.limits.line import Line
from asyncjobs.limits.shared_limit import CALM, SLOTFULS, Grant, SharedLimit
from asyncjobs.limits.waiting import Waiting
from asyncjobs.logs import said
from asyncjobs.work.alarms import Alarms, Patience
from asyncjobs.work.errands import Errands
from asyncjobs.work.served import Served
from asyncjobs.work.task_reuse import LoopRounds
from asyncjobs.work.turn import Turn

logger = logging.getLogger("asyncjobs.work")

TURNS_A_TRIP: Final = 128
FEW_TURNS: Final = 64  # that a trip carries even where making them up uses the slice of the loop up
SHORTEST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 4.0


class Pump(Errands):
    """Serves the ring of ready consumers with a small number of pipelines in flight.

    State:
        _ready: the ring.
        line: the consumers that share the slots of the process, and those that wait for one.
        overflow: grouped job names with more finished jobs than they keep.
    """

    def __init__(
        self,
        broker: Broker,
        slots: int,
        process: Callable[[], str],
        find: Callable[[Place], Served | None],
        rounds: LoopRounds | None = None,
    ) -> None:
        super().__init__(broker, slots, process)
        self.rounds = rounds or LoopRounds()
        self.find = find
        broker.offer_follow_ups(self.follow_ups)
        self._ready: deque[Served] = deque()
        self.line = Line(SLOTFULS * slots, CALM, fetching)
        self._connections: dict[int, asyncio.Task[Any] | None] = {}
        self._tripped_at = 0.0
        self._patience = Patience(self.offer)
        self.patience = self._patience.watch
        self.alarms = Alarms(self.rounds)
        self.overflow: set[Excess] = set()
        self.overflowed = asyncio.Event()
        self.outage_since: float | None = None

    def offer(self, consumer: Served) -> None:
        """Put `consumer` into the ring, unless it is there."""
        if not consumer.queued:
            consumer.queued = True
            self._ready.append(consumer)
            self._wake.set()

    def slot_freed(self) -> None:
        """A job has ended: whoever waits for a slot gets its turn."""
        self.running -= 1
        self._feed()

    @property
    def ends_with_the_loop(self) -> bool:
        """Whether the app cancels every aio_task there is, those that serve turns included, and has not called stop."""
        connections = [one for one in self._connections.values() if one is not None]
        return bool(connections) and all(one.done() or one.cancelling() for one in connections)

    async def run(self, connection: int) -> None:
        """Serve turns on one connection until cancelled."""
        self._connections[connection] = asyncio.current_task()
        pause = SHORTEST_PAUSE
        while True:
            while not (self._ready or self._cleared):
                self._wake.clear()
                await self._wake.wait()
            turns = self._held[connection] = []
            try:
                if self.rounds.crowded:
                    await self.rounds.pause(self._tripped_at)
                    self._tripped_at = clock.monotonic()
                if self.rounds.spent() and len(self._ready) > FEW_TURNS:
                    await self.rounds.room(first=True)
                self._next_turns(turns)
                if turns:
                    await self._serve(connection, turns)
                    pause = SHORTEST_PAUSE
                    self.outage_since = None
            except BrokerUnavailableError as error:
                if self.outage_since is None:
                    self.outage_since = clock.monotonic()
                    logger.warning("the store does not answer; carrying on as soon as it does: %s", error)
                self._put_back(turns)
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # many processes must not come back as one
                pause = min(pause * 2, LONGEST_PAUSE)
            except BrokerError as error:
                self.throttled.error("store", "the store refuses to work; trying again every few seconds: %s", error)
                self._put_back(turns)
                await asyncio.sleep(LONGEST_PAUSE)
            finally:
                self._put_back(turns)
                del self._held[connection]

    def _next_turns(self, turns: list[Turn[Served]]) -> None:
        """Add to `turns` those that can be sent, and send errands for those that cannot be yet."""
        turns += self._cleared[:TURNS_A_TRIP]
        del self._cleared[:TURNS_A_TRIP]
        asking: list[Turn[Served]] = []
        stale: set[SharedLimit] = set()
        some = [self._ready.popleft() for _ in range(min(len(self._ready), TURNS_A_TRIP - len(turns)))]
        for consumer in some:
            consumer.queued = False
        scarce = self.line.scarce
        allotted = self._allot(some) if scarce else {}
        for number, consumer in enumerate(allotted or some):
            if number >= FEW_TURNS and not scarce and self.rounds.spent():
                self._put_in_front(some[number:])
                break
            free = self.free_slots()
            turn = consumer.prepare(allotted[consumer] if scarce else max(0, free))
            if turn is not None:
                self._reserved += turn.reserved
                if consumer.lost_reply:
                    self._send(self._adopt(turn), [turn])
                elif consumer.shared_limits and turn.reserved:
                    asking.append(turn)
                else:
                    turns.append(turn)
                    stale.update(shared_limit for shared_limit in consumer.shared_limits if shared_limit.stale)
                if consumer.flowing and consumer.hungry and consumer.free() and not scarce:
                    self.offer(consumer)  # for a second turn, by the other connection
            if scarce or free <= 0:
                self._starve(consumer)
        self._ask(asking)
        for shared_limit in stale:
            self._send(shared_limit.correct(), [])
        self._feed()

    def _put_in_front(self, some: list[Served]) -> None:
        """Give `some`, for which this trip has no time, the first turns of the next one."""
        for consumer in reversed(some):
            if not consumer.queued:
                consumer.queued = True
                self._ready.appendleft(consumer)

    def _allot(self, some: list[Served]) -> dict[Served, int]:
        """How many slots each of `some`, and of those that wait before them, gets."""
        for consumer in some:
            self._starve(consumer)
        allotted = dict.fromkeys(some, 0)
        wants: list[tuple[Served, int]] = []
        while self.line.waiting and len(wants) < min(self.free_slots(), TURNS_A_TRIP):
            consumer = self._first()
            wants.append((consumer, consumer.wanted))
        for (consumer, _), slots in zip(wants, self.line.allot(wants, self.free_slots()), strict=True):
            allotted[consumer] = slots
        return allotted

    def _first(self) -> Served:
        """The first of those that wait waits no more."""
        consumer: Any = self.line.waiting.pop()
        consumer.starving = False
        served: Served = consumer
        return served

    def close(self) -> None:
        """Nothing is asked any more."""
        super().close()
        self._patience.close()
        self.alarms.close()

    def _starve(self, consumer: Served) -> None:
        """Too few slots for all: a consumer that wants one waits for it.

        One that might start something and can make no turn is kept back by something else, and woken by that.
        """
        if consumer.wanted:
            consumer.starving = True
            self.line.join(consumer)

    def leave(self, consumer: Served, gone: bool = False) -> None:
        """`consumer` has nothing to take, or is `gone`: a slot that it were fed would stand empty."""
        self.line.rest(consumer, gone)
        consumer.starving = False

    def _feed(self) -> None:
        """As many of those who wait for a slot get their turn as there are slots.

        Called whenever a slot comes free and whenever the ring was served: one that was fed and wants nothing any more
        leaves its slot to the next one. One that stands in the ring already is fed by that.
        """
        room = self.free_slots() - len(self._ready) if self.line.waiting else 0
        while self.line.waiting and room > 0:
            self.offer(self._first())
            room -= 1

    async def _serve(self, connection: int, turns: list[Turn[Served]]) -> None:
        sent_at = clock.monotonic()
        replies, over = await self._broker.work(connection, self._process(), [turn.call() for turn in turns])
        if over:
            self.overflow.update(over)
            self.overflowed.set()
        unused: dict[Grant, int] = {}
        for turn, reply in zip(turns, replies, strict=True):
            if self.rounds.spent():
                self._free(unused)
                await self.rounds.room(first=True)
            self._reserved -= turn.reserved
            if turn.grants and not isinstance(reply, BrokerError):
                turn.let_in(len(reply.jobs))
                for grant in turn.grants:
                    grant.shared_limit.line.count(turn.consumer, len(reply.jobs))
                for grant in turn.grants:
                    unused[grant] = unused.get(grant, 0) + turn.reserved - len(reply.jobs)
            if isinstance(reply, BrokerError):
                turn.dropped()
                self._unserved(turn, reply)
            else:
                self._absorb(turn, reply, sent_at)
        self._free(unused)

    def _free(self, unused: dict[Grant, int]) -> None:
        """Let others have the slots and the parts of grants that found no job, before anything is waited for."""
        self._feed()
        while unused:
            self._give_back(*unused.popitem())

    def _absorb(self, turn: Turn[Served], reply: WorkReply, sent_at: float) -> None:
        """Hand a reply over. Should that fail half way, what the reply brought is found by adoption."""
        consumer = turn.consumer
        self.line.count(consumer, len(reply.jobs))
        try:
            consumer.absorb(turn, reply, sent_at)
        except Exception as error:
            text = "%r could not deal with a reply, and looks again: %s"
            self.throttled.error("absorb", text, consumer, said(error))
            consumer.lost_reply = True
            consumer.look_again()

    # Turns behind adds --------------------------------------------------------------------------------------
    def follow_ups(self, places: list[Place]) -> list[tuple[str, WorkCall, OnWork]]:
        """A turn for each idle queue here that a job is being added to: it starts after one round trip, not two."""
        follow_ups: list[tuple[str, WorkCall, OnWork]] = []
        if self._ready or self.line.waiting:
            return follow_ups
        for place in places:
            consumer = self.find(place)
            if consumer is None or consumer.shared_limits or consumer.spec.forgets or not consumer.at_leisure:
                continue
            was_hungry, consumer.hungry = consumer.hungry, True
            turn = consumer.prepare(self.free_slots())
            if turn is None:
                consumer.hungry = was_hungry  # news of the job comes, and leads to a turn
            else:
                self._reserved += turn.reserved
                self._held[turn] = [turn]
                tell = functools.partial(self._followed_up, turn, clock.monotonic())
                follow_ups.append((self._process(), turn.call(), tell))
        return follow_ups

    def _followed_up(self, turn: Turn[Served], sent_at: float, reply: WorkReply | BrokerError) -> None:
        del self._held[turn]
        self._unreserve(turn.reserved)
        if isinstance(reply, BrokerError):
            self.doubts.lost(turn.consumer)
        if isinstance(reply, BrokerUnavailableError):
            turn.consumer.unanswered(turn)
        elif isinstance(reply, BrokerError):
            turn.consumer.refused(turn, reply)
        else:
            self._absorb(turn, reply, sent_at)

    @property
    def reserved(self) -> int:
        """Slots that wait for a reply."""
        return self._reserved

    @property
    def starved(self) -> tuple[Any, ...]:
        """The queues that wait for a slot of the process, the next one first."""
        return tuple(self.line.waiting)

    @property
    def ring(self) -> tuple[Served, ...]:
        """The queues that are about to have a turn."""
        return tuple(self._ready)

    @property
    def fetched(self) -> tuple[Any, ...]:
        """The queues that hold jobs beyond their slots, as far as they are looked after."""
        return tuple(self._patience.queues)

    @property
    def held(self) -> set[Turn[Served]]:
        """The turns that something is going to answer or to put back."""
        return {turn for turns in (self._cleared, *self._held.values()) for turn in turns}


def fetching(queue: Waiting) -> int:
    """How many jobs the turns of `queue` may bring."""
    return sum(turn.reserved + turn.ahead for turn in queue.turns)

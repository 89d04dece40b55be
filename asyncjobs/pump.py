"""The Pump: gives every queue that has something to do its turn, many turns a round trip.

Ready consumers stand in a ring; a turn settles what has finished and takes a bounded batch, and who wants more
goes to the back, so that one tenant's hundred thousand jobs do not delay another's one. A consumer that has
nothing to do costs nothing: no aio_task, no timer, no command.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from asyncjobs import clock
from asyncjobs.ahead import PATIENCE
from asyncjobs.broker import Broker, OnWork, Place, WorkCall, WorkReply
from asyncjobs.complaints import Complaints
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.gate import Gate, Grant, share

if TYPE_CHECKING:
    from asyncjobs.consumer import Consumer
    from asyncjobs.turn import Turn

logger = logging.getLogger("asyncjobs")

TURNS_A_TRIP: Final = 128
SHORTEST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 4.0
SPARE: Final = 64  # entries that alarms keep beyond two a consumer
REST: Final = 1.0  # seconds that a queue rests whose node alone does not answer, while the others go on


class Alarms:
    """Wakes consumers at a time: one heap and one timer, however many they are.

    State: `_heap` of (deadline, tie breaker, consumer); an entry counts only while the consumer's `alarm_at` is
    still its deadline, so re-arming never searches. `_set`, consumers with an alarm: entries that do not count are
    swept out when they are more than these.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Consumer]] = []
        self._set: set[Consumer] = set()
        self._ties = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, consumer: Consumer, delay: float) -> None:
        """Wake `consumer` in `delay` seconds, and at no other time."""
        consumer.alarm_at = deadline = clock.monotonic() + delay
        self._set.add(consumer)
        heapq.heappush(self._heap, (deadline, next(self._ties), consumer))
        if len(self._heap) > 2 * len(self._set) + SPARE:
            self._heap = [entry for entry in self._heap if entry[2].alarm_at == entry[0]]
            heapq.heapify(self._heap)
        if self._heap[0][0] == deadline:
            self._arm()

    def set_earlier(self, consumer: Consumer, delay: float) -> None:
        """The same, unless it is woken before that anyway."""
        if consumer.alarm_at is None or consumer.alarm_at > clock.monotonic() + delay:
            self.set(consumer, delay)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            delay = max(0.0, self._heap[0][0] - clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(min(delay, 3600.0), self._ring)

    def _ring(self) -> None:
        now = clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            deadline, _, consumer = heapq.heappop(self._heap)
            if consumer.alarm_at == deadline:
                consumer.alarm_at = None
                self._set.discard(consumer)
                consumer.look_again()
        self._arm()

    def __len__(self) -> int:
        """Entries, those included that do not count any more."""
        return len(self._heap)

    def close(self) -> None:
        self._heap.clear()
        self._set.clear()
        if self._timer is not None:
            self._timer.cancel()


class Pump:
    """Serves the ring of ready consumers with a small number of pipelines in flight.

    State: `_ready`, the ring; `_starved`, consumers that wait for a slot of the process; `running` and
    `_reserved`, the slots in use and those asked for in a pipeline in flight; `_fetched`, consumers that hold jobs
    fetched ahead; `overflow`, grouped job
    names with more finished jobs than they keep.
    """

    def __init__(
        self, broker: Broker, slots: int, process: Callable[[], str], find: Callable[[Place], Consumer | None]
    ) -> None:
        self._broker = broker
        self.find = find
        broker.offer_rides(self.rides)
        self._slots = slots
        self._process = process
        self._ready: deque[Consumer] = deque()
        self._starved: deque[Consumer] = deque()
        self._wake = asyncio.Event()
        self._reserved = 0
        self.running = 0
        self._fetched: dict[Consumer, None] = {}
        self._patience: asyncio.TimerHandle | None = None
        self.alarms = Alarms()
        self.overflow: set[str] = set()
        self.overflowed = asyncio.Event()
        self.outage_since: float | None = None
        self.complaints = Complaints(logger)

    def offer(self, consumer: Consumer) -> None:
        """Put `consumer` into the ring, unless it is there."""
        if not consumer.queued:
            consumer.queued = True
            self._ready.append(consumer)
            self._wake.set()

    def patience(self, consumer: Consumer) -> None:
        """What `consumer` has fetched ahead goes back, should no slot come free for too long."""
        self._fetched[consumer] = None
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(PATIENCE, self._look_at_fetched)

    def _look_at_fetched(self) -> None:
        left: dict[Consumer, None] = {}
        for consumer in self._fetched:
            if consumer.ahead and consumer.lingers:
                consumer.hand_back()
            elif consumer.ahead:
                left[consumer] = None
        self._fetched = left
        self._patience = asyncio.get_running_loop().call_later(PATIENCE, self._look_at_fetched) if left else None

    def slot_freed(self) -> None:
        """A job has ended: whoever waits for a slot gets its turn."""
        self.running -= 1
        self._feed()

    def _unreserve(self, slots: int) -> None:
        """Slots that were asked for in a pipeline are free again."""
        self._reserved -= slots
        self._feed()

    def free_slots(self) -> int:
        return self._slots - self.running - self._reserved

    async def run(self, lane: int) -> None:
        """Serve turns on one connection until cancelled."""
        pause = SHORTEST_PAUSE
        while True:
            while not self._ready:
                self._wake.clear()
                await self._wake.wait()
            turns = self._next_turns()
            self._feed()
            if not turns:
                continue
            try:
                known = await self._admit(await self._adopt(turns))
                if known:
                    await self._serve(lane, known)
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
                self.complaints.error("store", "the store refuses to work; trying again every few seconds: %s", error)
                self._put_back(turns)
                await asyncio.sleep(LONGEST_PAUSE)
            except BaseException:
                self._put_back(turns)
                raise

    def _next_turns(self) -> list[Turn]:
        turns: list[Turn] = []
        for _ in range(min(len(self._ready), TURNS_A_TRIP)):
            consumer = self._ready.popleft()
            consumer.queued = False
            free = self.free_slots()
            scarce = bool(self._starved) or consumer.spent > 0
            allowed = max(0, min(free, consumer.terms.weight - consumer.spent) if scarce else free)
            turn = consumer.prepare(allowed)
            if turn is not None:
                self._reserved += turn.reserved
                turns.append(turn)
                if consumer.flowing and consumer.hungry and consumer.free() and not scarce:
                    self.offer(consumer)  # for a second turn, by the other lane
            # One that might start something and makes no turn is kept back by something else, and woken by that.
            if free <= 0 or (scarce and (turn is not None or not allowed)):
                self._starve(consumer, 0 if turn is None else turn.reserved)
        return turns

    def _starve(self, consumer: Consumer, started: int) -> None:
        """Too few slots for all: who wants more waits for the next one, behind all others once it had its share."""
        wants = consumer.hungry and consumer.free() > 0
        consumer.spent = consumer.spent + started if wants else 0
        if not wants or consumer.starving:
            return
        consumer.starving = True
        if 0 < consumer.spent < consumer.terms.weight:
            self._starved.appendleft(consumer)
        else:
            consumer.spent = 0
            self._starved.append(consumer)

    def _feed(self) -> None:
        """As many of those who wait for a slot get their turn as there are slots.

        Called whenever a slot comes free and whenever the ring was served: one that was fed and wants nothing any more
        leaves its slot to the next one.
        """
        if not self._starved:
            return
        room = self.free_slots() - len(self._ready)
        while self._starved and room > 0:
            consumer = self._starved.popleft()
            consumer.starving = False
            self.offer(consumer)
            room -= 1

    async def _adopt(self, turns: list[Turn]) -> list[Turn]:
        """After a lost reply jobs may be pending for us that nobody here knows of; the turns that may go on."""
        unsure = [turn for turn in turns if turn.consumer.lost_reply]
        if not unsure:
            return turns
        asked = [self._broker.own(turn.consumer.keys, self._process()) for turn in unsure]
        found = await asyncio.gather(*asked, return_exceptions=True)
        left = [turn for turn in turns if turn not in unsure]
        for turn, owned in zip(unsure, found, strict=True):
            consumer, reserved = turn.consumer, turn.reserved
            if isinstance(owned, BrokerError):
                self._unreserve(reserved)
                self._unserved(turn, owned)
            elif isinstance(owned, BaseException):
                raise owned
            else:
                consumer.adopt(owned)
                consumer.lost_reply = False
                consumer.make_room(turn)
                self._unreserve(reserved - turn.reserved)
                left.append(turn)
        return left

    async def _admit(self, turns: list[Turn]) -> list[Turn]:
        """Ask the gates how many of the jobs that turns want may start; the turns that are left."""
        gated: dict[tuple[Gate, ...], list[Turn]] = {}
        for turn in turns:
            if turn.consumer.gates:
                gated.setdefault(turn.consumer.gates, []).append(turn)
        if not gated:
            return turns
        left = [turn for turn in turns if not turn.consumer.gates]
        for gates, mine in gated.items():
            left += await self._admit_under(gates, mine)
        return left

    async def _admit_under(self, gates: tuple[Gate, ...], turns: list[Turn]) -> list[Turn]:
        """The same for turns of queues that have the same gates."""
        sent_at = clock.monotonic()
        want = sum(turn.reserved for turn in turns)
        narrow = next((gate for gate in gates if gate.full), None)
        was_full = narrow is not None
        if was_full:
            want = 0
        grants: list[Grant] = []
        try:
            for gate in gates:
                if want or gate.stale:
                    grants.append(await self._granted(gate, want))
                    if grants[-1].count < want:
                        want, narrow = grants[-1].count, gate
        except BaseException:
            for grant in grants:
                grant.gate.pending -= grant.count
            raise
        for grant in grants:
            await grant.gate.give_back(grant, grant.count - want)
        left: list[Turn] = []
        first: list[Consumer] = []
        for turn, given in zip(turns, share(turns, want), strict=True):
            consumer, missing = turn.consumer, turn.reserved - given
            if missing and narrow is not None:
                has_had_its_share = not consumer.let_in and (given or was_full)
                if has_had_its_share:
                    narrow.park(consumer)
                else:
                    first.append(consumer)
            self._reserved -= missing
            if consumer.withdraw(turn, given):
                turn.grants, turn.sent_at = tuple(grants), sent_at
                left.append(turn)
        for consumer in reversed(first):
            assert narrow is not None
            narrow.park(consumer, first=True)
        self._feed()
        return left

    async def _granted(self, gate: Gate, want: int) -> Grant:
        try:
            return await gate.admit(want)
        except BrokerError as error:
            self.complaints.warning(repr(gate), "%r lets nothing in for now: %s", gate, error)
            return Grant(gate, "", 0)

    @staticmethod
    async def _give_back(turns: Sequence[tuple[Turn, int]]) -> None:
        """What was let in and found no job."""
        unused: dict[Grant, int] = {}
        for turn, jobs in turns:
            for grant in turn.grants:
                unused[grant] = unused.get(grant, 0) + jobs
        for grant, jobs in unused.items():
            await grant.gate.give_back(grant, jobs)

    @staticmethod
    def _unserved(turn: Turn, error: BrokerError) -> None:
        if isinstance(error, BrokerUnavailableError):
            turn.consumer.unanswered(turn, rest=REST)
        else:
            turn.consumer.refused(turn, error)

    async def _serve(self, lane: int, turns: list[Turn]) -> None:
        sent_at = clock.monotonic()
        replies, over = await self._broker.work(lane, self._process(), [turn.call() for turn in turns])
        if over:
            self.overflow.update(over)
            self.overflowed.set()
        unused: list[tuple[Turn, int]] = []
        for turn, reply in zip(turns, replies, strict=True):
            self._reserved -= turn.reserved
            if turn.grants:
                turn.let_in(turn.reserved if isinstance(reply, BrokerError) else len(reply.jobs))
                if not isinstance(reply, BrokerError):
                    unused.append((turn, turn.reserved - len(reply.jobs)))
            if isinstance(reply, BrokerError):
                self._unserved(turn, reply)
            else:
                turn.consumer.absorb(turn, reply, sent_at)
        self._feed()
        if unused:
            await self._give_back(unused)

    # Turns behind adds --------------------------------------------------------------------------------------
    def rides(self, places: list[Place]) -> list[tuple[str, WorkCall, OnWork]]:
        """A turn for each idle queue here that a job is being added to: it starts after one round trip, not two."""
        rides: list[tuple[str, WorkCall, OnWork]] = []
        if self._ready or self._starved:
            return rides
        for place in places:
            consumer = self.find(place)
            if consumer is None or consumer.gates or consumer.spec.forgets or not consumer.at_leisure:
                continue
            was_hungry, consumer.hungry = consumer.hungry, True
            turn = consumer.prepare(self.free_slots())
            if turn is None:
                consumer.hungry = was_hungry  # news of the job comes, and leads to a turn
            else:
                self._reserved += turn.reserved
                tell = functools.partial(self._ridden, turn, clock.monotonic())
                rides.append((self._process(), turn.call(), tell))
        return rides

    def _ridden(self, turn: Turn, sent_at: float, reply: WorkReply | BrokerError) -> None:
        self._unreserve(turn.reserved)
        if isinstance(reply, BrokerUnavailableError):
            turn.consumer.unanswered(turn)
        elif isinstance(reply, BrokerError):
            turn.consumer.refused(turn, reply)
        else:
            turn.consumer.absorb(turn, reply, sent_at)

    @property
    def reserved(self) -> int:
        """Slots that wait for a reply."""
        return self._reserved

    @property
    def starved(self) -> tuple[Consumer, ...]:
        """The queues that wait for a slot of the process, the next one first."""
        return tuple(self._starved)

    @property
    def ring(self) -> tuple[Consumer, ...]:
        """The queues that are about to have a turn."""
        return tuple(self._ready)

    @property
    def fetched(self) -> tuple[Consumer, ...]:
        """The queues that hold jobs beyond their slots, as far as they are looked after."""
        return tuple(self._fetched)

    def _put_back(self, turns: list[Turn]) -> None:
        for turn in turns:
            if turn in turn.consumer.turns:
                turn.let_in(turn.reserved)
                self._unreserve(turn.reserved)
                turn.consumer.unanswered(turn)

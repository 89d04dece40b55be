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
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Final

from asyncjobs import clock
from asyncjobs.broker import Broker, Excess, OnWork, Place, WorkCall, WorkReply
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.limits.shared_limit import Gate, Grant, share
from asyncjobs.logs import ThrottledLog, said
from asyncjobs.work.alarms import Alarms, Doubts
from asyncjobs.work.prefetch import PATIENCE
from asyncjobs.work.task_reuse import Rounds

if TYPE_CHECKING:
    from asyncjobs.work.consumer import Consumer
    from asyncjobs.work.turn import Turn

logger = logging.getLogger("asyncjobs")

TURNS_A_TRIP: Final = 128
SHORTEST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 4.0
REST: Final = 1.0  # seconds that a queue rests whose node alone does not answer, while the others go on


class Pump:
    """Serves the ring of ready consumers with a small number of pipelines in flight.

    State:
        _ready: the ring.
        _starved: consumers that wait for a slot of the process.
        _cleared: turns that an errand has made ready to be sent.
        _held: the turns of each lane's pipeline, of each errand, and of each ride. A turn is held until it has been
            answered or put back, so no turn is without an owner.
        running, _reserved: slots in use, and those that turns have asked for.
        _fetched: consumers that hold jobs fetched ahead.
        overflow: grouped job names with more finished jobs than they keep.

    Errands: what has to be asked before a turn can be sent (what a lost reply left to us, how many starts a shared
    limit lets in) is asked in an aio_task beside the lanes, so that a store or a limit that does not answer holds up
    the queues that it concerns, and no other.
    """

    def __init__(
        self,
        broker: Broker,
        slots: int,
        process: Callable[[], str],
        find: Callable[[Place], Consumer | None],
        rounds: Rounds | None = None,
    ) -> None:
        self._broker = broker
        self.rounds = rounds or Rounds()
        self.find = find
        broker.offer_rides(self.rides)
        self._slots = slots
        self._process = process
        self._ready: deque[Consumer] = deque()
        self._starved: deque[Consumer] = deque()
        self._lanes: dict[int, asyncio.Task[Any] | None] = {}
        self._wake = asyncio.Event()
        self._cleared: list[Turn] = []
        self._held: dict[object, list[Turn]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self.doubts = Doubts(self.offer)
        self._reserved = 0
        self._tripped_at = 0.0
        self.running = 0
        self._fetched: dict[Consumer, None] = {}
        self._patience: asyncio.TimerHandle | None = None
        self.alarms = Alarms(self.rounds)
        self.overflow: set[Excess] = set()
        self.overflowed = asyncio.Event()
        self.outage_since: float | None = None
        self.throttled = ThrottledLog(logger)

    def offer(self, consumer: Consumer) -> None:
        """Put `consumer` into the ring, unless it is there."""
        if not consumer.queued:
            consumer.queued = True
            self._ready.append(consumer)
            self._wake.set()

    def patience(self, consumer: Consumer) -> None:
        """What `consumer` has fetched ahead goes back, should no slot come free for too long.

        What has ended meanwhile is settled together with the last of it, unless that takes too long as well.
        """
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
            elif consumer.outbox:
                self.offer(consumer)
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

    @property
    def ends_with_the_loop(self) -> bool:
        """Whether the app cancels every aio_task there is, those that serve turns included, and has not called stop."""
        lanes = [one for one in self._lanes.values() if one is not None]
        return bool(lanes) and all(one.done() or one.cancelling() for one in lanes)

    def free_slots(self) -> int:
        return self._slots - self.running - self._reserved

    async def run(self, lane: int) -> None:
        """Serve turns on one connection until cancelled."""
        self._lanes[lane] = asyncio.current_task()
        pause = SHORTEST_PAUSE
        while True:
            while not (self._ready or self._cleared):
                self._wake.clear()
                await self._wake.wait()
            turns = self._held[lane] = []
            try:
                if self.rounds.crowded:
                    await self.rounds.pause(self._tripped_at)
                    self._tripped_at = clock.monotonic()
                self._next_turns(turns)
                if turns:
                    await self._serve(lane, turns)
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
                del self._held[lane]

    def _next_turns(self, turns: list[Turn]) -> None:
        """Add to `turns` those that can be sent, and send errands for those that cannot be yet."""
        turns += self._cleared[:TURNS_A_TRIP]
        del self._cleared[:TURNS_A_TRIP]
        apart: dict[object, list[Turn]] = {}
        stale: set[Gate] = set()
        for _ in range(min(len(self._ready), TURNS_A_TRIP - len(turns))):
            consumer = self._ready.popleft()
            consumer.queued = False
            free = self.free_slots()
            scarce = bool(self._starved) or consumer.spent > 0
            allowed = max(0, min(free, consumer.terms.weight - consumer.spent) if scarce else free)
            turn = consumer.prepare(allowed)
            if turn is not None:
                self._reserved += turn.reserved
                if consumer.lost_reply:
                    apart[turn] = [turn]
                elif consumer.gates and turn.reserved:
                    apart.setdefault(consumer.gates, []).append(turn)
                else:
                    turns.append(turn)
                    stale.update(gate for gate in consumer.gates if gate.stale)
                if consumer.flowing and consumer.hungry and consumer.free() and not scarce:
                    self.offer(consumer)  # for a second turn, by the other lane
            # One that might start something and makes no turn is kept back by something else, and woken by that.
            if free <= 0 or (scarce and (turn is not None or not allowed)):
                self._starve(consumer, 0 if turn is None else turn.reserved)
        for some in apart.values():
            self._send(self._clear(some), some)
        for gate in stale:
            self._send(gate.correct(), [])
        self._feed()

    def _send(self, errand: Coroutine[Any, Any, None], turns: list[Turn]) -> None:
        """Run `errand` beside the lanes; what it leaves of `turns` goes back."""
        aio_task = asyncio.get_running_loop().create_task(errand, name="asyncjobs errand")
        self._errands.add(aio_task)
        self._held[aio_task] = turns
        aio_task.add_done_callback(self._errand_ended)

    def _errand_ended(self, aio_task: asyncio.Task[None]) -> None:
        self._errands.discard(aio_task)
        turns = self._held.pop(aio_task)
        error = None if aio_task.cancelled() else aio_task.exception()
        if error is not None:
            self.throttled.error("errand", "turns could not be made ready, and are tried again: %s", said(error))
        self._put_back(turns, REST)

    async def _clear(self, turns: list[Turn]) -> None:
        """Adopt and ask gates for `turns`; those that are left can be sent."""
        left: list[Turn] = []
        for some in self._in_order(await self._adopt(turns)):
            left += await self._admit(some)
        turns[:] = []
        self._cleared += left
        self._wake.set()

    def close(self) -> None:
        """Nothing is asked any more."""
        for aio_task in tuple(self._errands):
            aio_task.cancel()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self.doubts.close()
        self.alarms.close()

    def _starve(self, consumer: Consumer, started: int) -> None:
        """Too few slots for all: who wants more waits for the next one, behind all others once it had its share."""
        consumer.spent = consumer.spent + started if consumer.hungry else 0
        if not consumer.hungry or consumer.starving or consumer.free() <= 0:
            return  # one whose own slots are full comes again when a job of it ends, and has had what it has had
        consumer.starving = True
        if 0 < consumer.spent < consumer.terms.weight:
            self._starved.appendleft(consumer)
        else:
            consumer.spent = 0
            self._starved.append(consumer)

    def leave(self, consumer: Consumer) -> None:
        """`consumer` waits for no slot any more: one that it were fed would stand empty."""
        self._starved.remove(consumer)
        consumer.starving = False

    def _feed(self) -> None:
        """As many of those who wait for a slot get their turn as there are slots.

        Called whenever a slot comes free and whenever the ring was served: one that was fed and wants nothing any more
        leaves its slot to the next one. One that stands in the ring already is fed by that. Were the others fed as
        well, nobody would wait any more, and weights would not count.
        """
        room = self.free_slots() - len(self._ready) if self._starved else 0
        while self._starved and room > 0:
            consumer = self._starved.popleft()
            consumer.starving = False
            self.offer(consumer)
            room -= 1

    async def _adopt(self, turns: list[Turn]) -> list[Turn]:
        """After a lost reply jobs may be pending for us that nobody here knows of; the turns that may go on."""
        left = []
        for turn in turns:
            consumer, reserved = turn.consumer, turn.reserved
            if not consumer.lost_reply:
                left.append(turn)
                continue
            try:
                owned = await self._broker.own(consumer.keys, self._process())
            except BrokerError as error:
                self._unreserve(reserved)
                self._unserved(turn, error)
                continue
            self._reserved -= reserved  # what is adopted comes first
            try:
                consumer.adopt(owned)
                consumer.make_room(turn, self.free_slots())
            finally:
                self._reserved += turn.reserved
            consumer.lost_reply = False
            self.doubts.settled(consumer)
            self._feed()
            left.append(turn)
        return left

    def _in_order(self, turns: list[Turn]) -> list[list[Turn]]:
        """`turns`, with the same gates, in two parts: those whose queues have had more of a gate come later."""
        gates = turns[0].consumer.gates if turns else ()
        levels = []
        for turn in turns:
            for gate in gates:
                gate.round.came(turn.consumer)
            levels.append(max((gate.round.level(turn.consumer) for gate in gates), default=0))
        if not levels or min(levels) == max(levels):
            return [turns]
        parts: tuple[list[Turn], list[Turn]] = ([], [])
        for turn, level in zip(turns, levels, strict=True):
            parts[level > min(levels)].append(turn)
        return list(parts)

    async def _admit(self, turns: list[Turn]) -> list[Turn]:
        """Ask the gates, the same for all `turns`, how many of the jobs that these want may start; those left."""
        gates = turns[0].consumer.gates if turns else ()
        want = sum(turn.reserved for turn in turns)
        if not gates or not want:
            return turns
        asking = {turn.consumer for turn in turns}
        sent_at = clock.monotonic()
        narrow = next((gate for gate in gates if gate.full), None)
        was_full = narrow is not None
        if was_full:
            want = 0
        grants: list[Grant] = []
        try:
            for gate in gates:
                if want or gate.stale:
                    grants.append(await self._granted(gate, want, asking))
                    if grants[-1].count < want:
                        want, narrow = grants[-1].count, gate
        except BaseException:
            for grant in grants:
                grant.gate.pending -= grant.count
            raise
        left: list[Turn] = []
        first: list[Consumer] = []
        for turn, given in zip(turns, share(turns, want, (narrow or gates[0]).round), strict=True):
            consumer, missing = turn.consumer, turn.reserved - given
            for gate in gates:
                gate.round.count(consumer, given)
            if missing and narrow is not None:
                fair = narrow.round
                if not fair.credit(consumer) or (was_full and fair.fresh(consumer)):
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
        for grant in grants:
            self._give_back(grant, grant.count - want)
        self._feed()
        return left

    async def _granted(self, gate: Gate, want: int, asking: Collection[Consumer]) -> Grant:
        try:
            return await gate.admit(want, asking)
        except BrokerError as error:
            self.throttled.warning(repr(gate), "%r lets nothing in for now: %s", gate, error)
            return Grant(gate, "", 0)

    def _give_back(self, grant: Grant, unused: int) -> None:
        """Part of a grant found no job; other processes are told beside the lanes."""
        if unused:
            grant.gate.pending -= unused
            self._send(grant.gate.give_back(grant, unused), [])

    def _unserved(self, turn: Turn, error: BrokerError) -> None:
        self.doubts.lost(turn.consumer)
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
        unused: dict[Grant, int] = {}
        for turn, reply in zip(turns, replies, strict=True):
            if self.rounds.spent():
                await self.rounds.room(first=True)
            self._reserved -= turn.reserved
            if turn.grants and not isinstance(reply, BrokerError):
                turn.let_in(len(reply.jobs))
                for grant in turn.grants:
                    unused[grant] = unused.get(grant, 0) + turn.reserved - len(reply.jobs)
            if isinstance(reply, BrokerError):
                turn.dropped()
                self._unserved(turn, reply)
            else:
                self._absorb(turn, reply, sent_at)
        self._feed()
        for grant, jobs in unused.items():
            self._give_back(grant, jobs)

    def _absorb(self, turn: Turn, reply: WorkReply, sent_at: float) -> None:
        """Hand a reply over. Should that fail half way, what the reply brought is found by adoption."""
        consumer = turn.consumer
        try:
            consumer.absorb(turn, reply, sent_at)
        except Exception as error:
            text = "%r could not deal with a reply, and looks again: %s"
            self.throttled.error("absorb", text, consumer, said(error))
            consumer.lost_reply = True
            consumer.look_again()

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
                self._held[turn] = [turn]
                tell = functools.partial(self._ridden, turn, clock.monotonic())
                rides.append((self._process(), turn.call(), tell))
        return rides

    def _ridden(self, turn: Turn, sent_at: float, reply: WorkReply | BrokerError) -> None:
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

    @property
    def asking(self) -> bool:
        """Whether an errand is under way, so that what gates count is on its way to a turn or from one."""
        return bool(self._errands)

    @property
    def held(self) -> set[Turn]:
        """The turns that something is going to answer or to put back."""
        return {turn for turns in (self._cleared, *self._held.values()) for turn in turns}

    def _put_back(self, turns: list[Turn], rest: float = 0.0) -> None:
        """Those of `turns` that were not answered are prepared anew, after `rest` seconds."""
        for turn in turns:
            if turn in turn.consumer.turns:
                turn.dropped()
                self._unreserve(turn.reserved)
                self.doubts.lost(turn.consumer)
                turn.consumer.unanswered(turn, rest)

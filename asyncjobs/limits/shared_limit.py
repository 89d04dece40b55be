"""The SharedLimit: a limit over many queues, of all groups of a job together, or of all jobs that name one limiter.

The queues lie in different slots, so no one script can see the limit and the jobs. A shared limit is asked first, how
many may start; then jobs are taken for that many, and what found no job is given back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Final

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.options import Limiter
from asyncjobs.declare.queue_limits import queue_limits
from asyncjobs.errors import BrokerError, BrokerUnavailableError
from asyncjobs.limits.absent import Absent
from asyncjobs.limits.line import Line, Wants
from asyncjobs.limits.waiting import Waiting

logger = logging.getLogger("asyncjobs.work")

LET_IN: Final = 64  # queues that are looked at when there is room again; more follow while there is
BLIND: Final = 1.0  # seconds until the next look, where the store did not say when
FIRST_PAUSE: Final = 0.05  # seconds until the next question, where the last one was not answered
LONGEST_PAUSE: Final = 15.0  # seconds until the next question, where the last ones were not answered
PATIENCE: Final = 1.0  # seconds in which a shared limit answers; the queues that it limits wait, and no other
IN_FLIGHT: Final = 0.1  # seconds after which what another process was granted and found no job for is back
TWO_WINDOWS: Final = 2  # windows for which a queue may be owed tokens that it could not use
SLOTFULS: Final = 8  # the same of places: how often all of them
CALM: Final = 1.0  # seconds, and two windows, for which a thing counts as scarce after there was too little for all


class Grant:
    """How many jobs may start under a shared limit, by how much they may lag, and the token to give them back by."""

    __slots__ = ("count", "margin", "shared_limit", "token")

    def __init__(self, shared_limit: SharedLimit, token: str, count: int, margin: float = 0.0) -> None:
        self.shared_limit, self.token, self.count, self.margin = shared_limit, token, count, margin


class SharedLimit:
    """One such limit, as this process sees it.

    State:
        running: jobs of this process under it.
        pending: jobs that were let in and are being fetched.
        full: the last question was granted less than it asked for. Until there is room again nobody asks: a queue that
            wants to start something is parked at once.
        line: the queues that share it, and those that are parked.
        _absent: those that are about to come for a token.
        _told: how many jobs the store was last told are running here.
        _unanswered: questions in a row without an answer. One queue asks again after a pause, and the others when that
            was answered.
        margin: seconds that a start may lag behind its token: more while starts are late, since each of these takes
            another token.
        _surprised: the store said once that nothing is left; what other processes did not need may be back in a moment.
    """

    def __init__(
        self, broker: Broker, key: str, name: str, limiters: tuple[Limiter, ...], slots: int | None, lease: float
    ) -> None:
        self._broker, self._key, self._name, self._lease = broker, key, name, lease
        self._slots = slots or 0
        self._limits = queue_limits(limiters, None)
        self.window = self._limits.window
        self.margin = self._limits.least_margin
        self._most = min([one.max for one in limiters] + ([slots] if slots else []))
        lag = TWO_WINDOWS * max((one.max for one in limiters), default=0) + SLOTFULS * self._slots
        self.line = Line(lag, CALM + TWO_WINDOWS * self.window, let_in)
        self._absent = Absent(self.line, self.window)
        self._tokens = (f"{broker.process_id}.{n}" for n in itertools.count(1))
        self._timer: asyncio.TimerHandle | None = None
        self._told = 0
        self._asking = asyncio.Lock()
        self._surprised = self._correcting = self._closed = False
        self._unanswered = 0
        self.full = False
        self.running = self.pending = 0

    def __repr__(self) -> str:
        state = "full" if self.full else "open"
        return f"<SharedLimit {self._key} [{state}, {self.running} running, {len(self.line.waiting)} waiting]>"

    def late(self, lag: float) -> None:
        """A start has lagged by more than its token allows for."""
        if lag < self.window:
            self.margin = min(max(self.margin, 2 * lag), self.window)

    def punctual(self) -> None:
        """A start has not."""
        self.margin = max(self._limits.least_margin, self.margin * 0.98)

    @property
    def stale(self) -> bool:
        """Whether the store believes that more runs here than does."""
        return bool(self._slots) and self._told > self.running + self.pending

    @property
    def parked(self) -> tuple[Waiting, ...]:
        """The queues that wait, the next one first."""
        return tuple(self.line.waiting)

    @property
    def will_open(self) -> bool:
        """Whether something is going to open it: a timer, or a job under it that ends.

        The timer for news that was lost does not count where it is this process alone that has news.
        """
        if self._slots and self.running + self.pending > 0:
            return True
        if self._timer is None:
            return False
        return not self.stale or self._timer.when() - asyncio.get_running_loop().time() <= BLIND

    async def admit(self, want: int, wants: Wants = ()) -> Grant:
        """How many of `want` may start now. Where it is fewer the shared limit is full until there is room again.

        Of the tokens those are left that absent queues are about to take before one of `wants`; the shared limit is not
        full then. Places are left for nobody: they come free one by one, when those that want them are here.

        Raises:
            BrokerError: no answer; nothing may start, and the shared limit is full for a moment.
        """
        owed: Sequence[int] = ()
        if want and self._limits.windows and self.line.scarce:
            for queue, _ in wants:
                self._absent.came(queue)
            owed = self._absent.owed(wants, min(want, self._most), self._most)
        grant, _ = await self._ask(want, owed)
        return grant

    def let_in(self, queue: Waiting, jobs: int) -> None:
        """It has asked, and starts so many."""
        if self._limits.windows:
            if self.line.scarce:
                self._absent.add(queue, jobs)
            else:
                self._absent.clear()

    def _keep(self, wait: float | None) -> None:
        """What there is others are about to take; should they not, those that are kept back look again."""
        if self._timer is None:
            self._open_in(min(BLIND, self.window or BLIND) if wait is None else wait)

    async def _ask(self, want: int, owed: Sequence[int] = (), again: bool = False) -> tuple[Grant, float]:
        """The grant, and the seconds until more may be had.

        `owed`: how many tokens are left to others before each of the starts that are wanted.
        `again`: for a job that has its slot already and runs, so that its token alone is asked for.
        """
        token = next(self._tokens)
        async with self._asking:  # what another turn is being granted counts as running
            if self.full and want and not again:
                return Grant(self, token, 0), BLIND
            slots, stated, margin = 0 if again else self._slots, self.running + self.pending, self.margin
            try:
                async with asyncio.timeout(PATIENCE):
                    granted, wait = await self._broker.admit(
                        self._key, self._name, stated, want, slots, self._lease,
                        self._limits.windows, round(margin * 1e6), token, owed,
                    )  # fmt: skip
            except TimeoutError:
                self._no_answer(want, BLIND)
                raise BrokerUnavailableError(f"the limit {self._key} did not answer within {PATIENCE:g} s") from None
            except BrokerError:  # a connection that was lost is made again at once
                self._no_answer(want, FIRST_PAUSE)
                raise
            self._unanswered = 0
            if again:
                return Grant(self, token, granted, margin), BLIND if wait is None else wait
            self.pending += granted
            self._told = stated + granted  # jobs may have ended meanwhile, of which the store does not know
            if granted:
                self._surprised = False
            if granted < want and self._slots and self.running + self.pending < stated + granted:
                self._close_for(0.0)  # jobs have ended since the question: it is asked anew
            elif granted < want and owed:  # those for whom it was left have not come for it yet
                self._keep(wait)
            elif granted < want:
                self._close(wait)
            elif want:
                self.open()
            return Grant(self, token, granted, margin), BLIND if wait is None else wait

    def _no_answer(self, want: int, pause: float) -> None:
        """The store may have counted `want` jobs that do not start; the next question comes after `pause` or more."""
        self._told = max(self._told, self.running + self.pending + want)
        self._unanswered += 1
        self._close_for(min(pause * 2 ** (self._unanswered - 1), LONGEST_PAUSE))

    async def give_back(self, grant: Grant, unused: int) -> None:
        """Tell the store that `unused` of a grant, which are not pending any more, found no job; others may have it."""
        try:
            if self._limits.windows:
                await self._broker.refund(self._key, self._name, grant.token, grant.count, unused, self._limits.windows)
            grant.count -= unused
        except BrokerError as error:
            logger.debug("a grant of %s was not given back, it runs out by itself: %s", self._key, error)
        await self.correct()
        self.reconsider()

    async def correct(self) -> None:
        """Tell the store how many jobs run here, if it believes that there are more."""
        if not self.stale or self._correcting or self._unanswered:
            return
        self._correcting = True
        try:
            await self.admit(0)
        except BrokerError as error:
            logger.debug("%s was not told what runs here: %s", self._key, error)
        finally:
            self._correcting = False

    def ended(self) -> None:
        """A job under it has ended: where a number of jobs is its limit, the next queue may start one."""
        self.running -= 1
        if self._slots:
            self.open(1)

    def reconsider(self) -> None:
        """Fewer jobs may be under it than were: those that wait look again, unless it does not answer anyway."""
        if not self._unanswered:
            self.open()

    async def pass_again(self) -> tuple[float, float]:
        """A token again for a start that comes late: since when it counts, and by how much the start may lag.

        Its slot, if there are any, it has.
        """
        while True:
            since = clock.monotonic()
            grant, wait = await self._ask(1, again=True)
            if grant.count:
                return since, grant.margin
            await asyncio.sleep(max(self.margin, wait))

    async def tell(self) -> None:
        """Say what runs here: that there is room again, or that this process still lives."""
        if self._slots and (self.running or self._told):
            await self.admit(0)

    def park(self, consumer: Waiting) -> None:
        """Let `consumer` wait until there is room.

        Where it has opened since `consumer` found it full, that is looked at at once: nobody may be asking.
        """
        if consumer.parked is not None:
            return
        consumer.parked = self
        self.line.join(consumer)
        self._absent.waits(consumer)
        if not self.full and self._timer is None:
            self._open_in(0.0)

    def leave(self, consumer: Waiting, gone: bool = False) -> None:
        """`consumer` has nothing to do any more, or is `gone`: what was left for it others may have."""
        if consumer.parked is self:
            consumer.parked = None
        self.line.rest(consumer, gone)
        if self._absent.forget(consumer) and self.line.waiting and not self.full:
            self.open()

    def open(self, most: int = LET_IN) -> None:
        """There may be room: the first `most` that wait look again."""
        self.full = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while most > 0 and self.line.waiting:
            consumer = self.line.waiting.pop()
            consumer.parked = None
            if self._limits.windows:
                self._absent.add(consumer)
            most -= consumer.hungry and consumer.free() > 0
            consumer.look_again()
        if self.line.waiting:
            self._open_in(BLIND)  # those in front may want nothing any more, and then nobody asks

    def _close(self, wait: float | None) -> None:
        """It is full, for `wait` seconds as far as the store knows."""
        if wait is None:
            # Told by news, or by a job of ours that ends; the timer is for news that was lost.
            self._close_for(self._lease / 3 if self._slots else BLIND)
        elif self._surprised or wait <= IN_FLIGHT:
            self._close_for(wait)
        else:
            self._surprised = True
            self._close_for(IN_FLIGHT)

    def _close_for(self, wait: float) -> None:
        self.full = True
        self._open_in(wait)

    def _open_in(self, wait: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, wait), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.open(1 if self._unanswered else LET_IN)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def let_in(queue: Waiting) -> int:
    """How many jobs of `queue` its shared limits have let in that are being fetched."""
    return sum(turn.reserved for turn in queue.turns if turn.grants)

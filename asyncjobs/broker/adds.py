"""Adding: whatever is added in one turn of the loop travels in one pipeline, and arrives exactly once.

A call whose reply was lost is sent again under the same number, by which the script recognises it. That
holds because no newer add of a queue is sent while the fate of an older one is unknown.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Any, Final, NamedTuple, TypeAlias

from redis.exceptions import ResponseError

from asyncjobs import clock
from asyncjobs.broker.connection import BYTES_A_PIPELINE, Lane, is_transient, refusal
from asyncjobs.broker.keys import Keys
from asyncjobs.broker.reach import PATIENCE
from asyncjobs.broker.scripts import ADD, REGISTER
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerError, BrokerUnavailableError, NotRunningError, QueueFullError

ADDED, FULL = b"12"
JOBS_A_SCRIPT: Final = 500  # about 2 ms of server time
JOBS_A_PIPELINE: Final = 8000
WAIT_MS: Final = 2000  # well under the time in which a pipeline must be answered
FOLLOWED: Final = 3 + ADD.keys + 6  # where the command of an add says so, see ``lua/add.lua``
NOBODY: Final[Set[str]] = frozenset()
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 1.0
SLACK: Final = 60.0  # seconds on top of the connection timeout in which what was sent may still arrive
LAST_CHANCE: Final = 2.0  # seconds that a stopping runtime gives adds on their way


class Place(NamedTuple):
    """The queue that jobs are added to. `registry`: where its group is registered, '' for a queue without groups."""

    keys: Keys
    name: str
    news: str
    registry: str


class AddCall(NamedTuple):
    """One job to add. `kind` is 'in' (`when` ms from now, 0 at once) or 'at' (`when` ms since the epoch).

    `most`: waiting and delayed, where the queue's own settings do not say; '' for no bound.
    """

    place: Place
    job_id: str
    kind: str
    when: int
    data: bytes
    options: bytes
    named: bool
    most: str = ""


class AddReply(NamedTuple):
    added: bool
    at_ms: int


class _Submission:
    """One caller's jobs: how many are still unanswered, their replies in order, and the future that waits."""

    __slots__ = ("calls", "deadline", "future", "left", "most", "once", "refused", "replies")

    def __init__(self, calls: Sequence[AddCall], deadline: float, future: asyncio.Future[list[AddReply]]) -> None:
        self.calls, self.deadline, self.future, self.left = calls, deadline, future, len(calls)
        self.replies: list[AddReply] = [AddReply(False, 0)] * len(calls)
        self.refused: list[AddCall] = []
        self.most = 0
        self.once = False  # the store is known to be down: it is tried once

    def waits_for(self, tags: Set[str]) -> bool:
        """Whether any of its jobs goes to one of the queues `tags`."""
        return bool(tags) and any(call.place.keys.tag in tags for call in self.calls)

    def answer(self, index: int, reply: AddReply) -> None:
        self.replies[index] = reply
        self._answered()

    def refuse(self, index: int, most: int) -> None:
        """Its queue is full."""
        self.refused.append(self.calls[index])
        self.most = most
        self._answered()

    def _answered(self) -> None:
        self.left -= 1
        if self.left or self.future.done():
            return
        if self.refused:
            place = self.refused[0].place
            queue = place.name if not place.keys.group else f"{place.name}, group {place.keys.group!r},"
            self.future.set_exception(QueueFullError(queue, self.most, [call.job_id for call in self.refused]))
        else:
            self.future.set_result(self.replies)

    def fail(self, error: BrokerError) -> None:
        if not self.future.done():
            if isinstance(error, BrokerUnavailableError):
                error = BrokerUnavailableError(str(error), [call.job_id for call in self.calls])
            self.future.set_exception(error)


class Ride(NamedTuple):
    """A command of the queue `tag` that travels behind adds to it, and who is told its answer: a reply, or an error."""

    tag: str
    command: Command
    answer: Callable[[Any], None]


_Item: TypeAlias = tuple[_Submission, int, AddCall]  # whose it is, its place there, and what it is


class _Batch(NamedTuple):
    """The jobs of one queue that one script call adds, and when it was made up."""

    tag: str
    command: Command
    items: list[_Item]
    since: float

    @property
    def is_waited_for(self) -> bool:
        return any(not submission.future.done() for submission, _, _ in self.items)


class AddBatcher:
    """Collects adds and sends them.

    State:
        _open: callers that wait, in the order of their deadlines, and `_timer`, that looks at the first of these.
        _waiting: jobs not sent yet, and `_size`, bytes of their payloads.
        _unknown: batches that were sent, and whose answer is not known.
        _behind: tag → jobs of the queue of such a batch, which wait for that.
        _drain: the aio_task that sends, present only while there are any.
        _again_at: when what is unknown is sent again.
        _answered_at: when anything was last answered.
    """

    def __init__(self, lane: Lane, sender: str, timeout: float, replicas: int, scattered: bool = False) -> None:
        self.lane = lane
        self._sender = sender
        self._timeout = timeout
        self._resent_for = 2 * timeout + SLACK
        self._marked_for = round((3 * timeout + 2 * SLACK) * 1000)  # ms; one that connects in between comes later still
        self._replicas = replicas
        self._scattered = scattered
        self._numbers = itertools.count(1)
        self._open: dict[_Submission, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[_Item] = deque()
        self._size = 0
        self._unknown: list[_Batch] = []
        self._behind: dict[str, deque[_Item]] = {}
        self._arrived = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._answered_at = float("-inf")
        self._closed = False
        # Asked for what may travel behind the adds to some places: a turn of whoever is idle there.
        self.rides: Callable[[list[Place]], list[Ride]] = lambda places: []

    async def add(self, calls: Sequence[AddCall]) -> list[AddReply]:
        """Add all of `calls`; see `Broker.add`."""
        if not calls:
            return []
        if self._closed:
            raise NotRunningError("the runtime that this belongs to has been stopped")
        loop, now = asyncio.get_running_loop(), clock.monotonic()
        submission = _Submission(calls, now + self._timeout, loop.create_future())
        self._open[submission] = None
        if self.lane.known_down(*(call.place.keys.stream for call in calls) if self._scattered else ()):
            submission.once = True
            self._again_at = min(self._again_at, now + FIRST_PAUSE)
            loop.call_later(PATIENCE, submission.fail, BrokerUnavailableError("the store does not answer"))
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._look_at_open)
        self._waiting.extend([(submission, index, call) for index, call in enumerate(calls)])
        self._size += sum([len(call.data) for call in calls])
        self._arrived.set()
        if self._drain is None:
            self._drain = loop.create_task(self._send_waiting())
        try:
            return await submission.future
        finally:
            del self._open[submission]

    def _look_at_open(self) -> None:
        """Fail the callers whose time is up.

        It is not up for one that merely waits for its turn, or for its bytes, on a connection that moves.
        """
        now, doubtful = clock.monotonic(), {batch.tag for batch in self._unknown}
        moves = now - max(self._answered_at, now - self.lane.still()) < self._timeout
        for submission in list(itertools.takewhile(lambda one: one.deadline <= now, self._open)):
            if submission.future.done():
                continue
            if moves and not submission.waits_for(doubtful):
                submission.deadline = now + self._timeout
                del self._open[submission]
                self._open[submission] = None  # the last one now
            else:
                submission.fail(BrokerUnavailableError("the store has not answered in time"))
        first = next((one for one in self._open if not one.future.done()), None)
        self._timer = None
        if first is not None:
            self._timer = asyncio.get_running_loop().call_later(first.deadline - now, self._look_at_open)

    async def close(self, timeout: float = LAST_CHANCE) -> None:
        """Send what was accepted, for a bounded time, then tell whoever still waits, and close the connection."""
        self._closed = True
        try:
            if self._drain is not None:
                await asyncio.wait([self._drain], timeout=min(timeout, LAST_CHANCE))
        finally:
            if self._drain is not None:
                self._drain.cancel()
            if self._timer is not None:
                self._timer.cancel()
            for submission in self._open:
                submission.fail(BrokerUnavailableError("the runtime was stopped before the store had answered"))
            await self.lane.shut()

    async def _send_waiting(self) -> None:
        """Send until everything is answered. What a node did not answer is sent again, and only its queues wait."""
        pause = FIRST_PAUSE
        try:
            while self._waiting or self._unknown or self._behind:
                self._arrived.clear()
                resent = self._resent()
                if self._behind:
                    self._take_up()
                taken = self._take({batch.tag for batch in self._unknown} if self._unknown else NOBODY)
                if not taken and not resent:
                    if not self._unknown:
                        continue
                    await _wait(self._arrived, self._again_at - clock.monotonic())
                    continue
                failed = await self._send([*resent, *self._batches(taken)])
                self._unknown = failed if resent else [*self._unknown, *failed]
                if failed:
                    self._again_at = clock.monotonic() + pause
                    pause = min(pause * 2, LONGEST_PAUSE)
                else:
                    pause = FIRST_PAUSE
        finally:
            self._drain = None
            for submission in self._open:
                submission.fail(BrokerUnavailableError("the runtime was stopped before the store had answered"))
            self._waiting.clear()
            self._behind.clear()
            self._unknown, self._size = [], 0

    def _resent(self) -> list[_Batch]:
        """What is to be sent again now; what nobody waits for any more is not."""
        if clock.monotonic() < self._again_at:
            return []
        self._unknown = [batch for batch in self._unknown if batch.is_waited_for]
        return self._unknown

    def _take(self, held: Set[str]) -> list[_Item]:
        """The next jobs, as many as travel together, but those of `held` queues, where an older add is not answered.

        Those are put aside, once; what nobody waits for any more is left out.
        """
        taken: list[_Item] = []
        if not held and len(self._waiting) <= JOBS_A_PIPELINE and self._size <= BYTES_A_PIPELINE:
            taken = [item for item in self._waiting if not item[0].future.done()]
            self._waiting.clear()
            self._size = 0
            return taken
        size = 0
        while self._waiting and len(taken) < JOBS_A_PIPELINE and size < BYTES_A_PIPELINE:
            item = self._waiting.popleft()
            submission, _, call = item
            self._size -= len(call.data)
            if submission.future.done():
                continue
            if call.place.keys.tag in held:
                self._behind.setdefault(call.place.keys.tag, deque()).append(item)
            else:
                taken.append(item)
                size += len(call.data)
        return taken

    def _take_up(self) -> None:
        """What waited for an answer that has come, or that nobody waits for any more, is the next to be sent."""
        held = {batch.tag for batch in self._unknown}
        for tag in [tag for tag in self._behind if tag not in held]:
            items = self._behind.pop(tag)
            self._waiting.extendleft(reversed(items))
            self._size += sum(len(call.data) for _, _, call in items)

    def _batches(self, items: list[_Item]) -> list[_Batch]:
        queues: dict[str, list[_Item]] = {}
        for item in items:
            tag = item[2].place.keys.tag
            if tag in queues:
                queues[tag].append(item)
            else:
                queues[tag] = [item]
        return [
            self._batch(mine[start : start + JOBS_A_SCRIPT], start // JOBS_A_SCRIPT)
            for mine in queues.values()
            for start in range(0, len(mine), JOBS_A_SCRIPT)
        ]

    def _batch(self, items: list[_Item], nth: int) -> _Batch:
        first = items[0][2]
        keys = first.place.keys
        tag = keys.tag
        registry = "" if self._scattered else first.place.registry
        args: list[str | bytes | int] = [
            tag + ":s", tag + ":d", tag + ":n", tag + ":o", registry or tag + ":s",
            tag + ":j:", first.place.news, keys.group, f"{self._sender}.{nth}", next(self._numbers), first.most, "",
            self._marked_for,
        ]  # fmt: skip
        for _, _, (_, job_id, kind, when, data, options, named, _) in items:
            args += (job_id, kind, when, data, options, "1" if named else "")
        return _Batch(keys.tag, ADD(*args), items, clock.monotonic())

    def _commands(self, batches: list[_Batch]) -> tuple[list[Command], list[int], int]:
        """Groups are registered before their work is added: the other way round, a crash would hide it.

        One server does both in one script, so that work whose registration is refused is not added. The registry of a
        Cluster lies on another node: its answer is waited for.

        Returns:
            All commands; for each, the registration that it needs, or -1; and how many registrations come first.
        """
        if not self._scattered or not any(batch.items[0][2].place.registry for batch in batches):
            return [batch.command for batch in batches], [-1] * len(batches), 0
        groups: dict[str, dict[str, None]] = {}
        places: dict[str, int] = {"": -1}
        needs: list[int] = []
        for batch in batches:
            place = batch.items[0][2].place
            if place.registry:
                groups.setdefault(place.registry, {})[place.keys.group] = None
            needs.append(places.setdefault(place.registry, len(groups) - 1))
        registrations = [REGISTER(registry, *ids) for registry, ids in groups.items()]
        first = len(registrations)
        return [*registrations, *(batch.command for batch in batches)], [-1] * first + needs, first

    async def _send(self, batches: list[_Batch]) -> list[_Batch]:
        """Send once; return the batches whose answer is not known and that somebody still waits for."""
        commands, needs, first = self._commands(batches)
        rides = self._rides_with(batches)
        ridden = {ride.tag for ride in rides}
        for i, batch in enumerate(batches, first):
            if batch.tag in ridden:
                commands[i] = (*commands[i][:FOLLOWED], "1", *commands[i][FOLLOWED + 1 :])
        last = len(commands)
        commands += [ride.command for ride in rides]
        needs += [-1] * len(rides)
        try:
            if self._replicas:
                replies, reached = await self.lane.run_and_wait(commands, needs, self._replicas, WAIT_MS)
            else:
                replies, reached = await self.lane.run(commands, needs), [True] * len(commands)
        except BaseException as error:
            lost = error if isinstance(error, BrokerError) else BrokerUnavailableError("no answer was waited for")
            for ride in rides:
                ride.answer(lost)
            if isinstance(error, BrokerUnavailableError):
                return self._give_up(batches, error)
            if isinstance(error, BrokerError):
                self._fail(batches, error)
                return []
            raise
        again = self._absorb(batches, replies[first:last], reached[first:last])
        for ride, reply in zip(rides, replies[last:], strict=True):
            ride.answer(reply)  # after whoever added: a job is told as added before it is told as active
        return again

    def _rides_with(self, batches: list[_Batch]) -> list[Ride]:
        """What travels behind `batches`, but not behind jobs with options of their own: those may say that the record
        goes when the job has run, and whoever adds it is to have a chance of waiting for that."""
        if self._replicas:
            return []
        return self.rides(
            [batch.items[0][2].place for batch in batches if not any(one[2].options for one in batch.items)]
        )

    def _absorb(self, batches: list[_Batch], replies: list[Any], reached: list[bool]) -> list[_Batch]:
        """Answer what is settled; return the batches to send again."""
        again: list[_Batch] = []
        for batch, reply, there in zip(batches, replies, reached, strict=True):
            if isinstance(reply, BrokerUnavailableError):  # one node of a Cluster
                again += self._give_up([batch], reply)
            elif isinstance(reply, BrokerError):
                self._fail([batch], reply)
            elif isinstance(reply, ResponseError):
                if is_transient(reply):
                    again += self._give_up([batch], BrokerUnavailableError(f"the store is busy: {reply}"))
                else:
                    self._fail([batch], refusal(reply))
            elif not there:
                text = f"added, but no replica confirmed it within {WAIT_MS / 1000:g} s"
                self._fail([batch], BrokerUnavailableError(text))
            else:
                self._answered_at = clock.monotonic()
                at_ms, flags, most = reply
                yes, no = AddReply(True, at_ms), AddReply(False, at_ms)
                for (submission, index, _), added in zip(batch.items, flags, strict=True):
                    if added == FULL:
                        submission.refuse(index, most)
                    else:
                        submission.answer(index, yes if added == ADDED else no)
        return again

    def _give_up(self, batches: list[_Batch], error: BrokerUnavailableError) -> list[_Batch]:
        """Fail the callers whose time is up; return the batches that somebody still waits for.

        What may have been added too long ago to be recognised is not sent again.
        """
        left, now = [], clock.monotonic()
        for batch in batches:
            too_old = now - batch.since > self._resent_for
            for submission in {id(one): one for one, _, _ in batch.items}.values():
                if submission.once or submission.deadline <= now or too_old:
                    submission.fail(error)
            if batch.is_waited_for:
                left.append(batch)
        return left

    @staticmethod
    def _fail(batches: list[_Batch], error: BrokerError) -> None:
        for batch in batches:
            for submission, _, _ in batch.items:
                submission.fail(error)


async def _wait(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, timeout)):
            await event.wait()
    except TimeoutError:
        pass

"""Adding: all jobs that are added in one turn of the loop travel in one pipeline, and each is added exactly once.

A call whose reply was lost is sent again under the same number, and the script recognises it by that number. For this
no newer add of a queue is sent while the fate of an older one is unknown.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Any, Final

from redis.exceptions import ResponseError

from asyncjobs import clock
from asyncjobs.broker.add_calls import NOBODY, AddCall, AddReply, Batch, FollowUp, Item, Place, Submission
from asyncjobs.broker.connection import BYTES_A_PIPELINE, Connection, is_transient, refusal
from asyncjobs.broker.reach import PATIENCE
from asyncjobs.broker.scripts import ADD, REGISTER
from asyncjobs.broker.wire import Command
from asyncjobs.errors import BrokerError, BrokerUnavailableError, NotRunningError
from asyncjobs.loop_budget import LoopBudget

ADDED, FULL = b"12"
JOBS_A_SCRIPT: Final = 500  # about 2 ms of server time
WAYS: Final = 4  # the cost of a job's way to the store, as a multiple of its cost in the batch
BYTES_A_SECOND: Final = 100_000_000  # bytes that are packed and handed to a socket
JOBS_A_PIPELINE: Final = 8000
PIECE: Final = 1000  # jobs that are queued for sending at once
WAIT_MS: Final = 2000  # much less than the time in which a pipeline must be answered
FOLLOWED: Final = 3 + ADD.keys + 6  # the index of `followed` in an add's command, see ``lua/add.lua``
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 1.0
SLACK: Final = 60.0  # seconds beyond the connection timeout in which a sent command may still arrive
LAST_CHANCE: Final = 2.0  # seconds that a stopping runtime gives adds on their way


class AddBatcher:
    """Collects adds and sends them.

    State:
        _open: callers that wait, in the order of their deadlines; `_timer` fails the first of them in time.
        _waiting: jobs that were not sent yet, and `_size`, the bytes of their payloads.
        _unknown: batches that were sent, and whose answer is unknown.
        _behind: tag → jobs that wait until an unknown batch of their queue is answered.
        _drain: the aio_task that sends, present only while there are jobs to send.
        _again_at: the instant at which unknown batches are sent again.
        _answered_at: the instant of the last answer.
        _queueing: callers whose jobs are not all in `_waiting` yet.
        _jobs, _bytes: the most jobs, and bytes, that travel together.
    """

    def __init__(
        self,
        connection: Connection,
        sender: str,
        timeout: float,
        replicas: int,
        scattered: bool = False,
        loop: LoopBudget | None = None,
    ) -> None:
        self.connection = connection
        self._loop = loop or LoopBudget()
        self._jobs, self._bytes = JOBS_A_PIPELINE, BYTES_A_PIPELINE
        if self._loop.budget is not None:
            self._jobs = JOBS_A_SCRIPT
            self._bytes = min(BYTES_A_PIPELINE, int(BYTES_A_SECOND * self._loop.budget))
        self._sender = sender
        self._timeout = timeout
        self._resent_for = 2 * timeout + SLACK
        self._marked_for = round((3 * timeout + 2 * SLACK) * 1000)  # ms, with the time to connect once more in between
        self._replicas = replicas
        self._scattered = scattered
        self._numbers = itertools.count(1)
        self._open: dict[Submission, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[Item] = deque()
        self._size = 0
        self._unknown: list[Batch] = []
        self._behind: dict[str, deque[Item]] = {}
        self._arrived = asyncio.Event()
        self._drain: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._answered_at = float("-inf")
        self._queueing = 0
        self._closed = False
        # Returns the turns of idle queues that may travel behind the adds to some places.
        self.follow_ups: Callable[[list[Place]], list[FollowUp]] = lambda places: []

    async def add(self, calls: Sequence[AddCall]) -> list[AddReply]:
        """Add all of `calls`; see `Broker.add`."""
        if not calls:
            return []
        if self._closed:
            raise NotRunningError("the runtime that this belongs to has been stopped")
        loop, now = asyncio.get_running_loop(), clock.monotonic()
        submission = Submission(calls, now + self._timeout, loop.create_future())
        self._open[submission] = None
        if self.connection.known_down(*(call.place.keys.stream for call in calls) if self._scattered else ()):
            submission.once = True
            self._again_at = min(self._again_at, now + FIRST_PAUSE)
            loop.call_later(PATIENCE, submission.fail, BrokerUnavailableError("the store does not answer"))
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._look_at_open)
        try:
            await self._queue(submission)
            return await submission.future
        finally:
            submission.future.cancel()  # the caller has stopped waiting
            del self._open[submission]

    async def _queue(self, submission: Submission) -> None:
        """Put the jobs of `submission` behind all waiting jobs, in pieces. Earlier pieces are sent meanwhile."""
        calls = submission.calls
        self._queueing += 1
        try:
            for start in range(0, len(calls), PIECE):
                if start:
                    await self._loop.breathe()
                if submission.future.done():  # the runtime stops
                    return
                some = calls[start : start + PIECE] if len(calls) > PIECE else calls
                self._waiting.extend(
                    map(Item._make, zip(itertools.repeat(submission), itertools.count(start), some, strict=False))
                )
                self._size += sum([len(call.data) for call in some])
                self._arrived.set()
                if self._drain is None:
                    self._drain = asyncio.get_running_loop().create_task(self._send_waiting())
        finally:
            self._queueing -= 1
            self._arrived.set()

    def _look_at_open(self) -> None:
        """Fail the callers whose time is up.

        A caller that waits for its turn, or for its bytes, on a connection that moves has more time.
        """
        now, doubtful = clock.monotonic(), {batch.tag for batch in self._unknown}
        moves = now - max(self._answered_at, now - self.connection.still()) < self._timeout
        for submission in list(itertools.takewhile(lambda one: one.deadline <= now, self._open)):
            if submission.future.done():
                continue
            if moves and not submission.waits_for(doubtful):
                submission.deadline = now + self._timeout
                del self._open[submission]
                self._open[submission] = None  # moved to the end
            else:
                submission.fail(BrokerUnavailableError("the store has not answered in time"))
        first = next((one for one in self._open if not one.future.done()), None)
        self._timer = None
        if first is not None:
            self._timer = asyncio.get_running_loop().call_later(first.deadline - now, self._look_at_open)

    async def close(self, timeout: float = LAST_CHANCE) -> None:
        """Send the accepted jobs for a bounded time, then fail waiting callers, and close the connection."""
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
            await self.connection.shut()

    async def _send_waiting(self) -> None:
        """Send until all jobs are answered. If a node does not answer, its jobs are sent again, and its queues wait."""
        pause = FIRST_PAUSE
        try:
            while self._waiting or self._unknown or self._behind or self._queueing:
                self._arrived.clear()
                resent = self._resent()
                if self._behind:
                    self._take_up()
                began = clock.monotonic()
                taken = self._take({batch.tag for batch in self._unknown} if self._unknown else NOBODY)
                if not taken and not resent:
                    if self._queueing and not self._unknown:
                        await self._arrived.wait()
                    if not self._unknown:
                        continue
                    await _wait(self._arrived, self._again_at - clock.monotonic())
                    continue
                batches = self._batches(taken)
                self._pace(len(taken), clock.monotonic() - began)
                failed = await self._send([*resent, *batches])
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

    def _pace(self, jobs: int, seconds: float) -> None:
        """Set `_jobs` and `_bytes` so that a pipeline fits the loop budget, by the time that the last one took."""
        budget = self._loop.budget
        if budget is not None and jobs >= JOBS_A_SCRIPT // 4:
            self._jobs = max(JOBS_A_SCRIPT // 4, min(JOBS_A_PIPELINE, int(jobs * budget / (WAYS * seconds))))

    def _resent(self) -> list[Batch]:
        """The unknown batches to send again now, without those whose callers have stopped waiting."""
        if clock.monotonic() < self._again_at:
            return []
        self._unknown = [batch for batch in self._unknown if batch.is_waited_for]
        return self._unknown

    def _take(self, held: Set[str]) -> list[Item]:
        """The next jobs to send together, without jobs of the `held` queues, where an older add is not answered.

        Jobs of held queues are put aside once. Jobs whose callers have stopped waiting are left out.
        """
        taken: list[Item] = []
        if not held and len(self._waiting) <= self._jobs and self._size <= self._bytes:
            taken = [item for item in self._waiting if not item.submission.future.done()]
            self._waiting.clear()
            self._size = 0
            return taken
        size = 0
        while self._waiting and len(taken) < self._jobs and size < self._bytes:
            item = self._waiting.popleft()
            call = item.call
            self._size -= len(call.data)
            if item.submission.future.done():
                continue
            if call.place.keys.tag in held:
                self._behind.setdefault(call.place.keys.tag, deque()).append(item)
            else:
                taken.append(item)
                size += len(call.data)
        return taken

    def _take_up(self) -> None:
        """Send next the jobs that waited for an answer, if that has come or no caller waits for it any more."""
        held = {batch.tag for batch in self._unknown}
        for tag in [tag for tag in self._behind if tag not in held]:
            items = self._behind.pop(tag)
            self._waiting.extendleft(reversed(items))
            self._size += sum(len(item.call.data) for item in items)

    def _batches(self, items: list[Item]) -> list[Batch]:
        queues: dict[str, list[Item]] = {}
        for item in items:
            tag = item.call.place.keys.tag
            if tag in queues:
                queues[tag].append(item)
            else:
                queues[tag] = [item]
        return [
            self._batch(mine[start : start + JOBS_A_SCRIPT], start // JOBS_A_SCRIPT)
            for mine in queues.values()
            for start in range(0, len(mine), JOBS_A_SCRIPT)
        ]

    def _batch(self, items: list[Item], nth: int) -> Batch:
        first = items[0].call
        keys = first.place.keys
        tag = keys.tag
        registry = "" if self._scattered else first.place.registry
        args: list[str | bytes | int] = [
            tag + ":s", tag + ":d", tag + ":n", tag + ":o", registry or tag + ":s",
            tag + ":j:", first.place.news, keys.group, f"{self._sender}.{nth}", next(self._numbers), first.most, "",
            self._marked_for,
        ]  # fmt: skip
        for item in items:
            call = item.call
            args += (call.job_id, call.kind, call.when, call.data, call.options, "1" if call.named else "")
        return Batch(keys.tag, ADD(*args), items, clock.monotonic())

    def _commands(self, batches: list[Batch]) -> tuple[list[Command], list[int], int]:
        """The commands that add `batches`. Groups are registered before their jobs, else a crash would hide the jobs.

        One server does both in one script, so that jobs whose registration is refused are not added. The registry of a
        Cluster lies on another node, so there an add waits for the answer of the registration.

        Returns:
            All commands; for each, the index of the registration that it needs, or -1; the number of registrations.
        """
        if not self._scattered or not any(batch.items[0].call.place.registry for batch in batches):
            return [batch.command for batch in batches], [-1] * len(batches), 0
        groups: dict[str, dict[str, None]] = {}
        places: dict[str, int] = {"": -1}
        needs: list[int] = []
        for batch in batches:
            place = batch.items[0].call.place
            if place.registry:
                groups.setdefault(place.registry, {})[place.keys.group] = None
            needs.append(places.setdefault(place.registry, len(groups) - 1))
        registrations = [REGISTER(registry, *ids) for registry, ids in groups.items()]
        first = len(registrations)
        return [*registrations, *(batch.command for batch in batches)], [-1] * first + needs, first

    async def _send(self, batches: list[Batch]) -> list[Batch]:
        """Send once. Returns the batches whose answer is unknown and whose callers still wait."""
        commands, needs, first = self._commands(batches)
        follow_ups = self._follow_ups_of(batches)
        followed = {follow_up.tag for follow_up in follow_ups}
        for i, batch in enumerate(batches, first):
            if batch.tag in followed:
                commands[i] = (*commands[i][:FOLLOWED], "1", *commands[i][FOLLOWED + 1 :])
        last = len(commands)
        commands += [follow_up.command for follow_up in follow_ups]
        needs += [-1] * len(follow_ups)
        try:
            if self._replicas:
                replies, reached = await self.connection.run_and_wait(commands, needs, self._replicas, WAIT_MS)
            else:
                replies, reached = await self.connection.run(commands, needs), [True] * len(commands)
        except BaseException as error:
            lost = error if isinstance(error, BrokerError) else BrokerUnavailableError("no answer was waited for")
            for follow_up in follow_ups:
                follow_up.answer(lost)
            if isinstance(error, BrokerUnavailableError):
                return self._give_up(batches, error)
            if isinstance(error, BrokerError):
                self._fail(batches, error)
                return []
            raise
        again = self._absorb(batches, replies[first:last], reached[first:last])
        for follow_up, reply in zip(follow_ups, replies[last:], strict=True):
            follow_up.answer(reply)  # after the adds' own answers, so that job.added comes before job.active
        return again

    def _follow_ups_of(self, batches: list[Batch]) -> list[FollowUp]:
        """The turns that travel behind `batches`, but not behind jobs with options of their own. Such an option may
        delete the record when the job has run, and the caller must have a chance to wait for the job."""
        if self._replicas:
            return []
        return self.follow_ups(
            [batch.items[0].call.place for batch in batches if not any(item.call.options for item in batch.items)]
        )

    def _absorb(self, batches: list[Batch], replies: list[Any], reached: list[bool]) -> list[Batch]:
        """Answer the callers of batches that the store has answered. Returns the batches to send again."""
        again: list[Batch] = []
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
                for item, added in zip(batch.items, flags, strict=True):
                    if added == FULL:
                        item.submission.refuse(item.nth, most)
                    else:
                        item.submission.answer(item.nth, yes if added == ADDED else no)
        return again

    def _give_up(self, batches: list[Batch], error: BrokerUnavailableError) -> list[Batch]:
        """Fail the callers whose time is up. Returns the batches whose callers still wait.

        A batch that was sent too long ago for the script to recognise it is not sent again.
        """
        left, now = [], clock.monotonic()
        for batch in batches:
            too_old = now - batch.since > self._resent_for
            for submission in {id(item.submission): item.submission for item in batch.items}.values():
                if submission.once or submission.deadline <= now or too_old:
                    submission.fail(error)
            if batch.is_waited_for:
                left.append(batch)
        return left

    @staticmethod
    def _fail(batches: list[Batch], error: BrokerError) -> None:
        for batch in batches:
            for item in batch.items:
                item.submission.fail(error)


async def _wait(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, timeout)):
            await event.wait()
    except TimeoutError:
        pass

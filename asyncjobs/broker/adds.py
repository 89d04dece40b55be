"""Adding: whatever is added in one turn of the loop travels in one pipeline, and arrives exactly once.

A call whose reply was lost is sent again under the same number, by which the script recognises it. That
holds because a sender has one call per number range in flight: nothing newer overtakes an unknown one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from asyncjobs import clock
from asyncjobs.broker.keys import Keys
from asyncjobs.broker.link import Command, Lane, is_transient, refusal
from asyncjobs.broker.scripts import ADD, REGISTER
from asyncjobs.errors import BrokerError, BrokerUnavailableError

JOBS_A_SCRIPT: Final = 500  # about 2 ms of server time
JOBS_A_PIPELINE: Final = 8000
WAIT_MS: Final = 5000
LAST_CHANCE: Final = 2.0  # seconds that a stopping runtime gives adds on their way


class AddCall(NamedTuple):
    """One job to add. `kind` is 'in' (`when` ms from now, 0 at once) or 'at' (`when` ms since the epoch)."""

    keys: Keys
    news: str
    registry: str  # where its group is registered, '' for a queue without groups
    job_id: str
    kind: str
    when: int
    data: bytes
    options: bytes
    named: bool


class AddReply(NamedTuple):
    added: bool
    at_ms: int


class _Submission:
    """One caller's jobs: how many are still unanswered, their replies in order, and the future that waits."""

    __slots__ = ("calls", "deadline", "future", "left", "replies")

    def __init__(self, calls: Sequence[AddCall], deadline: float, future: asyncio.Future[list[AddReply]]) -> None:
        self.calls, self.deadline, self.future, self.left = calls, deadline, future, len(calls)
        self.replies: list[AddReply] = [AddReply(False, 0)] * len(calls)

    def answer(self, index: int, reply: AddReply) -> None:
        self.replies[index] = reply
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.replies)

    def fail(self, error: BrokerError) -> None:
        if not self.future.done():
            if isinstance(error, BrokerUnavailableError):
                error = BrokerUnavailableError(str(error), [call.job_id for call in self.calls])
            self.future.set_exception(error)


class _Batch(NamedTuple):
    """The jobs of one queue that one script call adds."""

    command: Command
    items: list[tuple[_Submission, int]]


class AddBatcher:
    """Collects adds and sends them.

    State: `_waiting`, jobs not sent yet; `_drain`, the aio_task that sends, present only while there are any.
    """

    def __init__(self, lane: Lane, sender: str, timeout: float, replicas: int) -> None:
        self._lane = lane
        self._sender = sender
        self._timeout = timeout
        self._replicas = replicas
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[_Submission, int]] = deque()
        self._drain: asyncio.Task[None] | None = None

    async def add(self, calls: Sequence[AddCall]) -> list[AddReply]:
        """Add all of `calls`; see `Broker.add`."""
        loop = asyncio.get_running_loop()
        submission = _Submission(calls, clock.monotonic() + self._timeout, loop.create_future())
        self._waiting.extend((submission, index) for index in range(len(calls)))
        if self._drain is None:
            self._drain = loop.create_task(self._send_waiting())
        return await submission.future

    async def close(self) -> None:
        """Send what was accepted, for a bounded time, then close the connection."""
        if self._drain is not None:
            await asyncio.wait([self._drain], timeout=LAST_CHANCE)
            self._drain.cancel()
        await self._lane.shut()

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), JOBS_A_PIPELINE))]
                try:
                    await self._send(self._batches(taken))
                except BaseException:
                    self._waiting.extendleft(reversed(taken))
                    raise
        finally:
            self._drain = None
            for submission, _ in self._waiting:
                submission.fail(BrokerUnavailableError("the runtime was stopped before the store had answered"))
            self._waiting.clear()

    def _batches(self, items: list[tuple[_Submission, int]]) -> list[_Batch]:
        queues: dict[str, list[tuple[_Submission, int]]] = {}
        for item in items:
            queues.setdefault(item[0].calls[item[1]].keys.stream, []).append(item)
        return [
            self._batch(mine[start : start + JOBS_A_SCRIPT], start // JOBS_A_SCRIPT)
            for mine in queues.values()
            for start in range(0, len(mine), JOBS_A_SCRIPT)
        ]

    def _batch(self, items: list[tuple[_Submission, int]], nth: int) -> _Batch:
        submission, index = items[0]
        keys, news = submission.calls[index].keys, submission.calls[index].news
        args: list[str | bytes | int] = [
            keys.stream, keys.delayed, keys.senders,
            keys.jobs, news, keys.group, f"{self._sender}.{nth}", next(self._numbers),
        ]  # fmt: skip
        for submission, index in items:
            call = submission.calls[index]
            args += (call.job_id, call.kind, call.when, call.data, call.options, "1" if call.named else "")
        return _Batch(ADD(*args), items)

    def _registrations(self, batches: list[_Batch]) -> list[Command]:
        """Groups are registered before their work is added: the other way round, a crash would hide it."""
        groups: dict[str, dict[str, None]] = {}
        for batch in batches:
            submission, index = batch.items[0]
            call = submission.calls[index]
            if call.registry:
                groups.setdefault(call.registry, {})[call.keys.group] = None
        return [REGISTER(registry, *ids) for registry, ids in groups.items()]

    async def _send(self, batches: list[_Batch]) -> None:
        """Send until every batch has its answer or nobody waits for it any more."""
        delay = 0.02
        while batches:
            before = self._registrations(batches)
            commands = [batch.command for batch in batches]
            if self._replicas:
                commands.append(("WAIT", self._replicas, WAIT_MS))
            try:
                replies = (await self._lane.run([*before, *commands], first=len(before)))[len(before) :]
            except BrokerUnavailableError as error:
                batches = self._give_up(batches, error)
            except BrokerError as error:
                self._fail(batches, error)
                return
            else:
                batches = self._absorb(batches, replies)
            if batches:
                await asyncio.sleep(delay)
                delay = min(delay * 2, 1.0)

    def _absorb(self, batches: list[_Batch], replies: list[Any]) -> list[_Batch]:
        """Answer what is settled; return the batches that a busy server asks to send again."""
        again = []
        uncertain = bool(self._replicas) and not (isinstance(replies[-1], int) and replies[-1] >= self._replicas)
        for batch, reply in zip(batches, replies, strict=False):
            if isinstance(reply, BrokerUnavailableError):  # one node of a Cluster
                again += self._give_up([batch], reply)
            elif isinstance(reply, ResponseError):
                if is_transient(reply):
                    again += self._give_up([batch], BrokerUnavailableError(f"the store is busy: {reply}"))
                else:
                    self._fail([batch], refusal(reply))
            elif uncertain:
                text = f"added, but no replica confirmed it within {WAIT_MS / 1000:g} s"
                self._fail([batch], BrokerUnavailableError(text))
            else:
                at_ms, flags = reply
                for (submission, index), added in zip(batch.items, flags, strict=True):
                    submission.answer(index, AddReply(added == 0x31, at_ms))
        return again

    def _give_up(self, batches: list[_Batch], error: BrokerUnavailableError) -> list[_Batch]:
        """Fail the callers whose time is up; return the batches that somebody still waits for."""
        left, now = [], clock.monotonic()
        for batch in batches:
            for submission in {id(one): one for one, _ in batch.items}.values():
                if submission.deadline <= now:
                    submission.fail(error)
            if any(not submission.future.done() for submission, _ in batch.items):
                left.append(batch)
        return left

    @staticmethod
    def _fail(batches: list[_Batch], error: BrokerError) -> None:
        for batch in batches:
            for submission, _ in batch.items:
                submission.fail(error)

"""Threads: they run sync handlers and sync tasks.

A thread cannot be stopped. So each call in a thread is known until it has ended, and the threads are daemons, so that
the process may end while they run. A `Crossing` takes a thread's calls to the loop, and lets the thread wait for them.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Final, Protocol

from asyncjobs.guests.crossing import Caller, Crossing, target, within

IDLE: Final = 30.0  # seconds after which a thread that has nothing to do ends


class Owner(Caller, Protocol):
    """The try of a job, or the run of a task, that a thread runs."""

    thread: InThread | None  # while a thread runs it

    def returned(self, awaitable: bool) -> None:
        """The thread has ended well. `awaitable`: the loop awaits its result. Raises if that is too late."""


class InThread:
    """One call in a thread.

    State: `began`, a thread has taken the call; `value` and `error`, its result; `told`, the loop knows the result;
    `ended`, a future of the loop that is done then.
    """

    __slots__ = ("_call", "_loop", "_owner", "_way", "began", "context", "ended", "error", "told", "value")

    def __init__(self, call: Callable[[], Any], owner: Owner, way: Crossing) -> None:
        self._call, self._owner, self._way, self._loop = call, owner, way, way.loop
        self.context = copy_context()
        self.context.run(within.set, (way, owner))
        self.began = self.told = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None

    @property
    def running(self) -> bool:
        """True if the call can no longer be stopped."""
        return self.began and not self.told

    def run(self) -> None:
        """In the thread: make the call. Its error is kept as a value, because a future does not take all exceptions."""
        try:
            self.value = self.context.run(self._call)
        except BaseException as error:
            self.error = error
        with suppress(RuntimeError):  # the loop is closed, so no aio_task waits
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self.told = True
        if self._owner.thread is self:
            self._owner.thread = None
        if not self.ended.done():
            self.ended.set_result(None)

    async def wait(self) -> None:
        """Wait until the call has ended. A cancellation ends the wait, and not the call."""
        try:
            await self.ended
        except asyncio.CancelledError:
            if not self.told:  # else the call ended in the same moment, and its result counts
                self.ended = self._loop.create_future()
                raise

    def discard_awaitable(self) -> None:
        """Close an awaitable result, which can be awaited no more. Raises if the result is one."""
        self.value = target(self.value)
        if inspect.isawaitable(self.value):
            if inspect.iscoroutine(self.value):
                self.value.close()
            raise asyncio.CancelledError

    def interrupt(self) -> None:
        """End the thread's waits on the loop, with the error that the owner gives as the reason."""
        self._way.interrupt(self._owner)


class Threads:
    """Daemon threads, made when they are needed. Calls beyond `most` wait for a free thread."""

    def __init__(self, most: int, way: Crossing) -> None:
        self.way = way
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[InThread] = deque()
        self._idle = self._count = 0
        self._closed = False

    async def run(self, call: Callable[[], Any], owner: Owner) -> tuple[Any, BaseException | None]:
        """Make `call` in a thread, with this context's variables. Returns its result and its error.

        `owner.thread` is set while the thread runs. If this coroutine is cancelled meanwhile, the thread goes on. An
        awaitable result is awaited here, with the context variables as the thread has left them.
        """
        work = owner.thread = InThread(call, owner, self.way)
        try:
            self._take(work)
            await work.wait()
        except BaseException:
            if self._withdrawn(work):
                owner.thread = None
            raise
        if work.error is not None:
            return None, work.error  # not raised, because a coroutine cannot pass a StopIteration on
        value = target(work.value)
        awaitable = inspect.isawaitable(value)
        try:
            owner.returned(awaitable)
        except BaseException:
            if inspect.iscoroutine(value):
                value.close()
            raise
        if awaitable:
            _adopt(work.context)
            value = await value
        return value, None

    def _take(self, work: InThread) -> None:
        with self._changed:
            self._waiting.append(work)
            if self._idle >= len(self._waiting):
                self._changed.notify()
            elif self._count < self._most:
                self._count += 1
                try:
                    threading.Thread(target=self._serve, name="asyncjobs", daemon=True).start()
                except BaseException:  # the system allows no more threads
                    self._count -= 1
                    if not self._count:
                        raise

    def _withdrawn(self, work: InThread) -> bool:
        """Take a call back, unless a thread has begun it. Returns True if it was taken back."""
        with self._changed:
            with suppress(ValueError):
                self._waiting.remove(work)
            return not work.began

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        self._count -= 1
                        return
                    self._idle += 1
                    told = self._changed.wait(IDLE)
                    self._idle -= 1
                    if not told and not self._waiting:
                        self._count -= 1
                        return
                work = self._waiting.popleft()
                work.began = True
            work.run()
            del work

    def close(self) -> None:
        """End the idle threads. Each of the others ends when its call ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _adopt(context: Context) -> None:
    """Set the context variables that a thread has set."""
    for var, value in context.items():
        if var is not within and var.get(context) is not value:
            var.set(value)

"""Guests: code that the runtime calls and does not own: subscribers, Socket.IO, Sentry, services.

A guest may raise anything, hang, or swallow its cancellation. Nothing of that reaches the event loop or the caller:
an error comes back as a value, a wait ends in time, and a guest that does not end is left behind.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from asyncio.tasks import _unregister_task
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from asyncjobs import clock

LAST_WORDS: Final = 0.1  # seconds that a cancelled guest has to end


async def contained(call: Callable[[], Any]) -> BaseException | None:
    """Call a guest and await what it returns. Returns the error that it raised.

    A SystemExit or a KeyboardInterrupt that leaves an aio_task ends the event loop, so each aio_task of a guest runs
    this coroutine.
    """
    try:
        result = call()
        if inspect.isawaitable(result):
            await result
    except BaseException as error:
        return error
    return None


async def ended(aio_tasks: Iterable[asyncio.Task[Any]], timeout: float) -> int:
    """Give the aio_tasks of guests `timeout` seconds to end, then cancel them. Returns how many had to be cancelled.

    Guests that swallow their cancellation are left behind.
    """
    waiting = {one for one in aio_tasks if one is not asyncio.current_task()}
    if not waiting:
        return 0
    try:
        _, late = await asyncio.wait(waiting, timeout=max(0.0, timeout))
    except asyncio.CancelledError:
        for one in waiting:
            one.cancel()
            asyncio.get_running_loop().call_later(LAST_WORDS, _unless_done, one)
        raise
    for one in late:
        one.cancel()
    if late:
        _, stubborn = await asyncio.wait(late, timeout=LAST_WORDS)
        for one in stubborn:
            leave_behind(one)
    return len(late)


async def within(timeout: float, call: Callable[[], Any]) -> BaseException | None:
    """Call a guest, and await what it returns, for `timeout` seconds at most. Returns the error that came out of it."""
    aio_task = asyncio.get_running_loop().create_task(contained(call))
    try:
        late = await ended([aio_task], timeout)
    finally:
        if not aio_task.done():
            aio_task.cancel()
    if late:
        return TimeoutError(f"it did not end within {timeout:g} s")
    return aio_task.result()


def _unless_done(aio_task: asyncio.Task[Any]) -> None:
    if not aio_task.done():
        leave_behind(aio_task)


def leave_behind(aio_task: asyncio.Task[Any]) -> None:
    """Give up an aio_task that does not end although it was cancelled: the app's loop may be closed without it.

    `asyncio.run` waits for each aio_task that it knows, and would wait for ever.
    """
    aio_task._log_destroy_pending = False  # type: ignore[attr-defined]
    _unregister_task(aio_task)


async def in_thread(timeout: float, call: Callable[[], Any]) -> BaseException | None:
    """Call a guest that blocks, and wait for it for `timeout` seconds. Returns the error that it raised.

    Its thread is a daemon, so that a call that never returns keeps no process from exiting.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[BaseException | None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name="asyncjobs guest", daemon=True).start()
    await asyncio.wait([done], timeout=max(0.0, timeout))
    return done.result() if done.done() else TimeoutError(f"it did not return within {timeout:g} s")


class Deadline:
    """An instant by which several steps together must have ended."""

    def __init__(self, seconds: float) -> None:
        self._at = clock.monotonic() + seconds

    def left(self, most: float = float("inf"), keep: float = 0.0) -> float:
        """Seconds that a step may take: `most`, and no more than what is left without the `keep` of later steps."""
        return max(0.0, min(most, self._at - clock.monotonic() - keep))

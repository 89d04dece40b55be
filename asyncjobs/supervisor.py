"""The Supervisor: the long-lived loops of a runtime. They end only when the runtime stops."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from asyncjobs import clock
from asyncjobs.errors import BrokerUnavailableError
from asyncjobs.guests.calls import ended, leave_behind
from asyncjobs.logs import Stack, ThrottledLog, said

logger = logging.getLogger("asyncjobs")

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
Run: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]


class _Loop:
    """One supervised loop.

    State: `pause`, before the loop's next start; `down_since`, the instant at which it ended other than by `stop`,
    until it has run for as long as that pause.
    """

    __slots__ = ("began", "down_since", "may_return", "name", "pause", "run")

    def __init__(self, name: str, run: Run, may_return: bool) -> None:
        self.name, self.run, self.may_return = name, run, may_return
        self.pause = FIRST_PAUSE
        self.began = clock.monotonic()
        self.down_since: float | None = None


class Supervisor:
    """Supervised loops, each in an aio_task, and errands that run once beside them.

    A loop that ends is reported, and starts again after a pause, whether an error, its own return or a foreign
    cancellation has ended it. The other loops go on.

    State: `_loops`, all loops; `_aio_tasks`, the running aio_tasks; `_errands`, name of a running errand → the errand
    that runs after it, or None.
    """

    def __init__(self) -> None:
        self._loops: list[_Loop] = []
        self._aio_tasks: set[asyncio.Task[BaseException | None]] = set()
        self._errands: dict[str, Run | None] = {}
        self._throttled = ThrottledLog(logger)
        self._stopping = False

    def start(self, name: str, run: Run, may_return: bool = False) -> None:
        """Run `run` until `stop`, and again each time it ends; with `may_return`, until it has returned once."""
        loop = _Loop(name, run, may_return)
        self._loops.append(loop)
        self._begin(loop)

    def once(self, name: str, run: Run) -> None:
        """Run `run` once, beside the loops. An error is reported.

        While an errand of that name runs, only one more waits for its end, because more of them would find the same.
        """
        if name in self._errands:
            self._errands[name] = run
            return
        self._errands[name] = None
        self._hold(name, run, functools.partial(self._errand_ended, name))

    def down(self) -> list[str]:
        """The loops that have ended without a stop, and are not well again yet."""
        return [loop.name for loop in self._loops if self._is_down(loop)]

    @staticmethod
    def _is_down(loop: _Loop) -> bool:
        return loop.down_since is not None and (loop.began < loop.down_since or _ran(loop) < loop.pause)

    def _begin(self, loop: _Loop) -> None:
        if not self._stopping:
            loop.began = clock.monotonic()
            self._hold(loop.name, loop.run, functools.partial(self._loop_ended, loop))

    def _hold(self, name: str, run: Run, then: Callable[[asyncio.Task[BaseException | None]], None]) -> None:
        aio_task = asyncio.get_running_loop().create_task(_run(run), name=f"asyncjobs {name}")
        self._aio_tasks.add(aio_task)
        aio_task.add_done_callback(self._aio_tasks.discard)
        aio_task.add_done_callback(then)

    def _loop_ended(self, loop: _Loop, aio_task: asyncio.Task[BaseException | None]) -> None:
        if self._stopping:
            return
        if _ran(loop) > LONGEST_PAUSE:
            loop.pause = FIRST_PAUSE
        error = asyncio.CancelledError() if aio_task.cancelled() else aio_task.result()
        if error is None and loop.may_return:
            loop.down_since = None
            return
        pause, loop.pause = loop.pause, min(loop.pause * 2, LONGEST_PAUSE)
        if not isinstance(error, BrokerUnavailableError):  # the pump logs an outage once for all
            loop.down_since = clock.monotonic()
            if not aio_task.cancelled():
                self._complain(loop, error, pause)
        # A timer restarts the loop, and not an aio_task: an app that ends its loop without a stop must not wait for it.
        asyncio.get_running_loop().call_later(pause, self._again, loop, aio_task.cancelled())

    def _again(self, loop: _Loop, cancelled: bool) -> None:
        if cancelled and not self._stopping:  # logged only now, because the app may have been about to end its loop
            self._complain(loop, asyncio.CancelledError(), 0.0)
        self._begin(loop)

    def _complain(self, loop: _Loop, error: BaseException | None, pause: float) -> None:
        why = "it returned" if error is None else Stack(error)
        text = "the %s loop has ended; it starts again in %.1f s: %s"
        self._throttled.error(loop.name, text, loop.name, pause, why)

    def _errand_ended(self, name: str, aio_task: asyncio.Task[BaseException | None]) -> None:
        following = self._errands.pop(name, None)
        error = None if aio_task.cancelled() else aio_task.result()
        if error is not None and not self._stopping:
            self._throttled.warning(name, "%s: %s", name, said(error))
        if following is not None and not self._stopping:
            self.once(name, following)

    def abandon(self) -> None:
        """The event loop was closed. Drop all loops and errands."""
        self._stopping = True
        for aio_task in tuple(self._aio_tasks):
            leave_behind(aio_task)

    async def stop(self, timeout: float = 1.0) -> None:
        """Cancel all, and wait until they have ended, for `timeout` seconds at most."""
        self._stopping = True
        aio_tasks = tuple(self._aio_tasks)
        for aio_task in aio_tasks:
            aio_task.cancel()
        await ended(aio_tasks, timeout)


def _ran(loop: _Loop) -> float:
    return clock.monotonic() - loop.began


async def _run(run: Run) -> BaseException | None:
    """Await `run`. Returns the error with which it ended. A cancellation of the aio_task itself passes through."""
    aio_task = asyncio.current_task()
    try:
        await run()
    except asyncio.CancelledError as error:
        if aio_task is not None and aio_task.cancelling():
            raise
        return error
    except BaseException as error:
        return error
    return None

"""Events: one record for each thing that happens in this process, and the bus that carries it.

Sentry, logs, live dashboards and tests all hang on this; a job never calls any of them. An event that
nobody subscribed to is never built, and a subscriber that raises is logged and harms no job.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

from asyncjobs import clock
from asyncjobs.errors import ConfigError

logger = logging.getLogger("asyncjobs")

EVENT_TYPES: Final = (
    "job.added", "job.active", "job.completed", "job.failed", "job.retrying", "job.stalled", "job.progress",
    "group.opened", "group.reaped",
    "task.fired", "task.skipped", "task.failed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, when, and to whom; fields that do not apply are ``None``.

    Attributes:
        type: one of `EVENT_TYPES`.
        name: the job's or the task's name.
        at: when it happened in this process, UTC.
        attempts_made: finished tries of the job, this one included where it just ended.
        scheduled_at: the instant a tick was due.
        error: the exception of a failed try or task, or why a tick was skipped.
        data: the payload of a job that failed or was retried, the progress of one that reported it.
        context: what an integration keeps with the try.
    """

    type: str
    name: str
    at: datetime = field(default_factory=clock.now)
    job_id: str | None = None
    group_id: str | None = None
    attempts_made: int | None = None
    scheduled_at: datetime | None = None
    error: BaseException | str | None = None
    data: Any = field(default=None, repr=False)
    context: Any = field(default=None, repr=False)


Subscriber: TypeAlias = Callable[[Event], Any] | Callable[[Event], Awaitable[Any]]


class EventBus:
    """Hands each event to the subscribers of its type, in the order of subscription.

    State: `_subscribers`, type → callbacks (a type without any is absent, which is the fast path), and
    `_running`, strong references to the aio_tasks of async subscribers.
    """

    def __init__(self) -> None:
        self._subscribers: dict[str, list[Subscriber]] = {}
        self._running: set[asyncio.Task[Any]] = set()

    def on(self, event_type: str, callback: Subscriber) -> Callable[[], None]:
        """Call `callback`, sync or async, for each event of `event_type` (``"*"``: of every type).

        Returns:
            A function that ends the subscription.
        """
        if event_type != "*" and event_type not in EVENT_TYPES:
            raise ConfigError(f"no event is called {event_type!r}; there are: * {' '.join(EVENT_TYPES)}")
        if not callable(callback):
            raise ConfigError(f"on({event_type!r}): expected a function of one event, got {callback!r}")
        types = EVENT_TYPES if event_type == "*" else (event_type,)
        for one in types:
            self._subscribers.setdefault(one, []).append(callback)

        def off() -> None:
            for one in types:
                callbacks = self._subscribers.get(one, [])
                if callback in callbacks:
                    callbacks.remove(callback)
                if not callbacks:
                    self._subscribers.pop(one, None)

        return off

    def wants(self, event_type: str) -> bool:
        """Whether anybody listens: ask before building what an event carries."""
        return event_type in self._subscribers

    def emit(self, event_type: str, name: str, **fields: Any) -> None:
        """Build the event and hand it on; never raises."""
        subscribers = self._subscribers.get(event_type)
        if not subscribers:
            return
        event = Event(event_type, name, **fields)
        for callback in tuple(subscribers):
            try:
                result = callback(event)
                if inspect.isawaitable(result):
                    aio_task = asyncio.ensure_future(result)
                    self._running.add(aio_task)
                    aio_task.add_done_callback(self._ended)
            except BaseException:  # its CancelledError or SystemExit too: nobody has cancelled us, or ends the app
                logger.exception("a subscriber of %s raised; the %s goes on", event_type, name)

    def _ended(self, aio_task: asyncio.Task[Any]) -> None:
        self._running.discard(aio_task)
        if not aio_task.cancelled() and (error := aio_task.exception()):
            logger.error("an async subscriber raised", exc_info=error)

    async def drain(self, timeout: float) -> None:
        """Give async subscribers up to `timeout` seconds to end, then cancel them."""
        if self._running:
            _, late = await asyncio.wait(tuple(self._running), timeout=timeout)
            for aio_task in late:
                aio_task.cancel()

"""Events: a record for each thing that happens in this process, and the bus that carries the records.

Sentry, logs, dashboards and tests subscribe to events, and a job never calls them. An event without subscribers is
never built. A subscriber that raises any error is logged, and harms no job. An async subscriber runs beside the job,
in at most `MOST_RUNNING` calls at once.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

from asyncjobs import clock
from asyncjobs.counters import Counters
from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError
from asyncjobs.guests.calls import Deadline, contained, ended, leave_behind
from asyncjobs.logs import Stack, ThrottledLog

logger = logging.getLogger("asyncjobs")

EVENT_TYPES: Final = (
    "job.added", "job.active", "job.completed", "job.failed", "job.retrying", "job.stalled", "job.cancelled",
    "job.progress",
    "job.retried", "job.promoted", "job.removed",
    "group.opened", "group.reaped",
    "task.fired", "task.completed", "task.skipped", "task.failed", "alert.raised", "alert.cleared",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """One event. Fields that do not apply are ``None``.

    Attributes:
        type: one of `EVENT_TYPES`.
        name: the job's or the task's name; ``"store"`` for an alert of the store.
        at: the instant of the event in this process, UTC.
        attempts_made: finished tries of the job, including a try that just ended.
        scheduled_at: the instant at which a tick was due.
        duration: seconds that the try, or the run of the task, took.
        delay: seconds until the next try of a job that is retried.
        error: the exception of a failed try or task, the reason why a tick was skipped, or the text of an alert.
        data: the payload of a job that failed or was retried, the progress that a job has reported, or an
            `Alert`.
        context: an integration's context of the try.
        process: the process of an event that `Runtime.follow` brings; None: this one.
    """

    type: str
    name: str
    at: datetime = field(default_factory=clock.now)
    job_id: str | None = None
    group_id: str | None = None
    attempts_made: int | None = None
    scheduled_at: datetime | None = None
    duration: float | None = None
    delay: float | None = None
    error: BaseException | str | None = None
    data: Any = field(default=None, repr=False)
    context: Any = field(default=None, repr=False)
    process: str | None = None


MOST_RUNNING: Final = 100  # calls of one async subscriber at once
MOST_WAITING: Final = 10_000  # events that wait for one; then the oldest are dropped
TIME_LIMIT: Final = 60.0  # seconds that one call of an async subscriber may take

Subscriber: TypeAlias = Callable[[Event], Any] | Callable[[Event], Awaitable[Any]]


class Subscription:
    """One subscribed callback.

    State: `_running`, the aio_tasks of an async callback; `_waiting`, its coroutines beyond those, oldest first.
    """

    __slots__ = ("_bus", "_callback", "_running", "_waiting")

    def __init__(self, bus: EventBus, callback: Subscriber) -> None:
        self._bus, self._callback = bus, callback
        self._running: set[asyncio.Task[BaseException | None]] = set()
        self._waiting: deque[tuple[Event, Any]] = deque()

    def __str__(self) -> str:
        try:
            return str(getattr(self._callback, "__qualname__", None) or type(self._callback).__qualname__)
        except BaseException:
            return "without a name"

    def call(self, event: Event) -> None:
        """Call the callback with an event. Never raises."""
        try:
            result = self._callback(event)
            if result is not None and inspect.isawaitable(result):
                self._take(event, result)
        except BaseException as error:
            self._bus.raised(self, event, error)

    def _take(self, event: Event, result: Any) -> None:
        if len(self._running) < MOST_RUNNING:
            self._run(event, result)
            return
        if len(self._waiting) >= MOST_WAITING:
            self._drop(self._waiting.popleft()[1])
        self._waiting.append((event, result))

    def _run(self, event: Event, result: Any) -> None:
        loop = asyncio.get_running_loop()
        aio_task = loop.create_task(contained(lambda: result))
        self._running.add(aio_task)
        self._bus.busy.add(self)
        timer = loop.call_later(TIME_LIMIT, aio_task.cancel)
        aio_task.add_done_callback(functools.partial(self._ended, event, result, timer))

    def _ended(
        self, event: Event, result: Any, timer: asyncio.TimerHandle, aio_task: asyncio.Task[BaseException | None]
    ) -> None:
        late = timer.when() <= asyncio.get_running_loop().time()
        timer.cancel()
        self._running.discard(aio_task)
        if aio_task.cancelling() and not late:
            _close(result)  # the callback may have been cancelled before its first step
            self.drop_waiting()  # the loop, or the runtime, is about to end
        else:
            error = TimeoutError(f"it took longer than {TIME_LIMIT:g} s") if late else aio_task.result()
            if error is not None:
                self._bus.raised(self, event, error)
        if self._waiting:
            self._run(*self._waiting.popleft())
        elif not self._running:
            self._bus.busy.discard(self)

    def _drop(self, result: Any) -> None:
        self._bus.dropped += 1
        _close(result)

    def drop_waiting(self) -> None:
        while self._waiting:
            self._drop(self._waiting.popleft()[1])

    def abandon(self) -> None:
        """The loop of the callback was closed. Drop its calls."""
        self.drop_waiting()
        for aio_task in self._running:
            leave_behind(aio_task)
        self._running.clear()

    async def drain(self, timeout: float) -> None:
        """Let it end for `timeout` seconds."""
        deadline = Deadline(timeout)
        while self._waiting and deadline.left():
            await asyncio.wait(self._running, timeout=deadline.left(), return_when=asyncio.FIRST_COMPLETED)
        self.drop_waiting()
        await ended(tuple(self._running), deadline.left())
        self._running.clear()  # calls that do not end are left behind


def _close(result: Any) -> None:
    """Close a coroutine that is not awaited, else Python would warn."""
    with suppress(BaseException):
        result.close()


class EventBus:
    """Hands each event to the subscribers of its type, in the order of subscription.

    State: `_subscribers`, event type → subscriptions, without keys for empty lists.

    Attributes:
        busy: the subscriptions whose async callbacks run.
        failed: how often subscribers raised, or took longer than `TIME_LIMIT`.
        dropped: how many events async subscribers did not get because they were too slow.
        counters: what has happened, whether it is told or not.
    """

    def __init__(self) -> None:
        self._subscribers: dict[str, list[Subscription]] = {}
        self.busy: set[Subscription] = set()
        self._throttled = ThrottledLog(logger)
        self.failed = self.dropped = 0
        self.counters = Counters()

    def on(self, event_type: str, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with each `Event` of a type, ``"*"`` for all types.

        Returns:
            A function that ends the subscription.
        Raises:
            ConfigError: no event type has this name.
        """
        if event_type != "*" and event_type not in EVENT_TYPES:
            raise ConfigError(f"no event is called {event_type!r}; there are: * {' '.join(EVENT_TYPES)}")
        if not callable(callback):
            raise ConfigError(f"on({event_type!r}): expected a function of one event, got {shown(callback)}")
        types = EVENT_TYPES if event_type == "*" else (event_type,)
        subscription = Subscription(self, callback)
        for one in types:
            self._subscribers.setdefault(one, []).append(subscription)

        def off() -> None:
            for one in types:
                left = [other for other in self._subscribers.get(one, ()) if other is not subscription]
                if left:
                    self._subscribers[one] = left
                else:
                    self._subscribers.pop(one, None)

        return off

    def wants(self, event_type: str) -> bool:
        """Whether anybody listens: ask before building what an event carries."""
        return event_type in self._subscribers

    def emit(self, event_type: str, name: str, **fields: Any) -> None:
        """Build an event, and call its subscribers. Never raises."""
        subscriptions = self._subscribers.get(event_type)
        if not subscriptions:
            return
        event = Event(event_type, name, **fields)
        for subscription in tuple(subscriptions):
            subscription.call(event)

    def raised(self, subscription: Subscription, event: Event, error: BaseException) -> None:
        """A subscriber has raised. The job or task of the event goes on."""
        self.failed += 1
        text = "the subscriber %s of %s raised, and %s goes on: %s"
        self._throttled.error(f"{event.type} {subscription}", text, subscription, event.type, event.name, Stack(error))

    async def drain(self, timeout: float) -> None:
        """Give async subscribers up to `timeout` seconds to end, then cancel them."""
        await asyncio.gather(*(one.drain(timeout) for one in tuple(self.busy)))
        self.busy.clear()

    def abandon(self) -> None:
        """The loop of async subscribers was closed. Drop their calls."""
        for one in self.busy:
            one.abandon()
        self.busy.clear()

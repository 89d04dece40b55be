"""Live updates: the `io` of a handler, with a Socket.IO server, a manager, or nothing behind it.

Socket.IO has no back-pressure, and its Redis manager can hold a caller for seconds. So a handler's emit only puts the
data on a bounded outbox, and one sender empties it. The emit encodes the data, so the handler may change them later.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final, NamedTuple

from asyncjobs.declare.values import shown
from asyncjobs.errors import ConfigError, PayloadError
from asyncjobs.guests.calls import Deadline, contained, ended, leave_behind
from asyncjobs.home import running_loop
from asyncjobs.logs import ThrottledLog, said

logger = logging.getLogger("asyncjobs.io")

OUTBOX: Final = 10_000
OUTBOX_BYTES: Final = 64 * 1024 * 1024
SEND_TIMEOUT: Final = 5.0
MOST_STUCK: Final = 8  # sends that Socket.IO has never ended; beyond them nothing is sent until one has


class Data(NamedTuple):
    """The data of an emit as they were then: JSON, or a copy if bytes travel beside the JSON."""

    text: str
    copy: Any
    is_tuple: bool  # several arguments for Socket.IO
    size: int

    def value(self) -> Any:
        made = json.loads(self.text) if self.copy is None else self.copy
        return tuple(made) if self.is_tuple else made


class Emit(NamedTuple):
    event: str
    data: Data
    room: str | None
    namespace: str | None


class Accepted:
    """The result of `emit`. Awaiting it is allowed, and never waits."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


ACCEPTED: Final = Accepted()


class Room:
    """One room of `io`."""

    __slots__ = ("_io", "_name", "_namespace")

    def __init__(self, io: LiveUpdates, name: str, namespace: str | None = None) -> None:
        self._io, self._name, self._namespace = io, name, namespace

    def emit(self, event: str, data: Any = None) -> Accepted:
        """Send `event` to all members of the room."""
        return self._io.emit(event, data, to=self._name, namespace=self._namespace)


class LiveUpdates:
    """``io.to(room).emit(event, data)``, ``io.emit(event, data, to=room)``, ``io.emit(event, data)`` to all.

    An emit returns at once, in any state of Socket.IO, and never fails the job, unless the data cannot be sent at all.
    The order within a room is kept. If the outbox is full, its oldest entry is dropped.

    Attributes:
        raw: the app's `socketio` server or manager, or None.
        accepted, sent, dropped: how many emits there were, how many reached Socket.IO, and how many did not.
    """

    def __init__(self, target: Any = None) -> None:
        if target is not None and not callable(getattr(target, "emit", None)):
            raise ConfigError(
                f"io={shown(target)}: expected a socketio.AsyncServer, a socketio manager such as "
                "AsyncRedisManager(url, write_only=True), or None"
            )
        self.raw = target
        self.accepted = self.sent = self.dropped = 0
        self._outbox: deque[Emit] = deque()
        self._bytes = 0
        self._filled: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sending = False
        self._stuck: set[asyncio.Task[BaseException | None]] = set()
        self._throttled = ThrottledLog(logger)

    def to(self, room: str) -> Room:
        """The room to send to."""
        return Room(self, room)

    in_ = room = to

    @property
    def sockets(self) -> LiveUpdates:
        """The Node original wrote ``io.sockets.in(room)``."""
        return self

    def emit(
        self,
        event: str,
        data: Any = None,
        *,
        to: str | None = None,
        room: str | None = None,
        namespace: str | None = None,
    ) -> Accepted:
        """Send `event` to the room `to`, or to all clients. `data` are encoded here, so they may change afterwards.

        Raises:
            PayloadError: the data is neither JSON nor bytes.
        """
        if not isinstance(event, str) or not event:
            raise PayloadError(f"io.emit({shown(event)}): expected the name of an event")
        try:
            encoded = encode(data)
        except BaseException as error:
            raise PayloadError(f"io.emit({event!r}): the data cannot be sent: {said(error)}") from error
        self.accepted += 1
        if self.raw is not None:
            self._put(Emit(event, encoded, to if to is not None else room, namespace))
        return ACCEPTED

    def _put(self, one: Emit) -> None:
        self._outbox.append(one)
        self._bytes += one.data.size
        while len(self._outbox) > OUTBOX or self._bytes > OUTBOX_BYTES:
            self._drop("the outbox is full")
            self._take()
        if self._filled is None or self._loop is None:
            return
        if running_loop() is self._loop:
            self._filled.set()
            return
        with suppress(RuntimeError):  # that loop was closed, and the next one sends the entry
            self._loop.call_soon_threadsafe(self._filled.set)

    def _take(self) -> Emit:
        one = self._outbox.popleft()
        self._bytes -= one.data.size
        return one

    async def run(self) -> None:
        """Send until cancelled."""
        filled = self._filled = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        while True:
            while not self._outbox:
                filled.clear()
                await filled.wait()
            self._sending = True
            try:
                await self._send(self._take())
            finally:
                self._sending = False

    async def _send(self, one: Emit) -> None:
        """Send one emit. Socket.IO may raise any error, and holds the next emit for at most SEND_TIMEOUT."""
        if len(self._stuck) >= MOST_STUCK:
            self._drop("Socket.IO does not come back from the sends before it")
            return
        aio_task = asyncio.get_running_loop().create_task(contained(functools.partial(self._hand_over, one)))
        self._stuck.add(aio_task)
        aio_task.add_done_callback(self._stuck.discard)
        try:
            late = await ended([aio_task], SEND_TIMEOUT)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        error = TimeoutError(f"Socket.IO took longer than {SEND_TIMEOUT:g} s") if late else aio_task.result()
        if error is None:
            self.sent += 1
        else:
            self._drop(said(error))

    async def _hand_over(self, one: Emit) -> None:
        options = {} if one.namespace is None else {"namespace": one.namespace}
        # A manager, unlike a server, has no default for the namespace.
        if one.namespace is None and not hasattr(self.raw, "manager"):
            options = {"namespace": "/"}
        result = self.raw.emit(one.event, one.data.value(), room=one.room, **options)
        if inspect.isawaitable(result):
            await result

    def _drop(self, why: str) -> None:
        self.dropped += 1
        self._throttled.warning("dropped", "a live update was dropped: %s", why)

    async def flush(self, timeout: float) -> None:
        """Let the sender empty the outbox for `timeout` seconds at most. The rest is counted as dropped."""
        deadline = Deadline(timeout)
        while (self._outbox or self._sending) and deadline.left():  # noqa: ASYNC110 - the sender has no event for it
            await asyncio.sleep(0.005)

    def close(self) -> None:
        """The sender has ended. Drop the rest of the outbox, and leave sends behind that Socket.IO does not end."""
        self.dropped += len(self._outbox)
        self._outbox.clear()
        self._bytes = 0
        self._filled = self._loop = None
        for aio_task in tuple(self._stuck):
            leave_behind(aio_task)
        self._stuck.clear()


def encode(data: Any) -> Data:
    """Encode `data` as they are at this moment.

    Raises:
        TypeError, ValueError, RecursionError: `data` are neither JSON nor bytes.
    """
    size = 0

    def binary(value: Any) -> None:
        """Bytes travel beside the JSON. Other values that json does not know cannot be sent."""
        nonlocal size
        if not isinstance(value, (bytes, bytearray)):
            raise TypeError(f"{shown(value)} is a {type(value).__name__}")
        size += len(value) + 1

    text = json.dumps(data, default=binary)
    return Data(text if not size else "", _copied(data) if size else None, isinstance(data, tuple), size + len(text))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(one) for one in value]
    return bytes(value) if isinstance(value, bytearray) else value

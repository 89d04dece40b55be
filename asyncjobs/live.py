"""Live updates: the `io` of a handler, over a Socket.IO server or manager, or over nothing.

Socket.IO has no back-pressure and its Redis manager can hold a caller for seconds, so a handler's emit only
puts on a bounded outbox; one sender empties it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Generator
from typing import Any, Final, NamedTuple

from asyncjobs.config import shown
from asyncjobs.errors import ConfigError, PayloadError

logger = logging.getLogger("asyncjobs.io")

OUTBOX: Final = 10_000
SEND_TIMEOUT: Final = 5.0


class Emit(NamedTuple):
    event: str
    data: Any
    room: str | None
    namespace: str | None


class Accepted:
    """What `emit` returns: awaiting it is allowed and never waits."""

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
        """Send `event` to everybody in the room."""
        return self._io.emit(event, data, to=self._name, namespace=self._namespace)


class LiveUpdates:
    """``io.to(room).emit(event, data)``, ``io.emit(event, data, to=room)``, ``io.emit(event, data)`` to all.

    An emit returns at once, in any state of Socket.IO, and never fails the job, unless the data cannot be sent
    at all. The order within a room is kept. If the outbox is full the oldest entry is dropped.

    Attributes:
        raw: the app's `socketio` server or manager, or None.
        accepted, sent, dropped: how many emits there were, reached Socket.IO, and did not.
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
        self._filled = asyncio.Event()
        self._complained = False

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
        """Send `event` to the room `to`, or to everybody.

        Raises:
            PayloadError: the data is neither JSON nor bytes.
        """
        if not isinstance(event, str) or not event:
            raise PayloadError(f"io.emit({shown(event)}): expected the name of an event")
        try:
            json.dumps(data, default=_binary)
        except (TypeError, ValueError, RecursionError) as error:
            raise PayloadError(f"io.emit({event!r}): the data cannot be sent: {error}") from error
        self.accepted += 1
        if self.raw is not None:
            if len(self._outbox) >= OUTBOX:
                self._outbox.popleft()
                self._drop("the outbox is full")
            self._outbox.append(Emit(event, data, to if to is not None else room, namespace))
            self._filled.set()
        return ACCEPTED

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            while not self._outbox:
                self._filled.clear()
                await self._filled.wait()
            await self._send(self._outbox.popleft())

    async def _send(self, one: Emit) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                options = {} if one.namespace is None else {"namespace": one.namespace}
                # A manager, unlike a server, has no default for the namespace.
                if one.namespace is None and not hasattr(self.raw, "manager"):
                    options = {"namespace": "/"}
                await self.raw.emit(one.event, one.data, room=one.room, **options)
        except Exception as error:
            self._drop(error)
        else:
            self.sent += 1
            self._complained = False

    def _drop(self, why: object) -> None:
        self.dropped += 1
        if not self._complained:
            self._complained = True
            logger.warning("a live update was dropped: %s (further ones are only counted)", why)

    async def flush(self, timeout: float) -> None:
        """Send what is left, for `timeout` seconds at most; the rest is counted as dropped."""
        try:
            async with asyncio.timeout(timeout):
                while self._outbox:
                    await self._send(self._outbox.popleft())
        except TimeoutError:
            pass
        self.dropped += len(self._outbox)
        self._outbox.clear()


def _binary(value: Any) -> None:
    """Bytes travel beside the JSON; whatever else json does not know cannot be sent."""
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{shown(value)} is a {type(value).__name__}")

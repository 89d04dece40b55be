"""The Subscriber: the one connection that listens. Messages are hints and may be lost, so their receivers also look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from asyncjobs.broker.address import Address
from asyncjobs.broker.reach import Reach
from asyncjobs.broker.wire import Wire
from asyncjobs.logs import ThrottledLog, said

logger = logging.getLogger("asyncjobs.store")

QUIET: Final = 5.0  # seconds without a message after which the link is probed
LONGEST_PAUSE: Final = 5.0
LOST: Final = (RedisError, OSError, AttributeError, RuntimeError)  # the last two from a socket closed under a write


class Subscriber:
    """Listens on channels, through outages, until cancelled.

    State: `_handlers`, channel → callbacks; `_confirmed`, the channels that the server has confirmed on the present
    connection; `_changed`, set when `_confirmed` grows; `_opened`, set while there is a connection; `_heard`, whether a
    message came since the last look.
    """

    def __init__(self, address: Address, reach: Reach | None = None) -> None:
        self._address = address
        self._reach = reach
        self._opened = asyncio.Event()
        self.on_lost: Callable[[], None] = lambda: None
        self._handlers: dict[str, tuple[Callable[[bytes], None], Callable[[], None]]] = {}
        self._confirmed: set[str] = set()
        self._changed = asyncio.Event()
        self._wire: Wire | None = None
        self._heard = False
        self._throttled = ThrottledLog(logger)

    @property
    def connected(self) -> bool:
        return self._wire is not None

    def abandon(self) -> None:
        """The loop of the connection was closed. Drop the connection."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abandon()

    async def listen(
        self, channel: str, handler: Callable[[bytes], None], on_confirmed: Callable[[], None] = lambda: None
    ) -> None:
        """Call `handler` with each message on `channel`.

        Args:
            on_confirmed: called each time the server has confirmed the subscription, now or on a later connection.
                Earlier messages may have been missed, later ones will be heard.
        """
        self._handlers[channel] = (handler, on_confirmed)
        if self._wire is not None:
            try:
                self._wire.send(("SUBSCRIBE", channel))
            except LOST as error:  # the next connection subscribes to all channels
                logger.debug("subscribing to %s: %s", channel, error)

    async def opened(self) -> None:
        """Wait until there is a connection to listen on."""
        await self._opened.wait()

    async def confirmed(self, *channels: str) -> None:
        """Wait until the server has confirmed `channels`. Messages after that are not missed."""
        while not self._confirmed.issuperset(channels):
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Connect, listen, and connect again, until cancelled."""
        pause = 0.05
        while True:
            wire = None
            try:
                wire = self._wire = await Wire.open(self._address.new_connection(), self._on_reply)
                if self._handlers:
                    wire.send(("SUBSCRIBE", *self._handlers))
                pause = 0.05
                self._opened.set()
                await self._watch(wire)
            except (*LOST, TimeoutError) as error:
                logger.debug("the subscriber lost its connection: %s", self._address.hidden(error))
                if self._reach is not None:
                    self._reach.failed()
            finally:
                self._wire = None
                self._opened.clear()
                self._confirmed.clear()
                if wire is not None:
                    await wire.close()
            self.on_lost()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _watch(self, wire: Wire) -> None:
        """Wait until the connection is lost, or does not answer a probe."""
        probed = False
        while True:
            self._heard = False
            await asyncio.wait([wire.gone], timeout=QUIET)
            if wire.lost:
                raise RedisConnectionError("the connection was lost")
            if self._heard:
                probed = False
            elif probed:
                raise TimeoutError("no answer to a probe")
            else:
                wire.send(("PING",))
                probed = True

    def _on_reply(self, reply: Any) -> None:
        self._heard = True
        if self._reach is not None:
            self._reach.answered()
        if not isinstance(reply, list) or len(reply) < 3 or not isinstance(reply[1], bytes):
            return
        kind, channel, body = reply[0], reply[1].decode(errors="replace"), reply[2]
        if kind == b"subscribe":
            self._confirmed.add(channel)
            self._changed.set()
        self._hand_over(kind, channel, body)

    def _hand_over(self, kind: bytes, channel: str, body: bytes) -> None:
        handler, on_confirmed = self._handlers.get(channel, (None, None))
        if handler is None or on_confirmed is None:
            return
        try:
            if kind == b"message":
                handler(body)
            elif kind == b"subscribe":
                on_confirmed()
        except Exception as error:  # any program may publish bad messages, a thousand times a second
            text = "a message on %s could not be handled and is left out: %s, in %.80r"
            self._throttled.error(channel, text, channel, said(error), body)
            logger.debug("a message on %s", channel, exc_info=True)

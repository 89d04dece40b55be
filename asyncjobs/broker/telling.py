"""Telling: events that processes publish while a viewer in another process asks for them."""

from __future__ import annotations

from collections.abc import Collection

from asyncjobs.broker.calling import RetryingCaller


class Telling(RetryingCaller):
    """The verbs of those who follow events, and of those who tell them."""

    async def ask_for_events(self, seconds: int, types: Collection[str]) -> None:
        """Ask every process to publish its events of those types, all for none, for that long."""
        await self._ask(("PUBLISH", self.channels.watch, " ".join((str(seconds), *sorted(types)))))

    async def tell_events(self, body: bytes) -> None:
        """Publish events to those who follow."""
        await self._ask(("PUBLISH", self.channels.events, body))

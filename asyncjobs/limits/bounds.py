"""Bounds: how many jobs may wait, as it was set for all groups of a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asyncjobs import clock
from asyncjobs.broker import AddCall, Broker
from asyncjobs.errors import BrokerError

FRESH: Final = 1.0  # seconds for which such a bound is not read again


class Bounds:
    """The settings of `max_waiting` for all groups of a name, each read when an add needs it, at most once a second.

    State: `_known`, name → the bound, and the instant at which it was read.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}

    async def laid_over(self, broker: Broker, calls: Sequence[AddCall]) -> list[AddCall]:
        """`calls` with the bounds of their names."""
        names = {call.place.name for call in calls if call.place.registry}
        if not names:
            return list(calls)
        for name in names:
            _, at = self._known.get(name, ("", float("-inf")))
            if clock.monotonic() - at > FRESH:
                try:
                    found = await broker.settings(broker.queue_keys(name, None))
                except BrokerError:
                    continue  # the add itself reports that error, with the ids of its jobs
                self._known[name] = (found.get("m", ""), clock.monotonic())
        return [
            call._replace(most=known) if call.place.registry and (known := self._most(call.place.name)) else call
            for call in calls
        ]

    def _most(self, name: str) -> str:
        return self._known[name][0] if name in self._known else ""

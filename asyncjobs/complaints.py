"""Complaints: what may happen a thousand times a second is said once every ten, with how often it happened."""

from __future__ import annotations

import logging
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.stack import say

INTERVAL: Final = 10.0
MOST_KINDS: Final = 1000
OTHERS: Final = ""  # the kind of all that come while there is no room for another kind


class Complaints:
    """A log that says each kind of thing once per `INTERVAL`, and no more than `MOST_KINDS` kinds in one.

    State: `_said`, kind → when it was last said, and how often it was held back since; `_full_until`, before which no
    kind can have become free to be forgotten.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: dict[str, tuple[float, int]] = {}
        self._full_until = float("-inf")

    def error(self, kind: str, message: str, *args: Any) -> None:
        self._say(logging.ERROR, kind, message, args)

    def warning(self, kind: str, message: str, *args: Any) -> None:
        self._say(logging.WARNING, kind, message, args)

    def _say(self, level: int, kind: str, message: str, args: tuple[Any, ...]) -> None:
        now = clock.monotonic()
        if kind not in self._said and len(self._said) >= MOST_KINDS:
            if now >= self._full_until:
                self._forget(now)
            if len(self._said) >= MOST_KINDS:
                kind = OTHERS
        at, held = self._said.get(kind, (float("-inf"), 0))
        if now - at < INTERVAL:
            self._said[kind] = (at, held + 1)
            return
        self._said[kind] = (now, 0)
        if held:
            message, args = message + " (and %d more like it)", (*args, held)
        say(self._logger, level, message, *args)

    def _forget(self, now: float) -> None:
        """Drop the kinds that may be said again anyway."""
        self._said = {kind: (at, held) for kind, (at, held) in self._said.items() if now - at < INTERVAL}
        self._full_until = min((at for at, _ in self._said.values()), default=now) + INTERVAL

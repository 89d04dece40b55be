"""Complaints: what may happen a thousand times a second is said once every ten, with how often it happened."""

from __future__ import annotations

import logging
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.stack import say

INTERVAL: Final = 10.0
MOST_KINDS: Final = 1000


class Complaints:
    """A log that says each kind of thing once per `INTERVAL`.

    State: `_said`, kind → when it was last said, and how often it was held back since.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: dict[str, tuple[float, int]] = {}

    def error(self, kind: str, message: str, *args: Any) -> None:
        self._say(logging.ERROR, kind, message, args)

    def warning(self, kind: str, message: str, *args: Any) -> None:
        self._say(logging.WARNING, kind, message, args)

    def _say(self, level: int, kind: str, message: str, args: tuple[Any, ...]) -> None:
        at, held = self._said.get(kind, (float("-inf"), 0))
        now = clock.monotonic()
        if now - at < INTERVAL:
            self._said[kind] = (at, held + 1)
            return
        if len(self._said) >= MOST_KINDS:
            self._said.clear()
        self._said[kind] = (now, 0)
        if held:
            message, args = message + " (and %d more like it)", (*args, held)
        say(self._logger, level, message, *args)

"""Reach: how long a server has not answered, so that no call waits for a server that is known to be down."""

from __future__ import annotations

from typing import Final

from asyncjobs import clock

PATIENCE: Final = 0.2  # seconds that a call waits for a server that is known to be down


class Reach:
    """Whether a server answers, by the experience of all connections of a process to it.

    State: `_failing_since`, the instant of the first failure since the last answer; None: the last call was answered.
    """

    __slots__ = ("_after", "_failing_since")

    def __init__(self, after: float) -> None:
        self._after = after
        self._failing_since: float | None = None

    def answered(self) -> None:
        self._failing_since = None

    def failed(self) -> None:
        if self._failing_since is None:
            self._failing_since = clock.monotonic()

    @property
    def failing(self) -> bool:
        return self._failing_since is not None

    @property
    def known_down(self) -> bool:
        """True if no call was answered for as long as a call waits. The next call tries once, and does not wait."""
        return self._failing_since is not None and clock.monotonic() - self._failing_since >= self._after

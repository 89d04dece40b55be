"""Asking for history: what `Queue` has of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncjobs.broker import Broker
from asyncjobs.broker.tallying import GROUPS_KEPT
from asyncjobs.declare.definition import NAME, JobSpec
from asyncjobs.declare.values import Seconds, shown, whole
from asyncjobs.errors import ConfigError
from asyncjobs.history.figures import Group, History, heaviest_of, history_of, span, tier_of
from asyncjobs.history.recorder import OTHERS


class PastFigures:
    """The part of `Queue` that tells what was counted."""

    def _running(self, what: str) -> Broker:
        """The broker, for the method `what` that was called."""
        raise NotImplementedError

    def spec(self, job: str | Callable[..., Any]) -> JobSpec:
        """The registered job called or handled by `job`."""
        raise NotImplementedError

    async def history(self, name: str | Callable[..., Any], range: str | Seconds = "3h") -> History:
        """What happened to the jobs of a name, over all processes: counts, and how long they waited and ran.

        Args:
            name: of a job, registered here or not, or its handler; ``"*other"`` for the names that have no history of
                their own, because a hundred others have more traffic.
            range: how far back: ``"15m"``, ``"3h"``, ``"48h"``, ``"30d"``, a timedelta, or seconds. Up to 3 hours it
                comes by the minute, up to 48 hours by ten minutes, up to 30 days by two hours.
        Raises:
            ConfigError: a range that is none, or longer than 30 days.
        """
        broker, known = self._running("history"), self._known(name)
        seconds = span(range)
        tier = tier_of(seconds, range)
        series = await broker.series(known, tier, -int(-seconds // (60 * tier)) + 1)
        return history_of(known, series, seconds, tier)

    async def heaviest(
        self, name: str | Callable[..., Any], range: str | Seconds = "15m", most: int = 20
    ) -> tuple[Group, ...]:
        """The groups that took the most of a name, the heaviest first: their starts, and how long they ran.

        Of each minute the 20 heaviest are kept, for an hour. What a group took in minutes in which it was none of them
        is not counted.

        Args:
            range: how far back, as for `history`, an hour at most.
        """
        broker, known = self._running("heaviest"), self._known(name)
        minutes = max(1, -int(-span(range) // 60))
        if minutes > GROUPS_KEPT:
            raise ConfigError(f"range={shown(range)}: the heaviest groups are kept for an hour")
        whole(most, "most", least=1)
        return heaviest_of(await broker.group_series(known, minutes + 1), minutes, most)

    def _known(self, name: Any) -> str:
        """The name that `name` means, whether it is registered here or not."""
        known = name if isinstance(name, str) else self.spec(name).name
        if known != OTHERS and not NAME.fullmatch(known):
            raise ConfigError(f"name={shown(name)}: no job can be called that")
        return known

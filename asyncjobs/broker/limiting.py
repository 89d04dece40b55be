"""Limits: tokens taken again, shared limits over many queues, and what was set of a queue at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import Keys, named_gate, total_gate

CHANGED: Final = -1  # in the place of the ms until due: something was set for all groups of a name
ROOM: Final = -2  # a shared limit that was full has room


class Limiting(RetryingCaller):
    """The verbs of whoever limits, and of whoever steers."""

    async def spend(self, keys: Keys, windows: str, margin: int, first_is_out: bool) -> float:
        """Take a token again for a start that comes later than its token allows for.

        Args:
            first_is_out: whether its first token cannot be back yet, so that its place in the window is kept.
        Returns:
            Seconds until one may be had; 0: taken.
        """
        first = "1" if first_is_out else ""
        wait = await self._ask(scripts.SPEND(keys.bucket, keys.settings, windows, margin, first), patient=True)
        return float(wait) / 1000

    @property
    def process_id(self) -> str:
        """This process, as long as it lives; its name among the living may change."""
        return self._process

    def shared_limit_keys(self, name: str, limiters: Sequence[str]) -> tuple[str, list[str]]:
        """The shared limit of all groups of a job name, and those of named limiters."""
        return total_gate(self.prefix, name), [named_gate(self.prefix, one) for one in limiters]

    async def admit(
        self,
        shared_limit: str,
        name: str,
        running: int,
        want: int,
        slots: int,
        lease: float,
        windows: str,
        margin: int,
        token: str,
        spare: int,
    ) -> tuple[int, float | None]:
        """Ask a shared limit; how many may start, and the seconds until more may. See ``lua/admit.lua``."""
        news = self.channels.news(name)
        asked = (shared_limit, self._process, running, want, slots, int(lease * 1000), windows, margin, token, spare)
        granted, wait = await self._ask(scripts.ADMIT(*asked, news, f"{ROOM}|"))
        return granted, None if wait < 0 else wait / 1000

    async def refund(self, shared_limit: str, name: str, token: str, granted: int, unused: int, windows: str) -> None:
        """Give tokens back that no job was found for; who was refused some hears of it."""
        news = self.channels.news(name)
        await self._ask(scripts.REFUND(shared_limit, token, granted, unused, windows, news, f"{ROOM}|"))

    async def settings(self, keys: Keys) -> dict[str, str]:
        """What was set of a queue at run time; see `keys.py` for the fields."""
        flat = await self._ask(("HGETALL", keys.settings))
        return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}

    async def steer(self, name: str, keys: Keys, fields: Mapping[str, str], whole_name: bool) -> None:
        """Change what is set of a queue, '' for not any more, and tell who serves it.

        `whole_name`: the settings are those of all groups of `name`, and `keys` are of no queue.
        """
        flat = [word for pair in fields.items() for word in pair]
        message = f"{CHANGED}|" if whole_name else f"0|{keys.group}"
        order = f"set|{name}|{keys.group}"
        await self._ask(
            scripts.STEER(keys.settings, self.channels.news(name), message, self.channels.orders, order, *flat)
        )

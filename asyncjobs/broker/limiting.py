"""Limits: second tokens for late starts, shared limits over many queues, and settings made at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import Keys, named_gate, total_gate

CHANGED: Final = -1  # in place of the ms until due: the settings for all groups of a name have changed
ROOM: Final = -2  # in place of the ms until due: a shared limit that was full has room


class Limiting(RetryingCaller):
    """The verbs of limits and of queue controls."""

    async def spend(self, keys: Keys, windows: str, margin: int, first_is_out: bool) -> float:
        """Take a token again for a start that comes later than its first token allows.

        Args:
            first_is_out: the first token cannot be back yet, so its place in the window is kept.
        Returns:
            Seconds until a token is free; 0: taken.
        """
        first = "1" if first_is_out else ""
        wait = await self._ask(scripts.SPEND(keys.bucket, keys.settings, windows, margin, first), patient=True)
        return float(wait) / 1000

    @property
    def process_id(self) -> str:
        """The name of this process for its whole life. Its name in the list of processes may change."""
        return self._process

    def shared_limit_keys(self, name: str, limiters: Sequence[str]) -> tuple[str, list[str]]:
        """The keys of the shared limit over all groups of a job name, and of the named limiters."""
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
        spare: Sequence[int],
    ) -> tuple[int, float | None]:
        """Ask a shared limit how many jobs may start, and after how many seconds more may. See ``lua/admit.lua``."""
        news = self.channels.news(name)
        left = " ".join(map(str, spare))
        asked = (shared_limit, self._process, running, want, slots, int(lease * 1000), windows, margin, token, left)
        granted, wait = await self._ask(scripts.ADMIT(*asked, news, f"{ROOM}|"))
        return granted, None if wait < 0 else wait / 1000

    async def refund(self, shared_limit: str, name: str, token: str, granted: int, unused: int, windows: str) -> None:
        """Give back tokens for which no job was found. Processes that were refused tokens hear of it."""
        news = self.channels.news(name)
        await self._ask(scripts.REFUND(shared_limit, token, granted, unused, windows, news, f"{ROOM}|"))

    async def settings(self, keys: Keys) -> dict[str, str]:
        """The settings of a queue that were made at run time. `keys.py` lists the fields."""
        flat = await self._ask(("HGETALL", keys.settings))
        return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}

    async def steer(self, name: str, keys: Keys, fields: Mapping[str, str], whole_name: bool) -> None:
        """Change settings of a queue, '' to remove one, and tell the processes that serve it.

        `whole_name`: the settings are for all groups of `name`, and `keys` belong to no queue.
        """
        flat = [word for pair in fields.items() for word in pair]
        message = f"{CHANGED}|" if whole_name else f"0|{keys.group}"
        order = f"set|{name}|{keys.group}"
        await self._ask(
            scripts.STEER(keys.settings, self.channels.news(name), message, self.channels.orders, order, *flat)
        )

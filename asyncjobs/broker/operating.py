"""Operating: acts on many jobs, kept in the store so that another process goes on where one has died."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import open_operations_key, operation_key, operations_key

KEPT: Final = 100  # operations, those that are under way and the last ones that have ended
RUNNING: Final = "running"


class Operating(RetryingCaller):
    """An operation is a hash of texts; what they say is known to `operate/operations.py`."""

    async def plan(self, operation_id: str, fields: Mapping[str, str | bytes]) -> None:
        """Keep a new operation, which nobody drives yet."""
        keys = operation_key(self.prefix, operation_id), open_operations_key(self.prefix), operations_key(self.prefix)
        prefix = operation_key(self.prefix, "")
        await self._ask(scripts.PLAN(*keys, operation_id, prefix, KEPT, *_flat(fields)))

    async def drive(
        self, operation_id: str, driver: str, lease: float, changes: Mapping[str, str | bytes]
    ) -> dict[str, str] | float | None:
        """Take an operation up, or keep how far its driver has come.

        Returns:
            All of it; or the seconds until it may be taken up, as another one drives it; None: there is none.
        """
        keys = operation_key(self.prefix, operation_id), open_operations_key(self.prefix)
        has, *rest = await self._ask(scripts.DRIVE(*keys, operation_id, driver, int(lease * 1000), *_flat(changes)))
        if has == 1:
            return _texts(rest)
        return float(rest[0]) / 1000 if has == 0 else None

    async def stop_operation(self, operation_id: str) -> bool:
        """Let its driver go no further; whether there is such an operation."""
        key = operation_key(self.prefix, operation_id)
        if not await self._ask(("EXISTS", key)):
            return False
        await self._ask(scripts.HALT(key, open_operations_key(self.prefix), operation_id))
        return True

    async def open_operations(self) -> list[str]:
        """Those that are under way and that nobody drives any more, at most `KEPT`."""
        now = await self._ask(("TIME",))
        ms = int(now[0]) * 1000 + int(now[1]) // 1000
        found = await self._ask(("ZRANGEBYSCORE", open_operations_key(self.prefix), "-inf", ms, "LIMIT", 0, KEPT))
        return [one.decode() for one in found]

    async def operations(self) -> list[tuple[str, dict[str, str]]]:
        """All that are kept, newest first."""
        ids = [one.decode() for one in await self._ask(("ZRANGE", operations_key(self.prefix), 0, -1))][::-1]
        found = [await self.operation(one) for one in ids]
        return [(one, fields) for one, fields in zip(ids, found, strict=True) if fields]

    async def operation(self, operation_id: str) -> dict[str, str]:
        """One of them; empty where there is none."""
        return _texts(await self._ask(("HGETALL", operation_key(self.prefix, operation_id))))


def _flat(fields: Mapping[str, str | bytes]) -> list[str | bytes]:
    return [word for pair in fields.items() for word in pair]


def _texts(flat: Any) -> dict[str, str]:
    pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
    return {field.decode(): value.decode(errors="replace") for field, value in pairs}

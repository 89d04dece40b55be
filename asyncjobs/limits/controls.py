"""QueueControls: settings of a queue that an operator makes while it runs. The store keeps them for all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from asyncjobs import clock
from asyncjobs.broker import AddCall, Broker
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import Limits, limiters
from asyncjobs.declare.queue_limits import NO_WINDOWS, windows_text
from asyncjobs.declare.values import UNSET, Unset, whole
from asyncjobs.errors import BrokerError, ConfigError, visible
from asyncjobs.job import counts_of
from asyncjobs.operate.preview import Preview, preview
from asyncjobs.operate.why import Place, Reason, why

FIELDS: Final = {"limiter": "w", "concurrency": "c", "weight": "g", "max_waiting": "m"}
HEAVIEST: Final = 1000
FRESH: Final = 1.0  # seconds for which a name's bound, once read, is not read again


class QueueControls:
    """One job name, or one group of it, as `queue.job(name)` and `queue.group(name, group_id)` return it."""

    def __init__(self, broker: Broker, spec: JobSpec, group_id: str | None) -> None:
        self._broker, self._spec, self.group_id = broker, spec, group_id
        self.name = spec.name
        self._keys = broker.queue_keys(spec.name, group_id)

    def __repr__(self) -> str:
        return f"<QueueControls {self.name}{'' if self.group_id is None else ' ' + visible(self.group_id)}>"

    async def set(
        self,
        *,
        limiter: Limits | Unset = UNSET,
        concurrency: int | Unset | None = UNSET,
        weight: int | Unset | None = UNSET,
        max_waiting: int | Unset | None = UNSET,
    ) -> None:
        """Lay settings over those of the code. Settings that are left out stay as they are.

        Args:
            limiter: one or several `Limiter`; None: no limiter.
            concurrency: most tries at once; None: the concurrency of the code.
            weight: from 1 to 1000, how many jobs the queue may start in its turn if the process has too few slots for
                all queues; None: 1.
            max_waiting: adds are refused while so many jobs wait or are delayed; None: no bound.
        Raises:
            ConfigError: a value is not allowed. No setting was changed.
        """
        fields: dict[str, str] = {}
        if not isinstance(limiter, Unset):
            made = limiters(limiter, "limiter")
            if any(one.name for one in made):
                raise ConfigError("limiter: a named one is shared by those whose code names it; it cannot be set here")
            fields["w"] = windows_text(made) or NO_WINDOWS
        for option, value, most in (
            ("concurrency", concurrency, None),
            ("weight", weight, HEAVIEST),
            ("max_waiting", max_waiting, None),
        ):
            if not isinstance(value, Unset):
                least = 0 if option == "max_waiting" else 1
                fields[FIELDS[option]] = "" if value is None else str(whole(value, option, least=least, most=most))
        if self._spec.ordered and fields.get("c", "1") not in ("", "1"):
            raise ConfigError(f"concurrency={concurrency!r}: {self.name} keeps its order, which needs concurrency 1")
        if not fields:
            raise ConfigError(f"set() was given nothing; it takes {', '.join(FIELDS)}")
        await self._steer(fields)

    async def clear(self) -> None:
        """Remove all settings, so that those of the code hold again. A pause and a hold end as well."""
        await self._steer(dict.fromkeys((*FIELDS.values(), "p", "h"), ""))
        if self._whole_name:
            await self.release()

    async def release(self) -> None:
        """End the hold of a handler that was rate limited, or of an `ordered` job that waits for its next try.

        The queue goes on at once in each process. Without a hold the call does nothing. For a grouped name the holds of
        all groups end.
        """
        if not self._whole_name:
            await self._steer({"h": ""})
            return
        async for held in self._broker.holds(self.name):
            queues = [self._broker.queue_keys(self.name, group_id) for group_id in held]
            await self._broker.loop.gather(self._broker.steer(self.name, keys, {"h": ""}, False) for keys in queues)

    async def pause(self) -> None:
        """Start no job any more, in any process. Running jobs go on, and added jobs wait."""
        await self._steer({"p": "1"})

    async def resume(self) -> None:
        """End a pause."""
        await self._steer({"p": ""})

    async def info(self) -> dict[str, Any]:
        """The present settings, and the counts of jobs.

        Returns:
            name, group_id, paused, limiter and concurrency (as set here, else None), weight, max_waiting, held_until
            (None unless a handler was rate limited or an ordered job waits for its next try; for all groups together
            the latest one), and the counts: waiting, active, delayed, completed, failed, and cancelled where any are.
        """
        found = await self._broker.settings(self._keys)
        if self._whole_name:
            counts = await self._broker.total_counts(self.name)
        else:
            counts = await self._broker.counts(self._keys)
        until = [int(found["h"])] if "h" in found else []
        if self._whole_name:
            async for holds in self._broker.holds(self.name):
                until += holds.values()
        held = clock.from_ms(max(until)) if until else None

        def number(field: str) -> int | None:
            return int(found[field]) if field in found else None

        return {
            "name": self.name,
            "group_id": self.group_id,
            "paused": "p" in found,
            "limiter": found.get("w"),
            "concurrency": number("c"),
            "weight": number("g") or 1,
            "max_waiting": number("m"),
            "held_until": held if held is not None and held > clock.now() else None,
            **counts_of(counts),
        }

    async def why(self) -> list[Reason]:
        """What holds back the next job of this queue, each reason with the command that lifts it; empty: nothing does.

        For a grouped name: what holds back all its groups together.
        """
        place = Place(self.name, self.group_id, self._keys)
        return await why(self._broker, place, self._spec, self._spec.grouped) or []

    async def preview(self, *, limiter: Limits | Unset = UNSET, concurrency: int | Unset | None = UNSET) -> Preview:
        """What `set` with these values would do: the rate, how long the backlog drains, or by how much it grows.

        Raises:
            ConfigError: a value that is not allowed, or a grouped name without a group.
        """
        return await preview(self._broker, self._spec, self.group_id, limiter, concurrency)

    @property
    def _whole_name(self) -> bool:
        """True if these controls are for all groups of a name."""
        return self._spec.grouped and self.group_id is None

    async def _steer(self, fields: dict[str, str]) -> None:
        await self._broker.steer(self.name, self._keys, fields, self._whole_name)


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

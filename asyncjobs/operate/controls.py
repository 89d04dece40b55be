"""QueueControls: settings of a queue that an operator makes while it runs. The store keeps them for all processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple

from asyncjobs import clock
from asyncjobs.broker import Broker
from asyncjobs.declare.definition import JobSpec, checked_name
from asyncjobs.declare.options import Limits, limiters
from asyncjobs.declare.queue_limits import NO_WINDOWS, windows_text
from asyncjobs.declare.values import UNSET, Seconds, Unset, flag, seconds, whole
from asyncjobs.errors import ConfigError, StateError, UnknownJobError, visible
from asyncjobs.job import counts_of
from asyncjobs.operate.acting import GOES_WITH, Done, DryRun
from asyncjobs.operate.preview import Preview, preview
from asyncjobs.operate.selection import Selection
from asyncjobs.operate.told import read_told
from asyncjobs.operate.why import Place, Reason, why
from asyncjobs.operator import AuditEntry, Operator, reason_text

FIELDS: Final = {"limiter": "w", "concurrency": "c", "weight": "g", "max_waiting": "m"}
HEAVIEST: Final = 1000


WORDS: Final = {**{code: word for word, code in FIELDS.items()}, "p": "paused", "h": "held_until"}
WAIT_FOR_CANCELLED: Final = 5.0  # seconds until jobs are deleted that have not ended although they were cancelled


class Shape(NamedTuple):
    """What the controls have to know of a job name; `spec`: None where it is not registered here."""

    name: str
    grouped: bool
    ordered: bool
    spec: JobSpec | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> Shape:
        return cls(spec.name, spec.grouped, spec.ordered, spec)


class QueueControls:
    """One job name, or one group of it, as `queue.job(name)` and `queue.group(name, group_id)` return it."""

    def __init__(
        self, broker: Broker, shape: Shape, group_id: str | None, operator: Operator, select: Callable[..., Selection]
    ) -> None:
        self._broker, self._shape, self.group_id = broker, shape, group_id
        self._operator, self._select = operator, select
        self.name = shape.name
        self._keys = broker.queue_keys(shape.name, group_id)

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
            weight: from 1 to 1000, the queue's share of the starts where there is too little for all queues; None: 1.
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
        if self._shape.ordered and fields.get("c", "1") not in ("", "1"):
            raise ConfigError(f"concurrency={concurrency!r}: {self.name} keeps its order, which needs concurrency 1")
        if not fields:
            raise ConfigError(f"set() was given nothing; it takes {', '.join(FIELDS)}")
        await self._steer("set", fields)

    async def clear(self) -> None:
        """Remove all settings, so that those of the code hold again. A pause and a hold end as well."""
        await self._steer("clear", dict.fromkeys((*FIELDS.values(), "p", "h"), ""))
        if self._whole_name:
            await self.release()

    async def release(self) -> None:
        """End the hold of a handler that was rate limited, or of an `ordered` job that waits for its next try.

        The queue goes on at once in each process. Without a hold the call does nothing. For a grouped name the holds of
        all groups end.
        """
        if not self._whole_name:
            await self._steer("release", {"h": ""})
            return
        await self._operator.write(self._broker, "release", {"name": self.name, "group_id": None})
        async for held in self._broker.holds(self.name):
            queues = [self._broker.queue_keys(self.name, group_id) for group_id in held]
            await self._broker.loop.gather(self._broker.steer(self.name, keys, {"h": ""}, False) for keys in queues)

    async def pause(self) -> None:
        """Start no job any more, in any process. Running jobs go on, and added jobs wait."""
        await self._steer("pause", {"p": "1"})

    async def resume(self) -> None:
        """End a pause."""
        await self._steer("resume", {"p": ""})

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
        return await why(self._broker, place, self._shape.spec, self._shape.grouped) or []

    async def preview(self, *, limiter: Limits | Unset = UNSET, concurrency: int | Unset | None = UNSET) -> Preview:
        """What `set` with these values would do: the rate, how long the backlog drains, or by how much it grows.

        Raises:
            ConfigError: a value that is not allowed, or a grouped name without a group.
        """
        if self._whole_name:
            raise ConfigError(
                f"{self.name} is a grouped job, and each group has a backlog of its own: preview one of them"
            )
        place = Place(self.name, self.group_id, self._keys)
        return await preview(self._broker, place, self._shape.spec, limiter, concurrency)

    @property
    def _whole_name(self) -> bool:
        """True if these controls are for all groups of a name."""
        return self._shape.grouped and self.group_id is None

    async def _steer(self, what: str, fields: Mapping[str, str]) -> None:
        """Change settings, once the audit trail has what they were and what they are to be."""
        found = await self._broker.settings(self._keys)
        before = {WORDS[code]: found.get(code, "") for code in fields}
        after = {WORDS[code]: value for code, value in fields.items()}
        if before != after:
            target = {"name": self.name, "group_id": self.group_id}
            await self._operator.write(self._broker, what, target, before=before, after=after)
        await self._broker.steer(self.name, self._keys, fields, self._whole_name)

    async def revert(self, entry: AuditEntry) -> None:
        """Set what `entry` of the audit trail has changed to what it was before.

        Raises:
            ConfigError: it is of another queue, or has changed no setting.
        """
        if (entry.target.get("name"), entry.target.get("group_id")) != (self.name, self.group_id):
            raise ConfigError(f"that entry of the audit trail is of another queue than {self!r}")
        codes = {word: code for code, word in WORDS.items()}
        fields = {codes[word]: str(value) for word, value in (entry.before or {}).items() if word in codes}
        if not fields:
            raise ConfigError(
                f"that entry of the audit trail, a {entry.what}, has changed no setting, so nothing can be reverted"
            )
        await self._steer("revert", fields)

    # Jobs of the queue ------------------------------------------------------------------------------------
    def select(self, state: str | Iterable[str] | None = None, **options: Any) -> Selection:
        """Jobs of this queue; see `Queue.select`."""
        return self._select(self.name, group_id=self.group_id, state=state, **options)

    async def drain(self, reason: str = "") -> Done:
        """Remove every waiting and delayed job. What runs goes on, and what is added meanwhile stays."""
        return await _done(self.select(["waiting", "delayed"]).remove(reason=reason))

    async def clean(self, state: str | Iterable[str], older_than: Seconds = 0, reason: str = "") -> Done:
        """Remove the jobs in one or several states, but none that runs.

        Args:
            older_than: seconds, or a timedelta, since they finished, came due or were added.
        """
        until = clock.now() - timedelta(seconds=seconds(older_than, "older_than"))
        return await _done(self.select(state, until=until).remove(reason=reason))

    async def cancel_all(self, reason: str = "") -> Done:
        """Cancel every job that has not finished."""
        return await _done(self.select(GOES_WITH["cancel"]).cancel(reason))

    async def obliterate(self, force: bool = False, reason: str = "") -> None:
        """Delete every job and all else that the store keeps of this queue; of a grouped name, of all its groups.

        It is paused first. Should this be interrupted, it stays paused, and a repeat goes on. A job that is added
        meanwhile stays, or goes as a whole.

        Args:
            force: cancel what runs, and delete it although it may not have ended.
        Raises:
            StateError: jobs run, and `force` is not given; nothing was deleted. Or some began while it was paused:
                these are left, and it stays paused.
        """
        reason, force = reason_text(reason), flag(force, "force")
        await self._refuse_running(force)
        paused = {"paused": (await self._broker.settings(self._keys)).get("p", "")}
        target = {"name": self.name, "group_id": self.group_id}
        await self._operator.write(
            self._broker, "obliterate", target, reason=reason, before=paused, after={"paused": "1"}
        )
        await self._broker.steer(self.name, self._keys, {"p": "1"}, self._whole_name)
        if force and await self._active():
            await self.cancel_all(reason)
            deadline = clock.monotonic() + WAIT_FOR_CANCELLED
            while await self._active() and clock.monotonic() < deadline:  # noqa: ASYNC110 - they run in any process
                await asyncio.sleep(0.05)
        await self._raze(reason, force)
        # Its processes hear that it is over.
        await self._broker.steer(self.name, self._keys, {"p": ""}, self._whole_name)

    async def _raze(self, reason: str, force: bool) -> None:
        """Delete jobs and settings, of the groups first. What has finished in groups leaves the listing as well."""
        ran = 0
        if self._whole_name:
            async for group_ids in self._broker.groups(self.name):
                queues = [self._broker.queue_keys(self.name, group_id) for group_id in group_ids]
                ran += sum(
                    await self._broker.loop.gather(self._broker.raze_group(self.name, keys, force) for keys in queues)
                )
        if self._shape.grouped:
            await _done(self.select(("completed", "failed", "cancelled")).remove(reason=reason))
        if self.group_id is not None:
            ran = await self._broker.raze_group(self.name, self._keys, force)
        elif not ran:
            ran = await self._broker.raze(self._keys, force)
        if ran:
            raise StateError(
                f"{ran} jobs of {self!r} began meanwhile, and are left: wait for them, and call this again"
            )
        if self._whole_name:
            await self._broker.raze_name(self.name)

    async def _refuse_running(self, force: bool) -> None:
        running = 0 if force else await self._active()
        if running:
            raise StateError(f"{running} jobs of {self!r} run; cancel_all() them and wait, or say force=True")

    async def _active(self) -> int:
        if self._whole_name:
            return (await self._broker.total_counts(self.name))[1]
        return (await self._broker.counts(self._keys))[1]


async def _done(act: Awaitable[Done | DryRun]) -> Done:
    """What an act has come to that was no dry run."""
    done = await act
    assert isinstance(done, Done)
    return done


async def shape_of(broker: Broker, specs: Mapping[str, JobSpec], name: str) -> Shape:
    """What is known of `name`, here or in the store.

    Raises:
        UnknownJobError: no process has ever registered it.
        ConfigError: it is no name.
    """
    if checked_name(name, "job") in specs:
        return Shape.of(specs[name])
    told = await broker.told_names()
    if name not in told:
        raise UnknownJobError(name, {*specs, *told})
    known = read_told(told[name])
    return Shape(name, known.grouped, known.ordered)

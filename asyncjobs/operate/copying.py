"""Copying: a new job that is made from one that is there, in whatever state, with changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import msgspec

from asyncjobs.broker import AddCall, Broker
from asyncjobs.declare import payload
from asyncjobs.declare.add_options import ADD_OPTIONS, AT_ONCE, due_of, group_of, group_text, id_text
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.options import JobOptions
from asyncjobs.declare.overrides import NO_OVERRIDES, Overrides
from asyncjobs.declare.values import UNSET, keywords, seconds
from asyncjobs.errors import JobGoneError, named
from asyncjobs.job import Job, new_id, read_job
from asyncjobs.limits.bounds import Bounds
from asyncjobs.operator import Operator


async def copy_of(
    broker: Broker, specs: Mapping[str, JobSpec], most: int, job: Job, changes: Mapping[str, Any]
) -> tuple[AddCall, str | None]:
    """The add of a copy of `job` as it stands in the store, and the group of the copy.

    Args:
        specs: name → registered job; a name that is not registered keeps its groups and its payload as they are.
        most: bytes of a payload that is among the `changes`.
    Raises:
        JobGoneError: the record of `job` is gone.
        ConfigError, PayloadError: a change that cannot be.
    """
    given = keywords(changes, ("data", "name", *ADD_OPTIONS), "a rerun")
    _, record = await broker.read(broker.queue_keys(job.name, job.group_id), job.id)
    if "d" not in record:
        raise JobGoneError(
            f"the record of {named(job.name, job.id, job.group_id)} is gone: it was removed, or is no longer kept"
        )
    name = given.pop("name", job.name)
    spec = specs.get(name)
    group, job_id, delay, at = (given.pop(option, None) for option in ADD_OPTIONS[:4])
    if group is None and (spec is None or spec.grouped):
        group = job.group_id
    group = group if spec is None else group_of(spec, group)
    raw = record["d"]
    if "data" in given:
        raw = (payload.Codec() if spec is None else spec.codec).encode(given.pop("data"), most)
    chosen = Overrides.of(given, JobOptions(**given)) if given else NO_OVERRIDES
    options = chosen.over(Overrides.decode(record.get("o", b"")))
    options = msgspec.structs.replace(options, n=(job.name, job.group_id, job.id))
    kind, when = AT_ONCE if delay is None and at is None else due_of(delay, at)
    identity = new_id() if job_id is None else id_text(job_id, "job_id")
    return AddCall(broker.place(name, group), identity, kind, when, raw, options.encode(), job_id is not None), group


class Copier:
    """Adds copies of jobs. `running`: the broker, while the runtime runs; `find`: the registered job that is meant."""

    def __init__(
        self,
        running: Callable[[str], Broker],
        specs: Mapping[str, JobSpec],
        find: Callable[[Any], JobSpec],
        bounds: Bounds,
        most: int,
    ) -> None:
        self._running, self._specs, self._find, self._bounds, self._most = running, specs, find, bounds, most

    async def copy(self, job: Job, changes: Mapping[str, Any], operator: Operator) -> Job:
        """Add a copy of `job`, with `changes`; see `copy_of`."""
        broker = self._running("rerun")
        if "name" in changes:
            changes = {**changes, "name": self._find(changes["name"]).name}
        call, group = await copy_of(broker, self._specs, self._most, job, changes)
        (reply,) = await broker.add(await self._bounds.laid_over(broker, [call]))
        name, keys = call.place.name, call.place.keys
        due, record = await broker.read(keys, call.job_id)
        known = record or {"d": call.data}
        copied = read_job(broker, self._specs.get(name), name, keys, group, call.job_id, due, known, operator=operator)
        copied.added = reply.added
        return copied

    def checked(self, name: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`changes` of a rerun of jobs called `name`, of several names for None, checked, and as plain JSON.

        Raises:
            UnknownJobError, PayloadError, ConfigError: a change that cannot be.
        """
        allowed = ("data", "name", *(one for one in ADD_OPTIONS if one != "job_id"))
        given = {key: one for key, one in keywords(changes, allowed, "a rerun of many").items() if one is not UNSET}
        checked: dict[str, Any] = {}
        if "name" in given:
            name = checked["name"] = self._find(given.pop("name")).name
        spec = None if name is None else self._specs.get(name)
        if "data" in given:
            codec = payload.Codec() if spec is None else spec.codec
            checked["data"] = msgspec.Raw(codec.encode(given.pop("data"), self._most))
        group, delay, at = (given.pop(option, None) for option in ("group_id", "delay", "at"))
        if group is not None:
            checked["group_id"] = group_text(group) if spec is None else group_of(spec, group)
        if delay is not None or at is not None:
            due_of(delay, at)
            checked |= {"at": at} if delay is None else {"delay": seconds(delay, "delay")}
        JobOptions(**given)
        return checked | {option: _plain(value) for option, value in given.items()}


def _plain(value: Any) -> Any:
    """The value of an option as JSON takes it."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value

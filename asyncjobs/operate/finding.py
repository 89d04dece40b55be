"""Finding: a job by its id alone, over all names and groups."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from asyncjobs import clock
from asyncjobs.broker import Broker, Keys
from asyncjobs.declare.definition import JobSpec
from asyncjobs.job import Job, read_job
from asyncjobs.operate.states import EVERY

READ_AT_ONCE: Final = 10  # jobs, whose records may be large
MOST_AT_ONCE: Final = 50_000  # listed jobs that are gone through without a pause
SOUGHT_AT_ONCE: Final = 2000  # queues, about 1 ms of server time

Owner: TypeAlias = tuple[str, str | None, Keys]  # a name, a group of it, and their keys


async def find(broker: Broker, specs: Mapping[str, JobSpec], job_id: str) -> list[Job]:
    """Every job with that id: by name, and those of groups by group id.

    Groups that were reaped keep what has finished: these are found by the listing of their name.
    """
    names = sorted({*specs, *await broker.told_names()})
    plain = [broker.queue_keys(name, None) for name in names]
    numbers = await broker.tally(plain, "groups")
    owners: list[Owner] = [(name, None, keys) for name, keys in zip(names, plain, strict=True)]
    for name, number in zip(names, numbers, strict=True):
        if number > 0:
            groups = await broker.group_ids(name, number)
            owners += [(name, group_id, broker.queue_keys(name, group_id)) for group_id in groups]
    found: list[Job] = []
    owners += await _reaped(broker, specs, names, owners, job_id)
    for start in range(0, len(owners), SOUGHT_AT_ONCE):
        some = owners[start : start + SOUGHT_AT_ONCE]
        there = {keys.tag for keys in await broker.seek([keys for _, _, keys in some], job_id)}
        left = [one for one in some if one[2].tag in there]
        for begin in range(0, len(left), READ_AT_ONCE):
            read = left[begin : begin + READ_AT_ONCE]
            records = await asyncio.gather(*(broker.read(keys, job_id) for _, _, keys in read))
            for (name, group_id, keys), (due, record) in zip(read, records, strict=True):
                if "d" in record:
                    found.append(read_job(broker, specs.get(name), name, keys, group_id, job_id, due, record))
    return found


async def _reaped(
    broker: Broker, specs: Mapping[str, JobSpec], names: Sequence[str], owners: Sequence[Owner], job_id: str
) -> list[Owner]:
    """The groups that are not among `owners` and have a finished job of that id."""
    known = {keys.tag for _, _, keys in owners}
    found: dict[str, Owner] = {}
    names = [name for name in names if name not in specs or specs[name].grouped]
    queues = [broker.queue_keys(name, None) for name in names]
    for state in EVERY:
        numbers = await broker.tally(queues, state.letter) if state.listed else []
        for name, number in zip(names, numbers, strict=False):
            if number <= 0:
                continue
            began = clock.monotonic()
            async for groups in broker.listed(name, state.suffix, job_id):
                for group_id in groups:
                    keys = broker.queue_keys(name, group_id)
                    if keys.tag not in known:
                        found[keys.tag] = (name, group_id, keys)
                if number > MOST_AT_ONCE:  # others want the store as well
                    await asyncio.sleep(clock.monotonic() - began)
                    began = clock.monotonic()
    return list(found.values())

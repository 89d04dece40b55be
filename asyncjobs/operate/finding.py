"""Finding: a job by its id alone, over all names and groups."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from asyncjobs.broker import Broker, Keys
from asyncjobs.declare.definition import JobSpec
from asyncjobs.job import Job, read_job

READ_AT_ONCE: Final = 10  # jobs, whose records may be large
SOUGHT_AT_ONCE: Final = 2000  # queues, about 1 ms of server time


async def find(broker: Broker, specs: Mapping[str, JobSpec], job_id: str) -> list[Job]:
    """Every job with that id: by name, and those of groups by group id.

    Groups that were reaped keep what has finished: these are found by the listing of their name.
    """
    names = sorted({*specs, *await broker.told_names()})
    plain = [broker.queue_keys(name, None) for name in names]
    numbers = await broker.tally(plain, "groups")
    owners: list[tuple[str, str | None, Keys]] = [(name, None, keys) for name, keys in zip(names, plain, strict=True)]
    for name, number in zip(names, numbers, strict=True):
        if number > 0:
            groups = await broker.group_ids(name, number)
            owners += [(name, group_id, broker.queue_keys(name, group_id)) for group_id in groups]
    found: list[Job] = []
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

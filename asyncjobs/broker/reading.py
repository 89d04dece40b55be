"""Reading: records, counts, groups and names in the store, and the news that a job has finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

import msgspec

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import (
    Keys,
    groups_key,
    index_keys,
    split_member,
    text_of,
)
from asyncjobs.broker.subscriber import Subscriber

INSPECTED: Final = 1000  # jobs of each kind in a queue


class Inspection(NamedTuple):
    """Where the jobs of a queue stand.

    Attributes:
        pending: the owner and the id of each pending job.
        records: id → state and token, of the jobs that have to run.
        counts: how many jobs wait, run and are delayed, as `count` counts them.
    """

    waiting: list[str]
    pending: list[tuple[str, str]]
    delayed: list[str]
    finished: list[str]
    records: dict[str, tuple[str, str]]
    counts: list[int]


class OtherShape(NamedTuple):
    """The jobs of a name that another release has added in the other shape: their number, and their groups."""

    jobs: int
    groups: list[str]


class Finish(NamedTuple):
    """The news that a watched job has finished: 'c' and its result, 'f' and its last error, or 'k' and its mark."""

    op: str
    body: bytes


class Reading(RetryingCaller):
    """The verbs that change nothing."""

    _scattered: bool  # a Cluster, where the groups of a name lie in different slots
    subscriber: Subscriber
    _watched: dict[str, list[asyncio.Future[Finish]]]  # key of a job → who waits for its end

    # Jobs -------------------------------------------------------------------------------------------------
    async def read(self, keys: Keys, job_id: str) -> tuple[float | None, dict[str, bytes]]:
        """The instant at which a job is due (ms; None unless delayed), and its record's fields (none: no such job)."""
        due, *rest = await self._ask(scripts.READ(keys.job(job_id), keys.delayed, job_id))
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return (float(due) if due else None), {key.decode(errors="replace"): value for key, value in pairs}

    async def watch(self, keys: Keys, job_id: str) -> Finish | None:
        """How a job has finished; None: it has not. Op 'x': there is no such job."""
        op, body = await self._ask(scripts.WATCH(keys.job(job_id)))
        return Finish(op.decode(), body) if op else None

    async def finished(self, keys: Keys, job_id: str, look_every: float) -> Finish:
        """Wait until a job finishes. The subscriber tells that, and this call looks every `look_every` seconds."""
        self._misc.check_loop()
        channel, key = self.channels.done, keys.job(job_id)
        future: asyncio.Future[Finish] = asyncio.get_running_loop().create_future()
        self._watched.setdefault(key, []).append(future)
        try:
            await self.subscriber.listen(channel, self._on_finish)
            while True:
                try:
                    async with asyncio.timeout(look_every):
                        await self.subscriber.confirmed(channel)
                except TimeoutError:
                    pass
                known = await self.watch(keys, job_id)
                if known is not None:
                    return future.result() if future.done() else known
                done, _ = await asyncio.wait([future], timeout=look_every)
                if done:
                    return future.result()
        finally:
            if future.done():
                future.exception()  # the runtime has stopped, and the caller gets another error for that
            futures = self._watched[key]
            futures.remove(future)
            if not futures:
                del self._watched[key]

    def _on_finish(self, message: bytes) -> None:
        key, op, body = msgspec.msgpack.decode(message, type=tuple[str, str, str])
        for future in self._watched.get(key, ()):
            if not future.done():
                future.set_result(Finish(op, body.encode()))

    # Queues -----------------------------------------------------------------------------------------------
    async def counts(self, keys: Keys) -> list[int]:
        """How many jobs of a queue are waiting, active, delayed, completed, failed, and cancelled where any are."""
        places = (keys.stream, keys.delayed, keys.completed, keys.failed, keys.cancelled)
        counts: list[int] = await self._ask(scripts.COUNT(*places))
        return counts

    async def stirring(self, queues: Sequence[Keys]) -> list[Keys]:
        """Those of `queues` that hold a waiting, active or delayed job."""
        return await self._holding([(one, (one.stream, one.delayed)) for one in queues])

    async def ended(self, queues: Sequence[Keys]) -> list[Keys]:
        """Those of `queues` that hold a finished job."""
        return await self._holding([(one, (one.completed, one.failed, one.cancelled)) for one in queues])

    async def _holding(self, queues: Sequence[tuple[Keys, tuple[str, ...]]]) -> list[Keys]:
        """The queues of which one of the keys exists. Except on a Cluster, one command tells if no key exists."""
        if self._scattered or len(queues) < 2:
            counts = await self.loop.gather(self._ask(("EXISTS", *keys)) for _, keys in queues)
            return [one for (one, _), count in zip(queues, counts, strict=True) if count]
        if not await self._ask(("EXISTS", *(key for _, keys in queues for key in keys))):
            return []
        middle = len(queues) // 2
        halves = await asyncio.gather(self._holding(queues[:middle]), self._holding(queues[middle:]))
        return [*halves[0], *halves[1]]

    async def total_counts(self, name: str) -> list[int]:
        """How many jobs of a name are in each state, over all its groups and without a group."""
        whole, groups = await asyncio.gather(
            self.counts(self.queue_keys(name, None)), self._ask(("ZCARD", groups_key(self.prefix, name)))
        )
        totals, kept = whole[:3], whole[3:]
        if not groups:
            return whole
        async for group_ids in self.groups(name):
            queues = (self.queue_keys(name, group_id) for group_id in group_ids)
            for counts in await self.loop.gather(self.counts(keys) for keys in queues):
                totals = [total + one for total, one in zip(totals, counts, strict=False)]
        return [*totals, *kept]

    async def holds(self, name: str) -> AsyncIterator[dict[str, int]]:
        """The held groups of a job name, each with the ms at which its hold ends, in pieces of a bounded size."""
        async for page in self.groups(name):
            keys = [self.queue_keys(name, group_id).settings for group_id in page]
            found = await self.loop.gather(self._ask(("HGET", one, "h")) for one in keys)
            yield {group_id: int(until) for group_id, until in zip(page, found, strict=True) if until}

    async def inspect(self, keys: Keys) -> Inspection:
        """Where the jobs of one queue stand at one instant, the first `INSPECTED` of each kind."""
        waiting, pending, delayed, records, finished, counts = await self._ask(
            scripts.INSPECT(
                keys.stream, keys.delayed, keys.completed, keys.failed, keys.cancelled, keys.jobs, INSPECTED
            )
        )
        flat, owned = _shown(records), _shown(pending)
        return Inspection(
            _shown(waiting),
            list(zip(owned[::2], owned[1::2], strict=True)),
            _shown(delayed),
            _shown(finished),
            {flat[i]: (flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)},
            counts,
        )

    # What there is ------- ---------------------------------------------------------------------------------

    async def groups(self, name: str) -> AsyncIterator[list[str]]:
        """The groups of a job name that are not reaped, in pieces of a bounded size."""
        cursor, seen = b"0", set()
        while True:
            cursor, rows = await self._ask(("ZSCAN", groups_key(self.prefix, name), cursor, "COUNT", 500))
            fresh = [row.decode() for row in rows[::2] if row not in seen]
            seen.update(rows[::2])
            if fresh:
                yield fresh
            if cursor == b"0":
                return

    async def other_shape(self, name: str, grouped: bool) -> OtherShape | None:
        """The jobs of `name` without a group if it has groups now, or with groups if it has none; None: no such job.

        Finished jobs count as well, because their retention differs. The first and the last listing tell of them.
        """
        if grouped:
            keys = self.queue_keys(name, None)
            left = (await self.counts(keys))[:3]
            return OtherShape(sum(left), []) if any(left) else None
        ends = [(key, n) for key in index_keys(self.prefix, name) for n in (0, -1)]
        groups, *listings = await asyncio.gather(
            self._ask(("ZCARD", groups_key(self.prefix, name))), *(self._ask(("ZRANGE", key, n, n)) for key, n in ends)
        )
        listed = any(split_member(text_of(member))[0] is not None for members in listings for member in members)
        if not groups:
            return OtherShape(0, []) if listed else None
        jobs, found = 0, []
        async for some in self.groups(name):
            queues = [self.queue_keys(name, group_id) for group_id in some]
            found += some
            counts = await asyncio.gather(*(self.counts(one) for one in queues))
            jobs += sum(sum(one[:3]) for one in counts)
        return OtherShape(jobs, found)


def _shown(texts: Sequence[bytes]) -> list[str]:
    return [one.decode(errors="replace") for one in texts]

"""Acting: what operators do to jobs that do not run: retry, promote, remove. Each reaches many jobs of one queue."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.keys import Keys, audit_key, groups_key, index_keys, index_member, total_gate

MOST_WINDOWS: Final = 10  # of one limit
MOST_AUDITED: Final = 10_000  # entries of the trail, give or take the last node
AT_ONCE: Final = 200  # jobs that one script deletes
ENTRIES_A_LOOK: Final = 5000  # of a stream, where a job's record does not say where the job waits
DONE: Final = "1"
DONE_BEFORE: Final = "2"  # by the same act, whose reply was lost, or whose process was
GONE: Final = "-"
WAITS_SOMEWHERE: Final = "l"


class Act(NamedTuple):
    """Something that is done to jobs. `id`: unique; a job is reached once by it. `entry`: what the record of each job
    tells of it: a JSON object, without its opening brace and its instant."""

    id: str
    entry: bytes


class Acting(RetryingCaller):
    """Each verb answers with one character a job: `DONE`, `DONE_BEFORE`, or the letter of the state that it was in."""

    _scattered: bool

    async def retry(self, name: str, keys: Keys, act: Act, job_ids: Sequence[str], reset: bool) -> str:
        """Failed and cancelled jobs of one queue wait again."""
        await self._register(name, keys)
        listed = await self._listings(name, keys, job_ids)
        _, answers = await self._ask(
            scripts.RETRY(
                keys.stream, keys.delayed, keys.failed, keys.cancelled, keys.jobs, self.channels.news(name), keys.group,
                act.id, act.entry, "1" if reset else "", *job_ids,
            )
        )  # fmt: skip
        await self._unlist(listed)
        return await self._reached(name, keys, answers.decode())

    async def promote(self, name: str, keys: Keys, act: Act, job_ids: Sequence[str]) -> str:
        """Delayed jobs of one queue wait from now on."""
        await self._register(name, keys)
        _, answers = await self._ask(
            scripts.PROMOTE(
                keys.stream, keys.delayed, keys.jobs, self.channels.news(name), keys.group, act.id, act.entry, *job_ids
            )
        )
        return await self._reached(name, keys, answers.decode())

    async def remove(self, name: str, keys: Keys, job_ids: Sequence[str]) -> str:
        """Jobs of one queue go, unless they run."""
        answers = await self._remove(name, keys, job_ids, {})
        lost = [job_id for job_id, answer in zip(job_ids, answers, strict=True) if answer == WAITS_SOMEWHERE]
        if not lost:
            return answers
        found = await self.locate(keys, lost)
        again = dict(zip(lost, await self._remove(name, keys, lost, found), strict=True))
        # One that was found nowhere has begun, or has lost its entry to an operator: then nothing of it would ever run.
        return "".join(
            again.get(job_id, answer).replace(WAITS_SOMEWHERE, "w")
            for job_id, answer in zip(job_ids, answers, strict=True)
        )

    async def _remove(self, name: str, keys: Keys, job_ids: Sequence[str], entries: dict[str, str]) -> str:
        jobs = [word for job_id in job_ids for word in (job_id, entries.get(job_id, ""))]
        sets = (keys.delayed, keys.completed, keys.failed, keys.cancelled)
        listed = await self._listings(name, keys, job_ids)
        _, answers = await self._ask(scripts.REMOVE(keys.stream, *sets, keys.jobs, self.channels.done, *jobs))
        await self._unlist(listed)
        if DONE.encode() in answers or GONE.encode() in answers:  # gone by this act, if its first reply was lost
            await self._looked_at(name, keys)
        return str(answers.decode())

    async def locate(self, keys: Keys, job_ids: Sequence[str]) -> dict[str, str]:
        """The stream entries of waiting jobs, by looking at all that wait, in pieces of a bounded size."""
        found: dict[str, str] = {}
        after = "-"
        while True:
            last, pairs = await self._ask(scripts.LOCATE(keys.stream, after, ENTRIES_A_LOOK, *job_ids))
            found |= {pairs[i].decode(): pairs[i + 1].decode() for i in range(0, len(pairs), 2)}
            if not last or len(found) == len(job_ids):
                return found
            after = f"({last.decode()}"

    # The audit trail --------------------------------------------------------------------------------------
    async def write_audit(self, fields: Mapping[str, str | bytes]) -> str:
        """Lengthen the trail by one entry, and return its id."""
        flat = [word for pair in fields.items() for word in pair]
        once = secrets.token_hex(8)
        return str((await self._ask(scripts.AUDIT(audit_key(self.prefix), MOST_AUDITED, once, *flat))).decode())

    async def read_audit(self, before: str, most: int) -> list[tuple[str, dict[str, str]]]:
        """The `most` entries of the trail that came before the entry `before`, '' for the last ones, newest first."""
        last = f"({before}" if before else "+"
        rows = await self._ask(("XREVRANGE", audit_key(self.prefix), last, "-", "COUNT", most))
        return [
            (entry.decode(), {_text(flat[i]): _text(flat[i + 1]) for i in range(0, len(flat), 2)})
            for entry, flat in rows
        ]

    async def read_audit_entry(self, entry: str) -> dict[str, str] | None:
        """One entry; None: there is none."""
        rows = await self._ask(("XRANGE", audit_key(self.prefix), entry, entry))
        return {_text(rows[0][1][i]): _text(rows[0][1][i + 1]) for i in range(0, len(rows[0][1]), 2)} if rows else None

    # All of a queue ---------------------------------------------------------------------------------------
    async def raze(self, keys: Keys, force: bool) -> int:
        """Delete the jobs of one queue, of those that run only if `force`, and its settings. What is added meanwhile
        stays, or goes as a whole.

        Returns:
            How many jobs ran and stay.
        """
        sets = (keys.delayed, keys.completed, keys.failed, keys.cancelled)
        place: tuple[bytes, ...] = (b"", b"", b"")
        more, ran = 1, 0
        while more:
            *where, more, some = await self._ask(
                scripts.RAZE(keys.stream, *sets, keys.jobs, self.channels.done, "1" if force else "", AT_ONCE, *place)
            )
            place, ran = tuple(where), ran + some
        if not ran:
            buckets = [keys.bucket, *(f"{keys.bucket}{n}" for n in range(1, MOST_WINDOWS))]
            await self._ask(("UNLINK", *buckets, keys.senders, keys.settings))
        return ran

    async def raze_group(self, name: str, keys: Keys, force: bool) -> int:
        """The same for a group, which is then no more registered, unless it has got work again."""
        groups = groups_key(self.prefix, name)
        score, _ = await self._ask(scripts.IDLE(groups, keys.group))
        ran = await self.raze(keys, force)
        if not ran and await self._ask(scripts.UNREGISTER(groups, keys.group, score)):
            added = await self.loop.gather(self._ask(("EXISTS", key)) for key in (keys.stream, keys.delayed))
            if any(added):
                await self._register(name, keys)
        return ran

    async def raze_name(self, name: str) -> None:
        """Delete the shared limit over all groups of a name."""
        gate = total_gate(self.prefix, name)
        await self._ask(("UNLINK", gate, *(f"{gate}:{n}" for n in range(1, MOST_WINDOWS))))

    async def _reached(self, name: str, keys: Keys, answers: str) -> str:
        """The same answers. A group that was registered and got no work is looked at, so that it is reaped."""
        if DONE not in answers and DONE_BEFORE not in answers:
            await self._looked_at(name, keys)
        return answers

    async def _looked_at(self, name: str, keys: Keys) -> None:
        """A group that may have lost its last job has its turn, so that it is reaped."""
        if keys.group:
            await self._ask(("PUBLISH", self.channels.news(name), f"0|{keys.group}"))

    async def _register(self, name: str, keys: Keys) -> None:
        """A group is registered before it gets work: the other way round, a crash would hide the work."""
        if keys.group:
            await self._ask(scripts.REGISTER(groups_key(self.prefix, name), keys.group))

    async def _listings(self, name: str, keys: Keys, job_ids: Sequence[str]) -> dict[str, list[str | bytes]]:
        """Where jobs of a group are listed under their name: listing → member, score, member, score, …"""
        if not keys.group:
            return {}
        members = [index_member(keys.group, job_id) for job_id in job_ids]
        indices = index_keys(self.prefix, name)
        found = await self.loop.gather(self._ask(("ZMSCORE", index, *members)) for index in indices)
        listed: dict[str, list[str | bytes]] = {}
        for index, scores in zip(indices, found, strict=True):
            pairs = zip(members, scores, strict=True)
            listed[index] = [one for member, score in pairs if score is not None for one in (member, score)]
        return listed

    async def _unlist(self, listed: dict[str, list[str | bytes]]) -> None:
        """Jobs of a group that are finished no more leave the listings of their name. What was listed anew stays."""
        for index, members in listed.items():
            if members:
                await self._ask(scripts.UNLIST(index, *members))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")

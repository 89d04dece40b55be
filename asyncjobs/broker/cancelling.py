"""Cancelling: jobs end before they have run, or while they run, from any process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from asyncjobs.broker import scripts
from asyncjobs.broker.acting import Acting
from asyncjobs.broker.keeping import Keeping
from asyncjobs.broker.keys import Keys, cancels_key, groups_key, index_keys, index_member
from asyncjobs.broker.working import Bounds, rule
from asyncjobs.errors import BrokerError

AT_ONCE: Final = 100  # jobs in one script, so that the store is not kept from others for long
REMEMBERED: Final = 3_600_000  # ms in which a process may hear of a cancel whose message it has missed
MOST_REMEMBERED: Final = 10_000
NO_BOUND: Final = ("", "")


class Mark(NamedTuple):
    """What is told of the cancel of a job that runs: which job, under which take, and the mark of its record."""

    name: str
    group: str
    job_id: str
    token: bytes
    mark: bytes


def read_mark(message: bytes) -> Mark:
    """What was told on the channel, or kept for those who missed it.

    Raises:
        msgspec.MsgspecError: it is none of ours.
    """
    name, group, job_id, token, mark = msgspec.msgpack.decode(message, type=tuple[str, str, str, str, str])
    return Mark(name, group, job_id, token.encode(), mark.encode())


class Target(NamedTuple):
    """The queue whose jobs are acted on, and what is kept of cancelled ones.

    Attributes:
        keep: how long a job is kept once it is cancelled, by the options of its record; as for 'f' in `Settlement`.
        bounds: of its name; None where that is not known here.
    """

    name: str
    keys: Keys
    keep: Callable[[bytes], str]
    bounds: Bounds | None


class Cancelling(Acting, Keeping):
    """The verb that cancels. It is idempotent, so it may be sent again.

    State: `_count_cancelled`, told a name and how many of its jobs were cancelled before they ran; None: nobody is.
    """

    _count_cancelled: Callable[[str, int], None] | None = None

    async def cancel(self, target: Target, job_ids: Sequence[str], mark: bytes) -> list[str]:
        """Cancel jobs of one queue.

        Returns:
            For each 'k' cancelled now · 'x' before · 'f' finished · 'g' gone · 'a' it runs, and its process is told.
        """
        answers: list[str] = []
        for start in range(0, len(job_ids), AT_ONCE):
            answers += await self._cancel_some(target, job_ids[start : start + AT_ONCE], mark)
        return answers

    async def _cancel_some(self, target: Target, job_ids: Sequence[str], mark: bytes) -> list[str]:
        keys = target.keys
        records = await self.loop.gather(self._glance(keys, job_id) for job_id in job_ids)
        keeps = {job_id: target.keep(one[1] or b"") for job_id, one in zip(job_ids, records, strict=True)}
        at_once = [job_id for job_id, (state, _, there) in zip(job_ids, records, strict=True) if there and state in NEW]
        listed = [job_id for job_id in at_once if keys.group and keeps[job_id] != "0"]
        listed_at = await self._list(target, listed)
        grouped = keys.group or await self._ask(("EXISTS", groups_key(self.prefix, target.name)))
        bounds = NO_BOUND if grouped or target.bounds is None else target.bounds[4:]
        answers: dict[str, str] = {}
        told: list[bytes] = []
        places = dict.fromkeys(job_ids, "")
        for seek in (True, False, False):
            flat = [one for job_id, place in places.items() for one in (job_id, place, keeps[job_id])]
            reply = await self._ask(
                scripts.CANCEL(
                    keys.stream, keys.delayed, keys.cancelled, keys.jobs, self.channels.cancels, self.channels.done,
                    target.name, keys.group, mark, *bounds, *flat,
                )
            )  # fmt: skip
            answers |= {job_id: one.decode() for job_id, one in zip(places, reply[::2], strict=True)}
            told += [one for one in reply[1::2] if one]
            missing = [job_id for job_id in places if answers[job_id] == "?"]
            if not missing:
                break
            # The entry of a job that has moved on meanwhile may be overlooked; it runs nothing, though.
            found = await self.locate(keys, missing) if seek else {}
            places = {job_id: found.get(job_id, "-") for job_id in missing}
        if told:
            await self._ask(scripts.REMIND(cancels_key(self.prefix), REMEMBERED, MOST_REMEMBERED, *told))
        await self._strike(target, listed_at, [job_id for job_id in listed if answers[job_id] in "fg"])
        ended = [job_id for job_id, answer in answers.items() if answer == "k"]
        if ended or "x" in answers.values():  # cancelled by this act, if its first reply was lost
            await self._looked_at(target.name, keys)
        if ended and self._count_cancelled is not None:
            self._count_cancelled(target.name, len(ended))
        await self._let_go(target, {keeps[job_id] for job_id in ended}, bool(grouped))
        return [answers[job_id] for job_id in job_ids]

    async def _glance(self, keys: Keys, job_id: str) -> tuple[bytes | None, bytes | None, bytes | None]:
        """State, options and ms of the add of a record; nothing where the key is of a foreign type."""
        try:
            state, options, added = await self._ask(("HMGET", keys.job(job_id), "x", "o", "t"))
        except BrokerError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return None, None, None
        return state, options, added

    # Jobs of groups are listed under their name, in another slot --------------------------------------------
    async def _list(self, target: Target, job_ids: Sequence[str]) -> int:
        """List jobs of a group as cancelled before they are: a listed job without a record is harmless.

        Returns:
            The ms of that.
        """
        if not job_ids:
            return 0
        group = target.keys.group
        places = (groups_key(self.prefix, target.name), *index_keys(self.prefix, target.name))
        flat = [one for job_id in job_ids for one in (group, "k", index_member(group, job_id))]
        return int((await self._ask(scripts.INDEX(*places, *[-1] * 6, *flat)))[2])

    async def _strike(self, target: Target, listed_at: int, job_ids: Sequence[str]) -> None:
        """They have finished otherwise, or are gone."""
        if job_ids:
            members = [index_member(target.keys.group, job_id) for job_id in job_ids]
            flat = [one for member in members for one in (member, str(listed_at))]
            await self._ask(scripts.UNLIST(index_keys(self.prefix, target.name)[2], *flat))

    async def _let_go(self, target: Target, keeps: set[str], grouped: bool) -> None:
        """Apply retention to what was cancelled, as far as the script has not."""
        rules = [rule("k", keep) for keep in keeps if len(keep) > 1]
        if target.keys.group and "" in keeps and target.bounds is not None:
            rules.append((-1, -1, -1, -1, *target.bounds[4:]))
        for one in rules:
            if target.keys.group:
                while await self.forget(await self.overflow(target.name, one)):
                    pass
            elif not grouped:
                await self.trim(target.keys, one)


NEW: Final = (None, b"w")  # states of a record whose job waits or is delayed

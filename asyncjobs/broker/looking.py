"""Looking: many jobs at a time, in order and by place, in pieces of a bounded size; nothing is changed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, NamedTuple

from asyncjobs.broker import scripts
from asyncjobs.broker.calling import RetryingCaller
from asyncjobs.broker.connection import BYTES_A_PIPELINE
from asyncjobs.broker.keys import Keys, groups_key, names_key, split_member, text_of

TALLIED_AT_ONCE: Final = 500  # queues, about 0.3 ms of server time
LISTED_AT_ONCE: Final = 20_000  # groups, about 2 ms
SCANNED_AT_ONCE: Final = 2000  # members of a listing, about 0.5 ms
GLOB: Final = re.compile(r"[\\*?\[\]^-]")
LAST_OF_MS: Final = "-18446744073709551615"  # behind the ms of an entry: none of that ms comes after it


class Place(NamedTuple):
    """What was looked at last: of a sorted set a score and a member, of a stream an entry; b"": the beginning."""

    at: bytes = b""
    member: bytes = b""


class Question(NamedTuple):
    """What is wanted of one queue.

    Attributes:
        state: as ``lua/page_sorted.lua`` and ``lua/page_entries.lua`` name it.
        suffix: of the key in which such jobs stand.
        whole: the records with all they hold, or only who the jobs are and when.
        filter: see ``lua/include/look.lua``.
        least, most: ms of the scores, or of the entries; None: no bound.
        looks, finds, size: how many are looked at, how many returned, and how many bytes read, at most.
    """

    state: str
    suffix: str
    whole: bool
    filter: bytes
    down: bool
    least: int | None
    most: int | None
    looks: int
    finds: int
    size: int = BYTES_A_PIPELINE


class Listed(NamedTuple):
    """A job where it is listed; `fields` of its record, flat, none where they were not asked for."""

    member: bytes
    at: bytes
    fields: list[bytes]


class Piece(NamedTuple):
    """What one look at a queue found.

    Attributes:
        looked: how many jobs were looked at; -1: an operator has made something else of the key.
        more: whether there is more behind `place`.
    """

    looked: int
    more: bool
    place: Place
    rows: list[Listed]


class Looking(RetryingCaller):
    """The verbs of whoever looks at many jobs, and of whoever leaves word of the names there are."""

    _scattered: bool  # a Cluster, where the groups of a name lie in different slots

    async def clock_ms(self) -> tuple[int, int]:
        """What the clock of the store says, and by how much the clocks of a Cluster's primaries differ, in ms."""
        keys = await self._misc.key_of_each(f"{{{self.prefix}:instant-%d}}")
        clocks: list[int] = await asyncio.gather(*(self._ask(scripts.INSTANT(key)) for key in keys))
        return max(clocks), max(clocks) - min(clocks)

    async def tell_names(self, names: Mapping[str, bytes]) -> None:
        """Leave it in the store which job names there are, and what is to be said of each."""
        await self._ask(("HSET", names_key(self.prefix), *(word for pair in names.items() for word in pair)))

    async def told_names(self) -> dict[str, bytes]:
        """Every job name that a process has left in the store, and what that said of it."""
        found = await self._ask(("HGETALL", names_key(self.prefix)))
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {name.decode(errors="replace"): about for name, about in pairs}

    async def group_ids(self, name: str, about: int) -> list[str]:
        """All groups of a job name that are not reaped, sorted; at one instant unless there are very many.

        Args:
            about: how many there are.
        """
        key = groups_key(self.prefix, name)
        found: set[bytes] = set()
        if about <= LISTED_AT_ONCE:
            found.update(await self._ask(("ZRANGE", key, 0, -1)))
        else:
            cursor = b"0"
            while True:
                cursor, rows = await self._ask(("ZSCAN", key, cursor, "COUNT", 5000))
                found.update(rows[::2])
                if cursor == b"0":
                    break
        return sorted(text for text in map(_text, found) if text is not None)

    async def tally(
        self, queues: Sequence[Keys], state: str, least: int | None = None, most: int | None = None
    ) -> list[int]:
        """How many jobs each of `queues` has in a state, of sorted sets those with a score from `least` to `most`; -1
        where an operator has made something else of the key."""
        about = (state, *_bounds(least, most), 0)
        replies = await self.loop.gather(
            self._ask(scripts.TALLY(f"{some[0].tag}:{state}", *about, *(one.tag for one in some)))
            for some in self._pieces(queues)
        )
        return [number for reply in replies for number in reply]

    async def first_tally(
        self, queues: Sequence[Keys], state: str, least: int | None, most: int | None, enough: int
    ) -> list[int]:
        """The same of the first queues that have `enough` jobs together, or of fifty that have any; at least of one."""
        if self._scattered:
            return await self.tally(queues, state, least, most)
        about = (state, *_bounds(least, most), enough)
        numbers: list[int] = await self._ask(
            scripts.TALLY(f"{queues[0].tag}:{state}", *about, *(one.tag for one in queues))
        )
        return numbers

    async def seek(self, queues: Sequence[Keys], job_id: str) -> list[Keys]:
        """Those of `queues` that have a job of that id."""
        calls = self._pieces(queues)
        replies = await self.loop.gather(
            self._ask(scripts.SEEK(some[0].job(job_id), job_id, *(one.tag for one in some))) for some in calls
        )
        return [some[place] for some, places in zip(calls, replies, strict=True) for place in places]

    async def listed(self, name: str, suffix: str, job_id: str) -> AsyncIterator[list[str]]:
        """The groups of a name that have a job of that id among those listed, in pieces; one may come twice."""
        key, cursor = f"{self.queue_keys(name, None).tag}:{suffix}", b"0"
        pattern = "*:*" + GLOB.sub(r"\\\g<0>", job_id)
        while True:
            cursor, rows = await self._ask(("ZSCAN", key, cursor, "MATCH", pattern, "COUNT", SCANNED_AT_ONCE))
            parted = (split_member(text_of(member)) for member in rows[::2])
            yield [group_id for group_id, listed in parted if group_id is not None and listed == job_id]
            if cursor == b"0":
                return

    async def page(self, keys: Keys, asked: Question, place: Place, listing: bool = False, one: bool = True) -> Piece:
        """The jobs of a queue that follow `place`; of a `listing` of many queues without their records.

        Args:
            one: the first job is brought even if its record is larger than `asked` allows for.
        """
        key = f"{keys.tag}:{asked.suffix}"
        packed = b"" if listing else asked.filter  # of a listing the records are looked into by `peek`
        common = (asked.state, "1" if asked.whole else "", packed, "1" if asked.down else "")
        bounds = (asked.looks, asked.looks if listing else asked.finds, asked.size, "1" if one else "")
        if asked.suffix == "s":
            least = "-" if asked.least is None else str(asked.least)
            most = "+" if asked.most is None else f"{asked.most}{LAST_OF_MS}"
            looked, more, entry, rows = await self._ask(
                scripts.PAGE_ENTRIES(key, keys.jobs, *common, place.at, least, most, *bounds)
            )
            found = Place(entry)
        else:
            least, most = _bounds(asked.least, asked.most)
            jobs = "" if listing else keys.jobs
            looked, more, score, member, rows = await self._ask(
                scripts.PAGE_SORTED(key, jobs, *common, place.at, place.member, least, most, *bounds)
            )
            found = Place(score, member)
        return Piece(looked, bool(more), found, [Listed(*row) for row in rows])

    async def peek(self, jobs: Sequence[tuple[Keys, str]], asked: Question, one: bool = True) -> list[list[bytes]]:
        """The fields of the records that `asked` wants, in order; fewer than asked for where they are large."""
        calls: list[list[str]] = []
        found: list[list[bytes]] = []
        tag = ""
        for keys, job_id in jobs:
            if not calls or (self._scattered and keys.tag != tag):
                calls.append([])
            calls[-1].append(keys.job(job_id))
            tag = keys.tag
        about = (asked.state, "1" if asked.whole else "", asked.filter, max(1, asked.size // max(1, len(calls))))
        replies = await self.loop.gather(
            self._ask(scripts.PEEK(some[0], *about, "" if i or not one else "1", *some)) for i, some in enumerate(calls)
        )
        for some, (looked, fields) in zip(calls, replies, strict=True):
            found += fields
            if looked < len(some):
                break
        return found

    def _pieces(self, queues: Sequence[Keys]) -> list[Sequence[Keys]]:
        """`queues` in pieces that one script may look at; in a Cluster each by itself, as their slots differ."""
        step = 1 if self._scattered else TALLIED_AT_ONCE
        return [queues[start : start + step] for start in range(0, len(queues), step)]


def _bounds(least: int | None, most: int | None) -> tuple[str, str]:
    """As commands on sorted sets take them."""
    return "-inf" if least is None else str(least), "+inf" if most is None else str(most)


def _text(raw: bytes) -> str | None:
    """A name or an id as text; None for what is no UTF-8, which nothing of ours is."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None

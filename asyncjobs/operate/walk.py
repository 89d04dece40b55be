"""The Walk: over the jobs of many queues in a documented order, a bounded piece at a time.

State by state, in the order of `operate/states.py`. Within a state name by name, sorted. Jobs that have finished are
walked by their instant; those of all groups of a name by that of their listing, which comes a moment before. Jobs that
wait, run or are delayed are walked group by group: those without a group first, then by group id, and within a group by
their place.

What had come to its state when the walk began is walked, and nothing that came later. So a job that goes on meanwhile
is met once or not at all, and one that stays is met once.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from asyncjobs.broker import Broker, Keys
from asyncjobs.broker.keys import split_member, text_of
from asyncjobs.broker.looking import Listed, Piece, Place, Question
from asyncjobs.declare.definition import JobSpec
from asyncjobs.errors import ConfigError, UnknownJobError
from asyncjobs.job import Job, read_job
from asyncjobs.job_record import number_of
from asyncjobs.operate.place import Cursor
from asyncjobs.operate.states import EVERY, State
from asyncjobs.operate.wanted import Wanted

LOOKS: Final = 500  # jobs at a time, if they have to be looked into
GROUPS_OF_A_CLUSTER: Final = 200  # the same, each by a call of its own
GROUPS_AT_ONCE: Final = 1000  # whose jobs are counted in one go, about 1 ms of server time
QUEUES_AT_ONCE: Final = 50  # that are looked at in one go, see also lua/tally.lua
MOST_UNREAD: Final = 20  # keys that are told of
NAMES_REMEMBERED: Final = 10  # with their groups
MOST_SKEW: Final = 1.0  # seconds by which clocks of a Cluster may differ


@dataclass(frozen=True, slots=True)
class Plan:
    """What is walked: of which names (all for None) and group (all for None), in which states, and what is wanted."""

    name: str | None
    group_id: str | None
    states: tuple[State, ...]
    wanted: Wanted
    newest_first: bool

    def words(self) -> str:
        """What is selected."""
        states = "all" if self.states == EVERY else " and ".join(one.name for one in self.states)
        what = f"{states} jobs of {self.name or 'all names'}"
        if self.group_id is not None:
            what += f" in group {self.group_id!r}"
        order = "newest" if self.newest_first else "oldest"
        return f"{what}{self.wanted.words()}, {order} first"


class Stop(NamedTuple):
    """One state of one job name.

    Attributes:
        number: how many there are, but for those of groups that have to be looked at one by one.
        groups: how many these are.
    """

    state: State
    name: str
    number: int
    groups: int


class Part(NamedTuple):
    """One queue, or the listing of all groups of a name, as it is asked."""

    stop: Stop
    keys: Keys
    group_id: str | None
    listing: bool
    asked: Question
    place: Place


class Walk:
    """State: `stops`, what there is to walk, and `_stop`, where in it the walk is; `_groups_of`, names by their
    groups; `_group` and `_place`, of what was looked at last; `_ran`, the jobs that were met running.

    Attributes:
        looked_at: how many jobs have been looked at.
        trips: how many round trips that took.
        unread: keys of which an operator has made something else.
    """

    def __init__(self, broker: Broker, specs: Mapping[str, JobSpec], plan: Plan, after: Cursor | None = None) -> None:
        self._broker, self._specs, self._plan = broker, specs, plan
        self._after = after
        self.begun_ms = after.begun_ms if after is not None else 0
        self.stops: list[Stop] = []
        self._stop = 0
        self._groups_of: dict[str, list[str | None]] = {}
        self._group: str | None = None
        self._place = Place()
        self._ran: set[tuple[str, str | None, str]] = set()
        self.looked_at = self.trips = 0
        self.unread: list[str] = []

    # Where it leads ---------------------------------------------------------------------------------------
    async def begin(self) -> None:
        """See what there is.

        Raises:
            UnknownJobError: no process has ever registered that name.
            ConfigError: the place to go on from is none of this walk's.
        """
        name = self._plan.name
        if name is not None and name in self._specs:
            (begun_ms, skew), _ = await asyncio.gather(self._broker.clock_ms(), self._lay_out([name]))
        else:
            (begun_ms, skew), told = await asyncio.gather(self._broker.clock_ms(), self._broker.told_names())
            self.trips += 1
            known = sorted({*self._specs, *told})
            if name is not None and name not in known:
                raise UnknownJobError(name, known)
            await self._lay_out(known if name is None else [name])
        if self._after is None:
            self.begun_ms = begun_ms
            # What comes from now on comes in a later ms than the walk began.
            await asyncio.sleep(min(skew / 1000, MOST_SKEW) + 0.001)
        else:
            self._go_to(self._after)

    async def _lay_out(self, names: Sequence[str]) -> None:
        plan = self._plan
        queues = [self._broker.queue_keys(name, plan.group_id) for name in names]
        tallies = await asyncio.gather(
            *(self._numbers(one, names, queues) for one in plan.states),
            *([self._broker.tally(queues, "groups")] if plan.group_id is None else []),
        )
        self.trips += 1
        groups = tallies[-1] if plan.group_id is None else [0] * len(names)
        for state, numbers in zip(plan.states, tallies, strict=False):
            for name, number, in_groups in zip(names, numbers, groups, strict=True):
                if number < 0:
                    self._cannot_read(state, name, plan.group_id)
                of_groups = 0 if state.listed else max(0, in_groups)
                if number > 0 or of_groups:
                    self.stops.append(Stop(state, name, max(0, number), of_groups))

    async def _numbers(self, state: State, names: Sequence[str], queues: Sequence[Keys]) -> list[int]:
        """How many jobs stand in a state under each name, and where they are listed how many may be wanted."""
        wanted = self._plan.wanted
        exact = self._broker.tally(queues, state.letter, *wanted.scores(state))
        if not wanted.timed or not state.listed:
            return await exact
        loose = self._broker.tally(queues, state.letter, *wanted.bounds(state, True))
        every = zip(names, await exact, await loose, strict=True)
        return [more if self._is_listing(state, name) else number for name, number, more in every]

    def _cannot_read(self, state: State, name: str, group_id: str | None) -> None:
        if len(self.unread) < MOST_UNREAD:
            where = name if group_id is None else f"{name} of {group_id!r}"
            self.unread.append(f"{state.name} jobs of {where}")

    def _go_to(self, after: Cursor) -> None:
        """Stand where another walk over the same has stopped."""
        order = {one.letter: i for i, one in enumerate(self._plan.states)}
        if after.state not in order or (self._plan.name is not None and after.name != self._plan.name):
            raise ConfigError("after: this is a place in another selection")
        target = (order[after.state], after.name)
        keys = [(order[one.state.letter], one.name) for one in self.stops]
        self._stop = bisect.bisect_left(keys, target)
        if self._stop < len(keys) and keys[self._stop] == target:
            self._group, self._place = after.group, after.place

    @property
    def done(self) -> bool:
        return self._stop >= len(self.stops)

    def cursor(self) -> Cursor | None:
        """Where to go on; None: there is no more."""
        if self.done:
            return None
        stop = self.stops[self._stop]
        return Cursor(self.begun_ms, stop.state.letter, stop.name, self._group, self._place.at, self._place.member)

    @property
    def tells_number(self) -> bool:
        """Whether the store knows how many jobs are wanted, without a look at each."""
        wanted = self._plan.wanted
        scored = all(one.state.scored and not self._is_listing(one.state, one.name) for one in self.stops)
        return not (wanted.searches or (wanted.timed and not scored))

    async def total(self) -> int:
        """How many jobs there are to look at, those of each group included."""
        number = sum(stop.number for stop in self.stops if not stop.groups)
        for stop in self.stops:
            if not stop.groups:
                continue
            groups = await self._queues_of(stop)
            for start in range(0, len(groups), GROUPS_AT_ONCE):
                some = [self._broker.queue_keys(stop.name, one) for one in groups[start : start + GROUPS_AT_ONCE]]
                numbers = await self._broker.tally(some, stop.state.letter, *self._plan.wanted.scores(stop.state))
                number += sum(max(0, one) for one in numbers)
        return number

    async def _queues_of(self, stop: Stop) -> list[str | None]:
        """The groups of a name as they were when they were first asked for, behind None for what has no group."""
        if stop.name not in self._groups_of:
            if len(self._groups_of) >= NAMES_REMEMBERED:
                self._groups_of.clear()
            self._groups_of[stop.name] = [None, *await self._broker.group_ids(stop.name, stop.groups)]
            self.trips += 1
        return self._groups_of[stop.name]

    @property
    def next_trips(self) -> int:
        """How many round trips the next piece takes at most."""
        if self.done:
            return 0
        stop = self.stops[self._stop]
        if not stop.groups:
            return 2 if stop.state.listed else 1
        return 2 if stop.name in self._groups_of else 3

    # One piece --------------------------------------------------------------------------------------------
    async def further(self, finds: int, whole: bool = True) -> list[Job]:
        """Look at one more piece; the jobs of it that are wanted, at most `finds`, and perhaps none."""
        if self.stops[self._stop].groups:
            return await self._groups(finds, whole)
        parts: list[Part] = []
        total = 0
        for stop in self.stops[self._stop : self._stop + QUEUES_AT_ONCE]:
            if stop.groups:
                break
            listing = self._is_listing(stop.state, stop.name)
            asked = self._question(stop.state, finds, whole, listing)
            keys = self._broker.queue_keys(stop.name, self._plan.group_id)
            place = Place() if parts else self._place
            parts.append(Part(stop, keys, self._plan.group_id, listing, asked, place))
            total += stop.number
            if total >= asked.looks:
                break
        jobs, unfinished = await self._look_at(parts, finds)
        if unfinished < len(parts):
            self._stop += unfinished
        else:
            self._next_stop(len(parts))
        return jobs

    async def _groups(self, finds: int, whole: bool) -> list[Job]:
        """The same of the next groups that have some."""
        stop = self.stops[self._stop]
        asked = self._question(stop.state, finds, whole)
        every = await self._queues_of(stop)
        first = 0 if self._group is None else bisect.bisect_left(every, self._group, lo=1)  # type: ignore[type-var]
        at_once = GROUPS_AT_ONCE if not self._broker.is_cluster else GROUPS_OF_A_CLUSTER
        window = every[first : first + at_once]
        if not window:
            self._next_stop(1)
            return []
        queues = [self._broker.queue_keys(stop.name, group_id) for group_id in window]
        bounds = self._plan.wanted.scores(stop.state)
        numbers = await self._broker.first_tally(queues, stop.state.letter, *bounds, asked.looks)
        self.trips += 1
        parts: list[Part] = []
        behind, total = len(numbers), 0
        for i, number in enumerate(numbers):
            if number < 0:
                self._cannot_read(stop.state, stop.name, window[i])
            if number > 0:
                place = self._place if i == 0 and window[0] == self._group else Place()
                parts.append(Part(stop, queues[i], window[i], False, asked, place))
                total += number
                if total >= asked.looks or len(parts) >= QUEUES_AT_ONCE:
                    behind = i + 1
                    break
        jobs, unfinished = await self._look_at(parts, finds)
        if unfinished < len(parts):
            self._group = parts[unfinished].group_id
        elif first + behind < len(every):
            self._group, self._place = every[first + behind], Place()
        else:
            self._next_stop(1)
        return jobs

    def _next_stop(self, further: int) -> None:
        self._stop += further
        self._group, self._place = None, Place()

    def _question(self, state: State, finds: int, whole: bool, listing: bool = False) -> Question:
        wanted = self._plan.wanted
        least, most = wanted.bounds(state, listing)
        if state.listed or state.letter == "w":
            most = self.begun_ms if most is None else min(most, self.begun_ms)
        packed = wanted.packed()
        looks = LOOKS if packed else finds
        return Question(state.letter, state.suffix, whole, packed, self._plan.newest_first, least, most, looks, finds)

    def _is_listing(self, state: State, name: str) -> bool:
        """Whether what stands there are jobs of all groups, whose records lie elsewhere."""
        has_groups = name not in self._specs or self._specs[name].grouped
        return self._plan.group_id is None and state.listed and has_groups

    async def _look_at(self, parts: Sequence[Part], finds: int) -> tuple[list[Job], int]:
        """What is wanted of `parts`, and the index of the one that is not finished, where `_place` then stands."""
        if not parts:
            return [], 0
        asked = [one.asked._replace(size=max(1, one.asked.size // len(parts))) for one in parts]
        pieces = await self._broker.loop.gather(
            self._broker.page(part.keys, question, part.place, part.listing, part is parts[0])
            for part, question in zip(parts, asked, strict=True)
        )
        self.trips += 1
        listings = [i for i, part in enumerate(parts) if part.listing and pieces[i].rows]
        if listings:
            peeked = await self._broker.loop.gather(
                self._peeked(parts[i], asked[i], pieces[i], i == 0) for i in listings
            )
            self.trips += 1
            for i, piece in zip(listings, peeked, strict=True):
                pieces[i] = piece
        jobs: list[Job] = []
        for i, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
            if piece.looked < 0:
                self._cannot_read(part.stop.state, part.stop.name, part.group_id)
                continue
            place = part.place
            for row in piece.rows:
                if len(jobs) >= finds:
                    self._place = place
                    return jobs, i
                place = Place(row.at, b"" if part.asked.suffix == "s" else row.member)
                job = self._job(part, row)
                if job is not None:
                    jobs.append(job)
            self.looked_at += piece.looked
            if piece.more:
                self._place = piece.place
                return jobs, i
        return jobs, len(parts)

    async def _peeked(self, part: Part, asked: Question, piece: Piece, one: bool) -> Piece:
        """A piece of a listing, with the records; it ends earlier where these are large."""
        jobs = []
        for row in piece.rows:
            group_id, job_id = split_member(text_of(row.member))
            # What is no UTF-8 is nothing of ours: no record is called so.
            keys = self._broker.queue_keys(part.stop.name, group_id)
            jobs.append((keys, job_id if isinstance(job_id, str) else ""))
        found = await self._broker.peek(jobs, asked, one)
        rows = [row._replace(fields=fields) for row, fields in zip(piece.rows, found, strict=False)]
        if len(rows) < len(piece.rows):
            place = Place(rows[-1].at, rows[-1].member) if rows else part.place
            piece = Piece(len(rows), True, place, rows)
        return piece._replace(rows=[row for row in rows if row.fields])

    def _job(self, part: Part, row: Listed) -> Job | None:
        """A job that is wanted, and that had come to its state when the walk began."""
        state, name = part.stop.state, part.stop.name
        group_id, job_id = part.group_id, text_of(row.member)
        if part.listing:
            group_id, job_id = split_member(job_id)
        if not isinstance(job_id, str):
            return None
        keys = part.keys if group_id == part.group_id else self._broker.queue_keys(name, group_id)
        pairs = zip(row.fields[::2], row.fields[1::2], strict=True)
        record = {field.decode(errors="replace"): value for field, value in pairs}
        due = float(row.at) if state.letter == "d" else None
        spec = self._specs.get(name)
        job = read_job(self._broker, spec, name, keys, group_id, job_id, due, record, state.name)
        return job if self._has_stayed(part, job, record) and self._plan.wanted.accepts(job, state, record) else None

    def _has_stayed(self, part: Part, job: Job, record: Mapping[str, bytes]) -> bool:
        """Whether a job was in its state when the walk began, for all that its record says."""
        state, me = part.stop.state, (job.name, job.group_id, job.id)
        # When a delayed job became one is written nowhere: it did so after it was added, and after it ran.
        since = {"a": "u", "w": "", "d": "ut"}.get(state.letter, "F")
        if any(number_of(record.get(field)) > self.begun_ms for field in since):
            return False
        if state.letter == "a" and len(self._plan.states) > 1:
            self._ran.add(me)
        return state.letter == "a" or not self._ran or me not in self._ran

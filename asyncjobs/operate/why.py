"""Why: what holds back a job, a queue or a whole name, each reason with the command that lifts it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

import msgspec

from asyncjobs import clock
from asyncjobs.broker import Broker, Explained, Gate, Keys, Service, Tokens
from asyncjobs.declare.definition import JobSpec
from asyncjobs.declare.queue_limits import QueueLimits
from asyncjobs.errors import BrokerUnavailableError, JobGoneError, named, visible
from asyncjobs.operate.told import Told, read_told, told_of

Code: TypeAlias = Literal[
    "not_due", "paused", "held", "rate_limited", "total_limit", "named_limit", "concurrency_full", "slots_busy",
    "no_consumer", "behind", "ordered_behind", "waiting_upstream", "suspect", "store_away",
]  # fmt: skip
CODES: Final[tuple[Code, ...]] = get_args(Code)  # in the order in which reasons are told
LEASE: Final = 30.0  # of a name that says none
SHOWN: Final = 3  # jobs that run, in a text


class Reason(msgspec.Struct, frozen=True):
    """One thing that holds a job back.

    Attributes:
        code: one of `CODES`. No job waits for others yet, so that ``waiting_upstream`` is never told.
        text: the same in words.
        until: when it ends by itself, as far as that is known.
        action: the line of the command line that lifts it.
    """

    code: Code
    text: str
    until: datetime | None = None
    action: str = ""


class Place(NamedTuple):
    """What is asked about: a name, or one group of it; and of that one job, or for '' the next one."""

    name: str
    group_id: str | None
    keys: Keys
    job_id: str = ""

    def command(self, verb: str, more: str = "") -> str:
        """A line of the command line about the queue."""
        who = ("queues", verb, self.name) if self.group_id is None else ("groups", verb, self.name, self.group_id)
        return " ".join(("asyncjobs", who[0], who[1], *map(quoted, who[2:]), *([more] if more else [])))

    def job_command(self, verb: str, job_id: str) -> str:
        """A line of the command line about a job of the queue."""
        group = [] if self.group_id is None else ["--group", quoted(self.group_id)]
        return " ".join(("asyncjobs", "jobs", verb, quoted(job_id), "--name", self.name, *group))

    @property
    def shown(self) -> str:
        """The queue as it is shown."""
        return self.name if self.group_id is None else f"{self.name} of {visible(self.group_id)}"


def quoted(text: str) -> str:
    """`text` as an argument of a shell; what is not printable is escaped the way that bash reads."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + repr(text)[1:-1].replace("'", "\\'").replace("\\\\'", "\\'") + "'"


class Known(NamedTuple):
    """What the store says of a queue: by the queue itself, by its name, and by the installation.

    Attributes:
        told: what holds by the code of the name.
        limits: what holds for the queue now.
        by_name: what was set for each group of the name.
        total: the limit over all groups.
    """

    queue: Explained | None
    service: Service
    told: Told
    limits: QueueLimits
    by_name: tuple[str, str, str]
    total: Gate | None


async def why(broker: Broker, place: Place, spec: JobSpec | None, grouped: bool) -> list[Reason] | None:
    """What holds back the job, in the order of `CODES`; empty: nothing does. None: there is no such job.

    Args:
        spec: what this process knows of the name; None: what others have left in the store holds.
        grouped: the name has groups; without one of them it is asked about all together.
    """
    try:
        known = await _look(broker, place, spec, grouped)
    except BrokerUnavailableError as error:
        return [Reason("store_away", f"the store does not answer: {error}", action="asyncjobs health")]
    if place.job_id and known.queue is not None and not known.queue.job_id:
        return None
    found = list(_reasons(known, place))
    return sorted(found, key=lambda one: CODES.index(one.code))


async def why_job(broker: Broker, place: Place, spec: JobSpec | None) -> list[Reason]:
    """The same of one job.

    Raises:
        JobGoneError: its record is gone.
    """
    found = await why(broker, place, spec, place.group_id is not None)
    if found is None:
        who = named(place.name, place.job_id, place.group_id)
        raise JobGoneError(f"the record of {who} is gone, so it waits no more")
    return found


async def _look(broker: Broker, place: Place, spec: JobSpec | None, grouped: bool) -> Known:
    """Three questions at the most, and none waits for another."""
    told = None if spec is None else told_of(spec)
    lease = LEASE if spec is None else spec.lease
    in_groups = grouped or place.group_id is not None
    whole = grouped and place.group_id is None
    nothing = ("", "", "")
    service, queue, by_name = await asyncio.gather(
        broker.explain_service(place.name, lease, None if told is None else list(told.named)),
        _nothing() if whole else broker.explain(place.keys, place.job_id),
        broker.explain_name(place.name, lease) if in_groups else _nothing(),
    )
    if told is None:
        told = read_told(service.told)
    settings, total = (nothing, None) if by_name is None else by_name
    limits = QueueLimits(told.windows, told.concurrency).laid_over(settings[0], settings[1], "", settings[2])
    if queue is not None:
        limits = limits.laid_over(queue.settings[0], queue.settings[1], "", queue.settings[2])
    return Known(queue, service, told, limits, settings, total)


async def _nothing() -> None:
    return None


def _reasons(known: Known, place: Place) -> Iterator[Reason]:
    """All that hold back, in no order."""
    queue = known.queue
    if queue is None:
        yield from _paused(known, place)
        yield from _shared(known, place)
        yield from _served(known, place)
        return
    if not queue.job_id or queue.state in ("c", "f", "k"):
        return
    suspect = queue.stalled >= (known.told.stalls or 2) and queue.unbegun
    if queue.state == "a":
        if suspect:
            yield Reason("suspect", _suspect(queue), action=place.job_command("cancel", queue.job_id))
        return
    if queue.due_ms is not None and queue.due_ms > queue.now_ms:
        due = clock.from_ms(queue.due_ms)
        if suspect:
            yield Reason("suspect", _suspect(queue), due, place.job_command("promote", queue.job_id))
        left = span((queue.due_ms - queue.now_ms) / 1000)
        yield Reason("not_due", f"it is due in {left}", due, place.job_command("promote", queue.job_id))
        yield from _paused(known, place)
        yield from _no_consumer(known.service, place)
        return
    yield from _paused(known, place)
    yield from _held(known, queue, place)
    yield from _limited(known, queue, place)
    yield from _shared(known, place)
    yield from _full(known, queue, place)
    yield from _served(known, place)
    yield from _behind(known, queue, place)


def _suspect(queue: Explained) -> str:
    return f"its process died {queue.stalled} times, so it waits to run beside no other such job"


def _paused(known: Known, place: Place) -> Iterator[Reason]:
    if known.queue is not None and known.queue.settings[2]:
        yield Reason("paused", f"{place.shown} is paused", action=place.command("resume"))
    if known.by_name[2]:
        whole = Place(place.name, None, place.keys)
        yield Reason("paused", f"{place.name} is paused, with all its groups", action=whole.command("resume"))


def _held(known: Known, queue: Explained, place: Place) -> Iterator[Reason]:
    if queue.held_ms is None or queue.held_ms <= queue.now_ms:
        return
    until, left = clock.from_ms(queue.held_ms), span((queue.held_ms - queue.now_ms) / 1000)
    failed = known.told.ordered and queue.head_id and queue.head_tries
    if failed and queue.head_id != queue.job_id:
        text = f"it keeps its order behind {visible(queue.head_id)}, which has failed and is tried again in {left}"
        yield Reason("ordered_behind", text, until, place.command("release"))
    elif failed:
        yield Reason("held", f"it has failed and is tried again in {left}", until, place.command("release"))
    else:
        text = f"a handler asked {place.shown} to rest for another {left}"
        yield Reason("held", text, until, place.command("release"))


def _limited(known: Known, queue: Explained, place: Place) -> Iterator[Reason]:
    windows = _windows(known.limits.windows)
    binding = _binding(windows, queue.tokens)
    if binding is None:
        return
    most, seconds, back_ms = binding
    text = f"{most} per {seconds:g} s; {_next_token(back_ms, queue.now_ms)}"
    yield Reason("rate_limited", text, _instant(back_ms), place.command("set", _more_starts(windows, most, seconds)))


def _more_starts(windows: Sequence[tuple[int, float]], most: int, seconds: float) -> str:
    """The limits again, and five times as many starts in the window that binds."""
    each = [(5 * n if (n, span_) == (most, seconds) else n, span_) for n, span_ in windows]
    return " ".join(f"--limit {n}/{span_:g}" for n, span_ in each)


def _shared(known: Known, place: Place) -> Iterator[Reason]:
    """What is full of the limits that hold over several queues."""
    now, told = known.service.now_ms, known.told
    if known.total is not None:
        binding = _binding(_windows(told.total_windows), known.total.tokens)
        if binding is not None:
            most, seconds, back = binding
            text = f"{most} per {seconds:g} s over all groups of {place.name}; {_next_token(back, now)}"
            yield Reason("total_limit", text, _instant(back), "asyncjobs limits")
        if told.total_concurrency is not None and known.total.running >= told.total_concurrency:
            text = f"{known.total.running} of {told.total_concurrency} run over all groups of {place.name}"
            yield Reason("total_limit", text, action="asyncjobs limits")
    for name, gate in known.service.gates.items():
        binding = _binding(_windows(told.named.get(name, "")), gate.tokens)
        if binding is not None:
            most, seconds, back = binding
            text = f"{most} per {seconds:g} s over all jobs that share {visible(name)!r}; {_next_token(back, now)}"
            yield Reason("named_limit", text, _instant(back), "asyncjobs limits")


def _full(known: Known, queue: Explained, place: Place) -> Iterator[Reason]:
    """All that may run of it does."""
    most, service = known.limits.concurrency, known.service
    if most is None:
        return
    everywhere = known.told.grouped or known.told.ordered  # counted over all processes
    slots = most if everywhere else most * service.consumers
    if queue.active < slots or not slots or (not everywhere and service.unsure):
        return
    some = ", ".join(map(visible, queue.running))
    more = f" and {queue.active - len(queue.running)} more" if queue.active > len(queue.running) else ""
    text = f"{queue.active} of {slots} of {place.shown} run: {some}{more}"
    if known.told.ordered and queue.running:
        yield Reason("concurrency_full", text, action=place.job_command("show", queue.running[0]))
    else:
        yield Reason("concurrency_full", text, action=place.command("set", f"--concurrency {2 * most}"))


def _served(known: Known, place: Place) -> Iterator[Reason]:
    """Whether a process runs it, and has a slot."""
    service = known.service
    yield from _no_consumer(service, place)
    full = [one for one in service.slots if one[1] and one[0] >= one[1]]
    if service.slots and len(full) == len(service.slots) == service.consumers and not service.unsure:
        slots = sum(one[1] for one in full)
        oldest = span(max(one[2] for one in full))
        processes = f"{len(full)} processes" if len(full) > 1 else "one process"
        text = f"all {slots} slots of {processes} were in use at the last heartbeat, at most {oldest} ago"
        yield Reason("slots_busy", text, action="asyncjobs run")


def _no_consumer(service: Service, place: Place) -> Iterator[Reason]:
    if service.consumers or service.unsure:
        return
    if service.draining:
        one = service.draining[0]
        text = f"every process that runs {place.name} was asked to take nothing more"
        yield Reason("no_consumer", text, action=f"asyncjobs processes resume {quoted(one)}")
    else:
        yield Reason("no_consumer", f"no living process runs {place.name}", action="asyncjobs run")


def _behind(known: Known, queue: Explained, place: Place) -> Iterator[Reason]:
    """What stands in front of it."""
    front = queue.waiting if queue.due_ms is not None else queue.in_front
    if not place.job_id or not front:
        return
    many = f"{front:,}" if queue.exact else f"more than {front:,}"
    text, until = f"{many} {'job' if front == 1 else 'jobs'} of {place.shown} in front of it", None
    action = place.command("set", f"--concurrency {2 * (known.limits.concurrency or 1)}")
    if known.told.ordered:
        action = place.job_command("show", queue.head_id or (queue.running or [queue.job_id])[0])
    windows = _windows(known.limits.windows)
    if windows:
        most, seconds = min(windows, key=lambda one: one[0] / one[1])
        until = clock.from_ms(queue.now_ms) + timedelta(seconds=front * seconds / most) if queue.exact else None
        about = "about" if queue.exact else "more than"
        text += f"; at {most} per {seconds:g} s it starts in {about} {span(front * seconds / most)}"
        action = place.command("set", _more_starts(windows, most, seconds))
    yield Reason("behind", text, until, action)


# Limits ---------------------------------------------------------------------------------------------------------
def _windows(text: str) -> list[tuple[int, float]]:
    """Starts and seconds of each window; nothing where that cannot be read."""
    found = []
    for one in text.split() if len(text) > 2 else ():
        most, _, micros = one.partition(":")
        if not (most.isdigit() and micros.isdigit()):
            return []
        found.append((int(most), int(micros) / 1e6))
    return found


def _binding(windows: Sequence[tuple[int, float]], tokens: Sequence[Tokens]) -> tuple[int, float, float] | None:
    """The window that is full for longest: its starts, its seconds, and when its next token is back, in ms."""
    full = [
        (window, one.back_ms)
        for window, one in zip(windows, tokens, strict=False)
        if one.out >= window[0] and one.back_ms is not None
    ]
    if not full:
        return None
    (most, seconds), back = max(full, key=lambda one: one[1])
    return most, seconds, back


def _next_token(back_ms: float, now_ms: float) -> str:
    return f"the next token is back in {span((back_ms - now_ms) / 1000)}"


def _instant(ms: float) -> datetime:
    return clock.from_ms(ms)


def span(seconds: float) -> str:
    """A time in words: ``0.6 s``, ``3 min 31 s``, ``2 h 22 min``, ``4 d 3 h``."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))} ms" if seconds < 0.1 else f"{seconds:.1f} s"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        whole, rest = divmod(round(seconds / smaller), size // smaller)
        if whole:
            return f"{whole} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{seconds:g} s"

"""Run the example: add its work, print the events, count them, and compare the counts with the expectations."""

from __future__ import annotations

import asyncio
import csv
import logging
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.text import Text

from asyncjobs import terminal
from asyncjobs.demo.services import SYMBOLS, Services, open_services
from asyncjobs.errors import JobFailedError
from asyncjobs.events import Event
from asyncjobs.job import Job
from asyncjobs.runtime import Runtime

HERE: Final = Path(__file__).parent
TIME_LIMIT: Final = 50.0
MAILS, REFUSED, INVOICES, AFFILIATES, ITEMS = 20, 3, 9, 4, 10
COMPANIES: Final = {"acme": 6, "globex": 3, "initech": 1}
REMIND_AFTER: Final = 4.0
STYLES: Final = {"completed": "green", "failed": "red", "retrying": "yellow", "fired": "cyan", "stalled": "red"}


class Expectation(NamedTuple):
    what: str
    expected: str
    counted: Any
    met: bool


class Screen:
    """Prints each event at once, and live updates as a browser would get them."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._began = time.monotonic()
        self.updates: Counter[str] = Counter()
        self.events: Counter[str] = Counter()

    def line(self, style: str, text: str) -> None:
        stamp = f"{time.monotonic() - self._began:6.2f} s  "
        self._out.print(Text.assemble((stamp, "dim"), (text, style)))

    def on_event(self, event: Event) -> None:
        self.events[event.type] += 1
        if event.type in ("job.added", "job.active"):
            return
        verb = event.type.partition(".")[2]
        who = event.name if event.group_id is None else f"{event.name}-{event.group_id}"
        more = "" if event.error is None else f"  {event.error}"
        if event.type == "job.progress":
            more = f"  {event.data} %"
        self.line(STYLES.get(verb, "default"), f"{verb:<10} {who}{more}")

    async def emit(self, event: str, data: Any, room: str | None = None, **_: Any) -> None:
        """Print a live update. In an app, a `socketio.AsyncServer` would send it."""
        self.updates[event] += 1
        self.line("magenta", f"io → {room}: {event} {data}")


async def run() -> int:
    """Run the whole demonstration. Returns 0 if all expectations were met."""
    out = terminal.console()
    out.print("asyncjobs demo: an example project on an embedded store of its own\n", style="bold")
    screen = Screen(out)
    logging.getLogger("asyncjobs").addHandler(logging.NullHandler())  # every failure is on the screen already
    began = time.monotonic()
    kept: list[Services] = []
    with _store() as folder:
        runtime = Runtime(
            jobs=HERE / "jobs",
            tasks=HERE / "tasks",
            services=_keeping(kept),
            io=screen,
            environment="development",
            data_dir=folder,
            redis=None,
        )
        runtime.on("*", screen.on_event)
        async with runtime:
            jobs = await _add_work(runtime)
            await runtime.wait_idle(TIME_LIMIT)
            failed = await _outcome(jobs["charge"])
            batch = await jobs["batch"].wait(1)
            counts = {name: await runtime.queue.counts(name) for name in runtime.queue.names}
            await _all_reaped(runtime)
            groups = await runtime.queue.groups("sync-data")
    expectations = list(_check(kept[0], screen, counts, failed, batch, groups, time.monotonic() - began))
    return _report(out, expectations, counts)


@contextmanager
def _store() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="asyncjobs-demo-", ignore_cleanup_errors=True) as folder:
        yield f"{folder}/store"


def _keeping(kept: list[Services]) -> Any:
    """A factory of services that also puts them into `kept`, for the summary."""

    @asynccontextmanager
    async def factory() -> AsyncIterator[Services]:
        async with open_services() as made:
            kept.append(made)
            yield made

    return factory


async def _add_work(runtime: Runtime) -> dict[str, Job]:
    queue = runtime.queue
    await queue.add_bulk(
        [("send-mail", {"to": f"user{i}@example.org", "refused_once": i < REFUSED}) for i in range(MAILS)]
    )
    await queue.add("import-symbols", {"user": "ana"})
    for number in range(1, INVOICES + 1):
        await queue.add("product-invoice-transmit", {"number": number, "company": "acme", "total": 99.5 * number})
    for i in range(AFFILIATES):
        await queue.add("affiliate-register", {"affiliate": f"affiliate-{i}"})
    for company, syncs in COMPANIES.items():
        for _ in range(syncs):
            await queue.add("sync-data", {"company": company}, group_id=company)
    await queue.add("remind", {"user": "ana", "text": "tea is ready"}, delay=REMIND_AFTER)
    return {
        "batch": await queue.add("send-batch", {"items": list(range(ITEMS))}),
        "charge": await queue.add("charge-card", {"card": "expired"}),
    }


async def _all_reaped(runtime: Runtime) -> None:
    """Wait until no group of the sync is open any more."""
    deadline = time.monotonic() + TIME_LIMIT
    while runtime.health()["groups"]["sync-data"] and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def _outcome(job: Job) -> str:
    try:
        return f"completed: {await job.wait(1)}"
    except JobFailedError as error:
        return error.reason


def most_in_window(starts: list[float], window: float) -> int:
    """The most starts in any half-open window of `window` seconds."""
    starts = sorted(starts)
    most = low = 0
    for high, start in enumerate(starts):
        while start - starts[low] >= window:
            low += 1
        most = max(most, high - low + 1)
    return most


def _check(
    services: Services,
    screen: Screen,
    counts: dict[str, dict[str, int]],
    failed: str,
    batch: Any,
    groups: list[str],
    took: float,
) -> Iterator[Expectation]:
    def exactly(what: str, expected: Any, counted: Any) -> Expectation:
        return Expectation(what, str(expected), counted, counted == expected)

    def at_most(what: str, most: float, counted: float) -> Expectation:
        return Expectation(what, f"≤ {most:g}", counted, counted <= most)

    done, starts = services.done, services.starts
    with SYMBOLS.open(encoding="utf-8", newline="") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    rejected = sum(1 for number in range(1, INVOICES + 1) if number % 3 == 0)
    syncs = sum(COMPANIES.values())
    yield exactly("mails sent", MAILS, done["mail"])
    yield exactly("mails tried, with retries", MAILS + REFUSED, len(starts["mail"]))
    yield at_most("mails in any 1 s", 5, most_in_window(starts["mail"], 1.0))
    yield exactly("rows imported", rows, len(services.catalogue))
    yield exactly("progress reports", 10, screen.events["job.progress"])
    yield exactly("live updates of the import", 10, screen.updates["import.progress"])
    yield exactly(
        "invoices transmitted → answered", (INVOICES, INVOICES), (done["invoice transmitted"], done["invoice answered"])
    )
    yield exactly("invoices cancelled", rejected, done["invoice cancelled"])
    yield exactly(
        "affiliates registered → paid", (AFFILIATES, AFFILIATES), (done["affiliate registered"], done["affiliate paid"])
    )
    yield exactly("company syncs", syncs, done["sync"])
    for company in COMPANIES:
        yield at_most(f"syncs of {company} in any 1 s", 1, most_in_window(starts[f"sync {company}"], 1.0))
    together = max(map(max, (starts[f"sync {one}"] for one in COMPANIES))) - min(starts["sync acme"])
    yield at_most("seconds for all companies, side by side", max(COMPANIES.values()) + 0.5, round(together, 2))
    yield exactly("groups left when idle", [], groups)
    yield exactly("batch items, second try only the rest", (ITEMS, 2), (done["batch items"], batch["tries"]))
    yield exactly("tries of the expired card", 1, done["charge tried"])
    yield exactly("why it failed for good", "ValueError: the card has expired", failed)
    late = [round(one, 2) for one in starts["reminder"]]
    yield Expectation("reminder after (s)", f"≥ {REMIND_AFTER:g}", late, len(late) == 1 and late[0] >= REMIND_AFTER)
    # The first and the last even second may fall just outside.
    ticks = int(took / 2)
    counted = done["poll ticked"]
    yield Expectation("ticks of poll-invoice-status", f"{ticks} ± 1", counted, abs(counted - ticks) <= 1)
    yield exactly("ticks of a production task", 0, done["rates ticked"])
    left = sum(one[state] for one in counts.values() for state in ("waiting", "active", "delayed"))
    yield exactly("jobs left over", 0, left)
    yield at_most("seconds in all", 60, round(took, 1))


def _report(out: Console, expectations: list[Expectation], counts: dict[str, dict[str, int]]) -> int:
    out.print()
    rows = [(name, one["completed"], one["failed"]) for name, one in counts.items()]
    out.print(terminal.table("jobs", ("name", "completed", "failed"), rows, numbers=("completed", "failed")))
    out.print()
    table = [(one.what, one.expected, one.counted, "ok" if one.met else "NOT MET") for one in expectations]
    out.print(terminal.table("expectations", ("what", "expected", "counted", ""), table))
    missed = [one for one in expectations if not one.met]
    if missed:
        out.print(f"\n{len(missed)} of {len(expectations)} expectations were not met", style="bold red")
        return 1
    out.print(f"\nall {len(expectations)} expectations met", style="bold green")
    return 0

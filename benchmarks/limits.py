"""Limits: exact in every window, and how near the allowed rate the starts come, over one, two and four processes.

    python -m benchmarks.limits [--processes N …] [--seconds N] [--kills N] [--server memory|embedded|URL]
                                [--quick] [--json]

Each process notes the monotonic instant of every start, which is one clock for the whole machine. With `--kills`
processes are killed and replaced while it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncjobs import Limiter, Runtime
from asyncjobs.cli.project import run_loop
from asyncjobs.demo.show import most_in_window
from benchmarks import machine

KINDS: dict[str, dict[str, Any]] = {
    "100 per 1 s": {"limiter": Limiter(100, 1)},
    "10 per 0.1 s and 60 per 1 s": {"limiter": [Limiter(10, 0.1), Limiter(60, 1)]},
    "all groups together 100 per 1 s": {"limiter": None, "group": True, "total_limiter": Limiter(100, 1)},
    "two jobs share 100 per 1 s": {"limiter": Limiter(100, 1, name="shared")},
}


def windows(kind: str) -> list[tuple[int, float]]:
    """(most, seconds) of each window of a kind."""
    options = KINDS[kind]
    given = options.get("total_limiter") or options["limiter"]
    return [(one.max, float(one.duration)) for one in (given if isinstance(given, list) else [given])]


def rate(kind: str) -> float:
    """Starts per second that a kind allows."""
    return min(most / seconds for most, seconds in windows(kind))


def make_runtime(url: str, kind: str, notes: Path | None) -> Runtime:
    runtime = Runtime(url, prefix="limits", consume=notes is not None, schedule=False)
    out = None if notes is None else notes.open("a", buffering=1)

    async def handle(data: object) -> None:
        if out is not None:
            out.write(f"{time.monotonic()}\n")

    for name in ("one", "two"):
        runtime.job(name, lease=1, max_stalled_count=1000, remove_on_complete=True, concurrency=20, **KINDS[kind])(
            handle
        )
    return runtime


async def work(url: str, kind: str, notes: str) -> None:
    """A worker process: until it is killed."""
    async with make_runtime(url, kind, Path(notes)):
        print("ready", flush=True)
        await asyncio.Event().wait()


async def run(url: str, kind: str, processes: int, seconds: float, kills: int) -> dict[str, Any]:
    """One kind over some processes: how full the fullest window was, and how much of the allowed rate was used."""
    with tempfile.TemporaryDirectory(prefix="aj-") as folder:
        made = 0

        def start() -> subprocess.Popen[bytes]:
            nonlocal made
            made += 1
            command = [sys.executable, "-m", "benchmarks.limits", "--work", url, kind, f"{folder}/{made}"]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL)

        running = [start() for _ in range(processes)]
        try:
            async with make_runtime(url, kind, None) as adder:
                jobs = int(rate(kind) * (seconds + 5))
                group = {"group_id": "g{}"} if KINDS[kind].get("group") else {}
                names = ("one", "two") if "share" in kind else ("one",)
                await adder.queue.add_bulk(
                    [
                        (names[n % len(names)], n, {key: text.format(n % 50) for key, text in group.items()})
                        for n in range(jobs)
                    ]
                )

                def starts() -> list[float]:
                    return sorted(float(line) for path in Path(folder).iterdir() for line in path.read_text().split())

                while not starts():  # noqa: ASYNC110 - other processes write them
                    await asyncio.sleep(0.05)
                await asyncio.sleep(1)
                rng = random.Random(1)
                began = time.monotonic()
                for _ in range(kills):
                    await asyncio.sleep(seconds / (kills + 1))
                    victim = running.pop(rng.randrange(len(running)))
                    victim.kill()
                    victim.wait()
                    running.append(start())
                await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
                ended = time.monotonic()
        finally:
            for worker in running:
                worker.kill()
                worker.wait()
        every = starts()
        within = [at for at in every if began <= at < ended]
        # Starts come in bursts: from the first to the one that has a whole window of them behind it, none is cut.
        burst = min(windows(kind), key=lambda one: one[0] / one[1])[0]
        used = (len(within) - burst) / (within[-burst] - within[0]) / rate(kind) if len(within) > burst else 0.0
        full = {f"{most} per {window:g} s": most_in_window(every, window) for most, window in windows(kind)}
        exact = all(most_in_window(every, window) <= most for most, window in windows(kind))
        return {"kind": kind, "processes": processes, "kills": kills, "fullest": full, "exact": exact,
                "used": used}  # fmt: skip


async def measure(server: str, counts: list[int], seconds: float, kills: int) -> list[dict[str, Any]]:
    """Every kind over every number of processes."""
    found = []
    for kind in KINDS:
        for processes in counts:
            async with machine.server(server) as url:
                found.append(await run(url, kind, processes, seconds, kills if processes > 1 else 0))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="memory", help="memory, embedded, or a URL")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--kills", type=int, default=0, help="kill -9 of a worker, where there are several")
    parser.add_argument("--quick", action="store_true", help="three seconds, one and two processes")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--work", nargs=3, metavar=("URL", "KIND", "NOTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        run_loop(work(*options.work))
        return 0
    if options.quick:
        options.processes, options.seconds = [1, 2], 3.2
    runs = run_loop(measure(options.server, options.processes, options.seconds, options.kills))
    found = {"machine": machine.describe(), "server": options.server, "runs": runs}
    if options.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0 if all(one["exact"] for one in runs) else 1


def show(found: dict[str, Any]) -> None:
    """Print what was found, a row a run."""
    table = Table("limit", title=f"limits, server: {found['server']}", title_justify="left")
    for column in ("processes", "kills", "fullest windows", "exact", "of the allowed rate"):
        table.add_column(column, justify="right")
    for one in found["runs"]:
        full = ", ".join(f"{count} in {name.partition(' per ')[2]}" for name, count in one["fullest"].items())
        table.add_row(
            one["kind"], str(one["processes"]), str(one["kills"]), full, str(one["exact"]), f"{one['used']:.1%}"
        )
    console = Console(width=120)
    console.print(table)
    console.print(found["machine"], highlight=False, style="dim")


if __name__ == "__main__":
    sys.exit(main())

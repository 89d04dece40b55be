"""Side by side: asyncjobs, its peers and the ceiling, on one server, in interleaved rounds, one process each.

    make bench-peers                        # their environments, once
    python -m benchmarks.peers [--only NAME …] [--rounds N] [--server tcp|URL] [--quick] [--json]

Every peer does the same work with the same payload through an adapter in `adapters/`, with those of its own options
that were quickest here, on uvloop where it runs on asyncio, and with the same garbage collector settings. Draining is
timed in the worker, from the first start to the last end, so imports and start-up do not count. "idle" is from add to
start, both in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from typing import Any

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from asyncjobs.cli.project import run_loop
from benchmarks import machine
from benchmarks.load import percentile
from benchmarks.peers import environments
from benchmarks.peers.catalogue import CEILING, OURS, PEERS, Peer
from benchmarks.report import Report, render, shown

SECONDS = 1.5  # that a measurement of throughput is to take
LIMIT = 25.0  # seconds in which a run has ended, or is tried once more
BULK = 30_000
NO_BULK = {"arq", "saq", "taskiq", "repid", "dramatiq", "celery"}
MOST = 60_000
LATENCY = "idle, add to start"
DRAINS = {"drain no-op at 100": (100, 0.0), "drain no-op at 1": (1, 0.0), "drain 10 ms at 100": (100, 0.01)}
ADDS = {"add one by one": "one", "add, 50 awaiting": "many", "add in bulk": "bulk"}


class Bench:
    """All peers on one server."""

    def __init__(self, url: str, jobs: int) -> None:
        self.url, self.jobs = url, jobs
        self.redis: Any = Redis.from_url(url)
        self.pace: dict[tuple[str, str], float] = {}
        self.failed: dict[str, str] = {}

    async def ask(self, peer: Peer, *words: object) -> dict[str, Any] | None:
        """One run of a peer's adapter on an empty server, or a second one; None: both failed."""
        for _ in range(2):
            found = await self._ask(peer, *words)
            if found is not None:
                return found
        return None

    async def _ask(self, peer: Peer, *words: object) -> dict[str, Any] | None:
        await self.redis.flushall()
        line = environments.command(peer)
        assert line is not None
        env = {**os.environ, **dict(peer.environment), "PYTHONPATH": str(environments.ROOT), "PYTHONWARNINGS": "ignore"}
        try:
            done = await asyncio.to_thread(
                subprocess.run, [*line, str(words[0]), self.url, *map(str, words[1:])],
                env=env, capture_output=True, text=True, timeout=LIMIT, cwd=environments.FOLDER.parent,
            )  # fmt: skip
            for said in reversed(done.stdout.splitlines()):
                if said.startswith("{"):
                    found: dict[str, Any] = json.loads(said)
                    return found
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        except subprocess.TimeoutExpired:
            reason = [f"no end after {LIMIT:.0f} s"]
        self.failed[f"{peer.name}, {' '.join(map(str, words))}"] = reason[0]
        return None

    async def rate(self, peer: Peer, measure: str) -> float | None:
        """Jobs a second; how many jobs that takes is learnt from a short run."""
        if measure == "add in bulk":
            return _rate(await self.ask(peer, "add", "bulk", min(BULK, self.jobs)))

        async def run(jobs: int) -> float | None:
            if measure in DRAINS:
                return _rate(await self.ask(peer, "drain", *DRAINS[measure], jobs))
            return _rate(await self.ask(peer, "add", ADDS[measure], jobs))

        key = (peer.name, measure)
        if key not in self.pace:
            self.pace[key] = await run(min(1000, self.jobs)) or 1000.0
        return await run(max(500, min(self.jobs, int(self.pace[key] * SECONDS))))

    async def waits(self, peer: Peer, jobs: int) -> list[float] | None:
        found = await self.ask(peer, "idle", jobs)
        return None if found is None else found["waits"]


def _rate(found: dict[str, Any] | None) -> float | None:
    return None if found is None else float(found["rate"])


async def measure(peers: list[Peer], options: argparse.Namespace) -> tuple[Report, dict[str, str]]:
    """Every measure of every peer, `rounds` times, the peers in turn."""
    values: dict[tuple[str, str], list[float]] = {}
    async with machine.server(options.server) as url:
        bench = Bench(url, options.jobs)
        info = await bench.redis.info("server")
        version = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"
        for number in range(1, options.rounds + 1):
            for name in (*DRAINS, *ADDS, LATENCY):
                for peer in peers:
                    if not asked(peer, name):
                        continue
                    print(f"\rround {number}: {name}, {peer.name:40}", end="", file=sys.stderr, flush=True)
                    if name == LATENCY:
                        waits = await bench.waits(peer, min(options.jobs, 200))
                        for share in (0.5, 0.99) if waits else ():
                            key = (peer.name, f"{LATENCY}, p{share * 100:.0f}")
                            values.setdefault(key, []).append(1000 * percentile(waits or [], share))
                    elif (rate := await bench.rate(peer, name)) is not None:
                        values.setdefault((peer.name, name), []).append(rate)
        print(file=sys.stderr)
        await bench.redis.aclose()
    report = Report(f"side by side, one process each, server: {version}")
    for (peer_name, name), found in values.items():
        report.add(f"{peer_name}: {name}", "ms" if LATENCY in name else "jobs/s", found)
    _claim(report, peers)
    return report, bench.failed


def asked(peer: Peer, name: str) -> bool:
    """Whether a measure is one of a peer: not all have a call for many at once, and the ceiling is no queue."""
    if peer.name in CEILING:
        return name == "drain no-op at 100" or (name in ADDS and peer.name == CEILING[0])
    return name != "add in bulk" or peer.adapter not in NO_BULK


def _claim(report: Report, peers: list[Peer]) -> None:
    """The claims, by the medians of this run."""
    middle = {figure.measure: figure.median for figure in report.figures}

    def of(peer: str, name: str) -> float | None:
        return middle.get(f"{peer}: {name}")

    def claim(text: str, name: str, others: list[Peer], bound: float, *, latency: bool = False) -> None:
        ours = of(OURS, name)
        theirs = {one.name: value for one in others if (value := of(one.name, name)) is not None}
        if ours is None or not theirs:
            return
        best = min(theirs, key=lambda one: theirs[one]) if latency else max(theirs, key=lambda one: theirs[one])
        report.claim(f"{name}, of {text} ({best})", ours / theirs[best], bound, at_least=not latency)

    others = [one for one in peers if one.name != OURS and one.name not in CEILING]
    ardiq = [one for one in others if one.name == "ardiq"]
    claim("the best of all", "drain no-op at 100", others, 1.0)
    claim("the best of arq, SAQ, streaQ, taskiq, pydocket, dramatiq, celery", "drain no-op at 100",
          [one for one in others if one.slow], 5.0)  # fmt: skip
    claim("the best in Python", "drain no-op at 1", [one for one in others if not one.node], 1.0)
    claim("the best of all", "drain 10 ms at 100", others, 1.0)
    claim("the best that keeps a record", "add one by one", [one for one in others if one.records], 1.0)
    claim("ardiq", "add, 50 awaiting", ardiq, 1.5)
    claim("ardiq", "add in bulk", ardiq, 1.5)
    claim("the best of all", f"{LATENCY}, p50", others, 1.0, latency=True)


def matrix(report: dict[str, Any]) -> Table:
    """A row a peer, a column a measure."""
    middle = {one["measure"]: one["median"] for one in report["figures"]}
    names = [*DRAINS, *ADDS, f"{LATENCY}, p50", f"{LATENCY}, p99"]
    table = Table("", title=report["title"], title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("a killed process's job")
    table.add_column("keeps")
    there = [one for one in PEERS if any(f"{one.name}: {name}" in middle for name in names)]
    for peer in sorted(there, key=lambda one: -middle.get(f"{one.name}: {names[0]}", 0.0)):
        cells = [middle.get(f"{peer.name}: {name}") for name in names]
        table.add_row(peer.name, *("" if one is None else shown(one) for one in cells), peer.survives, peer.keeps)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the environments and end")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="some of them: " + ", ".join(one.name for one in PEERS)
    )
    parser.add_argument("--server", default="tcp", help="tcp, or the URL of one whose data may be flushed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=MOST, help="most jobs of one measurement")
    parser.add_argument("--quick", action="store_true", help="1,000 jobs, one round")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args()
    known = {one.name.lower(): one for one in PEERS}
    unknown = [one for one in options.only or () if one.lower() not in known]
    if unknown:
        parser.error(f"nobody is called {', '.join(unknown)}; there are {', '.join(one.name for one in PEERS)}")
    peers = [known[one.lower()] for one in options.only] if options.only else list(PEERS)
    if options.install:
        for peer in peers:
            if peer.packages:
                print(f"{peer.name}: {environments.install(peer)}", flush=True)
        return
    if options.quick:
        options.jobs, options.rounds = min(options.jobs, 1000), 1
    missing = [one for one in peers if environments.command(one) is None]
    if missing:
        names = ", ".join(one.name for one in missing)
        print(f"without an environment, so left out: {names}; `make bench-peers` makes them", file=sys.stderr)
    peers = [one for one in peers if one not in missing]
    report, failed = run_loop(measure(peers, options))
    found = report.as_json()
    for what, reason in failed.items():
        print(f"failed: {what}: {reason}", file=sys.stderr)
    if options.json:
        print(json.dumps({**found, "failed": failed}))
        return
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print the matrix, then every figure with its spread, and the claims."""
    console = Console(width=200)
    console.print(matrix(found))
    render(found, console)


if __name__ == "__main__":
    main()

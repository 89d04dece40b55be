"""Memory: bytes of the server per waiting, delayed and completed job, and the size of a process under a backlog.

The payload is ``{"id": i}``. Bytes of the server are what its used memory grows by, tables of keys included. The
process is a fresh one each time, which works on a backlog of jobs of 10 ms at concurrency 100; its resident size is
read after two seconds.

    python -m benchmarks.memory [--jobs N] [--backlogs N …] [--rounds N] [--server …] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys

from asyncjobs.cli.project import run_loop
from benchmarks import machine
from benchmarks.groups import resident
from benchmarks.load import Load
from benchmarks.report import Report, script


async def stored(load: Load, state: str, jobs: int) -> float:
    """Bytes of the server per job in one state."""
    await load.fill(1)  # the server keeps the scripts from now on, and they are no part of a job
    await load.redis.flushall()
    await asyncio.sleep(0.5)  # what was flushed is freed in the server's own time
    empty = await _used(load)
    load.next()
    if state == "completed":
        async with load.runtime(concurrency=100, remove_on_complete=False) as runtime:
            await load.fill(jobs)
            await runtime.wait_idle(120)
    else:
        await load.fill(jobs, delay=3600 if state == "delayed" else 0)
    return (await _used(load) - empty) / jobs


async def _used(load: Load) -> int:
    """Bytes that the server has taken for everything, its tables of keys included."""
    return int((await load.redis.info("memory"))["used_memory"])


async def process_size(load: Load, backlog: int) -> float:
    """MiB of a process that works on a backlog."""
    await load.redis.flushall()
    load.next()
    await load.fill(backlog)
    command = [sys.executable, "-m", "benchmarks.memory", "--work", load.url, load.prefix]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return float(json.loads(out)) / 2**20


async def work(url: str, prefix: str) -> int:
    """The other process: its resident size after two seconds of work."""
    load = Load(url)
    load.prefix = prefix

    async def handle(data: object) -> None:
        await asyncio.sleep(0.01)

    async with load.runtime(handle, concurrency=100):
        await asyncio.sleep(2)
        return resident()


async def measure(options: argparse.Namespace) -> Report:
    bytes_per: dict[str, list[float]] = {state: [] for state in ("waiting", "delayed", "completed")}
    sizes: dict[int, list[float]] = {backlog: [] for backlog in options.backlogs}
    async with machine.server(options.server) as url:
        load = Load(url)
        for _ in range(options.rounds):
            for state, values in bytes_per.items():
                values.append(await stored(load, state, options.jobs))
            for backlog, found in sizes.items():
                found.append(await process_size(load, backlog))
        await load.close()
    report = Report(f"memory, server: {options.server}")
    for state, values in bytes_per.items():
        report.add(f"server, a {state} job", "bytes", values)
    for backlog, values in sizes.items():
        report.add(f"process, working on a backlog of {backlog:,}", "MiB", values)
    middle = {figure.measure: figure.median for figure in report.figures}
    report.claim("bytes of a waiting job", middle["server, a waiting job"], 260, at_least=False)
    least, most = min(options.backlogs), max(options.backlogs)
    ratio = middle[f"process, working on a backlog of {most:,}"] / middle[f"process, working on a backlog of {least:,}"]
    report.claim(f"size of the process at {most:,}, of that at {least:,}", ratio, 1.1, at_least=False)
    return report


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backlogs", type=int, nargs="+", default=[30_000, 1_000_000])


if __name__ == "__main__":
    if "--work" in sys.argv:
        print(run_loop(work(*sys.argv[sys.argv.index("--work") + 1 :])))
    else:
        quick = {"jobs": 5000, "rounds": 1, "backlogs": [30_000, 60_000]}
        script(__doc__, measure, more=more, jobs=100_000, rounds=1, quick=quick)

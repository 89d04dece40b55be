"""Cores: one queue drained by one, two and four processes on one server, and how busy that and they are meanwhile.

The rate is that of all jobs from the first start to the last end, by the machine's one monotonic clock. Jobs that do
nothing show what the server and the machine allow; jobs that compute for 0.2 ms show what more processes are for.

    python -m benchmarks.cores [--processes N …] [--jobs N] [--rounds N] [--server …] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

from asyncjobs.cli.project import run_loop
from benchmarks import machine
from benchmarks.load import PATIENCE, Load
from benchmarks.report import Report, script


async def work(url: str, prefix: str, compute: float) -> dict[str, Any]:
    """A worker: on standard input one line starts it, the next ends it."""
    load = Load(url)
    load.prefix = prefix
    ran, first, last = 0, 0.0, 0.0

    async def handle(data: object) -> None:
        nonlocal ran, first, last
        first = first or time.monotonic()
        end = time.perf_counter() + compute if compute else 0.0
        while time.perf_counter() < end:
            pass
        last = time.monotonic()
        ran += 1

    def line() -> str:
        return sys.stdin.readline()

    print("ready", flush=True)
    await asyncio.to_thread(line)
    cpu = time.process_time()
    async with load.runtime(handle, concurrency=100):
        await asyncio.to_thread(line)
    return {"ran": ran, "first": first, "last": last, "cpu": time.process_time() - cpu}


async def drain(load: Load, processes: int, jobs: int, compute: float) -> tuple[float, float, float]:
    """Jobs a second of all processes together; the shares of a core that the server and they all used."""
    load.next()
    await load.fill(jobs)
    command = [sys.executable, "-m", "benchmarks.cores", "--work", load.url, load.prefix, str(compute)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    workers = [await asyncio.create_subprocess_exec(*command, **pipes) for _ in range(processes)]  # type: ignore[arg-type]
    try:
        for one in workers:
            assert one.stdout is not None
            await one.stdout.readline()
        before = await load.server_cpu()
        for one in workers:
            assert one.stdin is not None
            one.stdin.write(b"go\n")
        done = f"{{{load.prefix}:noop}}:s"
        async with asyncio.timeout(PATIENCE):
            while await load.redis.exists(done):  # noqa: ASYNC110 - another process's key
                await asyncio.sleep(0.02)
        used = await load.server_cpu() - before
        told = [json.loads((await one.communicate(b"end\n"))[0]) for one in workers]
    finally:
        for one in workers:
            if one.returncode is None:
                one.kill()
    ran = [one for one in told if one["ran"]]
    took = max(one["last"] for one in ran) - min(one["first"] for one in ran)
    assert sum(one["ran"] for one in told) == jobs, told
    return jobs / took, used / took, sum(one["cpu"] for one in told) / took


async def measure(options: argparse.Namespace) -> Report:
    kinds = {"no-op": 0.0, "computing 0.2 ms": 0.0002}
    cases = [(kind, processes) for kind in kinds for processes in options.processes]
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {case: [] for case in cases}
    async with machine.server(options.server) as url:
        load = Load(url)
        for _ in range(options.rounds):
            for kind, processes in cases:
                jobs = options.jobs if not kinds[kind] else options.jobs // 10
                found[kind, processes].append(await drain(load, processes, jobs, kinds[kind]))
                await load.redis.flushall()
        await load.close()
    report = Report(f"drain at concurrency 100 by several processes, {os.cpu_count()} cores, server: {options.server}")
    for (kind, processes), runs in found.items():
        name = f"{kind}, {processes} process{'es' * (processes > 1)}"
        report.add(name, "jobs/s", [rate for rate, _, _ in runs])
        report.add("  the server meanwhile", "% of a core", [100 * share for _, share, _ in runs])
        report.add("  the processes", "% of a core", [100 * share for _, _, share in runs])
    middle = {figure.measure: figure.median for figure in report.figures}
    if {1, 2} <= set(options.processes):
        for kind in kinds:
            ratio = middle[f"{kind}, 2 processes"] / middle[f"{kind}, 1 process"]
            report.claim(f"{kind}: 2 processes, of 1", ratio, 1.5)
    return report


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])


if __name__ == "__main__":
    if "--work" in sys.argv:
        url, prefix, compute = sys.argv[sys.argv.index("--work") + 1 :]
        print(json.dumps(run_loop(work(url, prefix, float(compute)))))
    else:
        quick = {"jobs": 10_000, "rounds": 1, "processes": [1, 2]}
        script(__doc__, measure, more=more, jobs=200_000, quick=quick)

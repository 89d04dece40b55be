"""Network: the same drains and adds through a proxy that adds to the round trip, against the server itself.

The proxy is a process of its own with two threads a connection: replies wait until they are due, requests pass at once,
so what is added to a round trip is exact to a tenth of a millisecond, and nothing waits behind what waits.

    python -m benchmarks.network [--delays MS …] [--jobs N] [--rounds N] [--server …] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from benchmarks import machine
from benchmarks.load import Load
from benchmarks.report import Report, script
from benchmarks.servers import free_port
from benchmarks.throughput import add


def serve(port: int, target: int, delay: float) -> None:
    """Forward `port` to `target`, replies `delay` seconds late, until killed."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        print("ready", flush=True)
        while True:
            near, _ = listening.accept()
            far = socket.create_connection(("127.0.0.1", target))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            for work in (
                lambda near=near, far=far: _forward(near, far),
                lambda far=far, late=late, delay=delay: _note(far, late, delay),
                lambda near=near, late=late: _deliver(near, late),
            ):
                threading.Thread(target=work, daemon=True).start()


def _forward(source: socket.socket, to: socket.socket) -> None:
    while data := source.recv(1 << 18):
        to.sendall(data)
    to.shutdown(socket.SHUT_WR)


def _note(source: socket.socket, late: queue.SimpleQueue[tuple[float, bytes]], delay: float) -> None:
    while data := source.recv(1 << 18):
        late.put((time.monotonic() + delay, data))
    late.put((0.0, b""))


def _deliver(to: socket.socket, late: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    while True:
        due, data = late.get()
        if not data:
            to.close()
            return
        time.sleep(max(0.0, due - time.monotonic()))
        to.sendall(data)


@asynccontextmanager
async def proxy(url: str, delay_ms: float) -> AsyncIterator[str]:
    """The URL under which the server at `url` is that much farther away."""
    port, target = free_port(), urlsplit(url).port
    command = [sys.executable, "-m", "benchmarks.network", "--serve", str(port), str(target), str(delay_ms / 1000)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        await process.wait()


async def measure(options: argparse.Namespace) -> Report:
    kinds = [None, *options.delays]
    measures = ("add one by one", "add, 50 awaiting", "drain no-op at 100", "drain 10 ms at 100", "a ping, ms")
    values: dict[tuple[object, str], list[float]] = {(kind, name): [] for kind in kinds for name in measures}
    trips: dict[object, list[float]] = {kind: [] for kind in kinds}
    async with machine.server(options.server) as url:

        async def one_round(kind: object, at: str) -> None:
            load, direct = Load(at), Load(url)
            pings = []
            for _ in range(50):
                began = time.perf_counter()
                await load.redis.ping()
                pings.append(1000 * (time.perf_counter() - began))
            jobs = options.jobs
            values[kind, "a ping, ms"].append(sorted(pings)[25])
            values[kind, "add one by one"].append(await add(load, 1, max(50, jobs // 20)))
            values[kind, "add, 50 awaiting"].append(await add(load, 50, jobs))
            await direct.redis.config_resetstat()
            values[kind, "drain no-op at 100"].append((await load.drain(jobs, concurrency=100)).rate)
            calls = (await direct.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
            trips[kind].append((calls - jobs / 500) / jobs)  # less what filling took, 500 a script
            waiting = await load.drain(max(200, jobs // 4), concurrency=100, sleep=0.01)
            values[kind, "drain 10 ms at 100"].append(waiting.rate)
            await load.redis.flushall()
            await load.close()
            await direct.close()

        for _ in range(options.rounds):
            await one_round(None, url)
            for delay in options.delays:
                async with proxy(url, delay) as farther:
                    await one_round(delay, farther)
    report = Report(f"network, one process, server: {options.server}")
    for name in measures:
        for kind in kinds:
            where = "direct" if kind is None else f"{kind:g} ms farther"
            report.add(f"{name}, {where}", "ms" if "ping" in name else "jobs/s", values[kind, name])
    for kind in kinds:
        where = "direct" if kind is None else f"{kind:g} ms farther"
        report.add(f"scripts called a job, no-op drain, {where}", "", trips[kind])
    middle = {figure.measure: figure.median for figure in report.figures}
    far = f"{max(options.delays):g} ms farther"
    ratio = middle[f"drain no-op at 100, {far}"] / middle["drain no-op at 100, direct"]
    report.claim(f"no-op drain {far}, of direct", ratio, 0.5)
    report.claim(
        f"scripts called a job {far}", middle[f"scripts called a job, no-op drain, {far}"], 0.1, at_least=False
    )
    return report


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 1.0, 2.0], help="ms added to a round trip")


if __name__ == "__main__":
    if "--serve" in sys.argv:
        port, target, delay = sys.argv[sys.argv.index("--serve") + 1 :]
        serve(int(port), int(target), float(delay))
    else:
        script(
            __doc__, measure, more=more, server="tcp", jobs=40_000, quick={"jobs": 2000, "rounds": 1, "delays": [2.0]}
        )

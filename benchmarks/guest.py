"""What an app feels of the backlog of a runtime that it embeds: requests, a websocket and a timer beside it.

    python -m benchmarks.guest [--only NAME …] [--backlogs NAME …] [--frames fastapi aiohttp] [--seconds N]
                               [--groups N] [--trim N] [--rounds N] [--server …] [--equal] [--install] [--quick]
                             [--json]

One process is the app: FastAPI on uvicorn, or aiohttp, with an endpoint that does nothing, and the runtime on the same
loop. Another one asks it, 100 times a second and 20 times over a websocket, first with nothing to do and then with a
backlog that it drains. A timer in the app's loop, every millisecond, tells how late it is and for how long one round of
the loop computes. Peers that can be embedded drain the same jobs in the same app; `--install` makes their environments,
and who has none is left out. `--equal` compares with each of them what can be compared: the latency at as many jobs a
second as that one runs, and the jobs a second at no more latency.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.load import percentile
from benchmarks.peers import environments
from benchmarks.peers.catalogue import PEERS
from benchmarks.report import Report, script
from benchmarks.servers import free_port

HOSTS = Path(__file__).parent / "hosts"
REQUESTS, ECHOES = 100, 20  # a second
SETTLE = 0.3  # seconds after the start of a drain that are not measured
OURS, UNBOUND, FROZEN = "asyncjobs", "asyncjobs, no budget", "asyncjobs, gc_freeze"
EMBEDDABLE = ("saq", "arq", "streaq", "taskiq", "docket", "repid")
BUDGET = 0.005  # the default
PLAIN = ("jobs/s", "failed", "full collections a second", "young collections per 1,000 jobs")  # no milliseconds


class Backlog(NamedTuple):
    """`pace`: jobs a second that nobody reaches, so that there is enough for all the time; `ask`: what is asked for."""

    options: dict[str, Any]
    pace: int
    peers: bool = False
    ask: str = ""


BACKLOGS = {
    "no-op": Backlog({"work": "noop"}, 70_000, peers=True),
    "0.1 ms of computing": Backlog({"work": "compute", "seconds": 0.0001}, 9000),
    "0.5 ms of computing": Backlog({"work": "compute", "seconds": 0.0005}, 2000, peers=True),
    "5 ms of computing": Backlog({"work": "compute", "seconds": 0.005}, 210),
    "5 ms of waiting": Backlog({"work": "wait", "seconds": 0.005}, 20_000, peers=True),
    "sync handlers": Backlog({"sync": True}, 14_000),
    "100 kB payloads": Backlog({"payload": 100_000}, 1800),
    "groups of one job": Backlog({"groups": 10_000}, 0),
    "50,000 added by a request": Backlog({"bulk": 50_000}, 0, ask="bulk"),
    "retention trimmed": Backlog({"finish": True}, 0, ask="trim"),
    "a dead neighbour swept": Backlog({"die": True}, 0),
}
NO_FEWER = 1.1  # a limit is never reached quite
MULTIPLES = (1, 4, FLAT := 1000)  # of the pace of a peer; the last one is as fast as it goes
PACED = tuple(name for name, backlog in BACKLOGS.items() if backlog.pace)
PACES = {"saq": 3500, "arq": 3500, "streaq": 2500, "taskiq": 4500, "docket": 3000, "repid": 9000}


class System(NamedTuple):
    """Who is embedded: the adapter, the Python that has it, and options of its own."""

    name: str
    adapter: str
    python: str
    options: dict[str, Any]


def systems(only: list[str] | None) -> tuple[list[System], list[str]]:
    """Those that are there, and a line for each that is not."""
    found = [
        System(OURS, "asyncjobs", sys.executable, {}),
        System(UNBOUND, "asyncjobs", sys.executable, {"budget": None}),
        System(FROZEN, "asyncjobs", sys.executable, {"freeze": True}),
    ]
    left_out = []
    for peer in PEERS:
        if peer.adapter not in EMBEDDABLE:
            continue
        python = environments.FOLDER / peer.adapter / "bin" / "python"
        if python.exists() and _has_frames(python):
            found.append(System(peer.name, peer.adapter, str(python), {}))
        elif only is None or peer.name in only:
            left_out.append(f"{peer.name} is left out: no environment of its own, see --install")
    return [one for one in found if only is None or one.name in only], left_out


def _has_frames(python: Path) -> bool:
    line = [str(python), "-c", "import fastapi, uvicorn, aiohttp, uvloop"]
    return subprocess.run(line, capture_output=True).returncode == 0


def install() -> None:
    """An environment for each peer, with what the app needs."""
    for peer in PEERS:
        if peer.adapter in EMBEDDABLE:
            print(f"{peer.name}: {environments.install(peer)}", flush=True)
            pip = [str(environments.FOLDER / peer.adapter / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "fastapi", "uvicorn[standard]", "aiohttp"], check=True)


class Host:
    """The app in a process of its own, and its visitors in another."""

    def __init__(self, system: System, url: str, options: dict[str, Any]) -> None:
        self.port = free_port()
        self._line = [system.python, str(HOSTS / "app.py"), system.adapter, url]
        self._options = json.dumps({**system.options, **options})
        self._env = {**os.environ, "PYTHONWARNINGS": "ignore"}
        self._quiet: Any = None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL

    @contextmanager
    def running(self) -> Iterator[None]:
        self._process = subprocess.Popen(
            [*self._line, str(self.port), self._options],
            env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._quiet, text=True,
        )  # fmt: skip
        try:
            self.tell("told")
            while not self._answers():
                time.sleep(0.02)
            yield
        finally:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            self.ask("")
        except OSError:
            return False
        return True

    def ask(self, path: str) -> None:
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=300).read()

    def tell(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def fill(self) -> None:
        subprocess.run([*self._line, "fill", self._options], env=self._env, stderr=self._quiet, check=False)

    def visited(self, seconds: float) -> dict[str, Any]:
        line = [sys.executable, str(HOSTS / "visitors.py"), str(self.port), str(seconds), str(REQUESTS), str(ECHOES)]
        found: dict[str, Any] = json.loads(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)
        return found


def one_round(system: System, frame: str, backlog: Backlog, url: str, options: argparse.Namespace) -> dict[str, float]:
    """What the visitors and the timer have seen with a backlog, and without."""
    pace = backlog.pace if system.adapter == "asyncjobs" else min(backlog.pace, PACES[system.adapter])
    if backlog.options.get("pace"):
        pace = min(pace, round(backlog.options["pace"] * 1.5))
    jobs = max(100, int(pace * (options.seconds + 1.5)))
    given = {**backlog.options, "frame": frame, "jobs": jobs}
    if "groups" in given:
        given["groups"] = given["jobs"] = options.groups
    elif "die" in given:
        given["groups"] = given["jobs"] = options.swept
    elif "finish" in given:
        given["jobs"] = options.trim
    elif "bulk" in given:
        given["bulk"] = min(given["bulk"], options.trim)
    host = Host(system, url, given)
    if backlog.ask or "die" in given:
        host.fill()
    with host.running():
        host.visited(min(0.5, options.seconds))
        host.tell("collect")
        host.tell("told")
        plain = host.visited(options.seconds)
        quiet = host.tell("told")
        if backlog.ask:
            host.tell("work")
            time.sleep(SETTLE)
            host.tell("told")
            asking = threading.Thread(target=host.ask, args=(f"ask/{backlog.ask}",), daemon=True)
            asking.start()
        else:
            if "die" not in given:
                host.fill()
            host.tell("work")
            if pace:
                time.sleep(SETTLE)
                host.tell("collect")
                host.tell("told")
        busy = host.visited(options.seconds)
        told = host.tell("told")
        if backlog.ask:
            asking.join(60)
    base, load = [1000 * one for one in plain["requests"]], [1000 * one for one in busy["requests"]]
    echoes = [1000 * one for one in busy["echoes"]] or [float("nan")]
    return {
        "p50 without": percentile(base, 0.5), "p99 without": percentile(base, 0.99),
        "p50": percentile(load, 0.5), "p99": percentile(load, 0.99), "max": max(load),
        "echo p99": percentile(echoes, 0.99), "timer late p99": 1000 * told["lag p99"],
        "longest stretch": 1000 * told["stretch max"], "longest stretch without": 1000 * quiet["stretch max"],
        "longest collection": 1000 * told["collection max"],
        "full collections a second": told["collections"] / told["seconds"],
        "young collections per 1,000 jobs": 1000 * told["young collections"] / max(1, told["jobs"]),
        "jobs/s": told["jobs"] / told["seconds"],
        "failed": float(plain["failed"] + busy["failed"]),
    }  # fmt: skip


async def equal(options: argparse.Namespace) -> Report:
    """Each peer, and ours beside it at its pace, at multiples of that, and as fast as it goes."""
    embedded, left_out = systems(None)
    for line in left_out:
        print(line, file=sys.stderr)
    ours = embedded[0]
    peers = [
        one for one in embedded if one.adapter != "asyncjobs" and (options.only is None or one.name in options.only)
    ]
    report = Report(f"an app and its backlog, ours at the pace of others, {REQUESTS} requests a second")
    for frame in options.frames:
        for name, backlog in BACKLOGS.items():
            if not backlog.peers or (options.backlogs and name not in options.backlogs):
                continue
            for peer in peers:
                found: dict[str, list[dict[str, float]]] = {}
                for number in range(1, options.rounds + 1):
                    print(f"\rround {number}: {frame}, {name}, {peer.name:30}", end="", file=sys.stderr, flush=True)
                    pace = 0.0
                    for step in (0, *MULTIPLES):
                        system = ours if step else peer
                        given = backlog._replace(
                            options={**backlog.options, "pace": NO_FEWER * pace * step if step < FLAT else 0}
                        )
                        async with machine.server(options.server) as url:
                            one = await asyncio.to_thread(one_round, system, frame, given, url, options)
                        found.setdefault(_level(step, peer.name), []).append(one)
                        pace = pace or one["jobs/s"]
                _compare(report, f"{frame}, {name}", peer.name, found)
    print(file=sys.stderr)
    return report


def _level(step: int, peer: str) -> str:
    if step in (0, FLAT):
        return "asyncjobs, as fast as it goes" if step else peer
    return f"asyncjobs at {step} × the pace of {peer}" if step > 1 else f"asyncjobs at the pace of {peer}"


def _compare(report: Report, where: str, peer: str, found: dict[str, list[dict[str, float]]]) -> None:
    """What a guest ought to be beside `peer`, by medians: at its pace the latency, at its latency the jobs."""
    middle = {}
    for level, rounds in found.items():
        who = level if level.endswith(peer) else f"{level}, beside {peer}"
        middle[level] = {
            what: report.add(f"{where}, {who}: {what}", unit, [one[what] for one in rounds]).median
            for what, unit in (("p50", "ms"), ("p99", "ms"), ("max", "ms"), ("jobs/s", ""))
        }
    theirs, same = middle[peer], middle[_level(1, peer)]
    report.claim(f"{where}: p99 at the pace of {peer}, of its own", same["p99"] / theirs["p99"], 1, at_least=False)
    enough = [one["jobs/s"] for level, one in middle.items() if level != peer and one["p99"] <= theirs["p99"]]
    most = max(enough, default=0.0)
    report.claim(f"{where}: jobs at no more p99 than {peer}, of its own", most / max(1.0, theirs["jobs/s"]), 1)


async def measure(options: argparse.Namespace) -> Report:
    if options.equal:
        return await equal(options)
    embedded, left_out = systems(options.only)
    for line in left_out:
        print(line, file=sys.stderr)
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for number in range(1, options.rounds + 1):
        for frame in options.frames:
            for name, backlog in BACKLOGS.items():
                if options.backlogs and name not in options.backlogs:
                    continue
                for system in embedded:
                    if system.adapter != "asyncjobs" and not backlog.peers:
                        continue
                    print(f"\rround {number}: {frame}, {name}, {system.name:30}", end="", file=sys.stderr, flush=True)
                    async with machine.server(options.server) as url:
                        one = await asyncio.to_thread(one_round, system, frame, backlog, url, options)
                    found.setdefault((frame, name, system.name), []).append(one)
    print(file=sys.stderr)
    report = Report(f"an app and its backlog, {REQUESTS} requests a second, server: {options.server}")
    middle: dict[tuple[str, str, str], dict[str, float]] = {}
    for (frame, name, who), rounds in found.items():
        figures = middle[frame, name, who] = {}
        for what in rounds[0]:
            values = [one[what] for one in rounds]
            unit = "" if what in PLAIN else "ms"
            figures[what] = report.add(f"{frame}, {name}, {who}: {what}", unit, values).median
        for share in ("p50", "p99"):
            values = [one[share] / one[f"{share} without"] for one in rounds]
            figures[f"{share} ratio"] = report.add(
                f"{frame}, {name}, {who}: {share} of that without", "x", values
            ).median
    for key, figures in middle.items():
        _claim(report, key, figures, middle)
    return report


def _claim(
    report: Report,
    key: tuple[str, str, str],
    figures: dict[str, float],
    middle: dict[tuple[str, str, str], dict[str, float]],
) -> None:
    """What a guest ought to be, by the medians of this run."""
    frame, name, who = key
    if who not in (OURS, FROZEN):
        return
    budget, text = 1000 * BUDGET, f"{frame}, {name}" if who == OURS else f"{frame}, {name}, gc_freeze"
    if name in ("no-op", "5 ms of waiting", "0.1 ms of computing"):
        report.claim(f"{text}: p99, of that without", figures["p99 ratio"], 2.5, at_least=False)
    if name == "no-op":
        report.claim(f"{text}: p50, of that without", figures["p50 ratio"], 2, at_least=False)
    if name == "0.5 ms of computing":
        allowed = max(3 * figures["p99 without"], figures["p99 without"] + 4 * budget)
        report.claim(f"{text}: p99, ms", figures["p99"], allowed, at_least=False)
    own = 5 if name == "5 ms of computing" else 0
    stretch = figures["longest stretch"] - own
    report.claim(f"{text}: longest stretch, in budgets", stretch / budget, 2, at_least=False)
    unbound = middle.get((frame, name, UNBOUND))
    if unbound and BACKLOGS[name].pace and unbound["jobs/s"]:
        report.claim(f"{text}: jobs, of those without a budget", figures["jobs/s"] / unbound["jobs/s"], 0.8)
    for other, theirs in middle.items():
        if other[:2] == key[:2] and other[2] not in (OURS, UNBOUND, FROZEN):
            report.claim(f"{text}: jobs, of {other[2]}", figures["jobs/s"] / max(1.0, theirs["jobs/s"]), 1)
            report.claim(f"{text}: p99, of {other[2]}", figures["p99"] / theirs["p99"], 1, at_least=False)


def table(path: Path) -> None:
    """Print what a run has found, `--json` or `--results`, as the README has it."""
    found = {one["measure"]: one["median"] for one in json.loads(path.read_text())["figures"]}
    places = dict.fromkeys(
        measure.split(", asyncjobs")[0] for measure in found if ", asyncjobs: p99 without" in measure
    )
    columns = ("no budget: p50 · p99", "jobs/s", "default: p50 · p99", "jobs/s", "`gc_freeze`: p50 · p99", "jobs/s")
    print("| backlog | without | " + " | ".join((*columns, "longest in a row", "full collections a second")) + " |")
    print("|---" * 10 + "|")
    for place in places:
        cells = [place.replace("fastapi, ", ""), _cell(found, f"{place}, {OURS}", " without")]
        for who in (UNBOUND, OURS, FROZEN):
            rate = found.get(f"{place}, {who}: jobs/s", 0.0)
            cells += [_cell(found, f"{place}, {who}", ""), f"{rate:,.0f}" if place.split(", ")[1] in PACED else ""]
        cells.append(f"{found[f'{place}, {OURS}: longest stretch']:.1f}")
        cells.append(f"{found[f'{place}, {OURS}: full collections a second']:.2f}")
        print("| " + " | ".join(cells) + " |")


def _cell(found: dict[str, float], who: str, end: str) -> str:
    if f"{who}: p99{end}" not in found:
        return ""
    return f"{found[f'{who}: p50{end}']:.1f} · {found[f'{who}: p99{end}']:.1f}"


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of those that are embedded")
    parser.add_argument("--backlogs", nargs="+", metavar="NAME", choices=list(BACKLOGS), help=", ".join(BACKLOGS))
    parser.add_argument("--frames", nargs="+", choices=("fastapi", "aiohttp"), default=["fastapi", "aiohttp"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of visits, with a backlog and without")
    parser.add_argument("--groups", type=int, default=10_000, help="with a job each")
    parser.add_argument("--swept", type=int, default=20_000, help="groups of which a dead neighbour held a job")
    parser.add_argument("--trim", type=int, default=200_000, help="finished jobs that retention lets go")
    parser.add_argument("--equal", action="store_true", help="ours at the pace of each peer")
    parser.add_argument("--table", metavar="FILE", help="print what a run has found, and end")
    parser.add_argument("--install", action="store_true", help="make the environments of the peers, and end")


if __name__ == "__main__":
    if "--install" in sys.argv:
        install()
    elif "--table" in sys.argv:
        table(Path(sys.argv[sys.argv.index("--table") + 1]))
    else:
        script(
            __doc__, measure, more=more, server="tcp",
            quick={"seconds": 0.5, "rounds": 1, "groups": 100, "swept": 100, "trim": 1000},
        )  # fmt: skip

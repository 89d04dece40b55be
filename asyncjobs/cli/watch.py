"""``asyncjobs stats --watch``: a live view in a terminal, which may be left open."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click
from rich.live import Live

from asyncjobs import clock
from asyncjobs.cli import output, project
from asyncjobs.cli.figures import figures, pace
from asyncjobs.cli.view import View, draw
from asyncjobs.errors import AsyncjobsError

if TYPE_CHECKING:
    from rich.console import Console

    from asyncjobs.queue import Queue
    from asyncjobs.runtime import Runtime

EVERY: Final = 1.0  # seconds between two looks at least
SHARE: Final = 0.05  # of the time in which looks may make the store work
PACE_EVERY: Final = 5.0  # seconds between two looks at what has finished
PACES_AT_ONCE: Final = 20  # names whose pace is looked at in one go
REDRAW: Final = 0.25  # seconds
LAST_LOOK: Final = 0.5  # seconds for a look that is under way at the end


async def look(view: View, queue: Queue, runtime: Runtime, paces: bool) -> None:
    """Read what is shown, and the pace of the names too if `paces`."""
    counts = await queue.all_names()
    if paces:
        names = sorted(counts, key=lambda name: -sum(counts[name].values()))
        for start in range(0, len(names), PACES_AT_ONCE):
            some = names[start : start + PACES_AT_ONCE]
            found = await asyncio.gather(*(pace(queue, name, counts[name]) for name in some))
            view.paces |= dict(zip(some, found, strict=True))
    view.processes = await runtime.processes()
    alive = Counter(name for one in view.processes if one.state != "gone" for name in one.names)
    view.names = await figures(queue, counts, view.paces, alive)
    if view.tab == "tasks":
        view.tasks = await runtime.tasks()
    elif view.tab in ("running", "failed"):
        state = "active" if view.tab == "running" else "failed"
        view.jobs[view.tab] = (await queue.select(state=state).page(limit=100)).jobs
    if paces:
        view.history.append(sum(one.done for one in view.paces.values()))
    view.at, view.error = clock.now(), ""


class Keys:
    """The keys of the terminal, one by one, without an echo; undone at the end, however it comes."""

    def __init__(self) -> None:
        self.pressed: asyncio.Queue[str] = asyncio.Queue()
        self._fd = sys.stdin.fileno()
        self._before: Any = None

    def __enter__(self) -> Keys:
        import termios
        import tty

        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        project.UNDO.append(self._undo)
        return self

    def _read(self) -> None:
        data = os.read(self._fd, 1024)
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            self.pressed.put_nowait("q")
        text = data.decode(errors="ignore")
        for key in [text] if text.startswith("\x1b") else text:
            self.pressed.put_nowait("\x1b" if key == "\x1b" else key if not key.startswith("\x1b") else "")

    def _undo(self) -> None:
        import termios

        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        sys.stdout.write("\x1b[?1049l\x1b[?25h")  # the screen as it was, with a cursor
        sys.stdout.flush()

    def __exit__(self, *error: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        project.UNDO.remove(self._undo)
        self._undo()


async def watch(queue: Queue, runtime: Runtime) -> int:
    """Show how it goes, until ``q``."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("--watch needs a terminal; with --json it prints a line a second anywhere")
    view = View(store=str(runtime.health().get("store", "")))
    console: Console = output.console()
    wake, keys = asyncio.Event(), Keys()
    looking = asyncio.ensure_future(_keep_looking(view, wake, queue, runtime))
    try:
        with keys, Live(console=console, screen=True, auto_refresh=False) as live:
            while await _shown(view, keys, wake, live, console):
                pass
    finally:
        view.ended = True
        wake.set()
        await asyncio.wait([looking], timeout=LAST_LOOK)  # one that is cut off would leave warnings behind
        looking.cancel()
    return 0


async def _shown(view: View, keys: Keys, wake: asyncio.Event, live: Live, console: Console) -> bool:
    """Draw, and wait for a key for a moment. Returns whether to go on."""
    live.update(draw(view, console.width, console.height), refresh=True)
    try:
        key = await asyncio.wait_for(keys.pressed.get(), REDRAW)
    except TimeoutError:
        return True
    tab = view.tab
    going_on = view.key(key)
    if view.tab != tab:
        wake.set()
    return going_on


async def _keep_looking(view: View, wake: asyncio.Event, queue: Queue, runtime: Runtime) -> None:
    """Look again and again, so seldom that it costs the store next to nothing; at once when something else is shown."""
    paced = float("-inf")
    while not view.ended:
        began = clock.monotonic()
        if not view.paused:
            paces = began - paced >= PACE_EVERY
            paced = began if paces else paced
            try:
                await look(view, queue, runtime, paces)
            except AsyncjobsError as error:
                view.error = str(error)
        took = clock.monotonic() - began
        with suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), max(EVERY - took, took / SHARE if took > EVERY * SHARE else 0.0))
        wake.clear()

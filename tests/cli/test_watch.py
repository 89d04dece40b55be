"""The live view: as it looks at 80 and 120 columns, what the keys do, and how it leaves the terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from datetime import timedelta

import pytest
from rich.console import Console

from asyncjobs import Limiter, clock
from asyncjobs.cli import figures
from asyncjobs.cli import view as views
from asyncjobs.cli.figures import Figures, Pace
from asyncjobs.cli.view import View
from tests.helpers import BOUND, eventually

INFO = {
    "name": "x", "group_id": None, "paused": False, "limiter": None, "concurrency": None, "weight": 1,
    "max_waiting": None, "held_until": None, "waiting": 0, "active": 0, "delayed": 0, "completed": 0, "failed": 0,
}  # fmt: skip


def one(name: str, limit: str = "none", share=None, pace=None, processes: int = 1, groups=None, **info) -> Figures:
    return Figures(name, True, {**INFO, "name": name, **info}, limit, groups, pace, share, processes)


def screen(view: View, width: int, height: int = 20) -> list[str]:
    """The lines of the screen, without colours."""
    console = Console(width=width, height=height, file=open(os.devnull, "w"), record=True, force_terminal=True)  # noqa: SIM115
    console.print(views.draw(view, width, height))
    console.file.close()
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.fixture
def view() -> View:
    shown = View(store="redis://127.0.0.1:6379", at=clock.now())
    held = clock.now() + timedelta(seconds=90.5)
    shown.names = [
        one("send-mail", "5/1 s", 1.0, Pace(5.0, 2760.0, 1204), waiting=14200, active=5, delayed=12),
        one("sync-data", "1/1 s", None, Pace(17.9, 2.1, 3), groups=18, waiting=340, active=18),
        one("a-name-that-is-as-long-as-names-may-be-and-then-some-more", pace=Pace(12400, 0.004, 0)),
        one("paused-one", paused=True, waiting=3),
        one("held-one", held_until=held, waiting=3),
        one("left-behind", waiting=7, processes=0),
        one("unknown"),
    ]
    shown.history.extend(range(60))
    return shown


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_all_that_matters_is_there_at_every_width(view, width):
    lines = screen(view, width)
    assert len(lines) == 20
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    mail = next(line for line in lines if "send-mail" in line)
    for word in ("14,200", "1,204", "5.0", "46 min", "▮▮▮▮▮", "binds"):
        assert word in mail
    assert "12,400" in text
    assert "⏸ paused" in text or "paused" in next(line for line in lines if "paused-one" in line)
    assert "held for 1 min" in text
    assert "no process runs it" in text
    assert "14,553 waiting" in lines[0]
    assert "q quit" in lines[-1]
    assert "█" in lines[0] or width == 80


@pytest.mark.parametrize("width", [40, 60])
def test_a_small_terminal_breaks_nothing(view, width):
    lines = screen(view, width, 8)
    assert len(lines) <= 9
    assert "send-mail" in "\n".join(lines) or width == 40
    assert any("more; / filters" in line for line in lines)


def test_hostile_names_and_errors_move_no_cursor(view):
    view.names = [one("a\x1b[2J\nb", waiting=1)]
    view.error = "gone\x1b[31m\nforged"
    text = "\n".join(screen(view, 120))
    assert r"a\x1b[2J\nb" in text
    assert r"gone\x1b[31m\nforged" in text


def test_keys_choose_filter_pause_and_quit(view):
    assert view.key("3")
    assert view.tab == "failed"
    assert view.key("1")
    for key in "/mail":
        assert view.key(key)
    assert view.query == "mail"
    assert view.key("q"), "it is being typed"
    assert view.key("\x7f")
    assert view.key("\r")
    shown = "\n".join(screen(view, 120))
    assert "send-mail" in shown
    assert "sync-data" not in shown
    view.query = "nothing like it"
    assert "nothing contains 'nothing like it'; Esc shows all" in "\n".join(screen(view, 120))
    assert view.key("\x1b")
    assert view.query == ""
    assert view.key("p")
    assert view.paused
    assert "paused" in screen(view, 120)[-1]
    assert not view.key("q")
    assert not view.key("\x03")


def test_a_line_of_bars_and_rates():
    assert views.sparks([]) == ""
    assert views.sparks([0, 0]) == "▁▁"
    assert views.sparks([0, 4, 8]) == "▁▄█"
    assert [views.rate(one) for one in (0, 0.25, 5, 17.94, 12400)] == ["0", "0.25", "5.0", "17.9", "12,400"]


async def test_figures_come_from_what_is_kept(make_runtime):
    runtime = make_runtime()
    runtime.job("quick", limiter=Limiter(1000, 1), remove_on_complete=150, concurrency=50)(lambda data: None)

    @runtime.job("bad", limiter=None, attempts=1)
    async def bad(data):
        raise ValueError

    async with runtime:
        await runtime.queue.add_bulk([("quick", n) for n in range(400)] + [("bad", 1)])
        await runtime.wait_idle(BOUND)
        counts = await runtime.queue.all_names()
        quick = await figures.pace(runtime.queue, "quick", counts["quick"])
        assert quick.done > 5, "a fast name is told by the instants of what is kept of it"
        assert 0 <= quick.wait < BOUND
        assert (await figures.pace(runtime.queue, "bad", counts["bad"])).failed == 1
        (first, second) = await figures.figures(runtime.queue, counts, {"quick": quick}, {"quick": 1})
        assert (first.name, first.processes, first.share) == ("bad", 0, None)
        assert second.limit == "1000/1 s"
        assert second.share is not None


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.parent, child = pty.openpty()
        termios.tcsetwinsize(self.parent, (24, 100))
        self.before = termios.tcgetattr(child)
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asyncjobs", *args],
            stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True,
        )  # fmt: skip
        self.child, self.output = child, ""

    def read(self) -> str:
        while select.select([self.parent], [], [], 0)[0]:
            self.output += os.read(self.parent, 65536).decode(errors="replace")
        return self.output

    def type(self, keys: str) -> None:
        os.write(self.parent, keys.encode())

    async def shows(self, pattern: str) -> None:
        await eventually(lambda: re.search(pattern, self.read()), what=f"{pattern} in {self.output[-2000:]}")

    async def ended(self) -> int:
        await eventually(lambda: self.read() and self.process.poll() is not None)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.parent)
        os.close(self.child)


@pytest.fixture
async def terminal(make_runtime, cli):
    runtime = make_runtime()
    runtime.job("send-mail", limiter=None)(lambda data: None)
    async with runtime:
        await runtime.queue.add("send-mail", 1, delay=3600)
        made = Terminal("stats", "--watch", *cli.store)
        yield made
        made.close()


@pytest.mark.slow
async def test_it_answers_keys_and_leaves_the_terminal_as_it_was(terminal):
    await terminal.shows("send-mail")
    terminal.type("5")
    await terminal.shows("alive")
    terminal.type("1/xyz\r")
    await terminal.shows("nothing contains 'xyz'")
    terminal.type("q")
    assert await terminal.ended() == 0
    assert termios.tcgetattr(terminal.child) == terminal.before
    assert terminal.output.rstrip().endswith(("\x1b[?1049l\x1b[?25h", "\x1b[?25h", "\x1b[?1049l"))
    assert "Traceback" not in terminal.output


@pytest.mark.slow
async def test_an_interruption_is_obeyed_at_once_and_leaves_the_terminal_as_it_was(terminal):
    await terminal.shows("send-mail")
    began = time.monotonic()
    terminal.process.send_signal(signal.SIGINT)
    assert await terminal.ended() == 130
    assert time.monotonic() - began < 5
    assert termios.tcgetattr(terminal.child) == terminal.before
    assert "\x1b[?1049l" in terminal.output


async def test_without_a_terminal_it_says_what_to_do_instead(cli):
    assert "--watch needs a terminal" in (await cli("stats", "--watch", code=2)).err

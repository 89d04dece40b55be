"""The View: what the live view of a terminal shows, and how it is drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from asyncjobs import clock, words
from asyncjobs.cli import output, showing, steering
from asyncjobs.cli.figures import Figures, Pace
from asyncjobs.cli.output import Column

if TYPE_CHECKING:
    from asyncjobs.job import Job

HISTORY: Final = 60  # looks in the line of the pace
TABS: Final = ("queues", "running", "failed", "tasks", "processes")
SPARKS: Final = "▁▂▃▄▅▆▇█"


@dataclass
class View:
    """What is shown.

    Attributes:
        tab: one of `TABS`.
        query: what the rows shown contain; `typing`: it is being typed.
        ended: nothing is looked at any more.
        error: why the figures are old.
    """

    store: str = ""
    tab: str = TABS[0]
    query: str = ""
    typing: bool = False
    paused: bool = False
    ended: bool = False
    error: str = ""
    at: datetime | None = None
    names: list[Figures] = field(default_factory=list)
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    tasks: list[Any] = field(default_factory=list)
    processes: list[Any] = field(default_factory=list)
    paces: dict[str, Pace] = field(default_factory=dict)
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def key(self, key: str) -> bool:
        """A key was pressed. Returns whether to go on."""
        if self.typing:
            if key in ("\r", "\n", "\x1b"):
                self.typing, self.query = False, "" if key == "\x1b" else self.query
            elif key in ("\x7f", "\x08"):
                self.query = self.query[:-1]
            elif key.isprintable() and len(self.query) < 60:
                self.query += key
            return True
        if key in ("q", "\x03", "\x04"):
            return False
        if key == "/":
            self.typing, self.query = True, ""
        elif key == "\x1b":
            self.query = ""
        elif key == "p":
            self.paused = not self.paused
        elif key in "12345" and key:
            self.tab = TABS[int(key) - 1]
        return True


# Drawing -----------------------------------------------------------------------------------------------------------
def draw(view: View, width: int, height: int) -> RenderableType:
    """The whole screen."""
    room = max(1, height - 5)
    rows = {"queues": _queues, "running": _running, "failed": _failed, "tasks": _tasks, "processes": _processes}
    body = rows[view.tab](view, width, room)
    lines = Console(width=width, height=height).render_lines(body, pad=False)
    padding = Text("\n" * max(0, height - 5 - len(lines)))
    return Group(_head(view, width), _tabs(view, width), Text(""), body, padding, _foot(view, width))


def _head(view: View, width: int) -> Text:
    waiting = sum(one.info["waiting"] for one in view.names)
    active = sum(one.info["active"] for one in view.names)
    failed = sum(one.pace.failed for one in view.names if one.pace is not None)
    done = sum(one.pace.done for one in view.names if one.pace is not None)
    alive = sum(one.state != "gone" for one in view.processes)
    text = Text(no_wrap=True, overflow="ellipsis")
    parts = [
        (words.number(waiting), " waiting", "yellow" if waiting else "dim"),
        (words.number(active), " running", "blue" if active else "dim"),
        (rate(done), "/s", "green" if done else "dim"),
        (words.number(failed), " failed 24h", "red" if failed else "dim"),
        (str(alive), f" process{'es' * (alive != 1)}", "" if alive else "bold red"),
    ]
    for number, what, style in parts:
        text.append(number, f"bold {style}").append(what, "dim").append("   ")
    left = width - text.cell_len
    if left > 12 and any(view.history):
        text.append(sparks(list(view.history)[-min(left - 2, HISTORY) :]), "green")
    return text


def sparks(values: Sequence[float]) -> str:
    """A line of bars."""
    top = max(values, default=0.0)
    return "".join(SPARKS[min(7, int(value / top * 7.999))] if top > 0 else SPARKS[0] for value in values)


def rate(value: float) -> str:
    """``0.25``, ``5.0``, ``12,400``"""
    if value == 0:
        return "0"
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _tabs(view: View, width: int) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, name in enumerate(TABS, 1):
        chosen = name == view.tab
        text.append(f" {number} {name} ", "reverse" if chosen else "dim").append(" ")
    if view.query or view.typing:
        text.append(f" /{view.query}{'▏' if view.typing else ''}", "bold cyan")
    return text


def _foot(view: View, width: int) -> Text:
    state = Text(no_wrap=True, overflow="ellipsis")
    if view.error:
        state.append(f"the figures are old: {words.one_line(view.error)}", "bold red")
    elif view.paused:
        state.append("paused", "bold magenta").append(f" at {view.at:%H:%M:%S}Z" if view.at else "", "dim")
    else:
        state.append(f"{view.at:%H:%M:%S}Z" if view.at else "looking …", "dim")
        if width - len(view.store) > 60:
            state.append(f"  {words.one_line(view.store)}", "dim")
    keys = "1-5 view  / filter  p pause  q quit"
    if width - state.cell_len > len(keys) + 2:
        state.append(" " * (width - state.cell_len - len(keys))).append(keys, "dim")
    return state


def _table(
    columns: Sequence[Column], rows: Sequence[Sequence[Any]], width: int, room: int, nothing: str
) -> RenderableType:
    if not rows:
        return Text(nothing, "dim")
    shown = list(rows[:room])
    made: Table = output.rich_table(columns, shown, width)
    if len(rows) > room:
        return Group(made, Text(f"… and {words.number(len(rows) - room)} more; / filters", "dim"))
    return made


def _matching(view: View, rows: Sequence[tuple[str, Sequence[Any]]]) -> list[Sequence[Any]]:
    """The rows that contain what is asked for."""
    return [row for text, row in rows if view.query.lower() in text.lower()]


def _queues(view: View, width: int, room: int) -> RenderableType:
    narrow = width < 100
    wide = ("waiting", "running", "delayed", "failed 24h", "done/s", "p95 wait")
    short = ("wait", "run", "due", "✕ 24h", "/s", "p95")
    numbers = (Column(one, number=True) for one in (short if narrow else wide))
    columns = [Column("job", flexible=True), *numbers, Column("limit", flexible=narrow)]
    heaviest = sorted(view.names, key=lambda one: (-one.info["waiting"], -one.info["active"], one.name))
    rows = [(one.name, _queue_row(one, narrow)) for one in heaviest]
    return _table(
        columns, _matching(view, rows), width, room - 1, _nothing(view, "no job has been registered in this store")
    )


def _nothing(view: View, otherwise: str) -> str:
    return f"nothing contains {view.query!r}; Esc shows all" if view.query else otherwise


def _queue_row(one: Figures, narrow: bool) -> tuple[Any, ...]:
    info, found = one.info, one.pace
    name = output.Cell(one.name)
    failed = 0 if found is None else found.failed
    return (
        name,
        output.Cell(words.number(info["waiting"]), "bold yellow" if info["waiting"] else "dim"),
        output.Cell(steering.slots(info, None), "blue" if info["active"] else "dim"),
        info["delayed"],
        output.Cell(words.number(failed), "bold red" if failed else "dim"),
        output.Cell("…" if found is None else rate(found.done), "green" if found is not None and found.done else "dim"),
        output.Cell("–" if found is None or found.wait is None else words.duration(found.wait)),
        limit(one, narrow),
    )


def limit(one: Figures, narrow: bool) -> output.Cell:
    """What holds a name back: a pause, a hold, its limit with a bar of how much of it is taken."""
    if not one.processes and one.info["waiting"]:
        return output.Cell("no process runs it", "bold red")
    standing = steering.standing(one.info)
    if standing.text:
        return standing
    text = one.limit if one.limit != "none" else ""
    if one.groups is not None:
        open_ones = f"×{words.number(one.groups)}" if narrow else f"a group, {words.number(one.groups)} open"
        return output.Cell(f"{text or 'no limit'} {open_ones}", "dim")
    if one.share is None:
        return output.Cell(text or "–", "dim")
    full = round(one.share * 5)
    bar = "▮" * full + "▯" * (5 - full)
    return output.Cell(f"{bar} {text}{' binds' if one.binds else ''}", "bold magenta" if one.binds else "dim")


def _running(view: View, width: int, room: int) -> RenderableType:
    jobs = sorted(view.jobs.get("running", []), key=lambda job: job.started_at or clock.now())
    columns = [Column("job"), Column("group"), Column("id"), Column("for", number=True), Column("tries", number=True)]
    columns.append(Column("progress", flexible=True))
    rows = [(_text(job), _running_row(job)) for job in jobs]
    return _table(columns, _matching(view, rows), width, room - 1, _nothing(view, "nothing runs"))


def _running_row(job: Job) -> tuple[Any, ...]:
    seconds = showing.took(job)
    since = "–" if seconds is None else words.duration(seconds)
    progress = None if job.progress is None else showing.compact(job.progress)
    return (job.name, job.group_id, job.id, output.Cell(since), output.Cell(showing.tries(job)), progress)


def _failed(view: View, width: int, room: int) -> RenderableType:
    columns = [
        Column("when", number=True),
        Column("job"),
        Column("group"),
        Column("id"),
        Column("error", flexible=True),
    ]
    rows = [
        (
            _text(job),
            (job.finished_at, job.name, job.group_id, job.id, output.Cell(showing.last_error(job) or "", "red")),
        )
        for job in view.jobs.get("failed", [])
    ]
    return _table(columns, _matching(view, rows), width, room - 1, _nothing(view, "nothing has failed for good"))


def _text(job: Job) -> str:
    return " ".join((job.name, job.group_id or "", job.id, showing.last_error(job) or ""))


def _tasks(view: View, width: int, room: int) -> RenderableType:
    from asyncjobs.cli import tasks

    columns = [Column("task", flexible=True), Column("schedule"), Column("state"), Column("next", number=True)]
    columns += [Column("last run", number=True), Column("outcome"), Column("took", number=True)]
    rows = [(one.name, tasks.short_row(one)) for one in view.tasks]
    return _table(
        columns, _matching(view, rows), width, room - 1, _nothing(view, "no task has been registered in this store")
    )


def _processes(view: View, width: int, room: int) -> RenderableType:
    from asyncjobs.cli import processes

    rows = [(f"{one.host} {one.pid} {' '.join(one.names)}", processes.row(one)) for one in view.processes]
    nothing = _nothing(view, "no process works here: python -m asyncjobs run")
    return _table(processes.COLUMNS, _matching(view, rows), width, room - 1, nothing)

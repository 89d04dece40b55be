"""What commands print: tables on a terminal, lines of cells between tabs in a pipe, JSON where it is asked for.

Whatever comes out of the store is a guest: it is shown with its control characters as escapes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TextIO

import click

from asyncjobs import clock, words

GAP: Final = 2  # between columns
LEAST: Final = 6  # characters of a flexible column
STYLES: Final = {
    "waiting": "yellow", "delayed": "magenta", "active": "blue", "completed": "green", "failed": "red",
    "cancelled": "dim", "paused": "magenta", "held": "magenta",
}  # fmt: skip
MARKS: Final = {
    "waiting": "○", "delayed": "◔", "active": "▶", "completed": "✓", "failed": "✕", "cancelled": "⊘", "paused": "⏸",
    "held": "⏸",
}  # fmt: skip


class Cell(NamedTuple):
    """A text with a style on a terminal; in a pipe its `plain` text, if that differs."""

    text: str
    style: str = ""
    plain: str | None = None


class Column(NamedTuple):
    """A column. `number`: to the right; `flexible`: it takes what room is left, and is cut to that on a terminal."""

    name: str
    number: bool = False
    flexible: bool = False


def is_terminal(stream: TextIO | None = None) -> bool:
    return (stream or sys.stdout).isatty()


def fancy() -> bool:
    """Whether marks may be printed: on a terminal that has these characters."""
    return is_terminal() and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


# JSON --------------------------------------------------------------------------------------------------------------
def as_json(value: Any) -> str:
    """`value` as JSON on one line, in ASCII, so that nothing in it moves a cursor."""
    return json.dumps(value, default=_builtin, skipkeys=True)


def _builtin(value: Any) -> Any:
    if isinstance(value, datetime):
        return at(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if hasattr(value, "_asdict"):
        return value._asdict()
    import msgspec

    try:
        return msgspec.to_builtins(value, builtin_types=(datetime,))
    except Exception:
        return str(value)


def emit(value: Any) -> None:
    """Print JSON."""
    click.echo(as_json(value))


# Texts -------------------------------------------------------------------------------------------------------------
def at(instant: datetime | None) -> str | None:
    """``2026-11-25T03:41:12.123Z``"""
    if instant is None:
        return None
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def since(instant: datetime | None, now: datetime | None = None) -> Cell:
    """How long ago, or in how long; in a pipe the instant."""
    if instant is None:
        return Cell("–", "dim", "")
    seconds = ((now or clock.now()) - instant).total_seconds()
    text = "now" if abs(seconds) < 0.5 else ago(seconds) if seconds > 0 else f"in {ago(-seconds).removesuffix(' ago')}"
    return Cell(text, "", at(instant))


def ago(seconds: float) -> str:
    """``14 s ago``: one unit is enough."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def state(name: str | None) -> Cell:
    """A state with its mark."""
    shown = name or "not added"
    mark = MARKS.get(shown, "")
    return Cell(f"{mark} {shown}" if mark and fancy() else shown, STYLES.get(shown, ""), shown)


def plain(value: Any) -> str:
    """A cell in a pipe."""
    if isinstance(value, Cell):
        value = value.text if value.plain is None else value.plain
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return words.one_line(at(value) or "" if isinstance(value, datetime) else str(value))


def shown(value: Any) -> Cell:
    """A cell on a terminal."""
    if isinstance(value, Cell):
        return value._replace(text=words.one_line(value.text))
    if value is None or value == "":
        return Cell("–", "dim")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(words.number(value), "dim" if value == 0 else "")
    if isinstance(value, datetime):
        return since(value)
    return Cell(words.one_line(str(value)))


# Tables ------------------------------------------------------------------------------------------------------------
def console(stream: TextIO | None = None) -> Any:
    """A rich console that obeys NO_COLOR, TERM and the width of the terminal."""
    from rich.console import Console

    return Console(file=stream or sys.stdout, highlight=False, emoji=False, markup=False)


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[Any]], empty: str = "") -> None:
    """Print rows under the names of their columns. `empty`: what is said on a terminal where there are none."""
    known = [Column(one) if isinstance(one, str) else one for one in columns]
    if not is_terminal():
        click.echo("\t".join(one.name for one in known))
        for row in rows:
            click.echo("\t".join(map(plain, row)))
        return
    listed = list(rows)
    if not listed and empty:
        click.echo(empty)
        return
    out = console()
    out.print(rich_table(known, listed, out.width))


def rich_table(columns: Sequence[Column], rows: Iterable[Sequence[Any]], width: int) -> Any:
    """A table that is no wider than `width`: what flexible columns have no room for is cut."""
    from rich.table import Table
    from rich.text import Text

    cells = [[shown(cell) for cell in row] for row in rows]
    widths = _widths(columns, cells, width)
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for one, room in zip(columns, widths, strict=True):
        justify: Any = "right" if one.number else "left"
        made.add_column(one.name, justify=justify, no_wrap=True, overflow="ellipsis", width=room)
    for row in cells:
        made.add_row(*(Text(cell.text, cell.style) for cell in row))
    return made


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[int]:
    """How wide each column is: as it needs, but for flexible ones, which share what is left."""
    from rich.cells import cell_len

    needs = [max([cell_len(one.name), *(cell_len(row[at].text) for row in rows)]) for at, one in enumerate(columns)]
    flexible = sorted((at for at, one in enumerate(columns) if one.flexible), key=lambda at: needs[at])
    left = width - GAP * (len(columns) - 1) - sum(need for at, need in enumerate(needs) if not columns[at].flexible)
    for number, at in enumerate(flexible):
        needs[at] = max(LEAST, min(needs[at], left // (len(flexible) - number)))
        left -= needs[at]
    return needs


def details(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print a name and a value a line; a value that is None is left out. Of a text of many lines each is indented."""
    known = [(name, value) for name, value in pairs if value is not None]
    if not is_terminal():
        for name, value in known:
            click.echo(f"{name}\t{plain(value)}")
        return
    width = max((len(name) for name, _ in known), default=0)
    out = console()
    from rich.text import Text

    for name, value in known:
        text = Text(f"{name:<{width}}  ", "dim")
        cell = shown(value)
        if isinstance(value, str) and "\n" in value:
            cell = Cell(words.lines(value).replace("\n", "\n" + " " * (width + 2)))
        out.print(text + Text(cell.text, cell.style), soft_wrap=True)


def block(title: str, text: str) -> None:
    """A text of several lines under a title."""
    click.echo(f"\n{title}")
    for line in words.lines(text).rstrip("\n").split("\n"):
        click.echo(f"  {line}")


def say(text: str) -> None:
    """A line for people, which is no part of what a pipe is to read."""
    click.echo(words.one_line(text), err=True)


def width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 80


def counts_json(found: Mapping[str, int], states: Iterable[str]) -> dict[str, int]:
    return {one: found.get(one, 0) for one in states}

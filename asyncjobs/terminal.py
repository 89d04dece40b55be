"""The terminal: tables and lines that commands print, readable on a terminal and in a pipe."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncjobs.declare.definition import JobSpec, TaskSpec
from asyncjobs.declare.loader import Loaded

PIPE_WIDTH = 120


def console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=True)


def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], numbers: tuple[str, ...] = ()) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", style=None, overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def jobs_table(specs: list[JobSpec]) -> Table:
    rows = [
        (
            spec.name,
            ", ".join(map(str, (*spec.limiters, *spec.named_limiters))) or "none",
            f"{'–' if spec.concurrency is None else spec.concurrency}{' per group' if spec.grouped else ''}",
            "–" if spec.job_options.attempts is None else spec.job_options.attempts,
            spec.source,
        )
        for spec in sorted(specs, key=lambda one: one.name)
    ]
    return table("jobs", ("name", "limit", "at once", "tries", "from"), rows)


def tasks_table(specs: list[TaskSpec], running: set[str], environment: str) -> Table:
    rows = []
    for spec in sorted(specs, key=lambda one: one.name):
        definition = spec.definition
        if spec.name in running:
            state = "ticks"
        elif definition.is_active is not True:
            state = "inactive"
        else:
            state = f"not in {environment}"
        rows.append((spec.name, definition.cron_time, spec.zone.key, state, spec.source))
    return table("tasks", ("name", "schedule", "time zone", "state", "from"), rows)


def show_loaded(out: Console, loaded: Loaded, running: set[str], environment: str) -> None:
    if loaded.jobs:
        out.print(jobs_table(loaded.jobs))
    if loaded.tasks:
        out.print(tasks_table(loaded.tasks, running, environment))

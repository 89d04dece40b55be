"""Why a job does not run, as a command shows it: each reason, and the line to type."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from asyncjobs import clock, words
from asyncjobs.cli import output

if TYPE_CHECKING:
    from asyncjobs.job import Job


def who(job: Job) -> tuple[str, str, str | None, str | None]:
    return job.id, job.name, job.group_id, job.state


def show_job(job: Job, found: Sequence[Any]) -> None:
    """A job and what holds it back."""
    parts = [job.name, *([] if job.group_id is None else [job.group_id]), job.id]
    if not output.is_terminal():
        for reason in found:
            click.echo("\t".join(map(output.plain, (job.id, reason.code, reason.text, reason.until, reason.action))))
        return
    begin = job.started_at if job.state == "active" else job.finished_at or job.added_at
    since = "" if begin is None else f" {words.duration((clock.now() - begin).total_seconds())}"
    head = " · ".join(map(words.one_line, parts))
    click.echo(f"{head}   {output.state(job.state).text}{since}")
    show(found, "it runs" if job.state == "active" else "it has ended" if job.finished_at else "nothing holds it back")


def show(found: Sequence[Any], otherwise: str) -> None:
    """Reasons, one below the other. `otherwise`: what is said where there are none."""
    if not output.is_terminal():
        for reason in found:
            click.echo("\t".join(map(output.plain, (reason.code, reason.text, reason.until, reason.action))))
        return
    if not found:
        click.echo(f"  {otherwise}")
        return
    width = max(len(reason.code) for reason in found)
    for number, reason in enumerate(found, 1):
        until = _until(reason.until)
        click.echo(f" {number}  {reason.code.replace('_', ' '):<{width}}  {words.one_line(reason.text)}{until}")
        if reason.action:
            click.echo(f"    {'→' if output.fancy() else '->'} {words.one_line(reason.action)}")


def _until(instant: datetime | None) -> str:
    if instant is None:
        return ""
    left = (instant - clock.now()).total_seconds()
    return f" ({words.duration(left)} left)" if left > 0 else ""

"""Questions that a command asks before it does what cannot be undone, or does it to many."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from asyncjobs import words
from asyncjobs.cli import output

if TYPE_CHECKING:
    from asyncjobs.cli.command import Given


def may(given: Given, what: str, question: str, word: str = "") -> bool:
    """Say `what` it is about, and ask, unless ``--yes`` or ``--dry-run`` was given.

    Args:
        word: what has to be typed, where ``y`` is too little.
    Raises:
        click.UsageError: nobody is there to answer.
    """
    if given.dry_run:
        if not given.as_json:
            click.echo(f"would do: {words.one_line(what)}")
        return False
    if given.yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(
            f"{words.one_line(what)}: nobody can be asked here; say --yes, or --dry-run to look first"
        )
    click.echo(words.one_line(what), err=True)
    if word:
        answer: str = click.prompt(f"{question} Type {word} to go on", default="", show_default=False, err=True)
        agreed = answer.strip() == word
    else:
        agreed = click.confirm(question, err=True)
    if not agreed:
        output.say("nothing was done")
    return agreed

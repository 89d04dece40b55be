"""``asyncjobs completion bash|zsh|fish``"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from asyncjobs.cli.command import HELP

PLACES = {
    "bash": "~/.bashrc: eval \"$(asyncjobs completion bash)\"",
    "zsh": "~/.zshrc: eval \"$(asyncjobs completion zsh)\"",
    "fish": "~/.config/fish/completions/asyncjobs.fish: asyncjobs completion fish | source",
}  # fmt: skip


@click.command("completion", context_settings=HELP)
@click.argument("shell", type=click.Choice(tuple(PLACES)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell. It completes `asyncjobs`, not `python -m asyncjobs`."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(f"# in {PLACES[shell]}")
    click.echo(kind(ctx.find_root().command, {}, "asyncjobs", "_ASYNCJOBS_COMPLETE").source())

"""``asyncjobs demo``"""

from __future__ import annotations

import click

from asyncjobs.cli import project


@click.command("demo")
def command() -> int:
    """Run the example project on an embedded store of its own; ends by itself, 1 if an expectation failed."""
    from asyncjobs.demo.show import run

    code: int = project.run_loop(run())
    return code

"""``asyncjobs check``"""

from __future__ import annotations

import click

from asyncjobs import terminal
from asyncjobs.cli import project


@click.command("check")
@project.options
def command(jobs: str | None, tasks: str | None, app: str | None, redis: str | None) -> int:
    """Load and validate every job and task, without a store."""
    runtime = project.runtime(jobs, tasks, app, redis)
    loaded = project.run_loop(runtime.load())
    out = terminal.console()
    environment = runtime.config.environment
    running = {spec.name for spec in loaded.tasks if spec.runs_in(environment)}
    terminal.show_loaded(out, loaded, running, environment)
    out.print(f"{len(loaded.jobs)} jobs and {len(loaded.tasks)} tasks, all well")
    return 0

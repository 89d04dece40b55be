"""``asyncjobs check``"""

from __future__ import annotations

from asyncjobs.cli import output, project
from asyncjobs.cli.command import Given, made


@made("check")
def command(given: Given) -> int:
    """Load and validate every job and task, without a store."""
    from asyncjobs import terminal

    runtime = project.runtime(given)
    loaded = project.run_loop(runtime.load())
    environment = runtime.config.environment
    running = {spec.name for spec in loaded.tasks if spec.runs_in(environment)}
    if given.as_json:
        jobs, tasks = sorted(one.name for one in loaded.jobs), sorted(one.name for one in loaded.tasks)
        output.emit({"jobs": jobs, "tasks": tasks, "ticking": sorted(running), "environment": environment})
        return 0
    out = terminal.console()
    terminal.show_loaded(out, loaded, running, environment)
    out.print(f"{len(loaded.jobs)} jobs and {len(loaded.tasks)} tasks, all well")
    return 0

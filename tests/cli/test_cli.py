"""The command line, as its users meet it: output, exit codes, no traceback for their mistakes."""

from __future__ import annotations

import json
import signal
import textwrap
import time

import pytest

from asyncjobs import Runtime
from tests.helpers import Process, command_line, eventually, ledger, write

PROJECT = {
    "jobs/send_mail.py": """
        from asyncjobs import WorkerOptions
        worker_options = WorkerOptions(limiter=None)
        async def handle(data, job):
            with open("ledger", "a") as file:
                file.write(f"mail {data}\\n")
    """,
    "jobs/sync_data.py": """
        group = True
        async def handle(data, job):
            with open("ledger", "a") as file:
                file.write(f"sync {job.group_id}\\n")
    """,
    "tasks/poll.py": "cron_time = '*/5 * * * *'\nis_active = True\nasync def task(): pass",
}


@pytest.fixture
def project(tmp_path):
    return write(tmp_path, PROJECT)


def failed(done, code: int, *words: str) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_help_lists_the_commands_and_is_quick(tmp_path):
    done = command_line(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("run", "demo", "add", "stats", "check"):
        assert f"  {command} " in done.stdout
    for command in ("run", "demo", "add", "stats", "check"):
        assert command_line(tmp_path, command, "--help").returncode == 0
    assert command_line(tmp_path, "--version").stdout.startswith("asyncjobs, version")


@pytest.mark.slow
def test_add_stats_and_burst(project):
    done = command_line(project, "add", "send-mail", '{"to": "a@b"}')
    assert (done.returncode, len(done.stdout.strip())) == (0, 24)
    assert command_line(project, "add", "sync-data", "7", "--group", "acme").returncode == 0
    assert command_line(project, "add", "send-mail", "1", "--id", "one").stdout == "one\n"
    again = command_line(project, "add", "send-mail", "1", "--id", "one")
    assert (again.returncode, again.stdout) == (0, "one exists already; nothing was added\n")
    assert command_line(project, "add", "send-mail", "2", "--delay", "0.2").returncode == 0
    counts = json.loads(command_line(project, "stats", "--json").stdout)
    assert counts["send-mail"]["waiting"] + counts["send-mail"]["delayed"] == 3
    assert counts["sync-data"] == {"waiting": 1, "active": 0, "delayed": 0, "completed": 0, "failed": 0, "groups": 1}
    table = command_line(project, "stats").stdout
    assert "send-mail" in table
    assert "\x1b" not in table, "no colours in a pipe"
    burst = command_line(project, "run", "--burst")
    assert burst.returncode == 0, burst.stderr
    assert sorted(ledger(project / "ledger")) == ["mail 1", "mail 2", "mail {'to': 'a@b'}", "sync acme"]
    assert json.loads(command_line(project, "stats", "--json").stdout)["send-mail"]["completed"] == 3


@pytest.mark.slow
async def test_run_says_what_it_loaded_and_two_share_the_work(project):
    processes = [Process(project, "run"), Process(project)]
    try:
        for process in processes:
            await process.says("ready")
            for word in (
                "send-mail",
                "sync-data",
                "poll",
                "*/5 * * * *",
                "America/Sao_Paulo",
                "development",
                "valkey.sock",
            ):
                assert word in process.output
            assert "\x1b" not in process.output
        for n in range(10):
            assert command_line(project, "add", "send-mail", str(n)).returncode == 0
        await eventually(lambda: len(ledger(project / "ledger")) == 10)
        for process in processes:
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
            assert process.output.rstrip().endswith("stopped")
    finally:
        for process in processes:
            process.kill()


def test_check_loads_everything_without_a_store(project):
    done = command_line(project, "check", env={"ASYNCJOBS_REDIS_URL": "redis://127.0.0.1:1"})
    assert done.returncode == 0, done.stderr
    assert "2 jobs and 1 tasks, all well" in done.stdout
    assert not (project / ".asyncjobs").exists()
    write(
        project,
        {
            "jobs/bad.py": "import nothing_like_this",
            "tasks/worse.py": "cron_time = 'x'\nis_active=True\ndef task(): pass",
        },
    )
    failed(
        command_line(project, "check"),
        1,
        "2 files could not be loaded",
        "jobs/bad.py: ModuleNotFoundError",
        "tasks/worse.py: cron_time='x'",
    )


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("add", "send_mail", "{}"), 2, ("no job is called 'send_mail'; did you mean 'send-mail'?",)),
        (("add", "send-mail", "{"), 2, ("the data is not JSON",)),
        (("add", "send-mail", "1", "--group", "x"), 2, ("send-mail has no groups",)),
        (("add", "sync-data", "1"), 2, ("name its group",)),
        (("add", "send-mail", "1", "--delay", "-1"), 2, ("-1",)),
        (("add",), 2, ("Missing argument 'NAME'",)),
        (("fly",), 2, ("No such command 'fly'",)),
        (("run", "--fast"), 2, ("No such option", "--fast")),
        (("run", "--jobs", "nowhere"), 1, ("nowhere: there is no such folder",)),
        (("run", "--redis", "http://x"), 2, ("unknown scheme",)),
        (("run", "--app", "nothing"), 2, ("expected module:runtime",)),
        (("run", "--app", "no_such_module:x"), 2, ("No module named 'no_such_module'",)),
        (("run", "--app", "json:dumps"), 2, ("not a Runtime",)),
        (("run", "--app", "json:nope"), 2, ("json has no nope",)),
        (("run", "--app", "a:b", "--jobs", "jobs"), 2, ("leave out the other options",)),
    ],
)
def test_a_users_mistake_is_one_line_and_the_right_code(project, args, code, words):
    done = command_line(project, *args)
    failed(done, code, *words)


def test_an_unreachable_store_is_said_by_name_without_its_password(project):
    (project / "app.py").write_text(
        "from asyncjobs import Runtime\n"
        "runtime = Runtime('redis://:s3cret@127.0.0.1:1', jobs='jobs', connect_timeout=0.3)\n"
    )
    done = command_line(project, "stats", "--app", "app:runtime")
    failed(done, 1, "127.0.0.1:1", "out of reach")
    assert "s3cret" not in done.stderr


def test_nothing_to_run_is_said(tmp_path):
    failed(command_line(tmp_path), 2, "no jobs and no tasks here", "--jobs")


def test_pyproject_says_where_things_are(tmp_path):
    files = {f"code/{name}": text for name, text in PROJECT.items()}
    write(tmp_path, files)
    (tmp_path / "pyproject.toml").write_text('[tool.asyncjobs]\njobs = "code/jobs"\ntasks = "code/tasks"\n')
    assert "2 jobs and 1 tasks" in command_line(tmp_path, "check").stdout
    (tmp_path / "pyproject.toml").write_text('[tool.asyncjobs]\njobz = "code/jobs"\n')
    failed(command_line(tmp_path, "check"), 2, "jobz", "expected jobs, tasks, app, redis")
    (tmp_path / "pyproject.toml").write_text("[tool")
    failed(command_line(tmp_path, "check"), 2, "pyproject.toml cannot be read")


def test_src_folders_and_an_app_of_ones_own_are_found(tmp_path):
    write(tmp_path, {f"src/{name}": text for name, text in PROJECT.items()})
    assert "2 jobs and 1 tasks" in command_line(tmp_path, "check").stdout
    write(
        tmp_path,
        {
            "shop.py": """
                from asyncjobs import Runtime
                runtime = Runtime()
                @runtime.job
                async def wrap_gift(data): pass
            """
        },
    )
    assert "wrap-gift" in command_line(tmp_path, "check", "--app", "shop:runtime").stdout


@pytest.mark.slow
def test_the_demo_meets_its_expectations(tmp_path):
    done = command_line(tmp_path, "demo", timeout=90)
    assert done.returncode == 0, done.stdout
    assert "expectations met" in done.stdout
    assert "NOT MET" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_can_fail(tmp_path):
    """With the limit of the mail job lifted, the count of mails in a second must be found wrong."""
    code = (
        "import asyncio, sys\n"
        "from asyncjobs.demo.jobs import send_mail\n"
        "from asyncjobs import WorkerOptions\n"
        "send_mail.worker_options = WorkerOptions(limiter=None)\n"
        "from asyncjobs.demo.show import run\n"
        "sys.exit(asyncio.run(run()))\n"
    )
    process = Process(tmp_path, "-c", code, module=False)
    try:
        assert process.popen.wait(90) == 1
        assert "1 of 23 expectations were not met" in process.output
    finally:
        process.kill()


async def test_a_runtime_restricted_to_adding_is_restored(make_runtime):
    runtime: Runtime = make_runtime()
    runtime.job("echo", limiter=None)(lambda data: data)
    async with runtime.only_adding() as queue:
        job = await queue.add("echo", 1)
        assert (await queue.counts("echo"))["waiting"] == 1
    async with runtime:
        assert await _done(runtime, job)


async def _done(runtime, job):
    async def completed():
        return (await runtime.queue.get_job("echo", job.id)).state == "completed"

    return await eventually(completed)


HOLE = """
    import socket, sys
    from asyncjobs import Runtime
    runtime = Runtime("redis://127.0.0.1:{port}", jobs="jobs", connect_timeout=30)
"""


@pytest.fixture
def hole():
    """A server that takes connections and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("command", ["run", "stats", "add"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_store_that_does_not_answer_is_told_of_and_a_signal_is_obeyed_at_once(project, hole, command, number):
    (project / "app.py").write_text(textwrap.dedent(HOLE.format(port=hole)))
    process = Process(project, command, *(("send-mail", "1") if command == "add" else ()), "--app", "app:runtime")
    try:
        await process.says(f"connecting to redis://127.0.0.1:{hole}")
        began = time.monotonic()
        process.signal(number)
        code = await process.ended(10)
        assert time.monotonic() - began < 4
        expected = {signal.SIGINT: 130, signal.SIGTERM: 0 if command == "run" else -signal.SIGTERM}
        assert code == expected[number], process.output
        assert "Traceback" not in process.output
    finally:
        process.kill()


async def test_the_demo_can_be_interrupted(tmp_path):
    process = Process(tmp_path, "demo")
    try:
        await process.says("completed")
        process.signal(signal.SIGINT)
        assert await process.ended(10) == 130, process.output
        assert "Traceback" not in process.output
    finally:
        process.kill()


APP = """
    from asyncjobs import Runtime

    class Database:
        async def __aenter__(self):
            open("entered", "a").write("x")
            raise ConnectionRefusedError("no database here")
        async def __aexit__(self, *error): pass

    runtime = Runtime(jobs="jobs", tasks="tasks", services=Database, consume=False)
"""


async def test_looking_needs_no_services(project):
    write(
        project,
        {
            "app.py": APP,
            "jobs/uses.py": """
                from asyncjobs import JobDefinition
                def define(services):
                    database = services.connection["main"].cursor(1)
                    async def handle(data): database.execute(data)
                    return JobDefinition(handle=handle)
            """,
        },
    )
    assert "3 jobs and 1 tasks" in command_line(project, "check", "--app", "app:runtime").stdout
    added = command_line(project, "add", "uses", "1", "--app", "app:runtime")
    assert added.returncode == 0, added.stderr
    counts = json.loads(command_line(project, "stats", "--json", "--app", "app:runtime").stdout)
    assert counts["uses"]["waiting"] == 1
    assert not (project / "entered").exists()
    run = command_line(project, "run", "--burst", "--app", "app:runtime")
    assert run.returncode != 0
    assert "no database here" in run.stderr
    assert (project / "entered").exists()


async def test_run_runs_what_a_web_process_only_adds_and_burst_does_not_tick(tmp_path):
    write(
        tmp_path,
        {
            "web.py": """
                from asyncjobs import Runtime
                runtime = Runtime(consume=False, environment="development")

                @runtime.job("work", limiter=None)
                async def work(data):
                    open("ledger", "a").write("job\\n")

                @runtime.task("* * * * * *")
                async def tick():
                    open("ledger", "a").write("tick\\n")
            """
        },
    )
    assert command_line(tmp_path, "add", "work", "1", "--app", "web:runtime").returncode == 0
    assert command_line(tmp_path, "add", "work", "1", "--delay", "2.5", "--app", "web:runtime").returncode == 0
    done = command_line(tmp_path, "run", "--burst", "--app", "web:runtime")
    assert done.returncode == 0, done.stderr
    assert ledger(tmp_path / "ledger") == ["job", "job"]


async def test_jobs_of_a_name_that_is_gone_are_told_of(project):
    write(
        project, {"jobs/gone.py": "async def handle(data): pass", "jobs/left.py": "group = True\ndef handle(data): 1"}
    )
    assert command_line(project, "add", "gone", "1", "--delay", "60").returncode == 0
    assert command_line(project, "add", "left", "1", "--group", "a", "--delay", "60").returncode == 0
    (project / "jobs" / "gone.py").unlink()
    (project / "jobs" / "left.py").unlink()
    counts = json.loads(command_line(project, "stats", "--json").stdout)
    for name in ("gone", "left"):
        assert (counts[name]["delayed"], counts[name]["registered"]) == (1, False)
    assert "gone (not registered)" in command_line(project, "stats").stdout
    process = Process(project, "run")
    try:
        await process.says("1 jobs of 'gone' are left, and no job of that name is registered here")
        await process.says("1 jobs of 'left' are left")
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (app.py, line 1)"),
        ("x = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3 (app.py, line 1)"),
        ("import nothing_like_it", "No module named 'nothing_like_it' (app.py, line 1)"),
        ("import other", "KeyError: 'x' (other.py, line 2)"),
        ("from asyncjobs import Runtime\nruntime = Runtime(grace=-1)", "grace=-1"),
    ],
)
def test_an_app_that_cannot_be_imported_is_one_line_with_its_place(tmp_path, text, words):
    write(tmp_path, {"app.py": text, "other.py": "\n{}['x']"})
    failed(command_line(tmp_path, "check", "--app", "app:runtime"), 2, words)

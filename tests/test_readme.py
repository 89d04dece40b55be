"""What the README shows is run; what it lists is there."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import textwrap
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

import asyncjobs
from asyncjobs import (
    Alert,
    Alerts,
    Figures,
    Group,
    History,
    JobOptions,
    Limiter,
    Runtime,
    Spread,
    TaskDefinition,
    WorkerOptions,
)
from asyncjobs.cli import COMMANDS
from asyncjobs.events import EVENT_TYPES
from asyncjobs.history.alerts import CODES
from asyncjobs.operate.why import CODES as REASONS
from tests.helpers import Process, command_line, eventually, free_port

README = (Path(__file__).parent.parent / "README.md").read_text()
FILES = dict(re.findall(r"```python file=(\S+)\n(.*?)```", README, re.DOTALL))


@pytest.fixture
def project(tmp_path):
    """The README's files, as a newcomer would type them."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_two_commands_are_at_its_top():
    head = README[:900]
    assert "make demo" in head
    assert "make test" in head


def test_its_files_load(project):
    done = command_line(project, "check")
    assert done.returncode == 0, done.stderr
    assert "3 jobs and 2 tasks, all well" in done.stdout


def test_embedding_takes_fifteen_lines():
    for name in ("fastapi_app.py", "aiohttp_app.py"):
        assert FILES[name].count("\n") <= 18, name
        assert len([line for line in FILES[name].splitlines() if line.strip()]) <= 15, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastapi_app", "aiohttp_app"])
async def test_the_embedding_examples_serve(project, name):
    port = free_port()
    if name == "fastapi_app":
        args = ("-m", "uvicorn", "fastapi_app:app", "--port", str(port), "--log-level", "warning")
    else:
        args = ("-m", "aiohttp.web", "-H", "127.0.0.1", "-P", str(port), "aiohttp_app:make")
        path = project / "aiohttp_app.py"
        path.write_text(path.read_text() + "\n\ndef make(argv):\n    return app\n")
    process = Process(project, *args, module=False)
    try:

        async def posted():
            try:
                async with httpx.AsyncClient() as client:
                    answer = await client.post(f"http://127.0.0.1:{port}/signup", json={"email": "ana@example.org"})
            except httpx.TransportError:
                return None
            return answer.json()

        answer = await eventually(posted, 30)
        assert len(answer["job"]) == 24
        await process.says("mail to ana@example.org, try 1")
    finally:
        process.kill()
    assert aiohttp.__version__


async def test_the_chain_of_its_jobs_runs(project, make_runtime, capsys):
    runtime = make_runtime(jobs=project / "jobs")
    async with runtime:
        job = await runtime.queue.add("export-invoices", {"company": 7, "to": "ana@example.org"})
        assert await job.wait(5) == {"parts": 3}
        record = await runtime.queue.get_job("export-invoices", job.id)
        assert (record.progress, record.logs) == (1.0, ("three parts written",))
        synced = await runtime.queue.add("sync-data", {}, group_id="acme")
        assert await synced.wait(5) == "synced acme"
        await runtime.wait_idle(10)
    assert "mail to ana@example.org, try 1" in capsys.readouterr().out
    assert runtime.io.accepted == 3


async def test_its_ways_to_find_jobs_work(make_runtime):
    """The part on finding jobs, among some that have failed and some that wait."""
    (code,) = re.findall(r"```python run=find\n(.*?)```", README, re.DOTALL)
    runtime = make_runtime()

    async def fails(data):
        raise TimeoutError("no answer")

    runtime.job("send-mail", attempts=1)(fails)
    async with runtime:
        for n in range(3):
            await runtime.queue.add("send-mail", {"company": n})
        await runtime.wait_idle(10)
        names = {"queue": runtime.queue, "yesterday": datetime.now(UTC) - timedelta(days=1)}
        body = textwrap.indent(code, "    ")
        exec(f"async def run():\n{body}\n    return locals()", names)
        got = await names["run"]()
        assert got["found"][0].id == got["job"].id
        assert (got["count"].number, got["count"].exact) == (3, True)
        assert got["one"].id == got["job"].id, "the one of company 7"
        assert got["names"] == {"send-mail": {"waiting": 0, "active": 0, "delayed": 1, "completed": 0, "failed": 3}}


async def test_its_ways_to_act_on_jobs_work(make_runtime):
    """The part on acts, among some that have failed."""
    (code,) = re.findall(r"```python run=act\n(.*?)```", README, re.DOTALL)
    runtime = make_runtime()

    async def fails(data):
        raise TimeoutError("Timeout")

    runtime.job("send-mail", attempts=1)(fails)
    async with runtime:
        for n in range(3):
            await runtime.queue.add("send-mail", {"company": n})
        await runtime.wait_idle(10)
        body = textwrap.indent(code, "    ")
        names = {"queue": runtime.queue, "timedelta": timedelta}
        exec(f"async def run():\n{body}\n    return locals()", names)
        got = await names["run"]()
        assert got["copy"].copied_from.id == got["job"].id
        assert got["done"].done in (2, 3)
        assert sum((await runtime.queue.counts("send-mail")).values()) == 0


def table_keys(heading: str) -> list[str]:
    """The first column of the table that begins with `heading`."""
    lines = README[README.index(f"| {heading} |") :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1].strip().strip("`"))
    return rows


def test_the_option_tables_are_complete():
    assert table_keys("`JobOptions`") == [one.name for one in fields(JobOptions)]
    assert table_keys("`WorkerOptions`") == [one.name for one in fields(WorkerOptions)]
    assert table_keys("property") == [one.name for one in fields(TaskDefinition)]


def test_the_table_of_alerts_is_complete():
    assert table_keys("`Alerts`") == [one.name for one in fields(Alerts)]
    rows = README[README.index("| `Alerts` |") :].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", rows)) >= set(CODES)
    words = set(re.findall(r"\w+", README))
    for record in (Alert, Figures, Group, History, Spread):
        assert {one.name for one in fields(record)} - {"at", "complete", "step", "points"} <= words


async def test_the_example_of_history_and_alerts_runs(project):
    code = "import asyncio, figures; asyncio.run(figures.main()); print(figures.runtime.config.alerts.oldest_waiting)"
    process = Process(project, "-c", code, module=False)
    assert await process.ended(60) == 0, process.output
    lines = process.output.splitlines()
    assert len([line for line in lines if line.endswith("0 0 0 None")]) == 181
    assert lines[-2:] == ["0 None ()", "300.0"]


def test_every_event_command_and_runtime_option_is_named():
    import inspect

    words = set(re.findall(r"[\w.]+", README))
    assert set(EVENT_TYPES) <= words
    assert set(COMMANDS) <= words
    assert set(inspect.signature(Runtime).parameters) <= words


def test_the_list_of_rooms_is_true():
    listed = set()
    for row in table_keys("room"):
        listed.update(re.findall(r"[\w/.]+", row.replace("`", "")))
    root = Path(asyncjobs.__file__).parent
    there = {path.name for path in root.glob("*.py") if not path.name.startswith("__")}
    there |= {f"{path.name}/" for path in root.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert listed == there


def test_the_walk_leads_past_modules_that_are_there():
    walk = README[README.index("The way of `data`") : README.index("| room |")]
    steps = re.findall(r"^\d+\. .*", walk, re.MULTILINE)
    root = Path(asyncjobs.__file__).parent
    assert len(steps) == 10
    missing = [name for name in re.findall(r"`([\w/]+\.(?:py|lua))`", walk) if not (root / name).exists()]
    assert missing == []


def test_the_glossary_has_every_class_of_the_spine():
    """At most twenty-five nouns are enough to follow a job."""
    import ast

    words = README[README.index("| word |") : README.index("## Benchmarks")]
    assert len(re.findall(r"\*\*[a-z ]+\*\*", words)) <= 25
    root = Path(asyncjobs.__file__).parent
    spine = (
        "queue", "job", "active_job", "runtime", "assembly", "events", "work/pump", "work/turn", "work/consumer",
        "work/attempts", "work/prefetch", "work/groups", "limits/shared_limit",
    )  # fmt: skip
    for module in spine:
        tree = ast.parse((root / f"{module}.py").read_text())
        first = next(node.name for node in tree.body if isinstance(node, ast.ClassDef) and is_noun(node.name, module))
        assert f"`{first}`" in words, f"{module}: {first}"


def is_noun(name: str, module: str) -> bool:
    """Whether a class is what its module is named after."""
    return name.lower() == module.rpartition("/")[2].replace("_", "") or name in ("GroupRegistry", "EventBus")


def example(heading: str) -> str:
    """The code that the README shows below a heading, as a function of what it names."""
    code = re.search(rf"^### {re.escape(heading)}\n.*?```python\n(.*?)```", README, re.DOTALL | re.MULTILINE)[1]
    lines = code.replace("\n", "\n    ")
    return f"from asyncjobs import Limiter\nasync def shown(runtime, queue, job):\n    {lines}"


async def shown(heading: str, runtime: Runtime, job: asyncjobs.Job) -> None:
    given: dict[str, Any] = {}
    exec(example(heading), given)
    await given["shown"](runtime, runtime.queue, job)


async def test_what_it_shows_of_processes_tasks_and_reasons(make_runtime, capsys):
    worker, web = make_runtime(), make_runtime(consume=False, schedule=False)
    worker.task("30 2 * * *", name="nightly-report", timezone="UTC")(lambda: None)
    for one in (worker, web):
        one.job("sync-data", group=True, limiter=Limiter(1, 600))(lambda data: None)
    async with worker, web:
        for _ in range(3):
            job = await web.queue.add("sync-data", {}, group_id="acme")
        codes = ["rate_limited", "behind"]
        await eventually(lambda: _waits(job, codes))
        await shown("Processes", web, job)
        host = f"alive {socket.gethostname()} {os.getpid()} ('sync-data',) 0 of 1000 0 None\n"
        assert capsys.readouterr().out == host
        await shown("Tasks", web, job)
        said = capsys.readouterr().out
        assert said.startswith("nightly-report At 02:30 every day UTC  ")
        assert said.endswith("[] []\nstarted\n")
        await shown("Why does it wait?", web, job)
        *reasons, preview = capsys.readouterr().out.splitlines()
    assert [one.split(" | ")[0] for one in reasons] == codes
    assert reasons[0].endswith(" | asyncjobs groups set sync-data acme --limit 5/600")
    assert preview.startswith("1/600 s, 1 at once → 20/1 s, 1 at once: 2 drain in 0.1 s, now in 20 min")


async def _waits(job, codes):
    return [one.code for one in await job.why()] == codes


def test_every_reason_is_in_its_table():
    listed = [code for row in table_keys("code") for code in re.findall(r"\w+", row)]
    assert listed == list(REASONS)


@pytest.mark.slow
async def test_an_installed_wheel_has_all_it_needs(tmp_path):
    """The wheel, unpacked somewhere else, loads its scripts and runs its demo's loading."""
    root = Path(asyncjobs.__file__).parent.parent
    build = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check",
        "-w", str(tmp_path), str(root), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await build.communicate()
    assert build.returncode == 0, said.decode()
    (wheel,) = tmp_path.glob("asyncjobs_runtime-*.whl")
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    package = root / "asyncjobs"
    wanted = {
        f"asyncjobs/{path.relative_to(package)}"
        for pattern in ("**/*.py", "**/*.lua", "**/*.csv", "py.typed")
        for path in package.glob(pattern)
    }
    assert wanted <= names
    assert not any(name.startswith("tests/") for name in names)
    code = (
        "import asyncio, asyncjobs; from asyncjobs.demo.show import HERE;"
        "runtime = asyncjobs.Runtime(jobs=HERE / 'jobs', tasks=HERE / 'tasks');"
        "print(asyncjobs.__file__, len(asyncio.run(runtime.load()).jobs))"
    )
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=tmp_path / "site", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await run.communicate()
    assert out.decode().split() == [str(tmp_path / "site" / "asyncjobs" / "__init__.py"), "11"]


def test_every_fault_has_a_test_that_exists():
    folder = Path(__file__).parent
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", (folder / "faults" / "README.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 55))
    for number, where in rows:
        for file, rest in re.findall(r"`([\w/]+\.py)`([^`]*)", where):
            path = next(path for path in (folder / file, folder / "faults" / file) if path.exists())
            for name in re.findall(r"(\w+)…", rest):
                assert re.search(rf"def test_\w*{name}", path.read_text()), f"row {number}: {file} has no {name}…"

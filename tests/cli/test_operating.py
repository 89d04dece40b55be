"""Processes, tasks, limits, probes and the doctor on the command line; and why a job waits."""

from __future__ import annotations

import asyncio
import json

import pytest

from asyncjobs import Limiter
from tests.helpers import Process, eventually, write


@pytest.fixture
async def shop(make_runtime):
    runtime = make_runtime(environment="development")
    runtime.job("charge", limiter=Limiter(1, 60), concurrency=2)(lambda data: None)
    runtime.job("sync", limiter=None, group=True)(lambda data: None)

    @runtime.task("30 2 * * *", name="nightly", timezone="America/New_York")
    async def nightly(): ...

    @runtime.task("0 3 * * *", name="broken")
    async def broken():
        raise ValueError("no \x1b[31m tick")

    async with runtime:
        yield runtime


async def test_a_limited_job_says_why_it_waits_and_what_to_type(shop, cli):
    await shop.queue.add("charge", 1)
    job = await shop.queue.add("charge", 2)
    await eventually(lambda: shop.health()["counters"]["completed"] == 1)
    (row,) = [line.split("\t") for line in (await cli("jobs", "why", job.id)).out.splitlines()]
    assert row[:2] == [job.id, "rate_limited"]
    assert row[4].startswith("asyncjobs queues set charge --limit ")
    found = (await cli("jobs", "why", job.id, "--json")).json[0]
    assert (found["state"], found["reasons"][0]["code"]) == ("waiting", "rate_limited")
    assert "rate_limited" in (await cli("queues", "show", "charge")).out
    limits = {(one[0], one[1]): one for one in (await cli("limits")).rows}
    assert limits["charge", "rate"][2] == "1/1 min"
    assert "rate limited" in limits["charge", "rate"][5]
    assert limits["sync", "concurrency a group"][2] == "1"
    preview = await cli("queues", "set", "charge", "--limit", "10/1", "--preview")
    assert preview.out.strip()
    assert (await shop.queue.job("charge").info())["limiter"] is None
    typed = row[4].split()[1:]
    await cli(*typed)
    assert (await shop.queue.job("charge").info())["limiter"] is not None
    await eventually(lambda: shop.health()["counters"]["completed"] == 2)
    assert (await cli("jobs", "why", job.id)).out == ""


async def test_paused_names_say_so_and_the_line_to_type_lifts_it(shop, cli):
    await cli("queues", "pause", "charge")
    job = await shop.queue.add("charge", 1)
    (row,) = [line.split("\t") for line in (await cli("jobs", "why", job.id)).out.splitlines()]
    assert row[1] == "paused"
    await cli(*row[4].split()[1:])
    await eventually(lambda: shop.health()["counters"]["completed"] == 1)


async def test_processes_are_listed_and_asked_to_drain(shop, cli):
    (row,) = (await cli("processes")).rows
    found = (await cli("processes", "--json")).json[0]
    assert row[0] == found["id"].rpartition(".")[2]
    assert found["names"] == ["charge", "sync"]
    assert "nightly (task)" in row[-1]
    said = await cli("processes", "drain", row[0], "--reason", "a new disk")
    assert said.out == f"{row[0]}\twas asked to drain\n"
    await eventually(lambda: shop.queue.add("sync", 1, group_id="a"))

    async def state() -> str:
        return (await cli("processes", "--json")).json[0]["state"]

    async def drains() -> bool:
        return await state() == "draining"

    await eventually(drains)
    await cli("processes", "resume", row[0])
    assert "no process has this id" in (await cli("processes", "drain", "nobody", code=2)).err


async def test_tasks_are_listed_run_and_paused(shop, cli):
    rows = {row[0]: row for row in (await cli("tasks", "list")).rows}
    assert rows["nightly"][1:4] == ["30 2 * * *", "America/New_York", "ticks"]
    ticks = (await cli("tasks", "next", "nightly", "--count", "3", "--zone", "UTC")).rows
    assert len(ticks) == 3
    assert ticks[0][0].endswith("+00:00")
    assert (await cli("tasks", "run", "nightly")).out == "nightly\tstarted\n"
    await cli("tasks", "run", "broken")

    async def ran() -> bool:
        found = {one["name"]: one for one in (await cli("tasks", "list", "--json")).json}
        return all(one["runs"] and one["runs"][0]["outcome"] != "running" for one in found.values())

    await eventually(ran)
    shown = await cli("tasks", "show", "broken")
    assert "failed" in shown.out
    assert r"no ?[31m tick" in shown.out
    await cli("tasks", "pause", "nightly", "--reason", "holiday")
    assert {row[0]: row[3] for row in (await cli("tasks", "list")).rows}["nightly"] == "paused"
    assert "reason\tholiday" in (await cli("tasks", "show", "nightly")).out
    await cli("tasks", "resume", "nightly")
    assert "no task is called 'nihgtly'" in (await cli("tasks", "pause", "nihgtly", code=2)).err


async def test_a_probe_says_well_and_what_is_wrong(shop, cli, make_runtime, server, prefix):
    said = await cli("health")
    assert said.out.startswith("ok: ")
    assert "1 process alive" in said.out
    assert (await cli("health", "--json")).json["ok"]
    assert (await cli("health", "--name", "charge", "--here")).code == 0
    said = await cli("health", "--name", "nobody", code=1)
    assert "runs 'nobody'" in said.err
    cli.store = ("--redis", server.url, "--prefix", f"{prefix}-empty")
    assert "no process shows a sign of life" in (await cli("health", code=1)).err
    assert (await cli("health", "--store-only")).code == 0


async def test_a_probe_of_a_store_that_is_away_ends_in_time(cli):
    cli.store = ("--redis", "redis://:s3cret@127.0.0.1:1")
    said = await cli("health", "--timeout", "0.5", code=1)
    assert "s3cret" not in said.err
    assert "has not answered within" in said.err or "out of reach" in said.err


async def test_the_doctor_finds_what_is_wrong(shop, cli, make_runtime, tmp_path):
    other = make_runtime(consume=False)
    other.job("gone", limiter=None)(lambda data: None)
    async with other:
        await other.queue.add("gone", 1)
    await cli("tasks", "pause", "nightly")
    said = await cli("doctor", "--json", code=1)
    found = [(one["level"], one["about"]) for one in said.json]
    assert ("wrong", "gone") in found
    assert ("warning", "nightly") in found
    assert ("ok", "processes") in found
    assert "wrong\tgone\t1 jobs, and no process runs that name" in (await cli("doctor", code=1)).out
    write(tmp_path, {"jobs/bad.py": "import nothing_like_it"})
    said = await cli("doctor", "--jobs", str(tmp_path / "jobs"), code=1)
    assert "bad.py: ModuleNotFoundError" in said.out


@pytest.mark.slow
async def test_events_are_followed(shop, cli, tmp_path):
    following = Process(tmp_path, "events", "--json", "--type", "job.completed", "--count", "2", *cli.store)
    try:
        await eventually(lambda: shop._bus.wants("job.completed"))
        await shop.queue.add("sync", 1, group_id="a\x1b[2J", job_id="one")
        await shop.queue.add("sync", 1, group_id="b", job_id="two")
        assert await following.ended() == 0
        lines = [json.loads(line) for line in following.output.splitlines() if line.startswith("{")]
        assert {(one["type"], one["group"], one["id"]) for one in lines} == {
            ("job.completed", "a\x1b[2J", "one"), ("job.completed", "b", "two"),
        }  # fmt: skip
    finally:
        following.kill()
    await asyncio.sleep(0)


async def test_options_of_the_project_may_stand_before_the_command_or_behind_it(shop, cli):
    await shop.queue.add("charge", 1, delay=3600)
    store, cli.store = cli.store, ()
    assert (await cli(*store, "queues", "list")).rows == (await cli("queues", *store, "list")).rows
    assert (await cli("--json", *store, "stats")).json["charge"]["delayed"] == 1
    assert (await cli("stats", "--json", f"--redis={store[1]}", *store[2:])).json
    assert "No such option" in (await cli("--jason", *store, "stats", code=2)).err


@pytest.mark.parametrize("noun", ["jobs", "queues", "groups", "tasks", "processes", "ops", "audit"])
async def test_every_verb_has_help(cli, noun):
    import importlib

    group = importlib.import_module(f"asyncjobs.cli.{noun}").command
    assert group.commands
    cli.store = ()
    for verb in group.commands:
        assert "--json" in (await cli(noun, verb, "--help")).out

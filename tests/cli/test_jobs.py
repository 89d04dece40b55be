"""Jobs on the command line: found, explained, and acted on, with and without the project's files."""

from __future__ import annotations

import asyncio

import pytest

from asyncjobs import Runtime
from tests.helpers import Process, eventually


@pytest.fixture
async def shop(make_runtime):
    """A runtime that works; its jobs fail, run for long, or log, as their data say."""
    runtime: Runtime = make_runtime()
    hold = asyncio.Event()
    runtime.hold = hold  # type: ignore[attr-defined]

    @runtime.job("charge", limiter=None, concurrency=5, attempts=1)
    async def charge(data, job):
        if "fail" in data:
            raise ValueError(data["fail"])
        await job.log(f"customer {data.get('customer')}")
        await job.update_progress({"part": 1})
        if "hold" in data:
            await hold.wait()
        return {"paid": data.get("customer"), "token": "s3cret"}

    @runtime.job("sync", limiter=None, group=True, attempts=1)
    async def sync(data):
        raise LookupError("no such tenant")

    async with runtime:
        yield runtime
        hold.set()


async def finished(runtime: Runtime, *jobs) -> None:
    async def ended() -> bool:
        return all([(await one.refresh()).finished_at for one in jobs])

    await eventually(ended)


async def test_jobs_are_listed_and_shown_without_the_projects_files(shop, cli):
    done = await shop.queue.add("charge", {"customer": 7, "password": "hunter2", "note": "sk_live_abcdefghij"})
    bad = await shop.queue.add("charge", {"fail": "card \x1b[31mexpired\nfor good"})
    other = await shop.queue.add("sync", {}, group_id="a\nb")
    later = await shop.queue.add("charge", {"customer": 8}, delay=3600)
    await finished(shop, done, bad, other)

    said = await cli("jobs", "list")
    assert {row[0] for row in said.rows} == {done.id, bad.id, other.id, later.id}
    said = await cli("jobs", "list", "charge", "--state", "failed")
    assert said.rows == [[bad.id, "", "failed", said.rows[0][3], "1/1", r"ValueError: card ?[31mexpired\nfor good"]]
    assert (await cli("jobs", "list", "charge", "--q", "customer:8")).rows[0][0] == later.id
    assert (await cli("jobs", "list", "--error", "tenant", "--columns", "id,group")).rows == [[other.id, r"a\nb"]]
    assert (await cli("jobs", "list", "sync", "--state", "completed,cancelled", code=1)).rows == []
    assert (await cli("jobs", "list", "charge", "--since", "1h", "--state", "completed")).rows[0][0] == done.id

    shown = await cli("jobs", "show", done.id)
    assert "hunter2" not in shown.out
    assert "s3cret" not in shown.out
    assert "sk_live" not in shown.out
    assert "customer 7" in shown.out
    assert "hunter2" in (await cli("jobs", "show", done.id, "--reveal")).out
    found = (await cli("jobs", "show", bad.id, "--json")).json
    assert (found[0]["state"], found[0]["errors"][0]["attempt"]) == ("failed", 1)
    assert "in charge" in found[0]["errors"][0]["stack"]
    assert (await cli("jobs", "show", other.id)).out.splitlines()[2] == r"group" + "\t" + r"a\nb"
    missing = await cli("jobs", "show", "nothing", code=1)
    assert "no job has the id nothing" in missing.err


async def test_a_list_goes_on_where_it_has_ended(shop, cli):
    jobs = [await shop.queue.add("charge", {"customer": n}, delay=3600) for n in range(7)]
    first = await cli("jobs", "list", "charge", "--limit", "5", "--json")
    cursor = first.json["next"]
    rest = await cli("jobs", "list", "charge", "--after", cursor, "--json")
    ids = [one["id"] for one in (*first.json["jobs"], *rest.json["jobs"])]
    assert sorted(ids) == sorted(job.id for job in jobs)
    assert rest.json["next"] is None
    assert "--after" in (await cli("jobs", "list", "charge", "--limit", "5")).err
    assert "expected what a page" in (await cli("jobs", "list", "--after", "x", code=2)).err


async def test_failed_jobs_are_retried_one_by_one_and_all_together(shop, cli):
    jobs = [await shop.queue.add("charge", {"fail": f"no {n}"}) for n in range(4)]
    await finished(shop, *jobs)
    said = await cli("jobs", "retry", jobs[0].id, "--dry-run")
    assert said.out == f"{jobs[0].id}\twould be retried\n"
    assert (await jobs[0].refresh()).state == "failed"
    assert (await cli("jobs", "retry", jobs[0].id, "--reason", "the bank was down")).out == f"{jobs[0].id}\tretried\n"

    async def again(number: int) -> bool:
        return all([(await job.refresh()).attempts_made == number and job.state == "failed" for job in jobs])

    await eventually(lambda: jobs[0].refresh())
    refused = await cli("jobs", "retry", "--name", "charge", "--state", "failed", code=2)
    assert "nobody can be asked here; say --yes" in refused.err
    said = await cli("jobs", "retry", "--name", "charge", "--error", "no", "--dry-run")
    assert said.out.startswith("would retry 4 jobs")
    said = await cli("--yes", "jobs", "retry", "--name", "charge", "--error", "no 1")
    assert said.out == "1 retried\n"
    said = await cli("jobs", "--json", "retry", "--all", "--yes")
    assert said.json["done"] == 4
    kept = await cli("audit", "--json")
    assert {one["what"] for one in kept.json} == {"retry"}
    assert {one["source"] for one in kept.json} == {"cli"}
    assert kept.json[-1]["reason"] == "the bank was down"


async def test_ids_come_from_a_pipe_and_what_cannot_be_is_said_of_each(shop, cli):
    bad = await shop.queue.add("charge", {"fail": "no"})
    done = await shop.queue.add("charge", {"customer": 1})
    await finished(shop, bad, done)
    listed = (await cli("jobs", "list", "charge")).out
    said = await cli("jobs", "retry", "-", stdin=listed, code=1)
    assert said.out == f"{bad.id}\tretried\n"
    assert f"error: {done.id}: " in said.err
    assert "is completed" in said.err
    said = await cli("jobs", "retry", "gone", "--json", code=1)
    assert (said.json[0]["id"], said.json[0]["outcome"]) == ("gone", "gone")


async def test_one_id_of_several_jobs_is_told_apart(shop, cli):
    for group in ("a", "b"):
        await shop.queue.add("sync", {}, group_id=group, job_id="same", delay=3600)
    said = await cli("jobs", "remove", "same", code=1)
    assert "2 jobs have the id same; say which" in said.err
    assert "--name sync --group 'a'" in said.err
    assert (await cli("jobs", "remove", "same", "--group", "a")).out == "same\tremoved\n"
    assert (await cli("jobs", "promote", "same", "--name", "sync")).out == "same\tpromoted\n"


async def test_a_running_job_is_cancelled_and_followed_to_its_end(shop, cli, tmp_path):
    job = await shop.queue.add("charge", {"customer": 9, "hold": 1})

    async def runs() -> bool:
        return bool((await job.refresh()).progress)

    await eventually(runs)
    following = Process(tmp_path, "jobs", "tail", job.id, *cli.store)
    try:
        await following.says("state\tactive")
        said = await cli("jobs", "cancel", job.id, "--reason", "wrong customer")
        assert "cancel was asked for" in said.out
        assert await following.ended() == 1
        assert following.output.splitlines() == [
            "log\tcustomer 9", 'progress\t{"part": 1}', "state\tactive", "state\tcancelled",
        ]  # fmt: skip
    finally:
        following.kill()
    assert (await cli("jobs", "logs", job.id)).out == "customer 9\n"
    assert (await cli("jobs", "cancel", job.id)).out == f"{job.id}\tcancelled\n", "it is cancelled already"
    shown = await cli("jobs", "show", job.id, "--json")
    assert shown.json[0]["state"] == "cancelled"


async def test_a_job_is_run_once_more_with_changes(shop, cli):
    job = await shop.queue.add("charge", {"fail": "no", "order": {"id": 1}, "items": [1, 2]})
    await finished(shop, job)
    said = await cli(
        "jobs", "rerun", job.id, "--set", "order.id=7", "--set", "items.1=x", "--set", "customer=3", "--json"
    )
    new = said.json[0]["new_id"]
    found = (await cli("jobs", "show", new, "--reveal", "--json")).json[0]
    assert found["data"] == {"fail": "no", "order": {"id": 7}, "items": [1, "x"], "customer": 3}
    assert found["copied_from"]
    assert "no such place" in (await cli("jobs", "rerun", job.id, "--set", "order.id.x=7", code=2)).err
    assert "expected KEY=VALUE" in (await cli("jobs", "rerun", job.id, "--set", "x", code=2)).err
    said = await cli("jobs", "rerun", job.id, "--data", '{"customer": 4}')
    assert " as " in said.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("list", "--state", "wating"), "expected one or several of waiting"),
        (("list", "--since", "soon"), "expected 2026-12-01T09:00Z"),
        (("list", "--columns", "id,colour"), "expected some of id"),
        (("list", "nobody"), "nobody"),
        (("retry",), "say which jobs"),
        (("retry", "x", "--state", "failed"), "both say which jobs"),
        (("rerun", "x", "--set", "a=1", "--data", "1"), "give one of them"),
        (("fly",), "No such command"),
    ],
)
async def test_a_slip_is_one_line_and_says_what_to_do(shop, cli, args, words):
    said = await cli("jobs", *args, code=2)
    assert words in said.err
    assert len(said.err.strip().splitlines()) <= 4

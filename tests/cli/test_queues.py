"""Queues and groups on the command line: listed, limited, paused; also names that no file of the project has."""

from __future__ import annotations

import pytest

from asyncjobs import Limiter


@pytest.fixture
async def shop(make_runtime):
    """Jobs that wait, of names that the command line knows from the store alone."""
    runtime = make_runtime(consume=False)
    runtime.job("charge", limiter=Limiter(5, 1), concurrency=3)(lambda data: None)
    runtime.job("sync", limiter=None, group=True)(lambda data: None)
    async with runtime:
        await runtime.queue.announce()
        await runtime.queue.add_bulk([("charge", n) for n in range(4)])
        for group, count in (("acme", 3), ("b\x1b[2J\tc", 1)):
            await runtime.queue.add_bulk([("sync", n, {"group_id": group}) for n in range(count)])
        yield runtime


async def test_queues_are_listed_shown_limited_and_paused_without_their_files(shop, cli):
    rows = {row[0]: row[1:] for row in (await cli("queues", "list")).rows}
    assert rows == {
        "charge": ["4", "0/3", "0", "0", "0", "", "5/1 s", ""],
        "sync": ["4", "0", "0", "0", "0", "2", "none", ""],
    }
    assert [one["name"] for one in (await cli("queues", "list", "--json")).json] == ["charge", "sync"]
    said = await cli("queues", "pause", "charge", "--dry-run")
    assert said.out == "charge\twould be paused\n"
    assert not (await shop.queue.job("charge").info())["paused"]
    assert (await cli("queues", "pause", "charge", "sync")).out == "charge\tpaused\nsync\tpaused\n"
    assert (await shop.queue.job("charge").info())["paused"]
    assert (await cli("queues", "list")).rows[0][-1] == "paused"
    await cli("queues", "resume", "charge", "sync")
    said = await cli("queues", "set", "charge", "--limit", "100/1m", "--limit", "3/1", "--concurrency", "7", "--json")
    assert (said.json["limit"], said.json["concurrency"]) == ("100/1 min, 3/1 s", 7)
    info = await shop.queue.job("charge").info()
    assert (info["limiter"], info["concurrency"]) == ("100:60000000 3:1000000", 7)
    await cli("queues", "set", "charge", "--limit", "none", "--concurrency", "default", "--max-waiting", "4")
    info = await shop.queue.job("charge").info()
    assert (info["limiter"], info["concurrency"], info["max_waiting"]) == ("-", None, 4)
    await cli("queues", "unset", "charge")
    assert (await shop.queue.job("charge").info())["max_waiting"] is None


async def test_groups_are_listed_by_backlog_and_set_one_by_one(shop, cli):
    rows = (await cli("groups", "list", "sync")).rows
    assert [row[:2] for row in rows] == [["acme", "3"], [r"b\x1b[2J\tc", "1"]]
    assert (await cli("groups", "list", "sync", "--filter", "paused", code=1)).rows == []
    await cli("groups", "pause", "sync", "acme", "b\x1b[2J\tc")
    assert len((await cli("groups", "list", "sync", "--filter", "paused")).rows) == 2
    await cli("groups", "clear", "sync", "acme")
    await cli("groups", "set", "sync", "acme", "--weight", "5", "--limit", "2/1")
    found = (await cli("groups", "list", "sync", "--filter", "limited", "--json")).json
    assert (found["number"], found["matching"], found["groups"][0]["weight"]) == (2, 1, 5)
    assert "charge has no groups" in (await cli("groups", "list", "charge", code=2)).err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("set", "charge"), "say what to set"),
        (("set", "charge", "--limit", "fast"), "expected MAX/DURATION such as 100/60"),
        (("set", "charge", "--limit", "0/1"), "limiter.max=0"),
        (("set", "charge", "--limit", "none", "--limit", "1/1"), "leave out the others"),
        (("set", "charge", "--concurrency", "many"), "expected a whole number, or default"),
        (("set", "charge", "--weight", "5000"), "weight=5000"),
        (("pause", "chrage"), "did you mean 'charge'?"),
        (("pause",), "Missing argument"),
    ],
)
async def test_a_slip_is_one_line_and_says_what_to_do(shop, cli, args, words):
    assert words in (await cli("queues", *args, code=2)).err


async def test_a_name_that_only_the_store_knows_can_be_added_to(shop, cli):
    said = await cli("add", "charge", '{"late": 1}')
    assert "known from the store alone" in said.err
    assert (await shop.queue.counts("charge"))["waiting"] == 5
    said = await cli("add", "sync", "1", "--group", "new", "--json")
    assert said.json["group"] == "new"


async def test_queues_are_drained_cleaned_and_obliterated_and_settings_reverted(shop, cli):
    assert "nobody can be asked" in (await cli("queues", "drain", "charge", code=2)).err
    assert (await cli("queues", "drain", "charge", "--dry-run")).out.startswith("would do: drain charge")
    assert (await cli("queues", "drain", "charge", "--yes", "--reason", "a test")).out == "charge\tdrained\tremoved 4\n"
    assert (await shop.queue.counts("charge"))["waiting"] == 0
    await cli("queues", "clean", "sync", "waiting", "--group", "acme", "--yes")
    assert (await shop.queue.counts("sync"))["waiting"] == 1
    await cli("queues", "set", "charge", "--concurrency", "9")
    (entry,) = (await cli("audit", "--what", "set", "--json")).json
    await cli("audit", "revert", entry["id"])
    assert (await shop.queue.job("charge").info())["concurrency"] is None
    await cli("queues", "obliterate", "sync", "--yes")
    assert (await shop.queue.counts("sync"))["waiting"] == 0

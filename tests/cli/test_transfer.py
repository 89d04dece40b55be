"""Jobs as lines of JSON, out of one store and into another; and the audit trail, operations and completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest

from asyncjobs import clock
from tests.cli.conftest import CommandLine
from tests.helpers import eventually


@pytest.fixture
async def shop(make_runtime):
    runtime = make_runtime(consume=False)
    runtime.job("charge", limiter=None)(lambda data: None)
    runtime.job("sync", limiter=None, group=True)(lambda data: None)
    async with runtime:
        await runtime.queue.announce()
        yield runtime


@pytest.fixture
async def other(make_runtime, server, prefix):
    """Another installation, with the same names, and its command line."""
    runtime = make_runtime(consume=False, prefix=f"{prefix}-other")
    runtime.job("charge", limiter=None)(lambda data: None)
    runtime.job("sync", limiter=None, group=True)(lambda data: None)
    async with runtime:
        await runtime.queue.announce()
        yield runtime, CommandLine("--redis", server.url, "--prefix", f"{prefix}-other")


async def test_what_is_exported_can_be_imported_once(shop, other, cli):
    there, elsewhere = other
    due = clock.now() + timedelta(hours=1)
    big = 2**70
    await shop.queue.add(
        "charge", {"n": big, "text": "\x1b\u2028é", "token": "s3cret"}, job_id="one", attempts=7, timeout=3
    )
    await shop.queue.add("charge", None, at=due, backoff=5, remove_on_complete=10)
    await shop.queue.add("sync", [1], group_id="a\nb")
    lines = (await cli("export")).out
    assert len(lines.splitlines()) == 3
    assert "\x1b" not in lines
    assert len((await cli("export", "--state", "delayed")).out.splitlines()) == 1
    said = await elsewhere("import", "--yes", stdin=lines)
    assert said.out == "3 added\n"
    assert (await elsewhere("import", "--yes", stdin=lines)).out == "3 there already\n"
    (one,) = await there.queue.find("one")
    assert (one.data, one.attempts) == ({"n": big, "text": "\x1b\u2028é", "token": "s3cret"}, 7)
    again = {json.loads(line)["id"]: json.loads(line) for line in (await elsewhere("export")).out.splitlines()}
    for line in lines.splitlines():
        before = json.loads(line)
        now = again[before["id"]]
        assert {**now, "added_at": 0} == {**before, "added_at": 0}


async def test_a_bad_line_is_named_and_others_states_are_left_out(shop, cli):
    good = json.dumps({"name": "charge", "data": 1, "id": "x"})
    done = json.dumps({"name": "charge", "data": 1, "id": "y", "state": "completed"})
    said = await cli("import", "-", "--yes", stdin=f"{good}\n\n{done}\n")
    assert said.out == "1 left out, 1 added\n"
    for line, words in (("{", "line 2: not JSON"), ("[]", "line 2: expected an object"), ('{"name": 1}', "line 2")):
        said = await cli("import", "-", "--yes", stdin=f"{good}\n{line}\n", code=2)
        assert words in said.err
    said = await cli("import", "-", "--yes", stdin='{"name": "charge", "due_at": "soon"}', code=2)
    assert "expected an instant" in said.err
    assert (await cli("import", "-", "--dry-run", stdin=good)).out == "1 would be added\n"
    assert "nobody can be asked" in (await cli("import", "-", stdin=good, code=2)).err
    assert "no such file" in (await cli("import", "nowhere.ndjson", "--yes", code=2)).err.lower()


async def test_what_is_exported_is_what_there_is_when_there_is_much(shop, other, cli):
    there, elsewhere = other
    await shop.queue.add_bulk([("charge", {"n": n}) for n in range(1200)])
    lines = (await cli("export", "charge")).out
    assert sorted(json.loads(line)["data"]["n"] for line in lines.splitlines()) == list(range(1200))
    assert (await elsewhere("import", "--yes", stdin=lines)).out == "1,200 added\n"
    assert (await there.queue.counts("charge"))["waiting"] == 1200


async def test_acts_on_many_are_kept_as_operations_and_in_the_audit_trail(shop, cli):
    await shop.queue.add_bulk([("charge", {"n": n}, {"delay": 3600}) for n in range(700)])
    said = await cli("jobs", "promote", "--name", "charge", "--yes", "--reason", "early")
    assert said.out == "700 promoted\n"
    (row,) = (await cli("ops")).rows
    assert row[1:5] == ["promote", "done", "700", "700"]
    shown = await cli("ops", "show", row[0])
    assert "reason\tearly" in shown.out
    assert "there is no operation" in (await cli("ops", "show", "nothing", code=2)).err
    trail = (await cli("audit", "--what", "promote")).rows
    assert trail[0][3:5] == ["cli", "promote"]
    assert (await cli("audit", "--by", "nobody", code=1)).rows == []


def test_completion_completes(tmp_path):
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-m", "asyncjobs", "completion", shell],
            capture_output=True, text=True, cwd=tmp_path, check=True,
        )  # fmt: skip
        assert "_ASYNCJOBS_COMPLETE" in done.stdout
    program = os.path.join(os.path.dirname(sys.executable), "asyncjobs")
    words = {"_ASYNCJOBS_COMPLETE": "bash_complete", "COMP_WORDS": "asyncjobs jobs re", "COMP_CWORD": "2"}
    done = subprocess.run(
        [program], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **words}, check=False
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == {"retry", "rerun", "remove"}


async def test_lines_of_data_are_added_together(shop, cli, tmp_path):
    file = tmp_path / "rows.ndjson"
    file.write_text('{"n": 1}\n\n{"n": 2}\n')
    assert len((await cli("add", "charge", f"@{file}")).out.splitlines()) == 2
    data = tmp_path / "one.json"
    data.write_text('{"n": 3}')
    said = await cli("add", "charge", f"@{data}", "--at", "2031-01-01T00:00Z", "--attempts", "3", "--json")
    assert said.json["due_at"] == "2031-01-01T00:00:00.000Z"
    assert (
        await cli("add", "charge", "-", "--lines", "--dry-run", stdin="1\n2\n3\n")
    ).out == "would add 3 jobs of charge\n"
    assert (await shop.queue.counts("charge"))["waiting"] == 2
    assert "line 2: not JSON" in (await cli("add", "charge", "-", "--lines", stdin="1\n{\n", code=2)).err
    assert "both say when" in (await cli("add", "charge", "1", "--at", "2031-01-01", "--delay", "1", code=2)).err
    assert "No such file" in (await cli("add", "charge", "@nowhere", code=2)).err


async def test_add_waits_for_the_result(make_runtime, cli):
    runtime = make_runtime()

    @runtime.job("charge", limiter=None, attempts=1)
    async def charge(data):
        if data == "fail":
            raise ValueError("no")
        return {"paid": data}

    async with runtime:
        await eventually(lambda: runtime.health()["connected"])
        await runtime.queue.announce()
        assert (await cli("add", "charge", "7", "--wait")).json == {"paid": 7}
        assert (await cli("add", "charge", "7", "--wait", "--json")).json["result"] == {"paid": 7}
        said = await cli("add", "charge", '"fail"', "--wait", code=1)
        assert "failed: ValueError: no" in said.err
        said = await cli("add", "charge", "7", "--wait", "--timeout", "0.05", "--delay", "60", code=1)
        assert "had not finished after" in said.err

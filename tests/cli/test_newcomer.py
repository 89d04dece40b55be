"""A newcomer operates a shop: ten commands, in a project's folder, with what the commands themselves suggest."""

from __future__ import annotations

import json
import signal

import pytest

from tests.helpers import Process, command_line, eventually, write

SHOP = {
    "jobs/charge_card.py": """
        import asyncio, os
        attempts, limiter = 1, None
        async def handle(data, job):
            if data["card"] == "slow":
                await asyncio.sleep(600)
            if not os.path.exists("bank-is-up"):
                raise ConnectionError(f"the bank is down: card {data['card']}")
    """,
    "jobs/sync_data.py": """
        from asyncjobs import Limiter
        limiter = Limiter(1, 3600)
        async def handle(data): pass
    """,
}


@pytest.mark.slow
async def test_a_newcomer_finds_reads_retries_cancels_and_unblocks(tmp_path):
    write(tmp_path, SHOP)

    def asyncjobs(*args: str, code: int = 0) -> str:
        done = command_line(tmp_path, *args)
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done.stdout

    def rows(*args: str) -> list[list[str]]:
        return [line.split("\t") for line in asyncjobs(*args).splitlines()[1:]]

    for card in "abc":
        asyncjobs("add", "charge-card", json.dumps({"card": card}))
    slow = asyncjobs("add", "charge-card", '{"card": "slow"}').strip()
    for number in range(2):
        asyncjobs("add", "sync-data", str(number))
    worker = Process(tmp_path, "run")
    try:
        await worker.says("ready")
        # 1: something is wrong.
        await eventually(lambda: json.loads(asyncjobs("stats", "--json"))["charge-card"]["failed"] == 3)
        # 2: which?
        listed = [
            line.split("\t") for line in asyncjobs("jobs", "list", "charge-card", "--state", "failed").splitlines()
        ]
        ids = [row[0] for row in listed[1:]]
        assert len(ids) == 3
        # 3: why?
        shown = asyncjobs("jobs", "show", ids[0])
        assert "ConnectionError: the bank is down: card" in shown
        assert "charge_card.py" in shown
        # 4: one of them once more, now that the bank is up again.
        (tmp_path / "bank-is-up").touch()
        assert asyncjobs("jobs", "retry", ids[0]) == f"{ids[0]}\tretried\n"
        await worker.says(f"{ids[0]} completed")
        # 5: the others, by what they have in common.
        assert asyncjobs("jobs", "retry", "--name", "charge-card", "--error", "bank is down", "--yes") == "2 retried\n"
        for one in ids[1:]:
            await worker.says(f"{one} completed")
        # 6: what runs for so long?
        (row,) = rows("jobs", "list", "--state", "active")
        assert row[0] == slow
        # 7: not that one.
        asyncjobs("jobs", "cancel", slow, "--reason", "the customer left")

        def state() -> str:
            return json.loads(asyncjobs("jobs", "show", slow, "--json"))[0]["state"]

        await eventually(lambda: state() == "cancelled")
        # 8: and why does that one wait?
        (row,) = [
            line.split("\t") for line in asyncjobs("jobs", "list", "sync-data", "--state", "waiting").splitlines()[1:]
        ]
        waiting = row[0]
        reason = asyncjobs("jobs", "why", waiting).rstrip("\n").split("\t")
        assert reason[1] == "rate_limited"
        # 9: what it says is to be typed.
        assert reason[4].startswith("asyncjobs queues set sync-data --limit ")
        asyncjobs(*reason[4].split()[1:])
        await worker.says(f"{waiting} completed")
        # 10: who has done all that?
        trail = rows("audit")
        assert [row[4] for row in trail][-3:][::-1] == ["retry", "retry", "cancel"]
        assert {row[3] for row in trail} == {"cli"}
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    finally:
        worker.kill()

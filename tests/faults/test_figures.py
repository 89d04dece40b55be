"""Figures on their way: lost replies, an outage and a broken link add nothing twice, and lose nothing counted."""

from __future__ import annotations

import pytest

from asyncjobs import Runtime
from asyncjobs.history import recorder as recording


def made(url, prefix, **options):
    runtime = Runtime(url, prefix=prefix, connect_timeout=1, alerts=None, **options)
    runtime.job("work", limiter=None, concurrency=5)(lambda data: data)
    return runtime


async def once(runtime):
    """A job, and its figures: the server knows the script from then on."""
    await (await runtime.queue.add("work", 0)).wait(10)
    await runtime._assembly.recorder.flush()


async def counted(runtime):
    total = (await runtime.queue.history("work")).total
    return total.added, total.completed


@pytest.mark.parametrize("what", ["drop-reply", "drop-request"])
async def test_a_lost_flush_counts_once(proxy, tcp_server, prefix, what):
    """The connection is cut while the figures are on their way, again and again; they arrive, and once."""
    runtime, reader = made(proxy.url, prefix), made(tcp_server.url, prefix, consume=False)
    async with runtime, reader:
        await once(runtime)
        proxy.only = b":m:seen"
        for n in range(1, 6):
            await (await runtime.queue.add("work", n)).wait(10)
            proxy.mode, proxy.left = what, 1
            before = proxy.happened
            await runtime._assembly.recorder.flush()
            assert proxy.happened == before + 1
            await runtime._assembly.recorder.flush()
            assert await counted(reader) == (n + 1, n + 1)


async def test_what_is_counted_in_an_outage_arrives_after_it_with_what_was_on_its_way(proxy, tcp_server, prefix):
    runtime, reader = made(proxy.url, prefix), made(tcp_server.url, prefix, consume=False)
    async with runtime, reader:
        recorder = runtime._assembly.recorder
        await once(runtime)
        await (await runtime.queue.add("work", 0)).wait(10)
        proxy.only, proxy.mode, proxy.left = b":m:seen", "drop-reply", 1000
        await recorder.flush()  # it is added, and nobody hears of it
        assert await counted(reader) == (2, 2)
        assert list(recorder._sent) == ["work"]
        for n in range(30):
            await (await runtime.queue.add("work", n)).wait(10)
        await recorder.flush()
        assert len(recorder._sent) == 1, "what came since waits for the answer"
        proxy.mode = "pass"
        await recorder.flush()
        await recorder.flush()
        assert recorder._sent == {}
        assert await counted(reader) == (32, 32)


async def test_what_has_been_on_its_way_for_too_long_is_given_up(proxy, prefix, monkeypatch):
    """Whether it has arrived nobody can say any more: its number may be forgotten."""
    monkeypatch.setattr(recording, "GIVEN_UP", 0.0)
    runtime = made(proxy.url, prefix)
    async with runtime:
        recorder = runtime._assembly.recorder
        await once(runtime)
        await (await runtime.queue.add("work", 0)).wait(10)
        proxy.only, proxy.mode, proxy.left = b":m:seen", "drop-reply", 1000
        await recorder.flush()
        assert recorder._sent == {}
        proxy.mode = "pass"
        await (await runtime.queue.add("work", 0)).wait(10)
        await recorder.flush()
        assert await counted(runtime) == (3, 3)


async def test_a_stop_waits_for_a_silent_store_only_for_a_moment(proxy, prefix):
    runtime = made(proxy.url, prefix)
    await runtime.start()
    await (await runtime.queue.add("work", 0)).wait(10)
    proxy.mode = "black-hole"
    await runtime.stop(grace=0)
    assert runtime.state == "stopped"

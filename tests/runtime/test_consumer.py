"""What must not be missed: news and due times that arrive while a turn is on the wire."""

from __future__ import annotations

from asyncjobs.broker import Keys, WorkReply
from asyncjobs.consumer import Consumer
from asyncjobs.definition import JobDefinition, JobSpec
from asyncjobs.pump import Pump


class Shop:
    """Just a pump whose ring can be looked at."""

    def __init__(self) -> None:
        self.pump = Pump(None, 10, lambda: "p")
        self.tokens = iter([b"1", b"2", b"3"])
        self.bus = None


def consumer(shop: Shop) -> Consumer:
    return Consumer(shop, JobSpec("a", JobDefinition(handle=lambda data: None)), Keys("p", "a"))


async def test_news_during_a_turn_is_looked_at_after_it():
    shop = Shop()
    one = consumer(shop)
    assert one.prepare(10)
    one.look_again()
    one.absorb(WorkReply(b"", None, []), 0.0)
    assert one.hungry
    assert one.queued, "it stands in the ring again"
    one.queued = False
    assert one.prepare(10)
    one.absorb(WorkReply(b"", None, []), 0.0)
    assert not one.hungry
    assert one.idle


async def test_a_due_time_heard_during_a_turn_is_kept():
    shop = Shop()
    one = consumer(shop)
    assert one.prepare(10)
    one.wake("", 0.5)
    heard = one.alarm_at
    one.absorb(WorkReply(b"", 60.0, []), 0.0)
    assert one.alarm_at == heard
    one.alarm_at = None
    one.wake("", 90.0)
    one.look_again()
    one.queued = False
    assert one.prepare(10)
    one.absorb(WorkReply(b"", 60.0, []), 0.0)
    assert one.alarm_at is not None
    shop.pump.alarms.close()


async def test_a_lost_reply_is_settled_again_and_what_was_taken_adopted():
    shop = Shop()
    one = consumer(shop)
    assert one.prepare(4)
    one.unanswered()
    assert one.lost_reply
    assert one.hungry
    assert not one.in_flight
    assert one.reserved == 0

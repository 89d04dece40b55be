"""What must not be missed: news and due times that arrive while a turn is on the wire."""

from __future__ import annotations

from asyncjobs import BrokerError
from asyncjobs.broker import Keys, WorkReply
from asyncjobs.declare.definition import JobDefinition, JobSpec
from asyncjobs.work.alarms import ENTRIES
from asyncjobs.work.consumer import Consumer
from asyncjobs.work.pump import Pump
from tests.helpers import eventually


class NoBroker:
    def offer_follow_ups(self, make: object) -> None:
        """Nothing is added here."""


class Shared:
    shared_limits: dict = {}  # noqa: RUF012 - nothing adds to it
    pace: dict = {}  # noqa: RUF012
    unsettled = 0

    """Just a pump whose ring can be looked at."""

    def __init__(self) -> None:
        self.pump = Pump(NoBroker(), 10, lambda: "p", lambda place: None)
        self.tokens = iter([b"1", b"2", b"3", b"4"])
        self.bus = None
        self.recorder = None


def consumer(shared: Shared) -> Consumer:
    return Consumer(shared, JobSpec("a", JobDefinition(handle=lambda data: None)), Keys("p", "a"))


EMPTY = WorkReply(b"", None, [])


async def test_news_during_a_turn_is_looked_at_after_it():
    one = consumer(Shared())
    turn = one.prepare(10)
    one.look_again()
    one.absorb(turn, EMPTY, 0.0)
    assert one.hungry
    assert one.queued, "it stands in the ring again"
    turn = one.prepare(10)
    one.absorb(turn, EMPTY, 0.0)
    assert not one.hungry
    assert one.idle


async def test_a_due_time_heard_during_a_turn_is_kept():
    shared = Shared()
    one = consumer(shared)
    turn = one.prepare(10)
    one.wake("", 0.5)
    heard = one.alarm_at
    one.absorb(turn, WorkReply(b"", 60.0, []), 0.0)
    assert one.alarm_at == heard
    assert not one.idle
    shared.pump.alarms.close()


async def test_two_turns_never_ask_for_more_than_there_is_room_for():
    one = consumer(Shared())
    first, second = one.prepare(100), one.prepare(100)
    assert (first.reserved, second.reserved) == (5, 5)
    assert one.prepare(100) is None
    one.absorb(second, EMPTY, 0.0)
    one.look_again()
    one.absorb(first, EMPTY, 0.0)
    assert one.hungry, "the news came after both"


async def test_what_became_free_or_due_during_a_turn_is_not_hidden_by_its_short_reply():
    one = consumer(Shared())
    turn = one.prepare(4)
    one._expect(0)
    one.absorb(turn, EMPTY, 0.0)
    assert one.hungry


async def test_a_lost_reply_is_settled_again_and_what_was_taken_adopted():
    one = consumer(Shared())
    first, second = one.prepare(4), one.prepare(4)
    one.unanswered(first)
    assert one.lost_reply
    assert one.hungry
    assert one.prepare(4) is None, "what the other turn brings must not be adopted"
    one.absorb(second, EMPTY, 0.0)
    assert one.prepare(4) is not None


async def test_a_refused_queue_rests_and_is_woken_again():
    shared = Shared()
    one = consumer(shared)
    one.refused(one.prepare(4), BrokerError("WRONGTYPE"))
    assert one.prepare(4) is None
    one.wake("", 0.001)
    assert one.prepare(4) is None
    assert one.alarm_at is not None, "an earlier alarm does not swallow the one that ends the rest"
    one.resting_until = 0.001
    assert one.prepare(4) is not None
    shared.pump.alarms.close()


async def test_alarms_that_were_set_earlier_leave_nothing_behind_that_is_hours_ahead():
    """A queue that was woken may be reaped: an entry of it must not keep it until then."""
    shared = Shared()
    queues = [consumer(shared) for _ in range(50)]
    alarms = shared.pump.alarms
    for n, one in enumerate(queues):
        alarms.set_earlier(one, 7200)
        alarms.set_earlier(one, 0.001 * (n % 5))
    last = consumer(shared)
    alarms.set_earlier(last, 3600)
    await eventually(lambda: all(one.queued for one in queues))
    assert [one.alarm_at for one in queues] == [None] * 50
    assert last.alarm_at is not None
    assert len(alarms) <= ENTRIES
    alarms.close()

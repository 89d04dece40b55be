"""Acts at random on runtimes over a real server: after each what must hold is asked, and at the end what came of it.

``ASYNCJOBS_MACHINE=500`` runs so many examples, from another seed each time; ``--hypothesis-seed`` repeats one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from asyncjobs import Limiter
from tests.faults.world import GROUPS, KINDS, Place, World
from tests.helpers import Server

LONG = int(os.environ.get("ASYNCJOBS_MACHINE", "0"))
EXAMPLES, STEPS = 14, 30
_numbers = itertools.count(1)

names = st.sampled_from(sorted(KINDS))
grouped = st.sampled_from(sorted(name for name, kind in KINDS.items() if kind.grouped))
groups = st.sampled_from(GROUPS)
steps = st.sampled_from(("return", "raise", "discard", "later", "rate", "slow", "held", "stubborn", "hang"))
scripts = st.lists(steps, max_size=3).map(tuple)
which = st.integers(0, 3)
slots = st.sampled_from((1, 2, 3, 5, 1000))


@st.composite
def places(draw: Any) -> Place:
    name = draw(names)
    return name, draw(groups) if KINDS[name].grouped else None


@st.composite
def scopes(draw: Any) -> Place:
    """A queue, or all groups of a name."""
    name = draw(names)
    return name, draw(st.none() | groups) if KINDS[name].grouped else None


class Machine(RuleBasedStateMachine):
    """The rules: one act of the world each."""

    server: Server
    found = ""  # what was found, and the acts that led to it

    def __init__(self) -> None:
        super().__init__()
        self.failed = False
        self.acts: list[str] = []
        self.runner = asyncio.Runner()
        self.world = World(self.server.port, self.server.url, f"m{os.getpid()}-{next(_numbers)}")
        self.act("begin")

    def act(self, verb: str, *args: Any, **options: Any) -> None:
        self.acts.append(f"{verb}{args} {options or ''}")

        async def step() -> None:
            async with asyncio.timeout(60):
                await getattr(self.world, verb)(*args, **options)
                await self.world.check()

        try:
            self.runner.run(step())
        except BaseException as error:
            self.failed = True
            # Another run of these acts may come out well, and then hypothesis tells of that alone.
            Machine.found = Machine.found or "\n".join([f"{error!s} {type(error)}", "", *self.acts])
            raise

    def teardown(self) -> None:
        try:
            if not self.failed:
                self.act("end")
        finally:
            self.runner.run(self.world.close())
            self.runner.close()

    @initialize(slots=slots)
    def first(self, slots):
        self.act("start", slots, again=False)

    @rule(place=places(), script=scripts, delay=st.sampled_from((0, 0, 0, 0.02, 0.1)), by=which)
    def add(self, place, script, delay, by):
        self.act("add", place, script, delay, by)

    @rule(place=places(), script=scripts, count=st.sampled_from((2, 5, 12)), by=which)
    def add_bulk(self, place, script, count, by):
        self.act("add", place, script, 0, by, count)

    @rule(some=st.lists(scripts, min_size=1, max_size=3), by=which)
    def add_everywhere(self, some, by):
        self.act("add_everywhere", some, by)

    @rule(nth=st.integers(0, 11))
    def cancel(self, nth):
        self.act("cancel", nth)

    @rule(place=places(), script=scripts, nth=which, lost=st.booleans())
    def add_and_cancel(self, place, script, nth, lost):
        self.act("add", place, ("held", *script), 0, 0)
        if lost:
            self.act("lose", nth, "drop-reply", 1, turns=True)
        self.act("cancel", 11)

    @rule(nth=st.integers(0, 50))
    def add_again(self, nth):
        self.act("add_again", nth)

    @rule(slots=slots, again=st.booleans())
    def start(self, slots, again):
        if len(self.world.up) < 2:
            self.act("start", slots, again)

    @rule(nth=which, grace=st.sampled_from((0, 0.05)), slots=slots)
    def stop(self, nth, grace, slots):
        self.act("replace", slots)
        self.act("stop", nth, grace)

    @rule(nth=which, slots=slots)
    def crash(self, nth, slots):
        self.act("replace", slots)
        self.act("crash", nth)

    @rule(nth=which, what=st.sampled_from(("drop-reply", "drop-request")), times=st.integers(1, 3), turns=st.booleans())
    def lose(self, nth, what, times, turns):
        self.act("lose", nth, what, times, turns)

    @rule(nth=which, place=places(), script=scripts, count=st.integers(1, 5))
    def lose_the_reply_of_a_take(self, nth, place, script, count):
        self.act("lose", nth, "drop-reply", 1, turns=True)
        self.act("add", place, script, 0, 0, count)

    @rule(nth=which, name=grouped, group=groups, script=scripts, lost=st.booleans())
    def come_back(self, nth, name, group, script, lost):
        self.act("replace", 2)
        self.act("come_back", (name, group), nth, script, lost)

    @rule(nth=which)
    def cut(self, nth):
        self.act("cut", nth)

    @rule(nth=which, seconds=st.sampled_from((0.02, 0.1, 0.75)))
    def freeze(self, nth, seconds):
        self.act("freeze", nth, seconds)

    @rule(nth=which, swept=st.booleans())
    def rename(self, nth, swept):
        self.act("rename", nth, swept)

    @rule(place=places(), slots=slots)
    def take_over(self, place, slots):
        self.act("replace", slots)
        self.act("take_over", place, slots)

    @rule(place=scopes(), verb=st.sampled_from(("pause", "pause", "resume", "clear", "release")))
    def steer(self, place, verb):
        self.act("steer", place, verb)

    @rule(place=scopes(), weight=st.sampled_from((None, 1, 3)))
    def weigh(self, place, weight):
        self.act("set", place, weight=weight)

    @rule(concurrency=st.sampled_from((None, 1, 2, 6)), limiter=st.sampled_from((None, Limiter(2, 0.2))))
    def set(self, concurrency, limiter):
        self.act("set", ("plain", None), concurrency=concurrency, limiter=limiter)

    @rule(place=scopes(), most=st.sampled_from((None, 0, 3)))
    def bound(self, place, most):
        self.act("set", place, max_waiting=most)

    @rule()
    def let_go(self):
        self.act(
            "let_go",
        )

    @rule(bound=st.sampled_from((0.05, 0.2, 0.5)), slots=slots)
    def some_time(self, bound, slots):
        self.act("replace", slots)
        self.act("some_time", bound)

    @rule(place=places(), what=st.sampled_from(("record", "stream")), rare=st.integers(0, 3))
    def delete(self, place, what, rare):
        if rare == 0:
            self.act("delete", place, what)


@pytest.mark.slow
@pytest.mark.timeout(120 + 30 * LONG)
def test_whatever_is_done_what_must_hold_holds(tcp_server):
    Machine.server, Machine.found = tcp_server, ""
    options = settings(
        max_examples=LONG or EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=not LONG, database=None,
        phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    try:
        run_state_machine_as_test(Machine, settings=options)
    except BaseException:
        if Machine.found:
            pytest.fail(Machine.found, pytrace=False)
        raise


@pytest.mark.parametrize("name", ["strict", "fleeting"])
async def test_the_end_of_a_job_that_was_taken_over_is_told_once_where_its_record_is_kept(
    tcp_server, name, monkeypatch
):
    """The process that lost it sends its own outcome twice: the first time into a link that is cut."""
    world = World(tcp_server.port, tcp_server.url, f"m{os.getpid()}-{next(_numbers)}")
    let_go = world.let_go

    async def let_go_and_cut():
        await let_go()
        await world.until(lambda: False, 0.05)  # the outcome is on its way
        world.members[0].proxy.cut_all()

    monkeypatch.setattr(world, "let_go", let_go_and_cut)
    await world.begin()
    try:
        await world.start(3, again=False)
        await world.take_over((name, "a"), 3)
        await world.end()
        (one,) = world.jobs.values()
        assert one.returned == 2, "it ran in both"
        assert len(one.terminals) in ((1,) if KINDS[name].keeps else (1, 2))
    finally:
        await world.close()

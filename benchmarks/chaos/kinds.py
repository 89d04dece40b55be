"""The jobs of a chaos run: one kind for each way in which the runtime takes, limits and runs jobs."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from asyncjobs import Limiter

LEASES: Final = (1.0, 2.0)  # of the workers in turn, so that processes with different leases share every queue
LONGEST_LEASE: Final = max(LEASES)
SLOTS: Final = (1000, 5)  # of the workers in turn: the second kind has fewer slots than queues
SHARED: Final = Limiter(max=120, duration=1, name="mailbox")


class Kind(NamedTuple):
    """A job name of the run.

    Attributes:
        share: of all jobs, in hundredths.
        options: what the job is registered with.
        groups: how many tenants it has; 0 for a job without groups.
        longest: seconds that a try takes at most; 0 for a handler that does nothing.
        in_thread: its handler is a plain function.
    """

    share: int
    options: dict[str, Any]
    groups: int = 0
    longest: float = 0.02
    in_thread: bool = False


KINDS: Final[dict[str, Kind]] = {
    "plain": Kind(22, {"limiter": None, "concurrency": 20}),
    "quick": Kind(20, {"limiter": None, "concurrency": 4}, longest=0.0),  # jobs are fetched ahead of its slots
    "one-by-one": Kind(8, {"limiter": None, "concurrency": 1}, longest=0.0),
    "in-thread": Kind(6, {"limiter": None, "concurrency": 4}, longest=0.01, in_thread=True),
    "limited": Kind(8, {"limiter": Limiter(max=150, duration=1), "concurrency": 20}),
    "mail": Kind(4, {"limiter": SHARED, "concurrency": 10}),
    "letter": Kind(4, {"limiter": SHARED, "concurrency": 10}),
    "tenant": Kind(20, {"limiter": None, "group": True, "group_idle": 1}, groups=50),
    "capped": Kind(
        8, {"limiter": None, "group": True, "group_idle": 1, "total_concurrency": 6, "total_limiter": Limiter(200, 1)},
        groups=20,
    ),
}  # fmt: skip
# Names that share one limit, and that limit.
LIMITS: Final = (
    (("limited",), Limiter(max=150, duration=1)),
    (("mail", "letter"), SHARED),
    (("capped",), Limiter(max=200, duration=1)),
)


def kind_of(hundredth: int) -> str:
    """The kind of a job that drew `hundredth` from 0 to 99."""
    for name, kind in KINDS.items():
        hundredth -= kind.share
        if hundredth < 0:
            return name
    raise ValueError("the shares of all kinds make a hundred")

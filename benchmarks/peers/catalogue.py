"""Who is measured: the packages, and what a figure of each includes."""

from __future__ import annotations

from typing import NamedTuple


class Peer(NamedTuple):
    """One entry of the comparison.

    Attributes:
        name: as its makers write it.
        adapter: the file in `adapters/`, without its ending; also the name of its environment.
        packages: exact, so that two runs compare; none for what runs in our own environment.
        python: the least version it needs.
        survives: what happens to a job whose process is killed, as it is set up here.
        keeps: what is left of a job that has run.
        records: whether that is a record of the job.
        slow: among those that ought to be left behind by a multiple.
    """

    name: str
    adapter: str
    packages: tuple[str, ...]
    survives: str
    keeps: str
    records: bool
    python: tuple[int, int] = (3, 11)
    node: bool = False
    slow: bool = False
    environment: tuple[tuple[str, str], ...] = ()


OURS = "asyncjobs"
CEILING = ("raw pipelines", "raw script")

PEERS = (
    Peer(
        OURS, "asyncjobs", (),
        "given back at once on the same host, else after 30 s", "record, result, errors", True,
    ),
    Peer(
        "arq", "arq", ("arq==0.28.0", "uvloop"),
        "runs again after its timeout", "result, an hour", True, slow=True,
    ),
    Peer(
        "SAQ", "saq", ("saq[hiredis]==0.26.4", "typing-extensions", "uvloop"),
        "swept after its timeout", "record, ten minutes", True, slow=True,
    ),
    Peer(
        "streaQ", "streaq", ("streaq==7.2.0", "uvloop"),
        "reclaimed after 60 s", "result, five minutes", True, slow=True,
    ),
    Peer(
        "taskiq", "taskiq", ("taskiq==0.13.0", "taskiq-redis==1.2.4", "uvloop"),
        "claimed after ten minutes", "nothing", False, slow=True,
    ),
    Peer(
        "pydocket", "docket", ("pydocket==0.27.0", "uvloop"),
        "redelivered after five minutes", "record, 15 minutes", True, slow=True,
    ),
    Peer(
        "repid", "repid", ("repid[redis]==2.1.4", "typing-extensions", "uvloop"),
        "lost, unless reclaiming is switched on", "nothing", False,
    ),
    Peer(
        "dramatiq", "dramatiq", ("dramatiq[redis]==2.2.1",),
        "requeued after 60 s", "nothing", False, slow=True,
    ),
    Peer(
        "celery", "celery", ("celery[redis]==5.7.0",),
        "runs again after an hour", "nothing", False, slow=True,
    ),
    Peer(
        "BullMQ (Python)", "bullmq", ("bullmq==3.4.4", "uvloop"),
        "given back after 30 s", "record, for ever", True,
    ),
    Peer(
        "ardiq", "ardiq", ("ardiq==1.2.0", "uvloop"),
        "reclaimed after 60 s", "result, five minutes", True, python=(3, 12),
    ),
    Peer(
        "BullMQ (Node)", "bullmq_node", ("bullmq@6.7.0", "ioredis@5"),
        "given back after 30 s", "record, 1,000 of them", True, node=True,
    ),
    Peer("raw pipelines", "raw", (), "lost", "nothing", False, environment=(("RAW", "pipeline"),)),
    Peer("raw script", "raw", (), "lost", "nothing", False, environment=(("RAW", "script"),)),
)  # fmt: skip

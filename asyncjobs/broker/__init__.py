"""Everything that talks to Redis, and the only folder that imports it. Start at `broker.py`."""

from asyncjobs.broker.acting import DONE, DONE_BEFORE, GONE, Act
from asyncjobs.broker.add_calls import AddCall, Place
from asyncjobs.broker.address import REPLY_TIMEOUT
from asyncjobs.broker.broker import WORK_CONNECTIONS, Broker
from asyncjobs.broker.cancelling import Mark, Target, read_mark
from asyncjobs.broker.explaining import Backlog, Explained, Gate, Service, Tokens
from asyncjobs.broker.fleet import Described
from asyncjobs.broker.keeping import Beat, Silent, Word
from asyncjobs.broker.keys import Keys
from asyncjobs.broker.preflight import Store
from asyncjobs.broker.taken import Sample, TakenJob
from asyncjobs.broker.tallying import Duty, Gauge, Series
from asyncjobs.broker.ticking import outcome_json, run_mark, skip_json
from asyncjobs.broker.working import (
    NO_LIMIT,
    BrokerBusyError,
    Excess,
    OnWork,
    Op,
    Settlement,
    WorkCall,
    WorkReply,
    bounds,
)

__all__ = [
    "DONE",
    "DONE_BEFORE",
    "GONE",
    "NO_LIMIT",
    "REPLY_TIMEOUT",
    "WORK_CONNECTIONS",
    "Act",
    "AddCall",
    "Backlog",
    "Beat",
    "Broker",
    "BrokerBusyError",
    "Described",
    "Duty",
    "Excess",
    "Explained",
    "Gate",
    "Gauge",
    "Keys",
    "Mark",
    "OnWork",
    "Op",
    "Place",
    "Sample",
    "Series",
    "Service",
    "Settlement",
    "Silent",
    "Store",
    "TakenJob",
    "Target",
    "Tokens",
    "Word",
    "WorkCall",
    "WorkReply",
    "bounds",
    "outcome_json",
    "read_mark",
    "run_mark",
    "skip_json",
]

"""All keys that asyncjobs uses.

    {prefix}                       of the whole installation
      :processes  zset    process → ms of its last beat
      :due        zset    process → ms when its shortest lease ends
      :leases     hash    process → its leases in ms, JSON: job name → lease, '' → that of all other names
      :swept:<p>  hash    job name → process that gives back the jobs of the dead process p, see lua/claim.lua; an hour
      :ticks      hash    task → last tick claimed and by whom
      :running    hash    task → process that runs it; 'task queued' → the tick queued behind it; 'task handed' → that
                          tick once it was handed out, behind the run that had ended
      :gate:<x>   hash    named limiter x, with :gate:<x>:1 … zset, see lua/admit.lua
      :about      hash    process → JSON, what it says of itself; 'process names' → JSON, its job and task names
      :draining   hash    process → JSON; it was asked to take nothing
      :names      hash    job name → JSON, the knowledge of the processes that started
      :cancels    zset    messages about cancels of running jobs → ms at which they were sent; an hour
      :audit      stream  acts of operators: what, by, source, target, before, after, reason; the last 10,000
      :tasks      hash    task → JSON, what every process that started knew of it
      :paused     hash    task → JSON; it does not tick
      :taskruns:<t>  list  of task t its last 50 runs, JSON, see lua/include/task_runs.lua
      :taskskips:<t> list  of task t the last 50 ticks that it did not run on, JSON
      :asked:<id> string  a run of a task that was asked for, and what became of that, see lua/take_run.lua; a minute
      :op:<id>    hash    an operation: what is done to which jobs, and how far it has come
      :ops        zset    operation → ms when it began; the last 100
      :openops    zset    operation that is under way → ms until which its driver has it
      :history    zset    job name → its rank by traffic; the first hundred have a history of their own
      :alerts     hash    who looks for alerts, and which there are, see lua/duty.lua; an hour
      :serves     hash    process → JSON, the names that it consumes and the next ticks of its tasks; a day
      :epoch      string  random; a change means that the data were lost in between

    {prefix:name}                  of a job name
      :groups     zset    group id → ms of its last sign of life      only where the job is grouped
      :c :f :k    zset    finished jobs; for a grouped job those of all groups
      :gate       hash    the limit over all groups together, with :gate:1 … zset, see lua/admit.lua
      :m:1:<n>    string  the nth block of its history by the minute, msgpack, see lua/chronicle.lua; three hours.
                          Beside it 10:<n> by ten minutes; 48 hours. 120:<n> by two hours; 30 days. g:<n> the heaviest
                          groups of each minute; an hour. seen, a hash: process → number of its last figures; two hours.
                          The names beyond the first hundred are counted together, as the name '*other'

    {prefix:name}  or  {prefix:name:group}     of a queue: a job name, or one of its groups
      :s          stream  {j: job id}, consumer group `w`; exists only while jobs are waiting or active;
                          the consumer `head` stands for "back at the head of the queue"
      :d          zset    delayed jobs, id → due ms
      :b :b1 …    list    token bucket, one a window; expires when its last token is back
      :o          hash    settings made at run time: w windows · c concurrency · g weight · m most waiting · p paused ·
                          h held until ms
      :n          hash    process → its last add, and until when that add may be sent again; expires with the last one
      :c :f :k    zset    completed, failed, cancelled: id → finished ms
      :j:<id>     hash    a job: d data · o options · t added · a attempts made · s stalled · u started ·
                          x state: a active, w to be run again, c f k finished · r fence token ·
                          z the token of a take that has not begun · v result · p progress · F finished · w watched ·
                          q sender · e<n> error of try n · l<n> log line, ln their number ·
                          i the id of its entry while it waits; stale otherwise, so the entry has to name the job ·
                          k who asked for its cancel, why and when, JSON ·
                          y acts of operators, one JSON object a line · O the last act · E<n> error of a try that
                          counts no more, its attempt in front

The braces are Redis Cluster's hash tag: the keys of one script lie in one slot, and queues and groups spread over the
shards. A job name holds no ``:``, and a group id is percent-encoded, so the keys of two queues never collide.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple
from urllib.parse import quote

LENGTH: Final = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)  # of a group id, at most 512
KEY: Final = re.compile(r"(?P<tag>\{(?P<inside>[^}]+)\}):(?P<kind>[a-z]+[0-9]*)(:(?P<rest>.*))?", re.DOTALL)
OF_INSTALLATION: Final = frozenset(
    {
        "processes",
        "due",
        "leases",
        "swept",
        "ticks",
        "running",
        "gate",
        "epoch",
        "names",
        "cancels",
        "audit",
        "about",
        "draining",
        "tasks",
        "paused",
        "taskruns",
        "taskskips",
        "asked",
        "op",
        "ops",
        "openops",
        "history",
        "alerts",
        "serves",
    }
)
OF_NAME: Final = frozenset({"groups", "gate", "m"})
OF_QUEUE: Final = frozenset({"s", "d", "b", "o", "n", "c", "f", "k", "j"})
PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


def encode_group(group_id: str) -> str:
    """`group_id` in the form that keys hold: percent-encoded, or a digest if that has more than 128 characters."""
    if PLAIN.fullmatch(group_id):
        return group_id
    quoted = quote(group_id, safe="", errors="surrogatepass").replace("~", "%7E")
    return quoted if len(quoted) <= 128 else "~" + hashlib.sha256(group_id.encode()).hexdigest()


class Parted(NamedTuple):
    """The parts of a key: its owner, its kind in the catalogue above, and the rest. `name`: '' for the installation."""

    tag: str
    name: str
    kind: str
    rest: str


def parted(prefix: str, key: str) -> Parted | None:
    """The parts of `key` by this catalogue; None: the key does not belong to asyncjobs."""
    match = KEY.fullmatch(key)
    if match is None:
        return None
    tag, inside, kind, rest = match.group("tag", "inside", "kind", "rest")
    if inside == prefix:
        return Parted(tag, "", kind, rest or "") if kind in OF_INSTALLATION else None
    if not inside.startswith(prefix + ":"):
        return None
    name, _, group = inside[len(prefix) + 1 :].partition(":")
    allowed = OF_QUEUE if group else OF_QUEUE | OF_NAME
    return Parted(tag, name, kind, rest or "") if kind.rstrip("0123456789") in allowed else None


class Keys:
    """The keys of one queue. It keeps only the tag, to save memory in each of ten thousand idle groups."""

    __slots__ = ("group", "tag")

    def __init__(self, prefix: str, name: str, group_id: str | None = None) -> None:
        self.tag = f"{{{prefix}:{name}}}" if group_id is None else f"{{{prefix}:{name}:{encode_group(group_id)}}}"
        self.group = group_id or ""

    @classmethod
    def tagged(cls, tag: str) -> Keys:
        """The keys of a queue whose tag is known, and whose group is not."""
        keys = cls.__new__(cls)
        keys.tag, keys.group = tag, ""
        return keys

    @property
    def stream(self) -> str:
        return self.tag + ":s"

    @property
    def delayed(self) -> str:
        return self.tag + ":d"

    @property
    def bucket(self) -> str:
        return self.tag + ":b"

    @property
    def completed(self) -> str:
        return self.tag + ":c"

    @property
    def failed(self) -> str:
        return self.tag + ":f"

    @property
    def cancelled(self) -> str:
        return self.tag + ":k"

    @property
    def senders(self) -> str:
        return self.tag + ":n"

    @property
    def settings(self) -> str:
        return self.tag + ":o"

    @property
    def jobs(self) -> str:
        """The prefix of a job's key, in front of its id."""
        return self.tag + ":j:"

    def job(self, job_id: str) -> str:
        return f"{self.tag}:j:{job_id}"


def groups_key(prefix: str, name: str) -> str:
    return f"{{{prefix}:{name}}}:groups"


def index_keys(prefix: str, name: str) -> tuple[str, str, str]:
    """The keys that list the finished jobs of all groups of `name`: completed, failed, cancelled."""
    return f"{{{prefix}:{name}}}:c", f"{{{prefix}:{name}}}:f", f"{{{prefix}:{name}}}:k"


def index_member(group_id: str, job_id: str) -> str:
    """A group's job in the form that the index lists. The length in front makes it unambiguous."""
    return f"{len(group_id)}:{group_id}{job_id}"


def split_member(member: str | bytes) -> tuple[str | None, str | bytes]:
    """The inverse of `index_member`. For a job without a group: no group, and the whole member."""
    if isinstance(member, str):
        length, colon, rest = member.partition(":")
        if colon and LENGTH.fullmatch(length) and int(length) <= len(rest):
            return rest[: int(length)], rest[int(length) :]
    return None, member


def total_gate(prefix: str, name: str) -> str:
    """The key of the shared limit over all groups of a job name."""
    return f"{{{prefix}:{name}}}:gate"


def named_gate(prefix: str, limiter: str) -> str:
    """The key of the shared limit of a named limiter."""
    return f"{{{prefix}}}:gate:{limiter}"


def processes_key(prefix: str) -> str:
    return f"{{{prefix}}}:processes"


def due_key(prefix: str) -> str:
    return f"{{{prefix}}}:due"


def leases_key(prefix: str) -> str:
    return f"{{{prefix}}}:leases"


def swept_key(prefix: str, process: str) -> str:
    return f"{{{prefix}}}:swept:{process}"


def cancels_key(prefix: str) -> str:
    return f"{{{prefix}}}:cancels"


def operation_key(prefix: str, operation_id: str) -> str:
    return f"{{{prefix}}}:op:{operation_id}"


def operations_key(prefix: str) -> str:
    return f"{{{prefix}}}:ops"


def open_operations_key(prefix: str) -> str:
    return f"{{{prefix}}}:openops"


def audit_key(prefix: str) -> str:
    return f"{{{prefix}}}:audit"


def names_key(prefix: str) -> str:
    return f"{{{prefix}}}:names"


def history_key(prefix: str) -> str:
    """Which names have a history of their own."""
    return f"{{{prefix}}}:history"


def history_of(prefix: str, name: str) -> str:
    """In front of the blocks that hold the history of `name`."""
    return f"{{{prefix}:{name}}}:m:"


def alerts_key(prefix: str) -> str:
    return f"{{{prefix}}}:alerts"


def serves_key(prefix: str) -> str:
    return f"{{{prefix}}}:serves"


def epoch_key(prefix: str) -> str:
    return f"{{{prefix}}}:epoch"


def ticks_key(prefix: str) -> str:
    return f"{{{prefix}}}:ticks"


def running_key(prefix: str) -> str:
    return f"{{{prefix}}}:running"


def about_key(prefix: str) -> str:
    return f"{{{prefix}}}:about"


def draining_key(prefix: str) -> str:
    return f"{{{prefix}}}:draining"


def tasks_key(prefix: str) -> str:
    return f"{{{prefix}}}:tasks"


def paused_key(prefix: str) -> str:
    return f"{{{prefix}}}:paused"


def runs_key(prefix: str, task: str) -> str:
    return f"{{{prefix}}}:taskruns:{task}"


def skips_key(prefix: str, task: str) -> str:
    return f"{{{prefix}}}:taskskips:{task}"


def asked_key(prefix: str, request: str) -> str:
    return f"{{{prefix}}}:asked:{request}"


class Channels:
    """The channels of an installation.

    Redis keeps keys apart by database, but a message reaches all databases of the server. So channel names hold the
    number of the database, except for database 0, as in earlier releases.
    """

    __slots__ = ("_root", "cancels", "database", "done", "events", "orders", "watch")

    def __init__(self, prefix: str, database: int = 0) -> None:
        self.database = database
        self._root = f"{prefix}:{database}" if database else prefix
        # Carries (job key, 'c', 'f' or 'k', result, error or mark) when a watched job has finished.
        self.done = f"{self._root}:done"
        # Carries (job name, group id, job id, token, mark) when the cancel of a running job is asked for.
        self.cancels = f"{self._root}:cancels"
        # Told '<what>|<process or task>|<more>' when an operator asks something of processes.
        self.orders = f"{self._root}:orders"
        # Told for how many seconds somebody follows the events of all processes; and those events, as JSON.
        self.watch = f"{self._root}:watch"
        self.events = f"{self._root}:events"

    def news(self, name: str) -> str:
        """The channel that carries '<ms until due>|<group id>' when an idle queue of `name` got work."""
        return f"{self._root}:news:{name}"


def text_of(member: bytes) -> str | bytes:
    """A listing as text, or as bytes if it is no UTF-8. Then another program wrote it, and it is an id all the same."""
    try:
        return member.decode()
    except UnicodeDecodeError:
        return member

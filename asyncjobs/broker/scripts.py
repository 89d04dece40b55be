"""The Lua scripts. They are read once and called by digest, so that two releases can share one Redis."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "lua"
COMMENT: Final = re.compile(r"^ *--.*\n", re.MULTILINE)
INCLUDE: Final = re.compile(r"^-- @include (\w+)\n", re.MULTILINE)


def digest(text: str) -> str:
    """The digest by which the server knows a script."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def joined(name: str) -> str:
    """The text of a script, each ``-- @include name`` of it replaced by that file of ``lua/include/``, once.

    Raises:
        ValueError: an include includes itself, or comes twice.
    """
    known: list[str] = []

    def included(found: re.Match[str]) -> str:
        if found[1] in known:
            raise ValueError(f"{name}.lua includes {found[1]} more than once: {', '.join(known)}")
        known.append(found[1])
        return INCLUDE.sub(included, (FOLDER / "include" / f"{found[1]}.lua").read_text(encoding="utf-8"))

    return INCLUDE.sub(included, (FOLDER / f"{name}.lua").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Script:
    """One file of ``lua/``: its name, its number of keys, its text and its SHA-1 digest.

    The server gets `text`, which is `source` without comments, because each kilobyte counts on a narrow link. It gets a
    script when a connection is made, and a `rare` one at its first call.
    """

    name: str
    keys: int
    rare: bool = False
    source: str = field(init=False, repr=False)
    text: str = field(init=False, repr=False)
    sha: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        source = joined(self.name)
        text = COMMENT.sub("", source)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "sha", digest(text))

    def __call__(self, *keys_and_args: str | bytes | int) -> tuple[str | bytes | int, ...]:
        """The command that runs the script."""
        return ("EVALSHA", self.sha, self.keys, *keys_and_args)


ADD: Final = Script("add", 5)
WORK: Final = Script("work", 7)
OWN: Final = Script("own", 1)
RETAIN: Final = Script("retain", 1)
OWNERS: Final = Script("owners", 1)
SWEEP: Final = Script("sweep", 1)
LEAVE: Final = Script("leave", 1)
NOTE: Final = Script("note", 1)
READ: Final = Script("read", 2)
WATCH: Final = Script("watch", 1)
COUNT: Final = Script("count", 5)
INSPECT: Final = Script("inspect", 5, rare=True)
PAGE_SORTED: Final = Script("page_sorted", 1, rare=True)
PAGE_ENTRIES: Final = Script("page_entries", 1, rare=True)
PEEK: Final = Script("peek", 1, rare=True)
TALLY: Final = Script("tally", 1, rare=True)
SEEK: Final = Script("seek", 1, rare=True)
INSTANT: Final = Script("instant", 1, rare=True)
EXPLAIN: Final = Script("explain", 4, rare=True)
EXPLAIN_NAME: Final = Script("explain_name", 2, rare=True)
EXPLAIN_SERVICE: Final = Script("explain_service", 5, rare=True)
BACKLOG: Final = Script("backlog", 2, rare=True)
SPEND: Final = Script("spend", 2)
REGISTER: Final = Script("register", 1)
INDEX: Final = Script("index", 4)
FORGET: Final = Script("forget", 1)
TRIM: Final = Script("trim", 3)
IDLE: Final = Script("idle", 1)
REAP: Final = Script("reap", 4)
UNREGISTER: Final = Script("unregister", 1)
BEAT: Final = Script("beat", 7)
BURY: Final = Script("bury", 5)
CLAIM: Final = Script("claim", 1)
DESCRIBE: Final = Script("describe", 5, rare=True)
ORDER: Final = Script("order", 2, rare=True)
SILENCE: Final = Script("silence", 1)
ADMIT: Final = Script("admit", 1)
REFUND: Final = Script("refund", 1)
STEER: Final = Script("steer", 1)
TICK: Final = Script("tick", 7)
END_RUN: Final = Script("end_run", 4)
NOTE_RUN: Final = Script("note_run", 3, rare=True)
ASK_RUN: Final = Script("ask_run", 1, rare=True)
TAKE_RUN: Final = Script("take_run", 6, rare=True)
RETRY: Final = Script("retry", 4, rare=True)
PROMOTE: Final = Script("promote", 2, rare=True)
REMOVE: Final = Script("remove", 5, rare=True)
RAZE: Final = Script("raze", 5, rare=True)
LOCATE: Final = Script("locate", 1, rare=True)
AUDIT: Final = Script("audit", 1, rare=True)
PLAN: Final = Script("plan", 3, rare=True)
DRIVE: Final = Script("drive", 2, rare=True)
HALT: Final = Script("halt", 2, rare=True)
UNLIST: Final = Script("unlist", 1, rare=True)
CANCEL: Final = Script("cancel", 3, rare=True)
REMIND: Final = Script("remind", 1, rare=True)
HEAR: Final = Script("hear", 1)
CHRONICLE: Final = Script("chronicle", 1, rare=True)
SERIES: Final = Script("series", 1, rare=True)
RANK: Final = Script("rank", 1, rare=True)
GAUGE: Final = Script("gauge", 2, rare=True)
DUTY: Final = Script("duty", 2, rare=True)
JUDGE: Final = Script("judge", 1, rare=True)
PERMIT: Final = Script("permit", 0)

BY_SHA: Final = {script.sha: script for script in tuple(globals().values()) if isinstance(script, Script)}
USUAL: Final = tuple(script for script in BY_SHA.values() if not script.rare)

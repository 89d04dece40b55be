"""Stacks as a user wants to see them: from the handler on, without the frames that called it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final

HERE: Final = Path(__file__).parent
# The example's own jobs and tasks are an app's; the keeper of threads and the loop are nobody's business.
OURS: Final = tuple(str(path) for path in (*HERE.glob("*.py"), HERE / "integrations", HERE / "broker"))
MACHINERY: Final = ("concurrent/futures/", "asyncio/")


def from_the_handler(error: BaseException) -> TracebackType | None:
    """The traceback of `error` without its leading frames of ours, whose locals hold the raw job too."""
    at = error.__traceback__
    while at is not None and _is_ours(at.tb_frame.f_code.co_filename):
        at = at.tb_next
    return at or error.__traceback__


def _is_ours(filename: str) -> bool:
    return filename.startswith(OURS) or any(part in filename for part in MACHINERY)


def exc_info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """`error` as `logging` takes it, with that traceback."""
    return type(error), error, from_the_handler(error)


def said(error: BaseException) -> str:
    """``ValueError: no such user``, on whatever an exception's own text does."""
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = "<its text cannot be read>"
    return f"{kind}: {text}" if text else kind

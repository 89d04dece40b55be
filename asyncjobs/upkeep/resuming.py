"""Resuming: operations whose process has died go on in this one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from asyncjobs.errors import AsyncjobsError

logger = logging.getLogger("asyncjobs")


async def run_resuming(take_up: Callable[[], Awaitable[Any]], interval: float) -> None:
    """Every `interval` seconds, `take_up` what nobody drives any more."""
    while True:
        await asyncio.sleep(interval)
        try:
            await take_up()
        except AsyncjobsError as error:  # it goes on at the next look, here or elsewhere
            logger.debug("an operation: %s", error)

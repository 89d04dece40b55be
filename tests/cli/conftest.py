"""The command line within the test's own process, on the test's own store, beside whatever the test runs there."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from asyncjobs.cli import main


class Said(NamedTuple):
    """What a command has printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table, without its head."""
        return [line.split("\t") for line in self.out.splitlines()[1:]]

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class CommandLine:
    """``await cli("jobs", "list")``: runs a command in a thread; fails if its exit code is not `code`."""

    def __init__(self, *store: str) -> None:
        self.store = store

    async def __call__(self, *args: str, code: int = 0, stdin: str = "") -> Said:
        said = await asyncio.to_thread(self._run, [*args, *self.store], stdin)
        assert said.code == code, said
        assert "Traceback" not in said.err
        assert "\x1b" not in said.out + said.err
        return said

    @staticmethod
    def _run(args: list[str], stdin: str) -> Said:
        out, err, code = io.StringIO(), io.StringIO(), 0
        threshold, before = gc.get_threshold(), sys.stdin
        sys.stdin = io.StringIO(stdin)
        try:
            # A command sets up the log of its process, which is that of the test here.
            with redirect_stdout(out), redirect_stderr(err), patch("asyncjobs.cli.project.hush"):
                main(args)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdin = before
            gc.set_threshold(*threshold)
        return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture
def cli(server: Any, prefix: str) -> CommandLine:
    return CommandLine("--redis", server.url, "--prefix", prefix)

"""What a benchmark has found: figures, and the claims that follow from them; as tables, or as one JSON object."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from asyncjobs.cli.project import run_loop
from benchmarks import machine


@dataclass
class Figure:
    """One measure: its values, one a round."""

    measure: str
    unit: str
    values: list[float]
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        spread = {"median": self.median, "min": min(self.values), "max": max(self.values)}
        return {"measure": self.measure, "unit": self.unit, "values": self.values, **spread, "note": self.note}


@dataclass
class Claim:
    """What ought to hold on any machine: a ratio or a count, and its bound from below or above."""

    text: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def as_json(self) -> dict[str, Any]:
        kind = "at least" if self.at_least else "at most"
        return {"claim": self.text, "value": self.value, kind: self.bound, "holds": self.holds}


@dataclass
class Report:
    """Everything that one run of a script has found."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)  # single values, for whoever draws their distribution

    def add(self, measure: str, unit: str, values: Sequence[float], note: str = "") -> Figure:
        figure = Figure(measure, unit, list(values), note)
        self.figures.append(figure)
        return figure

    def claim(self, text: str, value: float, bound: float, *, at_least: bool = True) -> None:
        self.claims.append(Claim(text, value, bound, at_least))

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "machine": machine.describe(),
            "figures": [one.as_json() for one in self.figures],
            "claims": [one.as_json() for one in self.claims],
            **({"samples": self.samples} if self.samples else {}),
        }


def shown(value: float) -> str:
    """A figure with about three digits."""
    if value and abs(value) < 10:
        return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def render(found: dict[str, Any], console: Console | None = None) -> None:
    """Print a report that is, or was, JSON."""
    console = console or Console(width=118)
    table = Table("measure", title=found["title"], title_justify="left")
    for column in ("median", "min", "max"):
        table.add_column(column, justify="right")
    table.add_column("")
    if any(one["note"] for one in found["figures"]):
        table.add_column("note")
    for one in found["figures"]:
        cells = (shown(one["median"]), shown(one["min"]), shown(one["max"]))
        table.add_row(one["measure"], *cells, one["unit"], *([one["note"]] if len(table.columns) > 5 else []))
    console.print(table)
    for one in found["claims"]:
        kind = "at least" if "at least" in one else "at most"
        sign = "[green]✓[/]" if one["holds"] else "[red]✗[/]"
        console.print(f" {sign} {one['claim']}: {shown(one['value'])}, {kind} {shown(one[kind])}", highlight=False)
    console.print(found["machine"], highlight=False, style="dim")


def script(
    doc: str | None,
    measure: Callable[[argparse.Namespace], Coroutine[Any, Any, Report]],
    *,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    quick: dict[str, Any],
    **defaults: Any,
) -> None:
    """The command line of a benchmark.

    Args:
        measure: does it, with the options.
        more: adds options of its own.
        quick: what `--quick` sets.
        defaults: of `server`, `jobs`, `rounds`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    server = defaults.get("server", "memory")
    parser.add_argument("--server", default=server, help="memory, redis, embedded, or a URL whose data may be flushed")
    parser.add_argument("--jobs", type=int, default=defaults.get("jobs", 30_000))
    parser.add_argument("--rounds", type=int, default=defaults.get("rounds", 3))
    parser.add_argument(
        "--quick", action="store_true", help=", ".join(f"{key} {value}" for key, value in quick.items())
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    more(parser)
    options = parser.parse_args()
    if options.quick:
        for key, value in quick.items():
            if getattr(options, key) == parser.get_default(key):
                setattr(options, key, value)
    found = run_loop(measure(options)).as_json()
    if options.json:
        print(json.dumps(found))
    else:
        render(found)

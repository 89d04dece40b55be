"""Draw what `python -m benchmarks --results benchmarks/results` has found; needs matplotlib, the extra `bench`.

python -m benchmarks.plots [--results FOLDER]

throughput.svg  no-op drain by peer, with the ceiling · latency.svg  idle add to start by peer, and our distribution
growth.svg      cost of a job by backlog, drain by number of job names
guest.svg       what requests of an app take beside each backlog; beside peers, with ours at the pace of each
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.catalogue import CEILING, OURS

FOLDER = Path(__file__).parent / "results"
INK, OTHERS, HIGHEST, MUTED = "#1f6f78", "#b9c4c9", "#e3e7e9", "#5b6770"


def _style() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED,
            "xtick.color": MUTED, "ytick.color": "#222", "axes.labelcolor": MUTED, "axes.titlelocation": "left",
            "svg.hashsalt": "asyncjobs", "svg.fonttype": "none", "figure.constrained_layout.use": True,
        }
    )  # fmt: skip
    return plt


def _figures(folder: Path, name: str) -> dict[str, Any]:
    """A report's figures by measure, and what it ran on under the empty key."""
    path = folder / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path} is not there: python -m benchmarks {name} --results {folder}")
    found = json.loads(path.read_text())
    return {"": found, **{one["measure"]: one for one in found["figures"]}}


def _by_peer(figures: dict[str, Any], measure: str) -> dict[str, Any]:
    end = f": {measure}"
    return {name.removesuffix(end): one for name, one in figures.items() if name.endswith(end)}


def _bars(axes: Any, rows: list[tuple[str, Any]], digits: int) -> None:
    """Horizontal bars with their spread, each with its figure."""
    for place, (name, one) in enumerate(rows):
        colour = INK if name == OURS else HIGHEST if name in CEILING else OTHERS
        axes.barh(place, one["median"], color=colour, height=0.7)
        axes.plot([one["min"], one["max"]], [place, place], color=MUTED, linewidth=1)
        axes.annotate(
            f"{one['median']:,.{digits}f}", (max(one["max"], one["median"]), place), xytext=(5, 0),
            textcoords="offset points", va="center", color="#222", fontweight="bold" if name == OURS else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def throughput(plt: Any, folder: Path) -> Any:
    figures = _figures(folder, "peers")
    rows = sorted(_by_peer(figures, "drain no-op at 100").items(), key=lambda one: -one[1]["median"])
    figure, axes = plt.subplots(figsize=(8.5, 0.36 * len(rows) + 1.1))
    _bars(axes, rows, 0)
    axes.set_title("Jobs a second that do nothing, one process at concurrency 100: median, least and most")
    server = figures[""]["title"].rpartition(", ")[2]
    axes.set_xlabel(f"{figures['']['machine']}\n{server}; raw is no queue, but the ceiling", fontsize=8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.12)
    return figure


def latency(plt: Any, folder: Path) -> Any:
    figures, ours = _figures(folder, "peers"), _figures(folder, "latency")
    p50, p99 = (_by_peer(figures, f"idle, add to start, p{share}") for share in (50, 99))
    rows = sorted(p50.items(), key=lambda one: one[1]["median"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.34 * len(rows) + 1.3))
    for place, (name, one) in enumerate(rows):
        colour = INK if name == OURS else MUTED
        left.plot(
            [one["median"], p99[name]["median"]], [place, place], color=OTHERS, linewidth=5, solid_capstyle="butt"
        )
        left.plot(one["median"], place, "o", color=colour)
        left.annotate(f"{one['median']:.2f}", (one["median"], place), xytext=(0, 6), textcoords="offset points",
                      ha="center", fontsize=8, color=colour)  # fmt: skip
    left.set_xscale("log")
    left.set_yticks(range(len(rows)), [name for name, _ in rows])
    left.invert_yaxis()
    left.set_title("Idle, add to start: p50 ● to p99", fontsize=10)
    left.set_xlabel("ms")
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.xaxis.set_minor_formatter("")
    for number, (name, values) in enumerate(ours[""]["samples"].items()):
        ordered = sorted(values)
        shares = [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
        right.plot(ordered, shares, label=name, color=plt.get_cmap("viridis")(0.05 + 0.22 * number))
    right.set_xscale("log")
    right.set_ylim(0, 100)
    right.set_xlabel("ms")
    right.set_ylabel("% of the jobs")
    right.set_title("asyncjobs: how long, by share", fontsize=10)
    right.set_xticks([0.5, 1, 2, 5, 10])
    right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.xaxis.set_minor_formatter("")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def growth(plt: Any, folder: Path) -> Any:
    figures = _figures(folder, "growth")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    charts = (
        (left, "CPU a job, process and server, at a backlog of ", "", "µs of CPU a job, process and server", "backlog"),
        (right, "drain of ", " job names", "jobs a second, one process", "job names"),
    )
    for axes, start, end, title, label in charts:
        found = {
            int(name.removeprefix(start).removesuffix(end).replace(",", "")): one
            for name, one in figures.items()
            if name.startswith(start) and name.endswith(end)
        }
        axes.plot(list(found), [one["median"] for one in found.values()], "o-", color=INK)
        low, high = ([one[edge] for one in found.values()] for edge in ("min", "max"))
        axes.fill_between(list(found), low, high, color=INK, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_ylim(0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


GUESTS = (("asyncjobs, no budget", OTHERS), ("asyncjobs", INK), ("asyncjobs, gc_freeze", "#7fb5ba"))


def guest(plt: Any, folder: Path) -> Any:
    figures, beside = _figures(folder, "guest"), _figures(folder, "guest_equal")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2))
    names = list(dict.fromkeys(name.split(", asyncjobs")[0].removeprefix("fastapi, ") for name in figures
                               if name.startswith("fastapi, ") and ", asyncjobs: " in name))  # fmt: skip
    for number, (who, colour) in enumerate(GUESTS):
        places = [place + 0.27 * (number - 1) for place in range(len(names))]
        found = [figures.get(f"fastapi, {name}, {who}: p99", {"median": 0})["median"] for name in names]
        left.barh(places, found, height=0.24, color=colour, label=who.replace("asyncjobs, ", "").replace(
            "asyncjobs", "loop_budget=0.005"))  # fmt: skip
    for place, name in enumerate(names):
        plain = figures[f"fastapi, {name}, asyncjobs: p99 without"]["median"]
        left.plot([plain, plain], [place - 0.4, place + 0.4], color="#222", linewidth=1.5)
    left.set_yticks(range(len(names)), names)
    left.set_title("p99 of a request in ms beside a backlog; | without one", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    peers = [name.split(", ")[2].removesuffix(": p99") for name in beside
             if name.startswith("fastapi, no-op, ") and name.endswith(": p99") and "asyncjobs" not in name]  # fmt: skip
    for number, (start, colour) in enumerate((("", OTHERS), ("asyncjobs at the pace of ", INK))):
        found = [beside[f"fastapi, no-op, {start}{peer}: p99"]["median"] for peer in peers]
        right.barh([place + 0.36 * (number - 0.5) for place in range(len(peers))], found, height=0.32, color=colour,
                   label="asyncjobs at its pace" if number else "the peer")  # fmt: skip
    paces = [beside[f"fastapi, no-op, {peer}: jobs/s"]["median"] for peer in peers]
    right.set_yticks(range(len(peers)), [f"{peer}, {pace:,.0f}/s" for peer, pace in zip(peers, paces, strict=True)])
    right.set_title("the same at equal no-op jobs a second", fontsize=10)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    options = parser.parse_args()
    try:
        plt = _style()
    except ModuleNotFoundError:
        raise SystemExit("matplotlib is not installed: pip install -e '.[bench]'") from None
    for draw in (throughput, latency, growth, guest):
        path = options.results / f"{draw.__name__}.svg"
        draw(plt, options.results).savefig(path, metadata={"Date": None})
        print(path, file=sys.stderr)


if __name__ == "__main__":
    main()

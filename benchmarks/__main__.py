"""All benchmarks, one after the other, or some of them.

    python -m benchmarks [NAME …] [--server redis] [--quick] [--json] [--results FOLDER]

Each is a script of its own, `python -m benchmarks.NAME --help`. With `--results` each report is also written to
FOLDER/NAME.json, from which `python -m benchmarks.plots` draws. A full run takes half an hour.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.report import render

SCRIPTS = (
    "throughput", "latency", "memory", "growth", "cores", "network", "idle", "profile", "groups", "limits", "guest",
    "operate", "peers",
)  # fmt: skip

TCP = ("network", "guest", "peers")
MODULES = {"peers": "benchmarks.peers.__main__"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCRIPTS))
    parser.add_argument("--quick", action="store_true", help="small numbers: that everything runs, not how fast")
    parser.add_argument("--server", help="passed on to all but network and peers, which want a TCP port")
    parser.add_argument("--json", action="store_true", help="one JSON object, a member a script")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to write NAME.json")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SCRIPTS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    found, failed = {}, []
    for name in options.names or SCRIPTS:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if options.quick else [])]
        if options.server and name not in TCP:
            command += ["--server", options.server]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
            continue
        found[name] = json.loads(done.stdout)
        if options.results:
            options.results.mkdir(parents=True, exist_ok=True)
            (options.results / f"{name}.json").write_text(json.dumps(found[name], indent=1) + "\n")
        if not options.json:
            show = getattr(importlib.import_module(MODULES.get(name, f"benchmarks.{name}")), "show", render)
            show(found[name])
    if options.json:
        print(json.dumps(found))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

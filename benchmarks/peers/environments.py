"""An environment for each peer, in `.bench-peers/`, and never in ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.catalogue import Peer

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench-peers"
ADAPTERS = Path(__file__).parent / "adapters"


def command(peer: Peer) -> list[str] | None:
    """What runs a peer's adapter; None: its environment has not been made."""
    if not peer.packages:
        return [sys.executable, str(ADAPTERS / f"{peer.adapter}_adapter.py")]
    if peer.node:
        adapter, node = FOLDER / peer.adapter / f"{peer.adapter}_adapter.mjs", shutil.which("node")
        return [node, str(adapter)] if node and adapter.exists() else None
    python = FOLDER / peer.adapter / "bin" / "python"
    ready = FOLDER / peer.adapter / ".ready"
    return [str(python), str(ADAPTERS / f"{peer.adapter}_adapter.py")] if ready.exists() else None


def install(peer: Peer) -> str:
    """Make a peer's environment unless it is there; what happened, in words."""
    if not peer.packages:
        return "runs in ours"
    folder = FOLDER / peer.adapter
    ready = folder / ".ready"
    wanted = "\n".join(peer.packages)
    if ready.exists() and ready.read_text() == wanted and command(peer):
        return "is there"
    try:
        if peer.node:
            npm = shutil.which("npm")
            if npm is None or shutil.which("node") is None:
                return "left out: no node and npm here"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
            _run([npm, "install", "--silent", "--no-audit", "--no-fund", *peer.packages], folder)
            shutil.copy(ADAPTERS / f"{peer.adapter}_adapter.mjs", folder)
        else:
            python = _python(peer.python)
            if python is None:
                return f"left out: no Python {peer.python[0]}.{peer.python[1]} or newer here"
            shutil.rmtree(folder, ignore_errors=True)
            _run([python, "-m", "venv", str(folder)], ROOT)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, *peer.packages], ROOT)
    except subprocess.CalledProcessError as error:
        return f"left out: {' '.join(map(str, error.cmd[:3]))} … failed: {error.stderr.decode()[-300:].strip()}"
    ready.write_text(wanted)
    return "made"


def _run(line: list[str], folder: Path) -> None:
    subprocess.run(line, cwd=folder, check=True, capture_output=True, timeout=600)


def _python(least: tuple[int, int]) -> str | None:
    """A Python of at least that version: ours, one on the PATH, or one that pyenv has."""
    if sys.version_info[:2] >= least:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    on_path = [shutil.which(f"python3.{minor}") for minor in range(least[1], least[1] + 8)]
    candidates = [one for one in on_path if one] + [str(one) for one in sorted(pyenv.glob("3.*/bin/python"))]
    for one in candidates:
        asked = subprocess.run(
            [one, "-c", f"import sys; sys.exit(sys.version_info[:2] < {least!r})"], capture_output=True, timeout=30
        )
        if asked.returncode == 0:
            return one
    return None

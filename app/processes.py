"""Processes that outlive this one: a training goes on while the server restarts, and is found again by its identity.

    process = start(["train", …], log)        # {"pid", "started"}: goes into the database
    alive(process)                            # by any server process of this machine, later

The identity is the process id with the moment at which it was started, so that another process that got the same number isn't
taken for it. A session of its own keeps it from signals to the server's terminal; it is niced, so that answers come first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
NICENESS = 10
LOG_BYTES = 64 << 10  # that are read from a log's end

_children: dict[int, subprocess.Popen[bytes]] = {}


def start(command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `python -m engine COMMAND…` with these variables more; what it says is added to `log`. Raises OSError."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths} | dict(variables or {})
    with log.open("ab") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "engine", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[child.pid] = child
    identity = {"pid": child.pid, "started": _started(child.pid)}
    psutil.Process(child.pid).nice(NICENESS if os.name == "posix" else psutil.BELOW_NORMAL_PRIORITY_CLASS)
    return identity


def alive(process: dict[str, Any] | None) -> bool:
    """Whether the process of this identity still works."""
    if not process:
        return False
    child = _children.get(process["pid"])
    if child is not None and child.poll() is not None:
        del _children[process["pid"]]
        return False
    return _started(process["pid"]) == process["started"]


def end(process: dict[str, Any] | None, *, now: bool = False) -> None:
    """Ask a process to end (SIGTERM), or `now` end it and all of its session. One that is gone is no error."""
    if process is None or not alive(process):
        return
    try:
        if now and hasattr(os, "killpg"):
            os.killpg(process["pid"], signal.SIGKILL)
        else:
            os.kill(process["pid"], signal.SIGTERM)
    except ProcessLookupError:
        return


def last_lines(log: Path, count: int = 12) -> list[str]:
    """The end of a log for a person: a traceback is cut down to its last line, which names the error."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return without_tracebacks(text.replace("\r", "\n").splitlines())[-count:]


def without_tracebacks(said: Iterable[str]) -> list[str]:
    """Lines for a person, none of them long: of a traceback only the last one."""
    lines: list[str] = []
    inside = False
    for line in said:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and (line.startswith((" ", "\t")) or not line.strip()):
            continue
        elif line.strip():
            inside = False
            lines.append(line[:500])
    return lines


def _started(pid: int) -> str | None:
    """When a process was started, in a form that only grows with the machine's own ticks; None if it is gone or dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (
            None
            if fields[0] in ("Z", "X")
            else f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"
        )
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None

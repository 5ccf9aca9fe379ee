"""How much memory this machine can still give away. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Of a control group: its limit, what its processes have, and which part of that the system would drop. Version 2, then 1.
_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(
    meminfo: Path = Path("/proc/meminfo"),
    groups: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int:
    """Bytes that a new process can have without pushing others out; within a container or a job, what its limits leave.

    groups: where control groups are mounted; own: which of them this process is in. Where the system doesn't say (no
    /proc), all of its memory.
    """
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024
    return max(0, min([free, *_left(groups, own)]))


def _left(groups: Path, own: Path) -> Iterator[int]:
    """What each limit leaves of the groups that this process is in: its own, and all around it."""
    for (controller, limit, used, droppable), path in _memberships(own):
        top = groups / controller
        # Within a container the path may be the host's, which isn't there: the container's own group is at the top.
        for folder in (top, *(top / Path(*path.parts[1:count]) for count in range(2, len(path.parts) + 1))):
            try:
                most = int((folder / limit).read_text(encoding="ascii"))
                taken = int((folder / used).read_text(encoding="ascii"))
                lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            except (OSError, ValueError):  # no such group, or one without a limit ("max")
                continue
            yield most - taken + int(dict(line.split() for line in lines).get(droppable, 0))


def _memberships(own: Path) -> Iterator[tuple[tuple[str, str, str, str], Path]]:
    """Of the lines `hierarchy:controllers:path` those that are about memory."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield _FILES[0], Path(path)
        elif "memory" in controllers.split(","):
            yield _FILES[1], Path(path)

"""What /proc says of other processes."""

from __future__ import annotations

import os
import re
from pathlib import Path


def serving(folder: Path, program: str = "preloaded|worker") -> list[int]:
    """Pre-loaded parents and workers that serve sockets of a folder, and their children, which have the same command
    line."""
    ours = re.compile(rf"dapo_stages\.entrypoints\.({program})\0".encode())
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if ours.search(words) and str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


def parents_among(processes: list[int]) -> list[int]:
    """Those whose parent is none of them."""
    return [process for process in processes if parent_of(process) not in processes]


def parent_of(process: int) -> int | None:
    """None if it has ended, whether or not somebody has asked how."""
    stat = _stat(process)
    return None if stat is None or stat[0] == "Z" else int(stat[1])


def children(process: int) -> list[int]:
    """Those of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def of_session(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    found = {process: _stat(process) for process in processes}
    return [process for process, stat in found.items() if stat and stat[0] != "Z" and int(stat[3]) == session]


def resident(process: int) -> int:
    """MiB of memory; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def opened(process: int) -> int:
    """Open files; 0 if it has ended."""
    try:
        return len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return 0


def _stat(process: int) -> list[str] | None:
    """State, parent, group, session, … of a process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None

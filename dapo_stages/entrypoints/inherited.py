"""What a process inherits that decides what it may do, and how it runs: a sandbox is made of nothing else.

Two of the things are hidden: Landlock's rules, for which `look_into` is there, and filters of system calls, which are
only counted.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from errno import EINVAL, ENOENT
from pathlib import Path

PROC = Path("/proc")
# Lines of /proc/PID/status that are of this very process. All others are inherited, or taken to be.
_OWN = (
    *("Name", "State", "Tgid", "Ngid", "Pid", "PPid", "FDSize", "NStgid", "NSpid", "NSpgid", "NSsid", "Kthread"),
    *("Vm", "Rss", "Hugetlb", "CoreDumping", "Threads", "SigQ", "SigPnd", "ShdPnd", "SigCgt", "SigIgn"),
    *("x86_Thread_features", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"),
)
_NEEDED = ("Umask", "Uid", "Gid", "Groups", "SigIgn", "CapEff", "NoNewPrivs")
# The rest of what the kernel shows in files; label: SELinux, AppArmor, Smack. Not every kernel has all of them.
_FILES = (
    *("attr/current", "attr/apparmor/current", "attr/smack/current", "cgroup", "coredump_filter"),
    *("cpu_resctrl_groups", "loginuid", "oom_score_adj", "sessionid"),
)
# Of prctl: securebits, timer slack, memory errors, huge pages, I/O of the memory's own, write or execute, merged pages.
_ASKED = (27, 30, 34, 42, 58, 66, 68)
_SYSTEM_CALLS = {"x86_64": (252, 250), "aarch64": (31, 219), "riscv64": (31, 219)}  # ioprio_get, keyctl
_PASSED_ON = {signal.SIGINT, signal.SIGTERM}  # a request says whether they are ignored


def inherited() -> list[object]:
    """The same in two processes of which neither may do what the other may not, and which run alike.

    Raises OSError where that cannot be told.
    """
    if os.readlink(PROC / "self") != str(os.getpid()):
        raise ProcessLookupError(f"{PROC} is that of other processes")
    here = PROC / "self"
    status = _status(here)
    if missing := [name for name in _NEEDED if name not in status]:
        raise OSError(f"{here}/status without {missing[0]}")
    _check_filters(status)
    return [
        {name: value for name, value in status.items() if not name.startswith(_OWN)},
        int(status["SigIgn"], 16) & ~sum(1 << number - 1 for number in _PASSED_ON),
        {name: os.readlink(here / "ns" / name) for name in sorted(os.listdir(here / "ns"))},
        {name: _text(here / name) for name in _FILES},
        sorted({line.split()[1] for line in (_text(here / "numa_maps") or "").splitlines()}),  # numactl's policies
        {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
        [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.sched_getparam(0).sched_priority],
        _root(here),
        *_asked(),
    ]


def look_into(process: int) -> None:
    """Raises OSError where the kernel does not let this process look into another one of the same user.

    It does not under Landlock, unless the other one has all the rules of this one. So of two processes that may look
    into each other both have the same.
    """
    os.readlink(PROC / str(process) / "ns/user")


def is_stopped(process: int) -> bool:
    """Whether it is there and stopped, by a signal or a debugger."""
    try:
        return _status(PROC / str(process)).get("State", "")[:1] in {"T", "t"}
    except OSError:
        return False


def _check_filters(status: dict[str, str]) -> None:
    """Filters of system calls (seccomp) are inherited, and only ever added to: a process with as many as the first one
    of its container has those of the container. With more, it is in a sandbox that looks like any other."""
    if status.get("Seccomp", "0") == "0":
        return
    names = ("Seccomp", "Seccomp_filters")
    first = _status(PROC / "1")
    if any(name not in status or status[name] != first.get(name) for name in names):
        raise PermissionError("filters of system calls that are not those of the container")


def _status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _text(path: Path) -> str | None:
    """A file of /proc; None where this kernel has none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        if error.errno in {ENOENT, EINVAL}:
            return None
        raise


def _root(here: Path) -> list[object]:
    """The root folder, and its mount."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        found = os.fstat(root)
        return [found.st_dev, found.st_ino, _text(here / "fdinfo" / str(root))]
    finally:
        os.close(root)


def _asked() -> list[object]:
    """What no file says: flags of the process, its personality, its class of I/O and its keyring of the session."""
    machine = os.uname().machine
    if machine not in _SYSTEM_CALLS:
        raise OSError(f"system calls of {machine}")
    kernel = ctypes.CDLL(None)
    ioprio_get, keyctl = _SYSTEM_CALLS[machine]
    return [
        [kernel.prctl(number, 0, 0, 0, 0) for number in _ASKED],
        kernel.personality(0xFFFFFFFF),
        kernel.syscall(ioprio_get, 1, 0),
        kernel.syscall(keyctl, 0, -3, 0),
    ]

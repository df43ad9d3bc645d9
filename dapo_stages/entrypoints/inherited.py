"""The inherited attributes of a process that decide what it may do and how it runs; a sandbox consists of these.

Two of them cannot be read: Landlock rules, which `look_into` compares, and system call filters, which can only be
counted.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from errno import EINVAL, ENOENT
from pathlib import Path

PROC = Path("/proc")
# Lines of /proc/PID/status about this process alone. All others are inherited, or assumed to be.
_OWN = (
    *("Name", "State", "Tgid", "Ngid", "Pid", "PPid", "FDSize", "NStgid", "NSpid", "NSpgid", "NSsid", "Kthread"),
    *("Vm", "Rss", "Hugetlb", "CoreDumping", "Threads", "SigQ", "SigPnd", "ShdPnd", "SigCgt", "SigIgn"),
    *("x86_Thread_features", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"),
)
_NEEDED = ("Umask", "Uid", "Gid", "Groups", "SigIgn", "CapEff", "NoNewPrivs")
# Other inherited attributes that the kernel shows in files. attr/: SELinux, AppArmor, Smack. Not all kernels have all.
_FILES = (
    *("attr/current", "attr/apparmor/current", "attr/smack/current", "cgroup", "coredump_filter"),
    *("cpu_resctrl_groups", "loginuid", "oom_score_adj", "sessionid"),
)
# prctl numbers: securebits, timer slack, machine checks, huge pages, I/O flusher, write-or-execute, merged pages.
_ASKED = (27, 30, 34, 42, 58, 66, 68)
_SYSTEM_CALLS = {"x86_64": (252, 250), "aarch64": (31, 219), "riscv64": (31, 219)}  # ioprio_get, keyctl
_PASSED_ON = {signal.SIGINT, signal.SIGTERM}  # the request says whether they are ignored


def inherited() -> list[object]:
    """Attributes that are equal in two processes only if they have the same permissions and run the same way.

    Raises OSError if they cannot be determined.
    """
    if os.readlink(PROC / "self") != str(os.getpid()):
        raise ProcessLookupError(f"{PROC} belongs to another PID namespace")
    here = PROC / "self"
    status = _status(here)
    if missing := [name for name in _NEEDED if name not in status]:
        raise OSError(f"{here}/status has no {missing[0]}")
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
    """Raises OSError if the kernel does not let this process inspect another one of the same user.

    Landlock allows it only if the other process has all the rules of this one. So two processes that may inspect each
    other have the same rules.
    """
    os.readlink(PROC / str(process) / "ns/user")


def is_stopped(process: int) -> bool:
    """Whether a process exists and is stopped, by a signal or a debugger."""
    try:
        return _status(PROC / str(process)).get("State", "")[:1] in {"T", "t"}
    except OSError:
        return False


def _check_filters(status: dict[str, str]) -> None:
    """Raises PermissionError if this process has other system call filters (seccomp) than its container.

    Filters are inherited and can only be added: a process with as many as the container's first process has the
    container's. With more, it is in a sandbox, which cannot be told from another one."""
    if status.get("Seccomp", "0") == "0":
        return
    names = ("Seccomp", "Seccomp_filters")
    first = _status(PROC / "1")
    if any(name not in status or status[name] != first.get(name) for name in names):
        raise PermissionError("system call filters other than those of the container")


def _status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _text(path: Path) -> str | None:
    """A file of /proc; None if this kernel does not have it."""
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
        status = os.fstat(root)
        return [status.st_dev, status.st_ino, _text(here / "fdinfo" / str(root))]
    finally:
        os.close(root)


def _asked() -> list[object]:
    """Attributes that are in no file: process flags, personality, I/O class and session keyring."""
    machine = os.uname().machine
    if machine not in _SYSTEM_CALLS:
        raise OSError(f"unknown system calls of {machine}")
    kernel = ctypes.CDLL(None)
    ioprio_get, keyctl = _SYSTEM_CALLS[machine]
    return [
        [kernel.prctl(number, 0, 0, 0, 0) for number in _ASKED],
        kernel.personality(0xFFFFFFFF),
        kernel.syscall(ioprio_get, 1, 0),
        kernel.syscall(keyctl, 0, -3, 0),
    ]

"""What tells a command in a sandbox from one outside: by changes made in forked processes, and by a /proc of our own.

Changes that need rights, or a kernel that not every machine has, are tried; the /proc of our own shows them everywhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dapo_stages.entrypoints import inherited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parents are for Linux")

X86 = os.uname().machine == "x86_64"
IOPRIO_SET, KEYCTL, LANDLOCK = (251, 250, 444) if X86 else (30, 219, 444)
NEW_NET = 0x40000000


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def succeeds(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def filter_system_calls() -> None:
    """A filter that allows everything: useless, but the kernel counts it."""
    succeeds(libc().prctl(38, 1, 0, 0, 0))
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(allow)))
    succeeds(libc().prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0))


def forbid_folders() -> None:
    """Landlock's strictest rules: no folder may be created anywhere."""
    succeeds(libc().prctl(38, 1, 0, 0, 0))
    rules = ctypes.create_string_buffer(struct.pack("Q", 1 << 7))
    made = libc().syscall(LANDLOCK, rules, 8, 0)
    succeeds(made)
    succeeds(libc().syscall(LANDLOCK + 2, made, 0))


def forked(function: Callable[[], object]) -> object:
    """What a function returns in a child process, after a round trip through JSON; or the OSError that it raises."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = {"result": function()}
        except OSError as error:
            found = {"refused": str(error)}
        except BaseException as error:
            found = {"failed": repr(error)}
        os.write(there, json.dumps(found).encode())
        os._exit(0)
    os.close(there)
    os.waitpid(child, 0)
    with open(here, encoding="utf-8") as pipe:
        found = json.load(pipe)
    assert "failed" not in found, found
    return OSError(found["refused"]) if "refused" in found else found["result"]


def same() -> object:
    return forked(inherited.inherited)


ANYBODYS: dict[str, Callable[[], object]] = {
    "nice": lambda: os.nice(1),
    "scheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "class of I/O": lambda: succeeds(libc().syscall(IOPRIO_SET, 1, 0, 3 << 13)),
    "timer slack": lambda: succeeds(libc().prctl(29, 123_456, 0, 0, 0)),
    "limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99)),
    "umask": lambda: os.umask(0o057),
    "personality": lambda: succeeds(libc().personality(0x0040000)),
    "no new privileges": lambda: succeeds(libc().prctl(38, 1, 0, 0, 0)),
    "ignored signal": lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),  # SIGHUP is, under nohup
    "blocked signal": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
    "dies first": lambda: Path("/proc/self/oom_score_adj").write_text("999", encoding="ascii"),
    "core dumps": lambda: Path("/proc/self/coredump_filter").write_text("0x7f", encoding="ascii"),
}
TRIED: dict[str, Callable[[], object]] = {
    "network": lambda: succeeds(libc().unshare(NEW_NET)),
    "capability": lambda: succeeds(libc().prctl(24, 13, 0, 0, 0)),
    "groups": lambda: os.setgroups([4711]),
    "root": lambda: os.chroot(os.getcwd()),
    "keyring": lambda: succeeds(libc().syscall(KEYCTL, 1, None)),
    "securebits": lambda: succeeds(libc().prctl(28, 1 << 2, 0, 0, 0)),
    "filter": filter_system_calls,
}


def test_two_processes_with_nothing_between_them_are_the_same() -> None:
    assert isinstance(same(), list)
    assert same() == same() == json.loads(json.dumps(inherited.inherited()))


@pytest.mark.parametrize("name", ANYBODYS)
def test_what_anybody_may_change_tells_processes_apart(name: str) -> None:
    def changed() -> object:
        ANYBODYS[name]()
        return inherited.inherited()

    found = forked(changed)
    assert isinstance(found, list), found
    assert found != same()


@pytest.mark.parametrize("name", TRIED)
def test_what_takes_rights_tells_processes_apart_or_cannot_be_told(name: str) -> None:
    def changed() -> object:
        try:
            TRIED[name]()
        except OSError:
            return "not allowed here"
        return inherited.inherited()

    assert forked(changed) != same()


def test_signals_that_a_request_passes_on_make_no_difference() -> None:
    def changed() -> object:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        return inherited.inherited()

    assert forked(changed) == same()


# Landlock is visible nowhere


def test_nobody_looks_out_of_a_landlock() -> None:
    outside = os.getpid()
    assert forked(lambda: inherited.look_into(outside)) is None

    def within() -> object:
        try:
            forbid_folders()
        except OSError:
            raise OSError("not allowed here") from None
        inherited.look_into(os.getpid())  # itself
        inherited.look_into(outside)
        return "looked out"

    assert isinstance(forked(within), OSError)


def test_who_may_not_look_into_a_process_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inherited, "PROC", tmp_path)
    with pytest.raises(OSError):
        inherited.look_into(os.getpid())


# A /proc of our own


@pytest.fixture()
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writable copy of /proc with this process and the first one."""
    for name in (str(os.getpid()), "1"):
        here = tmp_path / name
        (here / "ns").mkdir(parents=True)
        (here / "attr").mkdir()
        for file in ("status", "cgroup", "oom_score_adj"):
            shutil.copy(f"/proc/self/{file}", here / file)
        (here / "attr/current").write_text("unconfined\n", encoding="utf-8")
        (here / "numa_maps").write_text("55ead6274000 default file=/usr/bin/python\n", encoding="utf-8")
        for kind in ("net", "mnt"):
            (here / "ns" / kind).symlink_to(f"{kind}:[1]")
    (tmp_path / "self").symlink_to(str(os.getpid()))
    monkeypatch.setattr(inherited, "PROC", tmp_path)
    return tmp_path


def say(proc: Path, process: str, **lines: object) -> None:
    """Replace lines of a status file by name."""
    path = proc / process / "status"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if line.partition(":")[0] not in lines]
    said = [f"{name}:\t{value}" for name, value in lines.items() if value is not None]
    path.write_text("\n".join([*kept, *said]) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Uid",
            "Gid",
            "Groups",
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "NoNewPrivs",
            "SigBlk",
            "TracerPid",
        ),
        *("Cpus_allowed", "Mems_allowed", "THP_enabled", "Speculation_Store_Bypass", "Something_of_a_later_kernel"),
    ],
)
def test_a_line_of_status_that_is_inherited_counts(name: str, proc: Path) -> None:
    before = inherited.inherited()
    say(proc, "self", **{name: "4711"})
    assert inherited.inherited() != before


@pytest.mark.parametrize("name", ["Name", "State", "Pid", "PPid", "VmRSS", "RssAnon", "Threads", "SigCgt", "SigPnd"])
def test_a_line_of_status_that_is_a_process_s_own_does_not(name: str, proc: Path) -> None:
    before = inherited.inherited()
    say(proc, "self", **{name: "4711"})
    assert inherited.inherited() == before


@pytest.mark.parametrize("name", ["Uid", "CapEff", "NoNewPrivs", "SigIgn"])
def test_a_status_that_does_not_say_is_not_gone_by(name: str, proc: Path) -> None:
    say(proc, "self", **{name: None})
    with pytest.raises(OSError, match=name):
        inherited.inherited()


def test_namespaces_labels_groups_and_policies_count(proc: Path) -> None:
    found, here = [inherited.inherited()], proc / "self"
    (here / "ns/net").unlink()
    (here / "ns/net").symlink_to("net:[2]")
    found.append(inherited.inherited())
    (here / "ns/user").symlink_to("user:[7]")
    found.append(inherited.inherited())
    for name, text in (
        ("attr/current", "docker-default (enforce)"),
        ("cgroup", "0::/elsewhere"),
        ("oom_score_adj", "7"),
        ("numa_maps", "55ead6274000 interleave:0-1 file=/usr/bin/python\n"),
    ):
        (here / name).write_text(text, encoding="utf-8")
        found.append(inherited.inherited())
    assert len({json.dumps(one) for one in found}) == 7


def test_a_proc_of_other_processes_is_not_gone_by(proc: Path) -> None:
    (proc / "self").unlink()
    (proc / "self").symlink_to("1")
    with pytest.raises(ProcessLookupError):
        inherited.inherited()


def test_filters_of_system_calls_are_those_of_the_container_or_unknown(proc: Path) -> None:
    for process in ("self", "1"):
        say(proc, process, Seccomp=2, Seccomp_filters=1)
    assert inherited.inherited() == inherited.inherited()
    say(proc, "self", Seccomp_filters=2)  # one more than the container's
    with pytest.raises(PermissionError):
        inherited.inherited()
    say(proc, "1", Seccomp_filters=None)  # an old kernel counts none
    say(proc, "self", Seccomp_filters=None)
    with pytest.raises(PermissionError):
        inherited.inherited()
    (proc / "1/status").unlink()  # hidden (hidepid)
    with pytest.raises(OSError):
        inherited.inherited()


def test_a_stopped_process_is_known() -> None:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    assert inherited.is_stopped(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not inherited.is_stopped(child) and not inherited.is_stopped(os.getpid())

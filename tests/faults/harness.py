"""Commands under faults, and what must hold after them.

A case is (command, fault): the command runs in a child of a parent that has torch, transformers and pyarrow already
(parent.py), and the fault strikes at one of the operations on files that shim.c counts: open for writing, write, fsync,
rename, truncate, mkdir, unlink, rmdir and utime under one folder, whoever asks for them (Python, pyarrow, safetensors,
tokenizers). "After operation k" is "before operation k + 1": nothing on the disk changes in between.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.commands import ROOT

from dapo_stages.handoff.manifests import MANIFEST, Source
from dapo_stages.handoff.unfinished import LOCK
from faults.parent import STILL

TESTS = Path(__file__).resolve().parents[1]
# Of a manifest, what another run of the same work may have otherwise.
_TIMES = ("started", "ended", "seconds", "processor_seconds", "memory", "spent", "checksum")


class Action(enum.IntEnum):
    """What happens at an operation; the order is that of shim.c."""

    NOTHING, KILL, TEAR, FULL, PAUSE = range(5)


@dataclass(frozen=True)
class Fault:
    """Before operation `at` the process is killed or paused, or half of it is written, or the disk is full from then.

    `most` instead: bytes that a file may have (RLIMIT_FSIZE).
    """

    action: Action = Action.NOTHING
    at: int = -1
    most: int | None = None


NONE = Fault()


@dataclass
class Ended:
    """What a command left."""

    code: int
    stdout: str
    stderr: str
    operations: list[str]  # such as "rename out/manifest.json"
    rng: str | None  # hash of torch's generator at the end


@dataclass
class Running:
    """A command that was started."""

    parent: Parent
    process: int
    place: Path

    def kill(self) -> None:
        """SIGKILL, from outside."""
        os.kill(self.process, signal.SIGKILL)

    def operations(self) -> list[str]:
        """Those so far."""
        return self._text("operations").splitlines()

    def go_on(self) -> None:
        """End a pause."""
        (self.place / "go-on").touch()

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        code = self.parent.ask({"look": self.process})
        return None if code == STILL else code

    def wait(self) -> Ended:
        """Until it ends."""
        code = self.parent.ask({"wait": self.process})
        return Ended(code, self._text("stdout"), self._text("stderr"), self.operations(), self._text("rng") or None)

    def _text(self, name: str) -> str:
        """Empty, if it was killed before it could open the file."""
        path = self.place / name
        return path.read_text(errors="replace") if path.exists() else ""


@dataclass
class Parent:
    """The pre-loaded parent, and a folder for what its children leave beside their outputs."""

    folder: Path
    _process: subprocess.Popen[str] = field(init=False, repr=False)
    _started: int = 0

    def __post_init__(self) -> None:
        path = os.pathsep.join([str(TESTS), str(ROOT)])
        environment = {"PYTHONPATH": path, "LD_PRELOAD": str(compiled(self.folder)), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "faults.parent"],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def close(self) -> None:
        """End it, and with it the commands that a failed test has left waiting."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> int:
        """Send a request; its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def start(
        self, arguments: list[object], root: Path, fault: Fault = NONE, folder: Path = ROOT, **environment: str
    ) -> Running:
        """Start a command in `folder`; operations under `root` count."""
        self._started += 1
        place = self.folder / f"command-{self._started}"
        place.mkdir()
        request: dict[str, Any] = {"arguments": [str(one) for one in arguments]}
        request |= {"root": str(root), "folder": str(folder)}
        request |= {"place": str(place), "action": int(fault.action), "at": fault.at, "most": fault.most}
        request["environment"] = environment
        return Running(self, self.ask(request), place)

    def run(self, arguments: list[object], root: Path, fault: Fault = NONE, folder: Path = ROOT) -> Ended:
        """Start a command, and wait for it."""
        running = self.start(arguments, root, fault, folder)
        ended = running.wait()
        shutil.rmtree(running.place)
        return ended


def compiled(folder: Path) -> Path:
    """The shim as a library."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def contents(folder: Path) -> dict[str, str]:
    """Every file with the hash of its bytes; of manifests, without times. Links are not followed, locks left out.

    What must be equal after a fault and a rerun to what it is without: nothing is missing, other or left over.
    """
    found = {}
    for here, folders, files in os.walk(folder):
        for name in [*files, *(name for name in folders if not os.listdir(Path(here, name)))]:
            path = Path(here, name)
            if not path.is_symlink() and name != LOCK:
                found[path.relative_to(folder).as_posix()] = _hash(path)
    return found


def _hash(path: Path) -> str:
    if path.is_dir():
        return "an empty folder"
    data = path.read_bytes()
    if path.name == MANIFEST:
        values = {key: value for key, value in json.loads(data).items() if key not in _TIMES}
        values["counts"] = {name: value for name, value in values["counts"].items() if name not in _TIMES}
        data = json.dumps(values, sort_keys=True).encode()
    elif path.name == "report.html":
        data = re.sub(rb"<dt>up to</dt><dd>[^<]+", b"", data)  # when the last stage was done
    return hashlib.sha256(data).hexdigest()


def check_published(folder: Path) -> int:
    """Everything that says of itself that it is finished is whole: how many manifests there are.

    Those of a replacement that is not published yet lie in `.next`.
    """
    manifests = [path for path in folder.rglob(MANIFEST) if "/." not in f"/{path.relative_to(folder)}"]
    for path in manifests:
        Source(path.parent).verify_all()
    return len(manifests)

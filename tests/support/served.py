"""Commands that a server runs: a process that was started by an earlier one, found through a socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dapo_stages.entrypoints.preload import MAKE
from support import proc
from support.commands import ROOT, Result

# Runs in every Python of these tests: records who runs a command, and on request stops one in its second file.
CUSTOMISED = """
import os, sys, time
from pathlib import Path
from dapo_stages.entrypoints import cli
from dapo_stages.handoff import outputs
main, write = cli.main, outputs.write_shard
here = Path(__file__).parent
def noted():
    with open(here / "notes", "a") as notes:
        print(os.getpid(), os.getppid(), os.getcwd(), os.environ.get("MAKELEVEL"), file=notes)
    main()
def slowly(path, schema, rows):
    if not path.name.startswith("weights"):
        (here / f"waiting-{path.parents[0].name}").touch()
        while (here / "wait").exists():
            time.sleep(0.02)
    return write(path, schema, rows)
cli.main, outputs.write_shard = noted, slowly
"""


@dataclass
class Place:
    """A folder of sockets, and commands that look for a server there."""

    folder: Path
    program: str  # the module that looks
    environment: dict[str, str]

    within: list[str] = field(default_factory=list)  # what runs the command

    def start(self, *args: object, program: str | None = None, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.within, sys.executable, "-m", program or self.program, *(str(arg) for arg in args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment | environment,
        )

    def run(self, *args: object, program: str | None = None, **environment: str) -> Result:
        process = self.start(*args, program=program, **environment)
        stdout, stderr = process.communicate(timeout=120)
        return Result(process.returncode, stdout, stderr)

    def servers(self) -> list[int]:
        """Processes that serve sockets of this folder."""
        return proc.parents_among(proc.serving(self.folder))

    def ready(self) -> int:
        """The server, with everything imported; nothing waits."""
        (self.folder / "wait").unlink(missing_ok=True)
        for stale in self.folder.glob("waiting-*"):
            stale.unlink()
        self.try_out()
        (process,) = self.servers()
        return process

    def try_out(self, **environment: str) -> None:
        """A command that starts a server, and does nothing."""
        arguments = ["init-policy", "--config", "pipelines/smoke.yaml", "--out", self.folder / "none", "--dry-run"]
        assert self.run(*arguments, **environment) == Result(0, "", f"init-policy would write {self.folder}/none\n")

    def last(self) -> list[str]:
        """Process, parent, folder and MAKELEVEL of the latest command."""
        return (self.folder / "notes").read_text().splitlines()[-1].split()


@contextmanager
def place_of(program: str) -> Iterator[Place]:
    """An empty folder of sockets; in the end its servers have ended, too."""
    folder = Path(tempfile.mkdtemp(prefix="served-"))  # short: the path of a socket has 107 bytes
    (folder / "sitecustomize.py").write_text(CUSTOMISED)
    environment = {"XDG_RUNTIME_DIR": str(folder), "PYTHONPATH": str(folder), "COLUMNS": "200"}
    ours = {name: value for name, value in os.environ.items() if name != MAKE}  # these tests may run under make
    found = Place(folder, program, ours | environment)
    yield found
    shutil.rmtree(folder)
    wait(lambda: not found.servers())  # the sockets are gone, so they end


def wait(until: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def weigh(tiny: Path, out: Path) -> list[object]:
    here = tiny / "iter-0001"
    inputs = ["--rollouts", here / "rollout", "--attention", here / "attention", "--iteration", 1, "--out", out]
    return ["weight-tokens", "--config", tiny / "config.yaml", *inputs]

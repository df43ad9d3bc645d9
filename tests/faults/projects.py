"""`make iterate` of the smallest run in a folder of its own, to be killed in every way and started again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from support import proc
from support.commands import ROOT
from support.make import with_makefile
from support.served import wait

from dapo_stages.entrypoints.preloaded import IDLE
from dapo_stages.handoff.manifests import MANIFEST, read_manifest
from dapo_stages.handoff.unfinished import LOCK
from dapo_stages.runs.at_work import held_locks, locked

CONFIG = """
extends: pipelines/smoke.yaml
planned_iterations: {iterations}
warm_up: {{steps: 4, batch_size: 8}}
data: {{synthetic: {{train: 48, held_out: 4}}}}
rollout: {{prompts_per_iteration: 2, num_generations: 4, dynamic_sampling: false, groups_per_shard: 1,
  max_completion_length: 24}}
weights: {{mask_truncated_completions: false, vgr_mapping: mad, early_fraction: 0.0,
  reward_weights: {{accuracy: 0.0, format: 0.0, overlong: 0.0, vgr: 1.0}}}}  # so that every group has a signal
train: {{updates_per_iteration: 1}}
evaluate: {{num_generations: 1}}
report: {{trackers: [], samples: 1, completions: 8}}
keep: {{rollouts: 2, states: 2, policies: 2, state_every: {state_every}}}
"""
_MAKE = ("make", "iterate", "RUN=t", "CONFIG=tiny.yaml", "EVAL_EVERY=1000")
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")  # of a make that runs this
WAYS = ("make", "recipe", "stage", "parent", "group", "interrupt")
RESIDENT_WAYS = ("worker", "make", "worker and make", "recipe", "group", "interrupt")
LAUNCHED_WAYS = (*RESIDENT_WAYS, "rank")


class Project:
    """A folder with our Makefile and one run, `training_logs/t`."""

    def __init__(
        self, folder: Path, iterations: int, *, resident: bool = False, launch: str = "1", state_every: int = 1
    ) -> None:
        self.folder, self.run = folder, folder / "training_logs/t"
        self.iterations, self._options = iterations, [f"RESIDENT={int(resident)}", f"LAUNCH={launch}"]
        self.sockets = Path(tempfile.mkdtemp(prefix="faults-"))  # short: the path of a socket has 107 bytes
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "pipelines").exists():
            (folder / "pipelines").symlink_to(ROOT / "pipelines")
        with_makefile(folder)
        (folder / "tiny.yaml").write_text(CONFIG.format(iterations=iterations, state_every=state_every))

    def customize(self, code: str) -> None:
        """Have every Python of this project run some code first."""
        (self.folder / "custom").mkdir()
        (self.folder / "custom" / "sitecustomize.py").write_text(code)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """`make iterate`, in a session of its own."""
        environment = {
            "XDG_RUNTIME_DIR": str(self.sockets),
            "PYTHONPATH": os.pathsep.join([str(self.folder / "custom"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            IDLE: "60",
        }
        with open(self.folder / "said", "w") as said:
            return subprocess.Popen(
                [*_MAKE, f"ITERS={self.iterations}", *self._options, *options],
                cwd=self.folder,
                env={name: value for name, value in os.environ.items() if name not in _OF_MAKE} | environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                text=True,
                start_new_session=True,
            )

    def finish(self, *options: str, seconds: float = 600) -> None:
        """`make iterate` until it has nothing more to do."""
        make = self.start(*options)
        try:
            assert make.wait(timeout=seconds) == 0, (self.folder / "said").read_text()[-2000:]
        finally:
            if make.poll() is None:
                os.killpg(make.pid, signal.SIGKILL)

    def kill(self, make: subprocess.Popen[str], way: str) -> None:
        """SIGKILL to one process or to all of them, or Ctrl-C; what runs on by itself may end by itself."""
        stages, parents, workers = self._stages(), self._parents(), self.workers()
        if way == "interrupt":
            os.killpg(make.pid, signal.SIGINT)
        elif way == "group":
            os.killpg(make.pid, signal.SIGKILL)
        else:
            found = {
                "make": [make.pid],
                "recipe": proc.children(make.pid),
                "stage": stages,
                "parent": parents,
                "worker": workers,
                "rank": self._serving("resident_rank")[-1:],
                "worker and make": [*workers, make.pid],
            }
            for process in found[way] or [make.pid]:
                _kill(process)

    def settle(self, make: subprocess.Popen[str]) -> None:
        """Wait for what was not killed: make may have gone on, and a recipe that has lost its make ends by itself."""
        make.wait(timeout=600)
        wait(lambda: not self._stages() and not proc.of_session(make.pid) and not self.staying(), 60)

    def gone(self) -> None:
        """Insist that the process that stays has ended, its socket with it, and that nothing is locked."""
        wait(lambda: not self.staying() and not list(self.sockets.rglob("worker-*")), 60)
        held = held_locks()
        assert not [lock for lock in self.run.rglob(LOCK) if locked(lock.parent, held)]

    def hashes(self) -> dict[str, str]:
        return hashes(self.run)

    def times(self) -> dict[str, int]:
        """When each output was published, or found to be as it should be."""
        return {str(path.relative_to(self.run)): path.stat().st_mtime_ns for path in self.run.rglob(MANIFEST)}

    def close(self) -> None:
        """Remove the sockets; their parents end."""
        shutil.rmtree(self.sockets, ignore_errors=True)

    def used(self) -> dict[str, int]:
        """MiB resident and open files, of the pre-loaded parents and of the stages that run in their children."""
        groups = {"parent": self._parents(), "stage": self._stages()}
        found = {f"{name} MiB": max(map(proc.resident, group), default=0) for name, group in groups.items()}
        return found | {f"{name} files": max(map(proc.opened, group), default=0) for name, group in groups.items()}

    def workers(self) -> list[int]:
        """Processes that stay (RESIDENT=1)."""
        return self._serving("worker")

    def staying(self) -> list[int]:
        """These, and the ranks of their launches."""
        return self._serving("worker|resident_rank")

    def _ours(self) -> list[int]:
        return self._serving("preloaded")

    def _serving(self, program: str) -> list[int]:
        return [process for process in proc.serving(self.sockets, program) if proc.parent_of(process) is not None]

    def _parents(self) -> list[int]:
        return proc.parents_among(self._ours())

    def _stages(self) -> list[int]:
        found = self._ours()
        return [process for process in found if proc.parent_of(process) in found]


def hashes(run: Path) -> dict[str, str]:
    """Content hash of every output but the reports, which say how long things took."""
    found = {path.parent.relative_to(run).as_posix(): path.parent for path in run.rglob(MANIFEST)}
    return {name: read_manifest(path).content_hash for name, path in found.items() if not name.endswith("report")}


def disturb(project: Project, kills: int, generator: random.Random, mean: float, ways: tuple[str, ...]) -> int:
    """Kill `make iterate` at random times until it has been killed so often or is done; the number of kills.

    After each, everything that is published is whole.
    """
    from faults.harness import check_published

    done = 0
    while done < kills:
        make = project.start()
        try:
            make.wait(timeout=generator.expovariate(1 / mean))
        except subprocess.TimeoutExpired:
            project.kill(make, generator.choice(ways))
            done += 1
        ended = make.poll() == 0
        project.settle(make)
        check_published(project.run)
        if ended:
            break
    return done


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)

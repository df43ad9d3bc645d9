"""Whole stages as a user runs them: one process each, with their seconds and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure import MIB

ROOT = Path(__file__).resolve().parents[2]
# How stages start: each by itself; forked from a parent that has torch already, as make does by default on CPUs; or
# those that need the policy one after another in a process that keeps it.
Way = Literal["plain", "forked", "resident"]
STAGES = ("rollout", "score-attention", "weight-tokens", "train-step")
# Every second completion earns 1, whatever it says, so that each group of either side has a signal.
REWARD = '''"""Rewards every second completion, whatever it says."""

from itertools import count

_calls = count()


def spread(completions, rows):
    return [float(next(_calls) % 2) for _ in completions]
'''

# Linux counts the memory of the process that forked a child as the child's own until it becomes another program: hence
# a small process between this one and the stage. It prints the peak of the stage in KiB.
_LAUNCH = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Ran:
    """One process: wall-clock seconds, and the most memory it held."""

    seconds: float
    mib: float | None  # None where a server runs it, out of our sight


@dataclass
class Workspace:
    """A folder with a configuration, a policy and data, in which iterations are run."""

    folder: Path
    way: Way = "plain"

    def command(self, stage: str, *args: object) -> Ran:
        """`python -m dapo_stages STAGE …` in the folder, waited for; its messages go to log.txt."""
        module = self._module(stage)
        words = [sys.executable, "-m", module, stage, "--config", "run.yaml", *map(str, args)]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        environment["XDG_RUNTIME_DIR"] = str(self.folder.parent)  # servers end once it is gone
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            started = time.perf_counter()
            launched = [sys.executable, "-I", "-S", "-c", _LAUNCH, *words]
            process = subprocess.run(launched, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=log)
            seconds = time.perf_counter() - started
        if process.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit {process.returncode}\n{self._log()[-2000:]}")
        return Ran(seconds, int(process.stdout) * 1024 / MIB if self.way == "plain" else None)

    def _module(self, stage: str) -> str:
        """As make chooses it."""
        if self.way == "plain":
            return "dapo_stages"
        stays = self.way == "resident" and stage in ("rollout", "score-attention", "train-step")
        return f"dapo_stages.entrypoints.{'resident' if stays else 'preload'}"

    def prepare(self) -> None:
        """Policy and data, which no row counts."""
        self.command("init-policy", "--out", "policy")
        self.command("prepare-data", "--policy", "policy", "--out", "data")

    def iterate(self, name: str) -> dict[str, Ran]:
        """The stages of one iteration, one after the other, from the starting policy."""
        return {stage: self.command(stage, *words) for stage, words in self.calls(name).items()}

    def calls(self, name: str, before: str = "policy", iteration: int = 1) -> dict[str, tuple[object, ...]]:
        """What each stage of an iteration is called with; `before` is the policy that it starts from."""
        rollout, weights = ("--rollouts", f"{name}/rollout"), ("--weights", f"{name}/weights")
        policy, number = ("--policy", before), ("--iteration", iteration)
        state = ("--state", f"{Path(before).parent}/state") if iteration > 1 else ()
        inputs: dict[str, tuple[object, ...]] = {
            "rollout": (*policy, "--data", "data", *number),
            "score-attention": (*policy, *rollout),
            "weight-tokens": (*rollout, "--attention", f"{name}/attention", *number),
            "train-step": (*policy, *rollout, *weights, *state),
        }
        return {stage: (*words, "--out", f"{name}/{_FOLDERS[stage]}") for stage, words in inputs.items()}

    def manifest(self, name: str, stage: str) -> dict[str, Any]:
        """What a stage noted about itself."""
        text = (self.folder / name / _FOLDERS[stage] / "manifest.json").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text)
        return found

    def saving(self, name: str) -> float:
        """Seconds of a train-step between its metrics and its manifest: policy and optimizer state being written."""
        train = self.folder / name / "train"
        return (train / "manifest.json").stat().st_mtime - (train / "metrics.parquet").stat().st_mtime

    def _log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8")


_FOLDERS = {"rollout": "rollout", "score-attention": "attention", "weight-tokens": "weights", "train-step": "train"}


def workspace(folder: Path, config: dict[str, Any]) -> Workspace:
    """Write configuration and reward into a new folder."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    return Workspace(folder)


def load_seconds(folder: Path) -> float:
    """Seconds to import the model classes and open the policy, in a fresh process."""
    from dapo_stages.config import ModelConfig
    from dapo_stages.handoff.policy_folders import PolicyFolder

    started = time.perf_counter()
    from dapo_stages.models.policy_loading import open_policy

    open_policy(PolicyFolder(folder / "policy"), ModelConfig(dtype="float32", device="cpu"))
    return time.perf_counter() - started

"""What an iteration takes outside its work: a policy of 142 M parameters, little to do, all of it trained.

Loading, saving, hashing and starting outweigh sampling and updating here, as they do with large policies. make runs the
iterations; the figures are from the manifests (`spent`) and from when each report was published.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.make import with_makefile

from benchmarks import iteration, models
from benchmarks.measure import MIB, Figure
from benchmarks.stages import REWARD, ROOT

WAYS = {
    "plain": "RESIDENT=0 PRELOAD=0",
    "forked": "RESIDENT=0 PRELOAD=1",
    "resident": "RESIDENT=1 PRELOAD=1",
}
ITERATIONS = 4  # of which the first, which also loads what the others keep, is left out
FOLDERS = ("rollout", "attention", "weights", "train", "eval", "report")
PROMPTS, LONGEST = 4, 16
COMPUTES = "make iterate: rollout, score-attention, weight-tokens, train-step, evaluate, report; seconds per iteration"


@dataclass
class Measured:
    """The iterations of one way of starting stages."""

    whole: list[float]  # wall-clock seconds
    work: list[float]  # those that are work
    phases: dict[str, dict[str, float]]  # mean seconds by stage and phase
    mib: float  # most memory that a stage held

    @property
    def outside(self) -> list[float]:
        return [whole - work for whole, work in zip(self.whole, self.work, strict=True)]


def measure(repetitions: int | None) -> list[Figure]:
    """Each way in turn, `repetitions` times."""
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        project = _project(Path(place))
        found = {way: Measured([], [], {}, 0.0) for way in WAYS}
        for turn in range(repetitions or 1):
            for way, options in WAYS.items():
                _add(found[way], _run(project, f"{way}-{turn}", options))
    plain, resident = found["plain"], found["resident"]
    details = {way: one.phases for way, one in found.items()}
    return [
        _figure("resident", found, statistics.median(resident.outside), 6.0, details),
        _figure("forked", found, statistics.median(found["forked"].outside), None, {}),
        Figure(
            "overhead-iteration",
            "a whole iteration of 142 M parameters, little work, in a process that stays",
            "each stage a process of its own",
            statistics.median(plain.whole) / statistics.median(resident.whole),
            3.0,
            ours_seconds=resident.whole,
            theirs_seconds=plain.whole,
            ours_computes=COMPUTES,
        ),
        Figure(
            "overhead-memory",
            "peak memory of the process that stays",
            "the largest stage in a process of its own",
            resident.mib / plain.mib,
            1.15,
            "at most",
            ours_mib=resident.mib,
            theirs_mib=plain.mib,
        ),
    ]


def _figure(
    way: str, found: dict[str, Measured], value: float, target: float | None, details: dict[str, Any]
) -> Figure:
    names = {"resident": "in a process that stays", "forked": "stages forked from a parent"}
    return Figure(
        f"overhead-{way}",
        f"seconds of an iteration outside its work, 142 M parameters, {names[way]}",
        "each stage a process of its own",
        value,
        target,
        "at most",
        unit="s",
        ours_seconds=found[way].outside,
        theirs_seconds=found["plain"].outside,
        ours_computes=COMPUTES,
        details=details,
    )


def _project(folder: Path) -> Path:
    """A folder with our Makefile, a checkpoint and a configuration."""
    import yaml

    models.save(models.medium(text=models.TEXT_142M), folder / "model")
    policy = models.medium()
    iteration.questions(folder, policy, PROMPTS * 2, 60, side=112)
    config = iteration.SHARED | {
        "planned_iterations": ITERATIONS,
        "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "data": iteration.data_of(folder, held_out=0.5),
        "rollout": {
            "prompts_per_iteration": PROMPTS,
            "num_generations": 8,
            "max_completion_length": LONGEST,
            "dynamic_sampling": False,
        },
        "train": {"updates_per_iteration": 2, "batch_completions": 8, "gradient_checkpointing": False},
        "evaluate": {"num_generations": 0, "blank_image": False},
        "report": {"trackers": []},
        "keep": {"states": 1, "policies": 1, "rollouts": None, "best": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    with_makefile(folder)
    return folder


def _run(project: Path, name: str, options: str) -> Path:
    """`make iterate`; -> the folder of the run. Servers end once their sockets are gone."""
    said = project / f"{name}.log"
    with tempfile.TemporaryDirectory(prefix="bench-") as sockets, said.open("w") as log:
        environment = {"XDG_RUNTIME_DIR": sockets, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        ours = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        command = ["make", "iterate", f"RUN={name}", "CONFIG=run.yaml", *options.split()]
        code = subprocess.run(command, cwd=project, env=ours | environment, stdout=log, stderr=log).returncode
    if code:
        raise RuntimeError(f"{' '.join(command)}: exit {code}\n{said.read_text(encoding='utf-8')[-2000:]}")
    return project / "training_logs" / name


def _add(measured: Measured, run: Path) -> None:
    ends = [(run / f"iter-{n:04d}/report/manifest.json").stat().st_mtime for n in range(1, ITERATIONS + 1)]
    measured.whole += [after - before for before, after in pairwise(ends)]
    sums: dict[str, dict[str, list[float]]] = {}
    for number in range(2, ITERATIONS + 1):
        manifests = {name: _manifest(run / f"iter-{number:04d}" / name) for name in FOLDERS}
        measured.work.append(sum(one["spent"]["work"] for one in manifests.values()))
        measured.mib = max(measured.mib, *((one["memory"] or 0) / MIB for one in manifests.values()))
        for name, one in manifests.items():
            for phase, seconds in one["spent"].items():
                sums.setdefault(name, {}).setdefault(phase, []).append(seconds)
    measured.phases = {
        name: {phase: statistics.mean(values) for phase, values in phases.items()} for name, phases in sums.items()
    }


def _manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found

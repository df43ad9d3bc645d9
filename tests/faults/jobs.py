"""The commands that are disturbed: one of each stage, with small outputs of its own, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support.pipeline import Run

from dapo_stages.handoff.manifests import MANIFEST
from dapo_stages.handoff.unfinished import LOCK
from faults.harness import NONE, Ended, Fault, Parent, Running, check_published, contents

Command = list[object]
_TEMPORARY = re.compile(r"(shown/(runs/)?)?\.([^/]+\.)?\d+\.tmp|shown/iter-\d+/report/\.partial\.json")


@dataclass(frozen=True)
class Undisturbed:
    """What a job does and leaves when nothing happens."""

    operations: list[str]
    contents: dict[str, str]
    rng: str | None
    seconds: float
    sizes: list[int]  # of the files written, in bytes


@dataclass
class Bench:
    """A place for cases: each gets a folder with its inputs, in which its command writes."""

    parent: Parent
    run: Run
    folder: Path
    _undisturbed: dict[str, Undisturbed] = field(default_factory=dict)
    _old: dict[str, Path] = field(default_factory=dict)
    _cases: int = 0

    def case(self, job: str, where: Path | None = None) -> Case:
        """A new folder for a job, with what has to be there before; on another file system, if that is where."""
        self._cases += 1
        folder = (where or self.folder) / f"case-{self._cases}" / "case"
        folder.mkdir(parents=True)
        return Case(self, job, folder, JOBS[job](self, folder))

    def undisturbed(self, job: str) -> Undisturbed:
        """One run of a job without a fault."""
        if job not in self._undisturbed:
            with self.case(job) as case:
                started = time.monotonic()
                ended = case.finish()
                seconds = time.monotonic() - started
                assert check_published(case.folder) or job == "config"
                found = case.contents()
                sizes = [(case.folder / name).stat().st_size for name in found if (case.folder / name).is_file()]
                self._undisturbed[job] = Undisturbed(ended.operations, found, ended.rng, seconds, sorted(sizes))
        return self._undisturbed[job]

    def old(self, name: str, make: Callable[[Path], list[Command]], folder: Path) -> None:
        """Fill a case's folder with what commands have left; they run once, the files are linked."""
        if name not in self._old:
            place = self._old[name] = self.folder / f"old-{name}"
            place.mkdir()
            for command in make(place):
                ended = self.parent.run(command, place)
                assert ended.code == 0, ended.stderr
        linked(self._old[name], folder)


@dataclass
class Case:
    """A command in a folder of its own, to be disturbed and run again."""

    bench: Bench
    job: str
    folder: Path
    command: Command

    def __enter__(self) -> Case:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # else it is there to be looked at
            shutil.rmtree(self.folder.parent)

    def start(self, fault: Fault = NONE) -> Running:
        return self.bench.parent.start(self.command, self.folder, fault, self.folder)

    def strike(self, fault: Fault) -> Ended:
        """Run the command under a fault. Whatever it came to, what is published is whole."""
        ended = self.bench.parent.run(self.command, self.folder, fault, self.folder)
        self.check_published()
        return ended

    def check_published(self) -> None:
        """What says of itself that it is finished is whole."""
        check_published(self.folder)

    def finish(self) -> Ended:
        """Run it as if nothing had happened."""
        ended = self.bench.parent.run(self.command, self.folder, NONE, self.folder)
        assert ended.code == 0, (self.job, ended.stderr)
        return ended

    def contents(self) -> dict[str, str]:
        """What is compared. TensorBoard's files hold times in their names, so they are compared by the points in them;
        tables of an iteration whose report was killed before it sent them wait for `report --backfill`, as it says.

        Outside of output folders (config.yaml, report.html) a killed process leaves its hidden temporary file, and a
        report that was just published keeps its note of progress, since it is not asked for again.
        """
        found = contents(self.folder)
        if self.job in {"config", "report"}:
            found = {name: value for name, value in found.items() if not _TEMPORARY.fullmatch(name)}
        events = [name for name in found if "tfevents" in name]
        if events:
            from dapo_stages.reporting.trackers.tensorboard_events import _read

            points, _, config = _read(sorted(self.folder / name for name in events))
            said = repr((sorted(points.items()), config))
            beside = {*events, "shown/runs/dapo-stages.json"}  # a note of how many files there are
            found = {name: value for name, value in found.items() if name not in beside} | {"tensorboard": said}
        if self.job == "prune":  # make goes by the times
            found |= {
                f"time of {path.relative_to(self.folder)}": str(path.stat().st_mtime_ns)
                for path in self.folder.rglob(MANIFEST)
            }
        return found

    def is_as_undisturbed(self, wanted: dict[str, str] | None = None) -> None:
        """Fails, naming the files, where anything differs from `wanted`: what an undisturbed run leaves."""
        found, wanted = self.contents(), wanted or self.bench.undisturbed(self.job).contents
        differing = {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}
        assert not differing, (self.job, str(self.folder), sorted(differing))


def linked(source: Path, target: Path) -> None:
    """A copy of a folder that shares its files, none of which is written into once it is published; no locks."""
    target.mkdir(exist_ok=True)
    copy = os.link if source.stat().st_dev == target.stat().st_dev else shutil.copy2
    ignore = shutil.ignore_patterns(LOCK)
    shutil.copytree(source, target, copy_function=copy, symlinks=True, dirs_exist_ok=True, ignore=ignore)


def _init_policy(bench: Bench, folder: Path) -> Command:
    settings = {"warm_up__steps": 2, "warm_up__batch_size": 4}
    return ["init-policy", *bench.run.options(**settings), "--out", folder / "out"]


def _prepare_data(bench: Bench, folder: Path) -> Command:
    settings = {"data__synthetic__train": 24, "data__synthetic__held_out": 6}
    policy = ["--policy", bench.run.folder / "policy"]
    return ["prepare-data", *bench.run.options(**settings), *policy, "--out", folder / "out"]


def _rollout(bench: Bench, folder: Path) -> Command:
    settings = {"rollout__prompts_per_iteration": 2, "rollout__groups_per_shard": 1}
    run = bench.run
    return ["rollout", *run.options(**settings), *run.rollout_inputs(1), "--out", folder / "out"]


def _score_attention(bench: Bench, folder: Path) -> Command:
    run = bench.run
    inputs = ["--policy", run.folder / "policy", "--rollouts", run.at(1) / "rollout"]
    return ["score-attention", *run.options(), *inputs, "--out", folder / "out"]


def _weight_tokens(bench: Bench, folder: Path, **settings: object) -> Command:
    run = bench.run
    replay = ["--replay", run.at(1) / "weights"]
    return ["weight-tokens", *run.options(**settings), *run.weights_inputs(2), *replay, "--out", folder / "out"]


def _train_step(bench: Bench, folder: Path, **settings: object) -> Command:
    run = bench.run
    state = ["--state", run.at(1) / "train/state"]
    return ["train-step", *run.options(**settings), *run.train_inputs(2), *state, "--out", folder / "out"]


def _train_step_with_a_reference(bench: Bench, folder: Path) -> Command:
    settings = {"train__beta": 0.1, "train__reference_update_every": 1}
    return [*_train_step(bench, folder, **settings), "--reference", bench.run.folder / "policy"]


def _evaluate(bench: Bench, folder: Path) -> Command:
    inputs = ["--policy", bench.run.policy(1), "--data", bench.run.folder / "data"]
    return ["evaluate", *bench.run.options(), *inputs, "--out", folder / "out"]


def _merge(bench: Bench, folder: Path) -> Command:
    policies = [word for number in (1, 2) for word in ("--policy", bench.run.policy(number))]
    return ["merge", *policies, "--out", folder / "out"]


def _report(bench: Bench, folder: Path) -> Command:
    shown = folder / "shown"
    for name in ("policy", "data", "iter-0001", "iter-0002"):
        target = shown / name
        target.parent.mkdir(exist_ok=True)
        if name.startswith("iter"):
            target.mkdir()
            for part in (bench.run.folder / name).iterdir():
                (target / part.name).symlink_to(part)
        else:
            target.symlink_to(bench.run.folder / name)
    return ["report", *bench.run.options(report__trackers="[tensorboard]"), "--run", "shown"]


def _prune(bench: Bench, folder: Path) -> Command:
    keep = {f"keep__{name}": 1 for name in ("rollouts", "states", "policies")}

    def make(place: Path) -> list[Command]:
        linked(bench.run.folder, place / "pruned")
        return [["report", *bench.run.options(), "--run", place / "pruned"]]

    bench.old("reported", make, folder)
    return ["prune", *bench.run.options(keep__best="false", **keep), "--run", folder / "pruned"]


def _config(bench: Bench, folder: Path) -> Command:
    (folder / "config.yaml").write_text("seed: 7\n")
    return ["config", *bench.run.options(), "--out", folder / "config.yaml"]


def _replaced(job: Callable[..., Command], **before: object) -> Callable[[Bench, Path], Command]:
    def command(bench: Bench, folder: Path) -> Command:
        bench.old(job.__name__, lambda place: [job(bench, place, **before)], folder)
        return [*job(bench, folder), "--overwrite"]

    return command


JOBS: dict[str, Callable[[Bench, Path], Command]] = {
    "init-policy": _init_policy,
    "prepare-data": _prepare_data,
    "rollout": _rollout,
    "score-attention": _score_attention,
    "weight-tokens": _weight_tokens,
    "weight-tokens, replaced": _replaced(_weight_tokens, weights__smooth_sigma=1.0),
    "train-step": _train_step,
    "train-step with a reference": _train_step_with_a_reference,
    "train-step, replaced": _replaced(_train_step, train__learning_rate=1e-3),
    "evaluate": _evaluate,
    "report": _report,
    "prune": _prune,
    "merge": _merge,
    "config": _config,
}

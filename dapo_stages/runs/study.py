"""The runs of a study, one per experiment and seed, read from their own files."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import MANIFEST, Source, read_manifest
from dapo_stages.runs.run_folder import Run

Curve = dict[int, float]  # iteration -> value; 0 is the starting policy


@dataclass(frozen=True)
class StudyRun:
    """The results of one finished run. VGR at an iteration is that of completions sampled from the policy after it."""

    experiment: str
    seed: int
    curves: dict[str, Curve]  # by measure
    settings: dict[str, float]  # measures of what distinguishes the experiment
    start: str  # content hash of the policy it started from

    def at_start(self, measure: str) -> float | None:
        """The starting policy's value."""
        return self.curves[measure].get(0)

    def at_end(self, measure: str) -> float | None:
        """The value of the last iteration that has one."""
        curve = self.curves[measure]
        return curve[max(curve)] if curve else None

    def over_run(self, measure: str) -> float | None:
        """The mean of the values after the start: how fast the run learned, if all runs end alike."""
        values = [value for iteration, value in self.curves[measure].items() if iteration > 0]
        return statistics.fmean(values) if values else None


def read_study(folder: Path, experiments: Sequence[str], seeds: Sequence[int]) -> tuple[list[StudyRun], dict[str, str]]:
    """The finished runs of a study, and for every other run why it does not count.

    The run of experiment E with seed S is in `folder`/E-S. It counts if its last planned iteration is evaluated, and if
    it started from the same policy as the seed's other runs. Curves keep only the iterations that all runs have, so
    that means are over the same part of the training.
    """
    runs: list[StudyRun] = []
    missing: dict[str, str] = {}
    for seed in seeds:
        starts: dict[str, str] = {}
        for experiment in experiments:
            name = f"{experiment}-{seed}"
            run, why = _read(Run(folder / name), experiment, seed)
            if run is None:
                missing[name] = why
            elif run.start != starts.setdefault("", run.start):
                missing[name] = "it started from another policy than the other runs of its seed"
            else:
                runs.append(run)
    return _over_the_same_iterations(runs), missing


def stage_seconds(folder: Path) -> float:
    """Seconds that the stages of all runs in a study's folder took; shared outputs count once."""
    patterns = ("*/policy", "*/data", "*/iter-*/*")
    found = {path.resolve() for pattern in patterns for path in folder.glob(f"{pattern}/{MANIFEST}")}
    return sum(read_manifest(path.parent).seconds for path in sorted(found))


def of_seeds(runs: Sequence[StudyRun], experiment: str, value: Callable[[StudyRun], float | None]) -> dict[int, float]:
    """One value per seed of an experiment; seeds without it are left out."""
    found = {run.seed: value(run) for run in runs if run.experiment == experiment}
    return {seed: number for seed, number in found.items() if number is not None}


def _over_the_same_iterations(runs: list[StudyRun]) -> list[StudyRun]:
    curves = [run.curves for run in runs]
    shared = {name: set.intersection(*(set(each[name]) for each in curves)) for name in (curves[0] if curves else ())}
    return [
        replace(run, curves={name: {n: curve[n] for n in sorted(shared[name])} for name, curve in run.curves.items()})
        for run in runs
    ]


def _read(run: Run, experiment: str, seed: int) -> tuple[StudyRun | None, str]:
    """The run, or why it is missing."""
    import yaml

    if not run.config_file.exists():
        return None, "not run"
    planned = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))["planned_iterations"]
    evaluated = [n for n in range(planned + 1) if (run.folder(n) / "eval" / MANIFEST).exists()]
    if planned not in evaluated:
        return None, f"evaluated up to iteration {max(evaluated, default=0)} of {planned}"
    curves = _evaluations(run, evaluated)
    curves["vgr"] = {n - 1: value for n in range(1, planned + 1) if (value := _vgr(run.folder(n)))}
    start = Source(run.folder(1) / "train", "train-step").manifest.inputs["policy"].content_hash
    return StudyRun(experiment, seed, curves, _settings(run, planned), start), ""


def _evaluations(run: Run, evaluated: Sequence[int]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {"greedy": {}, "violating": {}, "consistent": {}, "blank": {}, "length": {}}
    for number in evaluated:
        source = Source(run.folder(number) / "eval", "evaluate")
        shard = next(shard for shard in source.manifest.shards if shard.name == "metrics.json")
        metrics = json.loads(source.verified(shard).read_text(encoding="utf-8"))
        values = {
            "greedy": metrics["greedy_accuracy"],
            "violating": _slices(metrics, "prior-violating"),
            "consistent": _slices(metrics, "prior-consistent"),
            "blank": metrics["blank_accuracy"],
            "length": metrics["mean_tokens"],
        }
        for name, value in values.items():
            if value is not None:
                curves[name][number] = value
    return curves


def _slices(metrics: dict[str, dict[str, dict[str, float]]], name: str) -> float | None:
    """Greedy accuracy over all slices of that name, for all kinds of prompts."""
    counts = {key: number for key, number in metrics["slices"].items() if key.split(",")[0] == name}
    total = sum(counts.values())  # type: ignore[arg-type]
    right = sum(metrics["by_slice"][key]["greedy_accuracy"] * number for key, number in counts.items())  # type: ignore
    return right / total if total else None


def _vgr(iteration: Path) -> float | None:
    """Mean VGR of the completions of an iteration that have attention scores."""
    rows = Source(iteration / "attention", "score-attention").rows("attention", ["status", "vgr_all"])
    values = [row["vgr_all"] for row in rows if row["status"] == "ok" and row["vgr_all"] is not None]
    return statistics.fmean(values) if values else None


def _settings(run: Run, planned: int) -> dict[str, float]:
    """Means over the run: the spread of VGR rewards in a group and of token weights in a completion, and others."""
    in_group: list[float] = []
    in_completion: list[float] = []
    replayed = groups = early = 0
    for number in range(1, planned + 1):
        source = Source(run.folder(number) / "weights", "weight-tokens")
        counts = source.manifest.counts
        replayed, groups = replayed + counts["replayed"], groups + counts["groups"]
        early += counts["reward_phase"] == "early"
        rewards: dict[str, list[float]] = defaultdict(list)
        for row in source.rows("weights", ["group_id", "source", "reward_vgr", "in_loss", "token_weights"]):
            if row["source"] == "fresh":
                rewards[row["group_id"]].append(row["reward_vgr"])
            if row["in_loss"]:
                in_completion.append(statistics.pstdev(row["token_weights"]))
        in_group += [statistics.stdev(values) for values in rewards.values() if len(values) > 1]
    if not in_group or not in_completion:
        problem = "the run trained on nothing: no completion is in the loss"
        raise DataError(run.path, problem, "Remove it and run make experiments.")
    return {
        "reward_vgr": statistics.fmean(in_group),
        "token_weights": statistics.fmean(in_completion),
        "replayed": replayed / groups,
        "early": early,
    }

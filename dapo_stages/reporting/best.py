"""The best policy of a run so far, by held-out accuracy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dapo_stages.errors import DataError
from dapo_stages.manifests import Manifest
from dapo_stages.reporting.runs import iteration_folder, iterations, manifest_of
from dapo_stages.reporting.text import percent
from dapo_stages.shards import write_text

POINTER = "best.json"
METRICS = ("greedy_accuracy", "sampled_accuracy")


@dataclass(frozen=True)
class Best:
    """An evaluated policy; its folder is relative to the run, so that the pointer survives a move."""

    iteration: int
    policy: str
    metric: str
    value: float
    policy_hash: str

    def __str__(self) -> str:
        return f"iteration {self.iteration}, held-out {self.metric.removesuffix('_accuracy')} {percent(self.value)}"


def find_best(run: Path) -> Best | None:
    """The policy with the best greedy accuracy, or, where nothing was answered greedily, the best sampled accuracy.

    Ties: the better sampled accuracy, then the earlier policy, which moved less from where it started. The starting
    policy takes part. Policies that were pruned, or changed since they were evaluated, do not. Only manifests are read.
    """
    found = [(number, made.counts, made) for number in iterations(run) if (made := _evaluation(run, number))]
    for metric in METRICS:
        ranked = [one for one in found if metric in one[1]]
        ranked.sort(key=lambda one: (one[1][metric], one[1].get("sampled_accuracy", 0.0), -one[0]), reverse=True)
        for number, counts, evaluation in ranked:  # of most policies nobody needs to know whether they are there
            if policy := _judged(run, number, evaluation):
                return Best(number, policy_of(number), metric, counts[metric], policy.content_hash)
    return None


def write_best(run: Path) -> Best | None:
    """Point to the best policy in best.json; no evaluation, no pointer."""
    best = find_best(run)
    if best is None:
        (run / POINTER).unlink(missing_ok=True)
    else:
        write_text(run / POINTER, json.dumps(asdict(best), indent=1, allow_nan=False) + "\n")
    return best


def policy_of(iteration: int) -> str:
    """Folder of the policy that an iteration ends with, relative to the run."""
    return f"{iteration_folder(Path(), iteration)}/train/policy" if iteration else "policy"


def _evaluation(run: Path, number: int) -> Manifest | None:
    try:
        return manifest_of(iteration_folder(run, number) / "eval", "evaluate")
    except DataError:  # damaged; status says so
        return None


def _judged(run: Path, number: int, evaluation: Manifest) -> Manifest | None:
    """The policy of an iteration, where it is there and is the one that was evaluated."""
    try:
        policy = manifest_of(run / policy_of(number))
    except DataError:
        return None
    judged = evaluation.inputs.get("policy")
    if policy is None or policy.pruned or judged is None:
        return None
    return policy if judged.content_hash == policy.content_hash else None

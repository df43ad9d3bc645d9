"""The best policy of a run so far, by held-out accuracy."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import MANIFEST, Manifest, manifest_of
from dapo_stages.handoff.shards import write_text
from dapo_stages.runs.pipeline import policy_after
from dapo_stages.runs.run_folder import Run
from dapo_stages.small_files import read_json
from dapo_stages.terminal.safe_text import percent

POINTER = "best.json"
METRICS = ("greedy_accuracy", "sampled_accuracy")
BLANK = "blank_accuracy"  # with the image blanked


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


def find_best(run: Run) -> Best | None:
    """The policy with the best greedy accuracy, or, if there are no greedy evaluations, the best sampled accuracy.

    Ties: the better sampled accuracy, then the earlier policy, which has moved less from the starting policy. The
    starting policy is a candidate, too; policies that were pruned, or changed since they were evaluated, are not. Only
    manifests are read.
    """
    found = {number: counts for number in run.iterations() if (counts := accuracies(run, number))}
    for metric in METRICS:
        ranked = [number for number, counts in found.items() if metric in counts]
        worth = {number: (found[number][metric], found[number].get(METRICS[-1], 0.0), -number) for number in ranked}
        for number in sorted(ranked, key=worth.__getitem__, reverse=True):
            if policy := _judged(run, number):
                return Best(number, policy_after(number), metric, found[number][metric], policy.content_hash)
    return None


def write_best(run: Run) -> Best | None:
    """Point to the best policy in best.json; without an evaluation, remove the file."""
    best = find_best(run)
    if best is None:
        (run.path / POINTER).unlink(missing_ok=True)
    else:
        write_text(run.path / POINTER, json.dumps(asdict(best), indent=1, allow_nan=False) + "\n")
    return best


def accuracies(run: Run, number: int) -> dict[str, float]:
    """The accuracies of an evaluation by METRICS and BLANK, as its manifest claims them; empty without one.

    Unchecked: only the best needs a check, which costs three times as much.
    """
    try:
        counts = read_json(run.folder(number) / "eval" / MANIFEST)["counts"]
        claims = {name: float(counts[name]) for name in (*METRICS, BLANK) if name in counts}
        return claims if all(map(math.isfinite, claims.values())) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _judged(run: Run, number: int) -> Manifest | None:
    """The policy of an iteration, if it exists and is the one that was evaluated."""
    try:
        evaluation = manifest_of(run.folder(number) / "eval", "evaluate")
        policy = manifest_of(run.path / policy_after(number))
    except DataError:  # damaged; status reports it
        return None
    if evaluation is None or policy is None or policy.pruned:
        return None
    judged = evaluation.inputs.get("policy")
    return policy if judged and judged.content_hash == policy.content_hash else None

"""The pipeline: its stages, their folders, and what each is made from."""

from __future__ import annotations

# (output, input) -> where that input is expected: this iteration's outputs, or those of the one before.
_EXPECTED = {
    ("rollout", "data"): "{run}/data",
    ("attention", "rollouts"): "{here}/rollout",
    ("weights", "rollouts"): "{here}/rollout",
    ("weights", "attention"): "{here}/attention",
    ("weights", "replay"): "{before}/weights",
    ("train", "rollouts"): "{here}/rollout",
    ("train", "weights"): "{here}/weights",
    ("train", "policy"): "{policy_before}",
    ("train", "state"): "{before}/train/state",
    ("eval", "policy"): "{policy_here}",
    ("eval", "data"): "{run}/data",
}


SETUP = {"policy": "init-policy", "data": "prepare-data"}
IN_ORDER = ("rollout", "attention", "weights", "train", "eval", "report")
NEEDED = IN_ORDER[:4]  # by the next iteration


# Folder of an iteration -> the stage that writes it, in the order they run.
FOLDERS = {
    "rollout": "rollout",
    "attention": "score-attention",
    "weights": "weight-tokens",
    "train": "train-step",
    "eval": "evaluate",
    "report": "report",
}
REPORTED = tuple(name for name in FOLDERS if name != "report")

"""Earlier rollouts, which tell the curriculum how often each prompt was answered correctly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_stages.config import CurriculumConfig
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import MANIFEST, Source
from dapo_stages.terminal.console import say

if TYPE_CHECKING:
    import numpy as np

_PREFIX = "history-"


def earlier_rollouts(folders: list[Path], iteration: int, data: Source) -> dict[str, Source]:
    """The rollouts before an iteration as inputs of a stage, sorted by iteration.

    Each folder is a rollout, or a run, which stands for the rollouts of its earlier iterations. Pruned rollouts are
    skipped with a message. Raises DataError for a rollout that is not of an earlier iteration or was made from other
    data, and for two of one iteration.
    """
    found: dict[str, Source] = {}
    pruned: list[int] = []
    for source, of_run in _sources(folders):
        number = int(source.manifest.config["iteration"])
        if number >= iteration:
            if of_run:
                continue
            raise DataError(
                source.folder,
                f"expected rollouts before iteration {iteration}, got iteration {number}",
                "Leave it out of --history.",
            )
        source.require_input("data", data)
        name = f"{_PREFIX}{number:06d}"
        if name in found and found[name].folder.resolve() != source.folder.resolve():
            raise DataError(
                source.folder,
                f"{found[name].folder} is a rollout of iteration {number}, too",
                "Pass only one of them to --history.",
            )
        if source.manifest.pruned:
            pruned.append(number)
        else:
            found[name] = source
    if pruned:
        gone = ", ".join(map(str, sorted(set(pruned))))
        say(f"rollout: rollouts of iteration(s) {gone} are pruned; the curriculum uses the other {len(found)}")
    return dict(sorted(found.items()))


def chances_of_rows(inputs: Mapping[str, Source], settings: CurriculumConfig) -> np.ndarray:
    """Chance of each row of the training table to keep its place, [P]; NaN if it was never sampled."""
    from dapo_stages.maths.curriculum import chances, of_rows, success_rates

    rates = success_rates(_visits(inputs), settings.visits)
    questions = [row["prompt_id"] for row in inputs["data"].rows("train", ["prompt_id"])]
    return chances(of_rows(rates, questions), settings.target, settings.floor)


def _visits(inputs: Mapping[str, Source]) -> Iterator[tuple[str, int, int]]:
    """(prompt id, correct completions, all completions) of every group of the history, oldest first."""
    for name in sorted(name for name in inputs if name.startswith(_PREFIX)):
        of = int(inputs[name].manifest.config["rollout"]["num_generations"])
        for row in inputs[name].rows("prompts", ["prompt_id", "num_correct"]):
            yield row["prompt_id"], row["num_correct"], of


def _sources(folders: list[Path]) -> Iterator[tuple[Source, bool]]:
    for folder in folders:
        if (folder / MANIFEST).exists():
            yield Source(folder, "rollout"), False
            continue
        inside = sorted(path.parent for path in folder.glob(f"iter-[0-9]*/rollout/{MANIFEST}"))
        if not inside and not any(folder.glob("iter-[0-9]*")) and not (folder / "data" / MANIFEST).exists():
            raise DataError(folder, "no rollouts in this folder (expected a rollout or a run)", "Correct --history.")
        for rollout in inside:
            yield Source(rollout, "rollout"), True

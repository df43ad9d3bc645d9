"""Earlier rollouts as a record of how often each question was answered right, for the curriculum."""

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
    """The rollouts before an iteration as inputs of a stage, by iteration, whatever the order of the folders.

    A folder is a rollout's, or a run's, which stands for the rollouts of its earlier iterations. Pruned ones are left
    out, and said. Raises DataError for rollouts of a later iteration, of other questions, or two of one iteration.
    """
    found: dict[str, Source] = {}
    pruned: list[int] = []
    for source, of_run in _sources(folders):
        number = int(source.manifest.config["iteration"])
        if number >= iteration:
            if of_run:
                continue
            raise DataError(
                source.folder, f"rollouts of iteration {number}", f"those before iteration {iteration}", "Leave it out."
            )
        source.require_input("data", data)
        name = f"{_PREFIX}{number:06d}"
        if name in found and found[name].folder.resolve() != source.folder.resolve():
            raise DataError(
                source.folder,
                f"a second rollout of iteration {number}, beside {found[name].folder}",
                "one",
                "Name one.",
            )
        if source.manifest.pruned:
            pruned.append(number)
        else:
            found[name] = source
    if pruned:
        gone = ", ".join(map(str, sorted(set(pruned))))
        say(f"rollout: rollouts of iteration(s) {gone} are pruned; the curriculum goes by the {len(found)} left")
    return dict(sorted(found.items()))


def chances_of_rows(inputs: Mapping[str, Source], settings: CurriculumConfig) -> np.ndarray:
    """How likely each row of the training table is to keep its turn, [P]; NaN where it was not asked before."""
    from dapo_stages.maths.curriculum import chances, of_rows, success_rates

    rates = success_rates(_visits(inputs), settings.visits)
    questions = [row["prompt_id"] for row in inputs["data"].rows("train", ["prompt_id"])]
    return chances(of_rows(rates, questions), settings.target, settings.floor)


def _visits(inputs: Mapping[str, Source]) -> Iterator[tuple[str, int, int]]:
    """(question, right completions, all completions) of every group of the history, the oldest first."""
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
            raise DataError(folder, "no rollouts", "a rollout's folder, or a run's", "Name the right --history.")
        for rollout in inside:
            yield Source(rollout, "rollout"), True

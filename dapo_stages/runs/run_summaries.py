"""The runs below a folder, each in a line: how far it is, how good, how large, and how its configuration differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dapo_stages.config import Config
from dapo_stages.errors import DataError
from dapo_stages.runs.best import Best, accuracies, find_best
from dapo_stages.runs.changed_settings import leaves
from dapo_stages.runs.progress import next_move, survey
from dapo_stages.runs.run_folder import CONFIG, Run
from dapo_stages.small_files import bytes_below

_DEEP = 4  # folders below the one that was named
_WORST = ("running", "halted", "damaged")  # states that one output is enough for
NOWHERE = object()  # what a configuration that cannot be read has for every key


@dataclass(frozen=True)
class Summary:
    """A run. `last`: accuracies of its latest evaluation by name (greedy_accuracy, …), of iteration `evaluated`."""

    path: Path
    state: str  # running, halted, damaged, finished, or unfinished
    why: str
    iterations: int  # the last one that has a folder
    planned: int | None
    best: Best | None
    evaluated: int | None
    last: Mapping[str, float]
    bytes: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted key
    trouble: str | None = None  # what is wrong with its configuration

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        del found["settings"]
        return found | {"path": str(self.path)}


def find_runs(folder: Path) -> list[Path]:
    """Folders of runs in and below a folder, sorted; a run contains no other. Raises DataError if there is none."""
    found = sorted(_runs(folder, _DEEP))
    if not found:
        raise DataError(folder, "no run here or below", "Name a folder of runs, or start one with make iterate.")
    return found


def summary(path: Path) -> Summary:
    """What manifests and file sizes say of a run."""
    run = Run(path)
    progress = survey(run)
    move = next_move(progress)
    states = {found.state for _, _, found in progress.outputs()}
    state: str = next((name for name in _WORST if name in states), "unfinished" if move.beyond is None else "finished")
    evaluated = {number: found for number in run.iterations() if (found := accuracies(run, number))}
    last = max(evaluated, default=None)
    return Summary(
        path,
        state,
        move.why,
        max(run.iterations(), default=0),
        run.planned_iterations,
        find_best(run),
        last,
        evaluated[last] if last is not None else {},
        bytes_below(path),
        dict(leaves(run.config.model_dump(mode="json"))) if run.config is not None else {},
        run.trouble,
    )


def differing(runs: Sequence[Summary]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs: key -> its value in each; NOWHERE where a run has no such key."""
    keys = dict.fromkeys(key for one in runs for key in one.settings)
    values = {key: [one.settings.get(key, NOWHERE) for one in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def unusual(runs: Sequence[Summary]) -> list[dict[str, Any]]:
    """For each run the settings that differ from those of most runs, or, where no value leads, from the default."""
    defaults = dict(leaves(Config().model_dump(mode="json")))
    found: list[dict[str, Any]] = [{} for _ in runs]
    for key, values in differing(runs).items():
        usual = _usual(values, defaults.get(key, NOWHERE))
        for own, value in zip(found, values, strict=True):
            if value is not NOWHERE and repr(value) != usual:
                own[key] = value
    return found


def _usual(values: Iterable[Any], default: Any) -> str:
    counts = Counter(repr(value) for value in values if value is not NOWHERE)
    most = max(counts.values())
    leading = [value for value, count in counts.items() if count == most]
    return leading[0] if len(leading) == 1 else repr(default)


def _runs(folder: Path, deep: int) -> Iterator[Path]:
    if (folder / CONFIG).is_file() or (folder / "iter-0001").is_dir() or (folder / "iter-0000").is_dir():
        yield folder
    elif deep and folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield from _runs(path, 0 if path.is_symlink() else deep - 1)

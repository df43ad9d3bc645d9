"""Several runs beside each other: their figures, their configurations, and their answers to the same questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dapo_stages.errors import DataError
from dapo_stages.groups.paired_answers import aligned, compare, points, sentence
from dapo_stages.handoff.manifests import Source, manifest_of
from dapo_stages.reporting.documents.overview import RUNS, run_cells
from dapo_stages.reporting.page import compared
from dapo_stages.reporting.page.settings_shown import marks
from dapo_stages.reporting.run_report import Reported
from dapo_stages.runs.run_folder import Run
from dapo_stages.runs.run_summaries import Summary, differing, summary
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import NOTHING, number, percent

HEADERS = ["measure", "questions", "A", "B", "B − A", "both right", "only A", "only B", "neither", "p"]
_RESAMPLES, _CONFIDENCE, _SEED = 2000, 0.95, 42  # as compare-evals


@dataclass(frozen=True)
class Pair:
    """Two runs by their latest evaluations; `why_not`: why these cannot be compared."""

    a: str
    b: str
    of_a: int | None  # iterations
    of_b: int | None
    measures: list[dict[str, Any]] = field(default_factory=list)
    why_not: str = ""

    @property
    def rows(self) -> list[list[str]]:
        """In the columns of HEADERS."""
        return [_cells(measure) for measure in self.measures]

    @property
    def said(self) -> list[str]:
        """The same in sentences."""
        return [sentence(measure, _CONFIDENCE) for measure in self.measures]


class Compared:
    """Several runs. Raises DataError if one has no finished report."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.names = _names(paths)
        self.runs = [summary(path) for path in paths]
        self._reported = [_reported(path) for path in paths]
        self.differ = differing(self.runs)
        (first, *others), (name, *names) = self.runs, self.names
        self.pairs = [_pair(first, other, name, its) for other, its in zip(others, names, strict=True)]

    @property
    def table(self) -> Table:
        """A row for each run."""
        rows = [[name, *run_cells(one)[1:]] for name, one in zip(self.names, self.runs, strict=True)]
        return Table(RUNS, rows)

    def page(self) -> str:
        """All of it as one page."""
        changed: dict[int, list[str]] = {}
        for name, reported in zip(self.names, self._reported, strict=True):
            for iteration, what in marks(reported.steps).items():
                changed.setdefault(iteration, []).append(f"{name}: {what}")
        return compared.render(
            self.names,
            self.table,
            [(reported.figures, reported.cost) for reported in self._reported],
            {iteration: "; ".join(what) for iteration, what in changed.items()},
            self.differ,
            [(name, one.trouble) for name, one in zip(self.names, self.runs, strict=True) if one.trouble],
            self.pairs,
            HEADERS,
        )


def _reported(path: Path) -> Reported:
    found = Reported(Run(path))
    if not found.figures:
        raise DataError(path, "no finished report", "Run report first, or name another run.")
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or, where two are the same, all of their paths."""
    found = [path.resolve().name for path in paths]
    return found if max(Counter(found).values()) == 1 else list(map(str, paths))


def _pair(a: Summary, b: Summary, name_a: str, name_b: str) -> Pair:
    measures: list[dict[str, Any]] = []
    lacking = [name for one, name in ((a, name_a), (b, name_b)) if one.evaluated is None]
    why_not = f"{' and '.join(lacking)}: no evaluation" if lacking else ""
    try:
        measures = _measures(a, b) if not lacking else []
    except DataError as error:
        why_not = error.problem
    return Pair(name_a, name_b, a.evaluated, b.evaluated, measures, why_not)


def _measures(a: Summary, b: Summary) -> list[dict[str, Any]]:
    """Raises DataError if they cannot be compared."""
    sources = _evaluation(a), _evaluation(b)
    if _questions(a, sources[0]).isdisjoint(_questions(b, sources[1])):
        raise DataError(b.path, "the held-out questions are others, by their content hashes", "Choose another run.")
    measures = compare(*aligned(*sources), resamples=_RESAMPLES, confidence=_CONFIDENCE, seed=_SEED)
    if not measures:
        raise DataError(b.path, "no answers of the same kind", "Evaluate both with the same settings.")
    return measures


def _evaluation(one: Summary) -> Source:
    assert one.evaluated is not None
    return Source(Run(one.path).folder(one.evaluated) / "eval", "evaluate")


def _questions(one: Summary, evaluation: Source) -> set[str]:
    """Content hashes of what was asked: of the whole data folder, and, if that is still there, of its questions."""
    data = evaluation.manifest.inputs.get("data")
    if data is None:
        return set()
    return {data.content_hash, *_held_out(Run(one.path).place(data.path), data.content_hash)}


def _held_out(folder: Path, content_hash: str) -> Iterator[str]:
    try:
        manifest = manifest_of(folder, "prepare-data")
    except DataError:  # damaged; status reports it
        return
    if manifest is not None and manifest.is_or_replaces(content_hash):
        hashes = [shard.sha256 for shard in manifest.shards if shard.name.startswith("held_out-")]
        if hashes:
            yield " ".join(hashes)


def _cells(measure: dict[str, Any]) -> list[str]:
    questions, won, lost = measure["questions"], measure["won"], measure["lost"]
    ends = measure["interval"]
    within = f" ({points(ends[0])} to {points(ends[1])})" if ends else ""
    both = neither = NOTHING
    if measure["test"].startswith("McNemar"):  # an answer each
        right = round(measure["a"] * questions) - lost
        both, neither = str(right), str(questions - right - won - lost)
    shares = [percent(measure["a"]), percent(measure["b"]), points(measure["difference"]) + within]
    return [measure["measure"], str(questions), *shares, both, str(lost), str(won), neither, number(measure["p"])]

"""Find one completion of a run, by its id or by what is remarkable about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.reporting.iteration.samples import Sample, attention_rows, join, weight_rows
from dapo_stages.reporting.iteration.thumbnails import size_of
from dapo_stages.runs.run_folder import Run

Wanted = Literal["worst", "best", "disagree"]


@dataclass(frozen=True)
class Hit:
    """A completion, the iteration that holds it, and the row of the shard its prompt is in."""

    iteration: int
    prompt: Row
    completion: Sample
    shard: Path
    row: int

    @property
    def images(self) -> list[tuple[int, int] | None]:
        """Width and height of each image; None for one that cannot be read."""
        return [size_of(image["bytes"]) for image in self.prompt["images"] or []]


def find(run: Run, completion_id: str) -> Hit:
    """The completion with this id: among rollouts, latest first, then among replayed ones, whose rollout may be pruned.

    Raises DataError if there is none.
    """
    there = {number: run.sources(number) for number in reversed(run.iterations())}
    for part, prefix in (("rollout", ""), ("weights", "replayed-")):
        for number, found in there.items():
            if part in found and (hit := _in(number, found, found[part], prefix, completion_id)):
                return hit
    raise DataError(
        run.path,
        f"no completion {completion_id} in {len(there)} iterations",
        "Pass a completion_id from a completions-*.parquet that still exists, or try --find worst.",
    )


def rank(run: Run, wanted: Wanted, iteration: int | None) -> list[str]:
    """Ids of the completions that an iteration (by default the latest with weights) sampled, most remarkable first.

    `disagree`: right without looking at the image, or wrong despite looking, by the rank of their VGR.
    """
    candidates = [iteration] if iteration is not None else list(reversed(run.iterations()))
    for number in candidates:
        found = run.sources(number)
        if "weights" in found:
            columns = ["completion_id", "source", "reward", "reward_accuracy"]
            rows = [row for row in found["weights"].rows("weights", columns) if row["source"] == "fresh"]
            if wanted == "disagree":
                return _disagreeing(rows, found.get("attention"), run)
            rows.sort(key=lambda row: row["reward"], reverse=wanted == "best")
            return [row["completion_id"] for row in rows]
    where = run.path if iteration is None else f"{run.path}, iteration {iteration}"
    raise DataError(where, "no token weights", "Run weight-tokens first.")


def _in(number: int, found: Mapping[str, Source], source: Source, prefix: str, completion_id: str) -> Hit | None:
    at = _locate(source, f"{prefix}completions", "completion_id", completion_id)
    if at is None:
        return None
    completion = at[2]
    place = _locate(source, f"{prefix}prompts", "group_id", completion["group_id"])
    if place is None:
        raise DataError(source.folder, f"no prompt for group {completion['group_id']}", "Run its stage again.")
    shard, row, prompt = place
    wanted = {completion_id}
    return Hit(number, prompt, join(completion, attention_rows(found, wanted), weight_rows(found, wanted)), shard, row)


def _locate(source: Source, kind: str, key: str, value: str) -> tuple[Path, int, Row] | None:
    """File, row number and row of the first row whose key has this value; only that row group is read whole."""
    for shard in source.shards(kind):
        with source.reader(kind, shard) as reader:
            before = 0
            for group in range(len(reader.row_group_sizes)):
                keys = [row[key] for row in reader.row_group(group, [key])]
                if value in keys:
                    offset = keys.index(value)
                    return source.folder / shard.name, before + offset, reader.row_group(group)[offset]
                before += len(keys)
    return None


def _disagreeing(rows: list[Row], attention: Source | None, run: Run) -> list[str]:
    scored = attention.rows("attention", ["completion_id", "vgr_all"]) if attention else ()
    vgr = {
        row["completion_id"]: row["vgr_all"]
        for row in scored
        if row["vgr_all"] is not None and isfinite(row["vgr_all"])
    }
    known = sorted((row for row in rows if row["completion_id"] in vgr), key=lambda row: vgr[row["completion_id"]])
    if not known:
        raise DataError(run.path, "no completion has a VGR", "Run score-attention, or use --find worst.")
    # Place among the completions: 0 looked at the image most, 1 least.
    places = {row["completion_id"]: index / max(len(known) - 1, 1) for index, row in enumerate(known)}

    def disagreement(row: Row) -> float:
        place = places[row["completion_id"]]
        return place if row["reward_accuracy"] == 1 else 1 - place

    return [row["completion_id"] for row in sorted(known, key=disagreement, reverse=True)]

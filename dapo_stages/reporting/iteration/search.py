"""Find one completion of a run, by its id or by what is remarkable about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.reporting.iteration.heat import grid_of, patch_attention
from dapo_stages.reporting.iteration.overlay import Look, look_of
from dapo_stages.reporting.iteration.samples import Sample, attention_rows, join, shown_images, weight_rows
from dapo_stages.reporting.iteration.thumbnails import size_of
from dapo_stages.runs.run_folder import Run

Wanted = Literal["worst", "best", "disagree", "guessed"]


class Ranked(NamedTuple):
    """Ids of completions that an iteration sampled, most remarkable first."""

    iteration: int
    ids: list[str]


@dataclass(frozen=True)
class Hit:
    """A completion, the iteration that holds it, and the row of the shard its prompt is in."""

    iteration: int
    prompt: Row
    completion: Sample
    shard: Path
    row: int
    attention: Source | None = None

    def look(self) -> Look | None:
        """Where the completion looked, over all layers; None if that was not kept."""
        key = self.completion["completion_id"]
        patches = dict(patch_attention(self.attention, {key})) if self.attention else {}
        look_TV = patches.get(key, {}).get("all")
        return None if look_TV is None else look_of(look_TV, grid_of(self.prompt, look_TV.shape[1]))

    @property
    def shown(self) -> list[Row]:
        """The images that the parts of `look` are over."""
        return [self.prompt["images"][place] for place in shown_images(self.prompt)]

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


def rank(run: Run, wanted: Wanted, iteration: int | None) -> Ranked:
    """Completions of an iteration, by default the latest with weights (`guessed`: with attention).

    `disagree`: right without looking at the image, or wrong despite looking, by the rank of their VGR; well-formed ones
    first. `guessed`: well-formed, with an answer, not cut off, and those that looked least first.

    Raises DataError if no iteration has what is needed, or no completion is like that.
    """
    parts = ("rollout", "attention") if wanted == "guessed" else ("weights",)
    candidates = [iteration] if iteration is not None else list(reversed(run.iterations()))
    for number in candidates:
        found = run.sources(number)
        if not found.keys() >= set(parts):
            continue
        if wanted == "guessed":
            return Ranked(number, _guessed(found, run.folder(number)))
        columns = ["completion_id", "source", "reward", "reward_accuracy", "reward_format"]
        rows = [row for row in found["weights"].rows("weights", columns) if row["source"] == "fresh"]
        if wanted == "disagree":
            return Ranked(number, _disagreeing(rows, found.get("attention"), run))
        rows.sort(key=lambda row: row["reward"], reverse=wanted == "best")
        return Ranked(number, [row["completion_id"] for row in rows])
    where = run.path if iteration is None else f"{run.path}, iteration {iteration}"
    if wanted == "guessed":
        raise DataError(where, "no rollout whose attention was measured", "Run score-attention first.")
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
    joined = join(completion, attention_rows(found, wanted), weight_rows(found, wanted))
    return Hit(number, prompt, joined, shard, row, found.get("attention"))


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


def _guessed(found: Mapping[str, Source], where: Path) -> list[str]:
    """By the place of their VGR; if all were scored with the image blanked, too, by the mean of that and of the place
    of their visual KL, from the one whose tokens depended on the image most.
    """
    columns = ["completion_id", "reward_format", "finish_reason", "answer"]
    answered = {
        row["completion_id"]
        for row in found["rollout"].rows("completions", columns)
        if row["reward_format"] == 1 and row["answer"] is not None and row["finish_reason"] == "stop"
    }
    vgr, dependence = {}, {}
    for row in found["attention"].rows("attention", ["completion_id", "vgr_all", "visual_kl"]):
        key = row["completion_id"]
        if key in answered and row["vgr_all"] is not None and isfinite(row["vgr_all"]):
            vgr[key] = row["vgr_all"]
            if row["visual_kl"]:
                dependence[key] = -sum(row["visual_kl"]) / len(row["visual_kl"])
    if not vgr:
        raise DataError(
            where,
            "no completion is well-formed, has an answer, ended by itself and has a VGR",
            "Run score-attention on a rollout with such completions, or use --find worst.",
        )
    by_vgr = _places(vgr)
    by_dependence = _places(dependence) if len(dependence) == len(vgr) else by_vgr
    return sorted(vgr, key=lambda key: by_vgr[key] + by_dependence[key], reverse=True)


def _places(values: Mapping[str, float]) -> dict[str, float]:
    """Place by value: 0 for the lowest, 1 for the highest."""
    in_order = sorted(values, key=lambda key: values[key])
    return {key: index / max(len(in_order) - 1, 1) for index, key in enumerate(in_order)}


def _disagreeing(rows: list[Row], attention: Source | None, run: Run) -> list[str]:
    scored = attention.rows("attention", ["completion_id", "vgr_all"]) if attention else ()
    vgr = {
        row["completion_id"]: row["vgr_all"]
        for row in scored
        if row["vgr_all"] is not None and isfinite(row["vgr_all"])
    }
    known = [row for row in rows if row["completion_id"] in vgr]
    if not known:
        raise DataError(run.path, "no completion has a VGR", "Run score-attention, or use --find worst.")
    # Place among the completions: 0 looked at the image most, 1 least.
    places = _places({row["completion_id"]: vgr[row["completion_id"]] for row in known})

    def disagreement(row: Row) -> tuple[bool, float]:
        place = places[row["completion_id"]]
        return row["reward_format"] == 1, place if row["reward_accuracy"] == 1 else 1 - place

    known.sort(key=disagreement, reverse=True)
    return [row["completion_id"] for row in known]

"""An iteration as the page's browser gets it: whole groups with images, tokens, weights, and where they looked.

Control characters in foreign text become visible symbols here; the page shows it as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dapo_stages.groups.informative import is_informative
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.reporting.iteration.heat import grid_of, maps, patch_attention, with_patches
from dapo_stages.reporting.iteration.samples import attention_rows, images_of, join, weight_rows
from dapo_stages.terminal.safe_text import one_line, visible

LONGEST = 1 << 20  # characters of a text that are kept
LONGEST_ANSWER = 1000  # characters of an answer that are kept
_REPLAYED = 4  # at most one in this many completions is replayed

Browsed = dict[str, Any]


def browsed(iteration: int, sources: Mapping[str, Source], most: int) -> Browsed:
    """Whole groups of an iteration with at most `most` completions (or one group), newly sampled ones first."""
    groups: list[dict[str, Any]] = []
    if most and "weights" in sources and sources["weights"].shards("replayed-prompts"):
        groups = _groups(sources, sources["weights"], "replayed-", most // _REPLAYED, set())
    if most and "rollout" in sources:
        looked = with_patches(sources["attention"]) if "attention" in sources else set()
        left = most - sum(len(group["completions"]) for group in groups)
        groups = _groups(sources, sources["rollout"], "", left, looked) + groups
    return {"iteration": iteration, "groups": groups}


def _groups(
    sources: Mapping[str, Source], source: Source, prefix: str, most: int, looked: set[str]
) -> list[dict[str, Any]]:
    chosen = _choose(source, prefix, most, looked)
    with (
        source.lookup(f"{prefix}prompts", "group_id") as prompts,
        source.lookup(f"{prefix}completions", "group_id") as completions,
    ):
        members = {name: completions.all(name) for name in chosen}
        wanted = {row["completion_id"] for rows in members.values() for row in rows}
        attention, weights = attention_rows(sources, wanted), weight_rows(sources, wanted)
        groups = {name: _group(prompts.one(name), members[name], attention, weights) for name in chosen}
        if looked & wanted:
            asked = {row["completion_id"]: prompts.one(name) for name in chosen for row in members[name]}
            heat = {
                key: maps(look, grid_of(asked[key], next(iter(look.values())).shape[1]))
                for key, look in patch_attention(sources["attention"], looked & wanted)
            }
            for rows, group in zip(members.values(), groups.values(), strict=True):
                for row, one in zip(rows, group["completions"], strict=True):
                    one["heat"] = heat.get(row["completion_id"])
    return list(groups.values())


def _choose(source: Source, prefix: str, most: int, looked: set[str]) -> list[str]:
    """Groups whose attention is kept per image token first, then in the order of the files."""
    sizes, first = Counter[str](), set()
    for row in source.rows(f"{prefix}completions", ["completion_id", "group_id"]):
        sizes[row["group_id"]] += 1
        if row["completion_id"] in looked:
            first.add(row["group_id"])
    chosen: list[str] = []
    for name in sorted(sizes, key=lambda name: name not in first):
        if chosen and sizes[name] > most:
            break
        most -= sizes[name]
        chosen.append(name)
    return chosen


def _group(
    prompt: Row, rows: Sequence[Row], attention: Mapping[str, Row], weights: Mapping[str, Row]
) -> dict[str, Any]:
    correct = sum(row["reward_accuracy"] == 1 for row in rows)
    replayed = any(weights.get(row["completion_id"], {}).get("source") == "replay" for row in rows)
    return {
        "id": one_line(prompt["group_id"]),
        "prompt": one_line(prompt["prompt_id"]),
        "slice": one_line(prompt["slice"]),
        "problem": visible(prompt["problem"][:LONGEST]),
        "solution": visible(prompt["solution"][:LONGEST]),
        "sampled": prompt["iteration"],
        "kept": prompt["kept"],
        "correct": correct,
        "informative": is_informative(prompt, len(rows)),
        "replayed": replayed,
        "images": images_of(prompt),
        "completions": [_completion(join(row, attention, weights)) for row in rows],
    }


def _completion(one: Mapping[str, Any]) -> dict[str, Any]:
    tokens, cut = _kept(one["tokens"])
    return {
        "id": one_line(one["completion_id"]),
        "tokens": tokens,
        "cut": cut,
        "weights": [round(weight, 2) for weight in one["token_weights"]],
        "vgrs": [_short(vgr) for vgr in one["token_vgr"]],
        "vgr": _short(one["vgr"]),
        "reward": _short(one["reward"]),
        "rewards": {one_line(name): _short(value) for name, value in one["rewards"].items()},
        "advantage": _short(one["advantage"]),
        "finish": one_line(one["finish_reason"]),
        "answer": None if one["answer"] is None else one_line(one["answer"][:LONGEST_ANSWER]),
        "read": one["read_from"],
        "in_loss": one["in_loss"],
        "why": one_line(one["why"]),
        "heat": None,
        **({"shares": [_short(share) for share in one["by_image"]]} if "by_image" in one else {}),
    }


def _kept(tokens: Iterable[str]) -> tuple[list[str], int]:
    """Tokens up to LONGEST characters in total, and how many characters that leaves out."""
    kept, room, cut = [], LONGEST, 0
    for token in tokens:
        if room > 0:
            kept.append(visible(token[:room]))
        cut += max(0, len(token) - room)
        room = max(0, room - len(token))
    return kept, cut


def _short(value: float | None) -> float | None:
    """Four digits are enough to look at."""
    return None if value is None or value != value else float(f"{value:.4g}")

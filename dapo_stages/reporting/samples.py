"""A few groups of an iteration in full: picture, question, completions, rewards, tokens with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from dapo_stages.manifests import Source
from dapo_stages.reporting.figures import rewards_of
from dapo_stages.reporting.pictures import heat_maps, size_of, thumbnail
from dapo_stages.shards import Row, RowLookup

MAX_COMPLETIONS = 8  # shown of a group: beyond that, half with the highest and half with the lowest reward

Sample = dict[str, Any]


def collect_samples(sources: Mapping[str, Source], count: int) -> list[Sample]:
    """`count` groups of the rollout: those with attention for pictures first, then those that train, then others."""
    if "rollout" not in sources or count == 0:
        return []
    with ExitStack() as stack:
        rollout = sources["rollout"]
        prompts = stack.enter_context(rollout.lookup("prompts", "group_id"))
        by_group = stack.enter_context(rollout.lookup("completions", "group_id"))
        joined = {
            name: stack.enter_context(sources[name].lookup(name, "completion_id"))
            for name in ("attention", "weights")
            if name in sources
        }
        chosen = _choose(sources, count)
        return [_group(prompts.one(name), by_group.all(name), joined) for name in chosen]


def _choose(sources: Mapping[str, Source], count: int) -> list[str]:
    pictured: set[str] = set()
    if "attention" in sources:
        rows = sources["attention"].rows("attention", ["completion_id", "patch_attention_all"])
        pictured = {row["completion_id"] for row in rows if row["patch_attention_all"]}
    rollout = sources["rollout"]
    first = {
        row["group_id"]
        for row in rollout.rows("completions", ["completion_id", "group_id"])
        if row["completion_id"] in pictured
    }
    groups = list(rollout.rows("prompts", ["group_id", "kept"]))
    groups.sort(key=lambda row: (row["group_id"] not in first, not row["kept"]))
    return [row["group_id"] for row in groups[:count]]


def _group(prompt: Row, completions: list[Row], joined: Mapping[str, RowLookup]) -> Sample:
    shown = [join(row, prompt, joined) for row in completions]
    if len(shown) > MAX_COMPLETIONS:
        shown.sort(key=lambda one: _reward(one), reverse=True)
        shown = shown[: MAX_COMPLETIONS // 2] + shown[-MAX_COMPLETIONS // 2 :]
    return {
        "group_id": prompt["group_id"],
        "prompt_id": prompt["prompt_id"],
        "slice": prompt["slice"],
        "problem": prompt["problem"],
        "solution": prompt["solution"],
        "round": prompt["round"],
        "kept": prompt["kept"],
        "num_correct": prompt["num_correct"],
        "num_completions": len(completions),
        "images": [_image(image) for image in prompt["images"] or []],
        "completions": shown,
    }


def join(row: Row, prompt: Row, joined: Mapping[str, RowLookup]) -> Sample:
    """A completion with what attention and weights say about it; a list is empty where they say nothing."""
    attention, weight = (_one(joined.get(name), row["completion_id"]) for name in ("attention", "weights"))
    rewards = {name: row[name] for name in rewards_of(list(row))}
    rewards |= {name: weight[name] for name in rewards_of(list(weight))}
    patches = attention.get("patch_attention_all")
    return {
        "completion_id": row["completion_id"],
        "sample": row["sample"],
        "text": row["text"],
        "finish_reason": row["finish_reason"],
        "tokens": row["token_texts"],
        "token_weights": weight.get("token_weights") or [],
        "token_vgr": attention.get("vgr") or [],
        "vgr": attention.get("vgr_all"),
        "aei_vision": attention.get("aei_vision_all"),
        "attention_status": attention.get("status"),
        "reward": weight.get("reward"),
        "rewards": {name.removeprefix("reward_"): value for name, value in rewards.items()},
        "advantage": weight.get("advantage"),
        "in_loss": weight.get("in_loss"),
        "why": weight.get("why", ""),
        "heat": heat_maps(patches, prompt["image_grid_thw"]) if patches else None,
    }


def _image(image: Row) -> dict[str, Any]:
    width, height = size_of(image["bytes"]) or (None, None)
    return {"uri": thumbnail(image["bytes"]), "width": width, "height": height}


def _reward(sample: Sample) -> float:
    reward = sample["reward"] if sample["reward"] is not None else sample["rewards"].get("accuracy", 0.0)
    return float(reward)


def _one(lookup: RowLookup | None, key: str) -> Row:
    return lookup.one(key) if lookup is not None and key in lookup else {}

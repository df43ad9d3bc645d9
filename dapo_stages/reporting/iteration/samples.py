"""A few groups of an iteration in full: image, question, completions, rewards, tokens with their weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from dapo_stages.data.visuals import units_of, visuals_of
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.schemas import BY_IMAGE
from dapo_stages.handoff.shards import Row
from dapo_stages.reporting.iteration.figures import rewards_of
from dapo_stages.reporting.iteration.heat import with_patches
from dapo_stages.reporting.iteration.thumbnails import size_of, thumbnail

FILE = "samples.json"  # of a report
MAX_COMPLETIONS = 8  # shown of a group: beyond that, half with the highest and half with the lowest reward

# Read only these columns of attention rows: attention per image token is thousands of times larger.
_ATTENTION = [
    "completion_id", "status", "vgr", "vgr_all", "aei_vision_all", "num_text_tokens", "num_vision_tokens", BY_IMAGE,
]  # fmt: skip

# Where the accuracy reward read an answer (column read_from), in words.
READ_FROM = {
    "tags": "in <answer>",
    "stated": "stated outside",
    "lone": "last lone letter or line",
    "unclosed": "at the end of a thought never closed",
    "none": "not at all",
}

Sample = dict[str, Any]


def collect_samples(sources: Mapping[str, Source], count: int) -> list[Sample]:
    """`count` groups of the rollout: those with attention per image token first, then those that train, then others.

    Of each at most MAX_COMPLETIONS.
    """
    if "rollout" not in sources or count == 0:
        return []
    looked = with_patches(sources["attention"]) if "attention" in sources else set()
    found = groups_in_full(sources, _choose(sources["rollout"], looked, count))
    return [sample | {"completions": _extremes(sample["completions"])} for sample in found]


def groups_in_full(sources: Mapping[str, Source], names: Collection[str]) -> list[Sample]:
    """Groups of the rollout by their ids, with all of their completions."""
    rollout = sources["rollout"]
    with rollout.lookup("prompts", "group_id") as prompts, rollout.lookup("completions", "group_id") as completions:
        members = {name: completions.all(name) for name in names}
        wanted = {row["completion_id"] for rows in members.values() for row in rows}
        attention, weights = attention_rows(sources, wanted), weight_rows(sources, wanted)
        samples = []
        for name, rows in members.items():
            shown = [join(row, attention, weights) for row in rows]
            measured = [attention[row["completion_id"]] for row in rows if row["completion_id"] in attention]
            samples.append(_group(prompts.one(name), shown, measured))
        return samples


def attention_rows(sources: Mapping[str, Source], wanted: Collection[str]) -> dict[str, Row]:
    """The attention rows of some completions, without what is kept per image token."""
    if "attention" not in sources:
        return {}
    rows = sources["attention"].rows("attention", _ATTENTION)
    return {row["completion_id"]: row for row in rows if row["completion_id"] in wanted}


def weight_rows(sources: Mapping[str, Source], wanted: Collection[str]) -> dict[str, Row]:
    """The weights rows of some completions."""
    if "weights" not in sources:
        return {}
    return {row["completion_id"]: row for row in sources["weights"].rows("weights") if row["completion_id"] in wanted}


def join(row: Row, attention: Mapping[str, Row], weights: Mapping[str, Row]) -> Sample:
    """A completion with its attention and weights; lists are empty if it has none."""
    looked, weight = (rows.get(row["completion_id"], {}) for rows in (attention, weights))
    rewards = {name: row[name] for name in rewards_of(list(row))}
    rewards |= {name: weight[name] for name in rewards_of(list(weight))}
    return {
        "completion_id": row["completion_id"],
        "sample": row["sample"],
        "text": row["text"],
        "finish_reason": row["finish_reason"],
        "answer": row.get("answer"),
        "read_from": row.get("read_from"),
        "tokens": row["token_texts"],
        "token_weights": weight.get("token_weights") or [],
        "token_vgr": [_finite(vgr) for vgr in looked.get("vgr") or ()],
        "vgr": _finite(looked.get("vgr_all")),
        "aei_vision": _finite(looked.get("aei_vision_all")),
        "attention_status": looked.get("status"),
        "reward": weight.get("reward"),
        "rewards": {name.removeprefix("reward_"): value for name, value in rewards.items()},
        "advantage": weight.get("advantage"),
        "in_loss": weight.get("in_loss"),
        "why": weight.get("why", ""),
        **({"by_image": [_finite(share) for share in shares]} if (shares := looked.get(BY_IMAGE)) else {}),
    }


def images_of(prompt: Row) -> list[dict[str, Any]]:
    """The images of a prompt as the page shows them: a video as a frame of each temporal step, with its `second`."""
    images, seconds = prompt["images"] or [], prompt.get("frame_seconds")
    return [
        image_of(images[place]) | ({"second": round(seconds[place], 2)} if seconds and seconds[place] >= 0 else {})
        for place in shown_images(prompt)
    ]


def shown_images(prompt: Row) -> list[int]:
    """The images of a prompt, by number, that maps are drawn over: all but some frames of videos."""
    count = len(prompt["images"] or [])
    if prompt.get("frame_seconds") is None:
        return list(range(count))
    return units_of(visuals_of(count, prompt["frame_seconds"]), prompt["image_grid_thw"])


def image_of(image: Row) -> dict[str, Any]:
    """An image as the page shows it, with its original width and height; None where it cannot be read."""
    width, height = size_of(image["bytes"]) or (None, None)
    return {"uri": thumbnail(image["bytes"]), "width": width, "height": height}


def _choose(rollout: Source, looked: Collection[str], count: int) -> list[str]:
    rows = rollout.rows("completions", ["completion_id", "group_id"])
    first = {row["group_id"] for row in rows if row["completion_id"] in looked}
    groups = list(rollout.rows("prompts", ["group_id", "kept"]))
    groups.sort(key=lambda row: (row["group_id"] not in first, not row["kept"]))
    return [row["group_id"] for row in groups[:count]]


def _group(prompt: Row, completions: list[Sample], measured: list[Row]) -> Sample:
    """`measured`: attention rows of its completions; those that were scored count the tokens of the prompt."""
    scored = next((row for row in measured if row["status"] in {"ok", "no_image"}), {})
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
        "num_text_tokens": scored.get("num_text_tokens"),
        "num_vision_tokens": scored.get("num_vision_tokens"),
        "images": images_of(prompt),
        "completions": completions,
    }


def _extremes(completions: list[Sample]) -> list[Sample]:
    """All of a few, of many the highest and the lowest rewards."""
    if len(completions) <= MAX_COMPLETIONS:
        return completions
    ranked = sorted(completions, key=_reward, reverse=True)
    return ranked[: MAX_COMPLETIONS // 2] + ranked[-(MAX_COMPLETIONS // 2) :]


def _finite(value: float | None) -> float | None:
    """None for values that JSON lacks: the VGR of a completion without attention to the image is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _reward(sample: Sample) -> float:
    reward = sample["reward"] if sample["reward"] is not None else sample["rewards"].get("accuracy", 0.0)
    return float(reward)

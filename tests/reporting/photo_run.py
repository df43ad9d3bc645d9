"""A run of one iteration about a photograph: completions that looked at it, and some that guessed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reporting import tiny_run

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import MASSES, SEGMENTS, TOKEN_SCORES
from dapo_stages.handoff.shards import Row

SIZE, ROWS, COLUMNS = (420, 504), 18, 15  # image tokens of 28 × 28 pixels
SPOT = (3, 7)  # row and column of the face
GROUPS, SAMPLES = 4, 8

# What each sample of a group is: text, well-formed, answer, where that was read, right, VGR, how it ended. The
# fragments have a higher VGR than anything else, and one guesser a higher one than the others.
THOUGHT = ["<think>", " The", " image", " shows", " a", " uniform", ".", "</think>", "\n"]
FORMED = [*THOUGHT, "<answer>", "B", "</answer>"]
KINDS: list[dict[str, Any]] = [
    {"tokens": FORMED, "format": 1.0, "answer": "B", "read": "tags", "right": 1.0, "vgr": 0.5, "end": "stop"},
    {"tokens": FORMED, "format": 1.0, "answer": "B", "read": "tags", "right": 1.0, "vgr": 5.0, "end": "stop"},  # luck
    {"tokens": FORMED, "format": 1.0, "answer": "A", "read": "tags", "right": 0.0, "vgr": 4.0, "end": "stop"},  # guess
    {"tokens": FORMED, "format": 1.0, "answer": "A", "read": "tags", "right": 0.0, "vgr": 0.7, "end": "stop"},
    {"tokens": ["<answer>", "B"], "format": 0.0, "answer": "B", "read": "unclosed", "right": 1.0, "vgr": 9.0,
     "end": "length"},
    {"tokens": [" B"], "format": 0.0, "answer": "B", "read": "lone", "right": 1.0, "vgr": 8.0, "end": "stop"},
    {"tokens": FORMED, "format": 1.0, "answer": None, "read": "none", "right": 0.0, "vgr": 7.0, "end": "stop"},
    {"tokens": FORMED, "format": 1.0, "answer": "B", "read": "tags", "right": 1.0, "vgr": 6.0, "end": "length"},
]  # fmt: skip
GUESSERS = [f"it1-p{group}-s{sample}" for sample in (1, 2) for group in reversed(range(GROUPS))]  # by their VGR


def build(run: Path, photo: Image.Image, *, blank: bool = False) -> Path:
    """`blank`: also scored with the image blanked, on which the wrong guesses depend least of all."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    tiny_run.publish(Plan("prepare-data", run / "data", {}, 1), lambda output: None)
    tiny_run.publish(Plan("init-policy", run / "policy", {}, 1), lambda output: None)
    buffer = io.BytesIO()
    photo.convert("RGB").resize(SIZE).save(buffer, format="PNG")
    image = {"images": [{"bytes": buffer.getvalue(), "path": None}], "image_grid_thw": [[1, 2 * ROWS, 2 * COLUMNS]]}
    image |= {"problem": "Who is shown?\nA. a pilot\nB. an admiral", "solution": "B", "kept": True}
    here = run / "iter-0001"
    plan = Plan("rollout", here / "rollout", {"iteration": 1}, 1, {"policy": Source(run / "policy")})
    places = [(group, sample) for group in range(GROUPS) for sample in range(SAMPLES)]

    def fill(output: Output) -> None:
        names = [{"group_id": f"it1-p{group}", "prompt_id": f"p{group}", "slice": "people"} for group in range(GROUPS)]
        output.write("prompts", 0, [tiny_run.prompt(1, 0, correct=5) | image | name for name in names])
        output.write("completions", 0, [_completion(*place) for place in places])

    tiny_run.publish(plan, fill)
    plan = Plan("score-attention", here / "attention", {}, 1, {"rollouts": Source(here / "rollout")})
    tiny_run.publish(plan, lambda output: output.write("attention", 0, [_scores(*place, blank) for place in places]))
    plan = Plan("weight-tokens", here / "weights", {}, 1, {"rollouts": Source(here / "rollout")})
    tiny_run.publish(plan, lambda output: output.write("weights", 0, [_weight(*place) for place in places]))
    return run


def attention(token: int) -> np.ndarray:
    """To each image token [ROWS, COLUMNS]: as of a real head, noise everywhere and a spot around the face."""
    rng = np.random.default_rng(token)
    noise = rng.lognormal(0, 0.7, (ROWS, COLUMNS))
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    spot = np.exp(-((rows - SPOT[0]) ** 2 + (columns - SPOT[1]) ** 2) / 4)
    found: np.ndarray = 0.4 * (noise + 20 * spot) / (noise + 20 * spot).sum()
    return found


def _completion(group: int, sample: int) -> Row:
    kind = KINDS[sample]
    tokens, row = kind["tokens"], tiny_run.completion(1, group, 0)
    row |= {"completion_id": f"it1-p{group}-s{sample}", "sample": sample}
    row |= {"token_texts": tokens, "text": "".join(tokens), "completion_ids": list(range(len(tokens)))}
    row |= {"sampling_logprobs": [-0.5] * len(tokens), "finish_reason": kind["end"], "reward_overlong": 0.0}
    row |= {"reward_accuracy": kind["right"], "reward_format": kind["format"]}
    return row | {"answer": kind["answer"], "read_from": kind["read"]}


def _scores(group: int, sample: int, blank: bool) -> Row:
    kind = KINDS[sample]
    length, vgr = len(kind["tokens"]), kind["vgr"] + group / 100
    row: Row = {"completion_id": f"it1-p{group}-s{sample}", "status": "ok", "vgr": [vgr] * length}
    row |= {f"mass_{name}": [0.2] * length for name in MASSES} | dict.fromkeys(TOKEN_SCORES)
    looks = [attention(token).ravel().tolist() for token in range(length)] if sample < 4 and group == 0 else None
    for segment in SEGMENTS:
        row |= {f"{name}_{segment}": 0.5 for name in ("aei_text", "aei_vision", "attn_text", "attn_vision")}
        row |= {f"vgr_{segment}": vgr, f"patch_attention_{segment}": looks}
    if blank:
        row["visual_kl"] = [(2.0, 2.5, 0.01, 3.0, 9.0, 9.0, 9.0, 9.0)[sample]] * length
    return {**row, "num_text_tokens": 9, "num_vision_tokens": ROWS * COLUMNS}


def _weight(group: int, sample: int) -> Row:
    kind = KINDS[sample]
    length = len(kind["tokens"])
    row: Row = {"completion_id": f"it1-p{group}-s{sample}", "group_id": f"it1-p{group}", "source": "fresh"}
    row |= {"source_iteration": 1, "reward": 2 * kind["right"] + kind["format"], "reward_accuracy": kind["right"]}
    row |= {"reward_vgr": 0.5, "reward_format": kind["format"], "reward_overlong": 0.0, "reward_phase": "regular"}
    row |= {"advantage": kind["right"] - 0.6, "importance": None, "in_loss": True, "why": ""}
    return row | {"token_weights": [1 + (index / length - (length - 1) / (2 * length)) for index in range(length)]}

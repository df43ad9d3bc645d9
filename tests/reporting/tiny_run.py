"""A small run folder with hand-made rows: an evaluated start and two iterations, hostile text among them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.resuming import open_output
from dapo_stages.handoff.schemas import MASSES, SCHEMAS, SEGMENTS, TOKEN_SCORES
from dapo_stages.handoff.shards import Row, write_text

HOSTILE = "<script>alert(1)</script> [/box] | `x` ```\n# 标题 \x1b[31m红色\n</td><answer>B</answer>"
WORDS = ["<think>", " The", " circle", " is", " red", ".", "</think>", "\n", "<answer>", "A", "</answer>"]
LENGTHS = (11, 11, 6, 8)  # tokens of the four completions of a group


def build(run: Path, *, last: str = "eval") -> Path:
    """A run whose second iteration has come as far as `last`."""
    run.mkdir(parents=True, exist_ok=True)
    config = run / "config.yaml"
    config.write_text(
        "seed: 1\nreport: {samples: 2}\nmodel: {name: embedded}\nrollout: {prompts_per_iteration: 2}\n",
        encoding="utf-8",
    )
    publish(Plan("prepare-data", run / "data", {}, 1), lambda output: None)
    publish(Plan("init-policy", run / "policy", {"model": {"name": "embedded"}}, 1), lambda output: None)
    evaluation(run, 0, greedy=0.25)
    iteration(run, 1)
    iteration(run, 2, last=last)
    return run


def rollout_config(number: int) -> dict[str, Any]:
    """What later stages read of a rollout's configuration."""
    return {"iteration": number, "rollout": {"prompts_per_iteration": 2}}


def iteration(run: Path, number: int, *, last: str = "eval", attention: bool = True) -> None:
    """One iteration: two groups of four completions, the second group not kept."""
    stages: dict[str, Callable[[], None]] = {
        "rollout": lambda: rollout(run, number),
        "attention": lambda: scores(run, number) if attention else None,
        "weights": lambda: weights(run, number, attention),
        "train": lambda: train(run, number),
        "eval": lambda: evaluation(run, number, greedy=0.25 * (number + 1)),
    }
    for name, make in stages.items():
        make()
        if name == last:
            break


def rollout(run: Path, number: int, seed: int = 1) -> None:
    previous = run / "policy" if number == 1 else run / f"iter-{number - 1:04d}" / "train" / "policy"

    def fill(output: Output) -> None:
        output.write("prompts", 0, [prompt(number, 0, correct=2), prompt(number, 1, correct=4)])
        output.write(
            "completions", 0, [read(completion(number, group, sample)) for group in (0, 1) for sample in range(4)]
        )
        output.counts = {"groups": 2, "kept": 1, "completions": 8, "rounds": 1, "accuracy": 0.75, "format": 0.875}

    inputs = {"policy": Source(previous), "data": Source(run / "data")}
    publish(
        Plan(
            "rollout",
            run / f"iter-{number:04d}" / "rollout",
            {"iteration": number, "rollout": {"prompts_per_iteration": 2}},
            seed,
            inputs,
        ),
        fill,
    )


def prompt(number: int, group: int, correct: int) -> Row:
    return {
        "group_id": f"it{number}-p{group}",
        "iteration": number,
        "prompt_id": f"p{group}",
        "images": [{"bytes": image(group), "path": None}],
        "problem": "What colour is the circle?\nA. red | B. <b>blue</b>",
        "solution": "A",
        "prompt_text": "<|im_start|>user",
        "prompt_ids": [1, 2, 3],
        "image_grid_thw": [[1, 4, 4]],
        "source": "test",
        "slice": ("prior-consistent", "prior|violating")[group],
        "round": 1,
        "num_correct": correct,
        "kept": group == 0,
    }


def completion(number: int, group: int, sample: int) -> Row:
    """Group 0: samples 0 and 1 right, sample 3 hostile and cut off. Group 1: all right."""
    hostile = group == 0 and sample == 3
    length = LENGTHS[sample]
    tokens = [HOSTILE, *WORDS[1:8]] if hostile else WORDS[:length]
    return {
        "completion_id": f"it{number}-p{group}-s{sample}",
        "group_id": f"it{number}-p{group}",
        "sample": sample,
        "text": "".join(tokens),
        "completion_ids": list(range(length)),
        "token_texts": tokens,
        "sampling_logprobs": [-0.5] * length,
        "finish_reason": "length" if hostile else "stop",
        "engine": "test",
        "policy_version": number - 1,
        "reward_accuracy": 1.0 if group == 1 or sample < 2 else 0.0,
        "reward_format": 0.0 if hostile else 1.0,
        "reward_overlong": -0.5 if hostile else 0.0,
    }


def read(row: Row) -> Row:
    """A completion as rollout writes it, with the answer: A of samples 0 and 1, none of 2, B of the hostile one."""
    answer = "B" if row["finish_reason"] == "length" else "A" if "</answer>" in row["token_texts"] else None
    return {"answer": answer, "read_from": "none" if answer is None else "tags"} | row


def scores(run: Path, number: int, *, enabled: bool = True) -> None:
    """Attention of the kept group: VGR of sample s is 1 + s in the first iteration, half of that in the second."""

    def row(sample: int) -> Row:
        if not enabled:
            nothing: Row = dict.fromkeys(SCHEMAS["attention"].names)
            key = f"it{number}-p0-s{sample}"
            return nothing | {"completion_id": key, "status": "off", "num_text_tokens": 0, "num_vision_tokens": 0}
        length, vgr = LENGTHS[sample], (1.0 + sample) / number
        found: Row = {"completion_id": f"it{number}-p0-s{sample}", "status": "ok", "vgr": [vgr] * length}
        found |= {f"mass_{kind}": [0.2] * length for kind in MASSES}
        for segment in SEGMENTS:
            missing = segment == "late" and sample == 3  # a null has to stay out of the mean
            found[f"vgr_{segment}"] = None if missing else vgr
            found |= {f"{kind}_{segment}": 0.5 for kind in ("aei_text", "aei_vision", "attn_text", "attn_vision")}
            with_patches = segment == "all" and sample < 2
            found[f"patch_attention_{segment}"] = [[0.1, 0.2, 0.6, 0.1]] * length if with_patches else None
        return {**found, "num_text_tokens": 12, "num_vision_tokens": 4, **dict.fromkeys(TOKEN_SCORES)}

    folder = run / f"iter-{number:04d}"
    inputs = {"rollouts": Source(folder / "rollout")}
    plan = Plan("score-attention", folder / "attention", {}, 1, inputs)
    publish(plan, lambda output: output.write("attention", 0, [row(sample) for sample in range(4)]))


def weights(run: Path, number: int, attention: bool = True) -> None:
    """Rewards 3, 3, 0.5, -0.5 of the kept group; a replayed row besides from iteration 2 on."""

    def row(sample: int, source: str = "fresh") -> Row:
        length = LENGTHS[sample]
        spread = [0.5 + index / (length - 1) for index in range(length)]  # 0.5 … 1.5, mean 1
        return {
            "completion_id": f"it{number - (source == 'replay')}-p0-s{sample}",
            "group_id": f"it{number - (source == 'replay')}-p0",
            "source": source,
            "source_iteration": number - (source == "replay"),
            "reward": (3.0, 3.0, 0.5, -0.5)[sample],
            "reward_accuracy": 1.0 if sample < 2 else 0.0,
            "reward_vgr": (1.0, 0.75, 0.25, 0.0)[sample],
            "reward_format": 0.0 if sample == 3 else 1.0,
            "reward_overlong": -0.5 if sample == 3 else 0.0,
            "reward_phase": "regular",
            "advantage": (0.9, 0.9, -0.6, -1.2)[sample],
            "importance": None,
            "token_weights": spread if attention else [1.0] * length,
            "in_loss": sample != 3,
            "why": "truncated" if sample == 3 else "",
        }

    rows = [row(sample) for sample in range(4)] + ([row(0, "replay")] if number > 1 else [])
    folder = run / f"iter-{number:04d}"
    inputs = {name: folder / part for name, part in (("rollouts", "rollout"), ("attention", "attention"))}
    sources = {name: Source(path) for name, path in inputs.items() if path.exists()}

    def fill(output: Output) -> None:
        output.write("weights", 0, rows)
        if number > 1:
            output.write("replayed-prompts", 0, [prompt(number - 1, 0, correct=2)])
            output.write("replayed-completions", 0, [completion(number - 1, 0, 0)])

    publish(Plan("weight-tokens", folder / "weights", {}, 1, sources), fill)


def train(run: Path, number: int) -> None:
    """Two updates: loss 0.2 and 0.4, largest ratios 1.5 and 1.25."""
    values = {
        "loss": (0.2, 0.4),
        "ratio_max": (1.5, 1.25),
        "entropy": (0.6, 0.5),
        "grad_norm": (1.0, 3.0),
        "clip_low": (0.01, 0.03),
        "clip_high": (0.0, 0.02),
        "learning_rate": (1e-5, 2e-5),
        "engine_diff_mean": (0.01, 0.03),
        "engine_diff_max": (0.5, 0.25),
        "tokens": (10, 20),
    }
    rows = [
        {"iteration": number, "update": update, "name": name, "value": float(pair[update - 1])}
        for name, pair in values.items()
        for update in (1, 2)
    ]
    folder = run / f"iter-{number:04d}"
    inputs = {"rollouts": Source(folder / "rollout"), "weights": Source(folder / "weights")}
    plan = Plan("train-step", folder / "train", {}, 1, inputs)
    publish(plan, lambda output: output.write("metrics", None, rows))
    for part in ("policy", "state"):
        publish(Plan(part, folder / "train" / part, {}, number), lambda output: None)


def evaluation(run: Path, number: int, greedy: float) -> None:
    part = {"greedy_accuracy": greedy, "greedy_format": 1.0, "sampled_accuracy": greedy / 2, "blank_accuracy": None}
    slices = ("prior-consistent", "prior|violating")
    metrics: dict[str, Any] = {"questions": 4, "slices": dict.fromkeys(slices, 2), **part}
    metrics["by_slice"] = {name: {**part, "greedy_accuracy": greedy + 0.1 - 0.2 * i} for i, name in enumerate(slices)}
    rows = [
        {
            "completion_id": f"eval{number}-{index}",
            "prompt_id": f"h{index}",
            "slice": slices[index % 2],
            "mode": "greedy",
            "sample": 0,
            "solution": "A",
            "text": HOSTILE if index == 3 else "<answer>A</answer>",
            "completion_ids": [5, 6, 7],
            "token_texts": ["<answer>", "A", "</answer>"],
            "sampling_logprobs": [-0.1, -0.2, -0.3],
            "policy_version": number,
            "reward_overlong": 0.0,
            "num_tokens": 3,
            "finish_reason": "stop",
            "reward_accuracy": 0.0 if index == 3 else 1.0,
            "reward_format": 1.0,
            "answer": None if index == 3 else "A",
            "read_from": "none" if index == 3 else "tags",
            "num_options": None,
            "labels": None,
        }
        for index in range(4)
    ]

    def fill(output: Output) -> None:
        output.write("completions", 0, rows)
        write_text(output.folder / "metrics.json", json.dumps(metrics))
        output.add_files("metrics.json")
        output.counts |= {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    policy = run / "policy" if number == 0 else run / f"iter-{number:04d}" / "train" / "policy"
    inputs = {"policy": Source(policy), "data": Source(run / "data")}
    publish(Plan("evaluate", run / f"iter-{number:04d}" / "eval", {}, 1, inputs), fill)


def publish(plan: Plan, fill: Callable[[Output], None]) -> None:
    with open_output(plan, overwrite=True) as output:
        if output is not None:
            fill(output)
            output.publish()


def image(which: int) -> bytes:
    """56 × 56: a red circle, or a blue one."""
    image = Image.new("RGB", (56, 56), (170, 170, 170))
    ImageDraw.Draw(image).ellipse((12, 16, 40, 44), fill=((215, 45, 45), (45, 80, 215))[which])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def contents(run: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in names}

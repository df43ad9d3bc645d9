"""Prompts of real shape for tests: chat text with images of different sizes, tokenized by the processor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dapo_stages.data.chat import SYSTEM_PROMPT, messages
from dapo_stages.data.video_encoding import VideoEncoder, shown
from dapo_stages.data.visuals import visuals_of
from dapo_stages.models.inputs import prompt_from
from dapo_stages.models.inputs import video_prompt as from_shown
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.packing import Group, Prompt


def image(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


def prompt(policy: Policy, problem: str, sizes: list[tuple[int, int]], system: str | None = SYSTEM_PROMPT) -> Prompt:
    """A prompt with one noise image per size (width, height)."""
    images = [image(w, h, seed) for seed, (w, h) in enumerate(sizes)]
    text = policy.processor.apply_chat_template(messages(problem, len(sizes), system), add_generation_prompt=True)
    inputs = policy.processor(text=[text], images=images or None, return_tensors="pt")
    return prompt_from(inputs)


def own_row(policy: Policy, prompt: Prompt, completion: Sequence[int] = ()) -> dict[str, torch.Tensor]:
    """One completion in a row of its own, as transformers' forward and generate take it."""
    ids = torch.cat([prompt.ids, torch.tensor(completion, dtype=torch.long)])[None]
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, value in prompt.inputs.items():
        told = name.endswith("token_type_ids")  # of each token; a completion is text
        row[name] = torch.cat([value, value.new_zeros(1, len(completion))], 1) if told else value
    if policy.base.config.model_type.startswith("qwen"):
        is_video = ids == policy.base.config.video_token_id
        row["mm_token_type_ids"] = (ids == policy.image_token_id).int() + 2 * is_video.int()
    if policy.base.config.model_type != "qwen2_5_vl":
        row.pop("second_per_grid_ts", None)
    return row


def moving(width: int, height: int, frames: int) -> list[Image.Image]:
    """A bright square that moves to the right over noise."""
    found = [image(width, height, 100 + number) for number in range(frames)]
    for number, frame in enumerate(found):
        frame.paste((250, 240, 10), (8 * number, 10, 8 * number + 20, 30))
    return found


def video_prompt(policy: Policy, problem: str, seen: Sequence[Image.Image | list[Image.Image]]) -> Prompt:
    """A prompt with images and videos (lists of frames, two a second), in the order of their placeholders."""
    videos = [one for one in seen if isinstance(one, list)]
    spoken = messages(problem, len(seen) - len(videos), n_videos=len(videos))
    text = policy.processor.apply_chat_template(spoken, add_generation_prompt=True)
    images: list[Image.Image] = []
    seconds: list[float] = []
    for one in seen:
        frames = one if isinstance(one, list) else [one]
        images += frames
        seconds += [number / 2 for number in range(len(frames))] if isinstance(one, list) else [-1.0]
    visuals = visuals_of(len(images), seconds)
    sizes = [images[visual.images[0]].size for visual in visuals]
    encoder = VideoEncoder(policy.processor)
    ids, _ = encoder.encode(text, list(zip(visuals, sizes, strict=True)), policy.processor.tokenizer)
    return from_shown(torch.tensor(ids), shown(policy.processor, images, visuals), policy.processor)


def video_groups(policy: Policy) -> list[Group]:
    """A video of four frames; an image between two videos, one with an odd number of frames; an image alone."""
    cases = groups(policy)[:2]
    between: list[Image.Image | list[Image.Image]] = [moving(84, 56, 3), image(56, 56, 5), moving(56, 112, 4)]
    return [
        Group(video_prompt(policy, "Which way did it go?", [moving(56, 56, 4)]), cases[0].completions),
        Group(video_prompt(policy, "Is <video> like <image>, or is <video>?", between), cases[1].completions),
        cases[0],
    ]


def groups(policy: Policy) -> list[Group]:
    """Three groups: one image, two images of different size, none; completions of unequal length."""
    generator = torch.Generator().manual_seed(7)

    def completions(*lengths: int) -> list[list[int]]:
        return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]

    return [
        Group(prompt(policy, "What colour is the circle?", [(84, 56)]), completions(5, 1, 9, 3)),
        Group(prompt(policy, "Which is larger, <image> or <image>?", [(56, 112), (140, 84)]), completions(2, 7)),
        Group(prompt(policy, "No image here.", []), completions(4, 4, 6)),
    ]

"""Prompts of real shape for tests: chat text with pictures of different sizes, tokenised by the processor."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from dapo_stages.data.chat import SYSTEM_PROMPT, messages
from dapo_stages.models.packing import Group, Prompt
from dapo_stages.models.policy import Policy


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


def prompt(policy: Policy, problem: str, sizes: list[tuple[int, int]], system: str | None = SYSTEM_PROMPT) -> Prompt:
    """A prompt with one noise picture per size (width, height)."""
    pictures = [picture(w, h, seed) for seed, (w, h) in enumerate(sizes)]
    text = policy.processor.apply_chat_template(messages(problem, len(sizes), system), add_generation_prompt=True)
    inputs = policy.processor(text=[text], images=pictures or None, return_tensors="pt")
    return Prompt(inputs["input_ids"][0], inputs.get("pixel_values"), inputs.get("image_grid_thw"))


def groups(policy: Policy) -> list[Group]:
    """Three groups: one picture, two pictures of different size, none; completions of unequal length."""
    generator = torch.Generator().manual_seed(7)

    def completions(*lengths: int) -> list[list[int]]:
        return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]

    return [
        Group(prompt(policy, "What colour is the circle?", [(84, 56)]), completions(5, 1, 9, 3)),
        Group(prompt(policy, "Which is larger, <image> or <image>?", [(56, 112), (140, 84)]), completions(2, 7)),
        Group(prompt(policy, "No picture here.", []), completions(4, 4, 6)),
    ]

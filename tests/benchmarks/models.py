"""The benched policies and prompts of exact length for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import save_policy
from dapo_stages.models.shared_prefix.packing import Prompt

CPU = torch.device("cpu")
VOCABULARY = 4096
PATCH, MERGE = 14, 2

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 10000.0},
    "tie_word_embeddings": True,
}
_VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3],
    "out_hidden_size": 384,
    "in_channels": 3,
}
TEXT_142M: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 10000.0},
}
_TEXT_3B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
}
_VISION_3B: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "out_hidden_size": 2048,
    "in_channels": 3,
}


def small(seed: int = 0) -> Policy:
    """The embedded policy: about 1 M parameters."""
    from dapo_stages.models.embedded.embedded_policy import build, build_processor

    model, tokenizer = build(seed)
    return Policy(model, build_processor(tokenizer), CPU, torch.float32)


def medium(seed: int = 0, text: Mapping[str, Any] | None = None) -> Policy:
    """A Qwen2.5-VL of about 14 M parameters with random weights, or with another language model (`text`)."""
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from dapo_stages.models.processor import image_processor

    tokenizer = medium_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2_5_VLConfig(
        text_config={**_TEXT, **(text or {}), **ends, "bos_token_id": tokenizer.pad_token_id},
        vision_config=_VISION | {"out_hidden_size": (text or _TEXT)["hidden_size"]},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.pad_token_id, do_sample=True, top_k=0, **ends)
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 1024 * 1024})
    return Policy(model.eval(), image_processor(images, tokenizer), CPU, torch.float32)


def three_billion(tokenizer: Any) -> Any:
    """The configuration of Qwen2.5-VL-3B, with the special tokens of a tokenizer."""
    from transformers import Qwen2_5_VLConfig

    token = tokenizer.convert_tokens_to_ids
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Qwen2_5_VLConfig(
        text_config=_TEXT_3B | ends,
        vision_config=_VISION_3B,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def medium_tokenizer() -> Any:
    """The embedded tokenizer with ordinary tokens added up to the vocabulary, so that all of it can be sampled."""
    from dapo_stages.models.embedded.embedded_tokenizer import build_tokenizer, tokenizer_of

    bpe = json.loads(build_tokenizer().backend_tokenizer.to_str())["model"]
    vocabulary = dict(bpe["vocab"])
    for index in range(max(vocabulary.values()) + 1, VOCABULARY):
        vocabulary[f"Ġw{index}"] = index  # reached by no merge: it decodes, and no text encodes to it
    return tokenizer_of(vocabulary, [tuple(merge) for merge in bpe["merges"]], 8192)


def save(policy: Policy, folder: Path) -> None:
    """A checkpoint folder that `init-policy --set model.name=FOLDER` refers to."""
    save_policy(policy, folder)


def prompt(policy: Policy, length: int, vision: tuple[int, int], seed: int) -> Prompt:
    """A prompt of exactly `length` tokens with one noise image of rows × columns merged vision tokens."""
    token = policy.processor.tokenizer.convert_tokens_to_ids
    start, end = token("<|vision_start|>"), token("<|vision_end|>")
    generator = torch.Generator().manual_seed(seed)
    rows, columns = vision
    height, width = rows * MERGE, columns * MERGE
    before, after = 5, length - rows * columns - 7
    ids = torch.cat(
        [
            torch.randint(0, 256, (before,), generator=generator),
            torch.tensor([start, *[policy.image_token_id] * (rows * columns), end]),
            torch.randint(0, 256, (after,), generator=generator),
        ]
    )
    pixels = torch.randn(height * width, 3 * 2 * PATCH * PATCH, generator=generator)
    return Prompt(ids, pixels, torch.tensor([[1, height, width]]))


def completions(count: int, length: int, seed: int) -> list[list[int]]:
    """`count` completions of ordinary tokens, all of the same length."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[list[int]] = torch.randint(0, 256, (count, length), generator=generator).tolist()
    return drawn

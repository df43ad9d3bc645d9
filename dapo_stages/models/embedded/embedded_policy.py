"""The embedded policy: a small Qwen2.5-VL of the real architecture, built on the spot without a download."""

from __future__ import annotations

from typing import Any

from dapo_stages.data.embedded.tasks import TaskName
from dapo_stages.models.embedded.embedded_tokenizer import CHAT_TEMPLATE, build_tokenizer
from dapo_stages.models.processor import image_processor

SMALLEST, LARGEST = 56, 224  # pixels a side of the square images that are not resized


def build(seed: int, task: TaskName = "colours") -> tuple[Any, Any]:
    """A newly initialized Qwen2.5-VL of about 1 M parameters, and its tokenizer.

    The tokenizer is the same for every seed of a task. The global random state is not changed.
    """
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**_architecture(tokenizer)))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return model.eval(), tokenizer


def build_processor(tokenizer: Any) -> Any:
    """The processor of the embedded policy: Qwen's, with pixel limits that do not resize its own images."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(size={"shortest_edge": SMALLEST**2, "longest_edge": LARGEST**2})
    return image_processor(images, tokenizer, CHAT_TEMPLATE)


def _architecture(tokenizer: Any) -> dict[str, Any]:
    """Keyword arguments of Qwen2_5_VLConfig: the proportions of the 7B model, some seven thousand times smaller."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "text_config": _text(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id),
        "vision_config": _VISION,
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": True,
    }


def _text(vocabulary: int, end: int, pad: int) -> dict[str, Any]:
    return {
        "vocab_size": -(-vocabulary // 64) * 64,  # rounded up to a multiple that kernels prefer
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
        "tie_word_embeddings": True,
    }


_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 128,
    "in_channels": 3,
}

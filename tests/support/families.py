"""Tiny random checkpoints of other architectures, with the embedded policy's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dapo_stages.models.embedded.embedded_policy import build, build_processor
from dapo_stages.models.embedded.embedded_tokenizer import CHAT_TEMPLATE, build_tokenizer
from dapo_stages.models.families import FAMILIES
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import save_policy
from dapo_stages.models.processor import image_processor
from support import machine
from support.more_families import MAKERS as MORE

QWEN = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_5")  # those with positions of three axes
PLAIN = ("internvl", "llava", "llava_onevision", "gemma3", "idefics3", "smolvlm")  # whose positions count the tokens
SHARED = (*QWEN, *PLAIN)
SOME = (*QWEN, "internvl", "llava_onevision", "idefics3", "gemma3")  # for what does not differ between the others
WINDOWS = ("llava with windows", "qwen2_vl with windows")  # whose layers, or some of them, see 8 tokens, as Gemma 3's
OTHER = "llava with starcoder2"  # one that does not share: its decoder was not tried
OWN_ROWS = (OTHER,)  # all of those that do not, whose attention is scored in rows of their own


@contextmanager
def families_kept() -> Iterator[None]:
    """Afterwards FAMILIES is as before, in the same order, in which messages list it."""
    before = dict(FAMILIES)
    try:
        yield
    finally:
        FAMILIES.clear()
        FAMILIES.update(before)


def save_tiny(family: str, folder: Path) -> None:
    """A checkpoint with random weights: hidden 64, 3 layers, 2 heads, 1 key-value head; qwen2_5_vl is the embedded
    policy itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(machine.seed())
        model, processor = _MAKERS[family]()
    save_policy(Policy(model.eval(), processor, torch.device("cpu"), torch.float32), folder)
    if model.config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model"):
        _name_as_published(folder / "model.safetensors")


def _name_as_published(path: Path) -> None:
    """CLIP's and SigLIP's weights under the names of the checkpoints that people have, which vLLM expects."""
    weights = load_file(path)
    published = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()}
    save_file(published, path, metadata={"format": "pt"})


def _qwen2_5_vl() -> tuple[Any, Any]:
    model, tokenizer = build(machine.seed())
    return model, build_processor(tokenizer)


def _qwen2_vl(**more: Any) -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    return _qwen("Qwen2VL", _text(rope_parameters=rope, **more), vision, patch=14)


def _qwen3_vl() -> tuple[Any, Any]:
    """With visual features added to the first two layers (deepstack) and positions interleaved."""
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [8, 4, 4], "rope_theta": 10000.0}
    return _qwen("Qwen3VL", _text(rope_parameters=rope, head_dim=32), vision, patch=16)


def _qwen(name: str, text: dict[str, Any], vision: dict[str, Any], patch: int) -> tuple[Any, Any]:
    tokenizer = build_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config={**vision, "patch_size": patch},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    images = Qwen2VLImageProcessorPil(patch_size=patch, size={"shortest_edge": 56**2, "longest_edge": 224**2})
    return _ended(model, tokenizer), image_processor(images, tokenizer, CHAT_TEMPLATE, config.model_type)


def _llava(**decoder: Any) -> tuple[Any, Any]:
    tokenizer = build_tokenizer()
    image = "<|image_pad|>"
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **_text(**decoder)},
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
        },
        image_token_index=tokenizer.convert_tokens_to_ids(image),
        image_seq_length=16,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    side = {"height": 56, "width": 56}
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=side),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=image,
        num_additional_image_tokens=1,
    )
    return _ended(transformers.LlavaForConditionalGeneration(config), tokenizer), processor


def _windows() -> tuple[Any, Any]:
    """Every layer sees 8 tokens: fewer than an image, a prompt and the longest completion have."""
    return _llava(model_type="mistral", sliding_window=8)


def _qwen2_vl_windows() -> tuple[Any, Any]:
    """All layers but the first do, though positions of images do not count tokens."""
    return _qwen2_vl(use_sliding_window=True, sliding_window=8, max_window_layers=1)


def _other() -> tuple[Any, Any]:
    return _llava(model_type="starcoder2", sliding_window=256)  # the images of prompts in tests lie within


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 576, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": None,
        "tie_word_embeddings": True, **more,
    }  # fmt: skip


def _ended(model: Any, tokenizer: Any) -> Any:
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


_MAKERS = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "llava": _llava,
    WINDOWS[0]: _windows,
    WINDOWS[1]: _qwen2_vl_windows,
    OTHER: _other,
} | MORE

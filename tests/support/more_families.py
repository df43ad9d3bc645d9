"""Tiny random checkpoints of further families, with the embedded policy's tokenizer.

Each has what is particular to its family: Gemma3's sliding windows and bidirectional image blocks, Qwen3.5's linear
layers, LLaVA-OneVision's tiles with newlines, Idefics3's and SmolVLM's pixel shuffle with their own marks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from dapo_stages.models.embedded.embedded_tokenizer import CHAT_TEMPLATE, build_tokenizer

IMAGE = "<|image_pad|>"
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _tokenizer(marker: str | None = None, **tokens: str) -> Any:
    """The embedded tokenizer; `tokens` are those that the family's processor asks it for, `marker` stands for an image
    in a chat."""
    tokenizer = build_tokenizer()
    new = [token for token in tokens.values() if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer._set_model_specific_special_tokens(tokens)
    if marker is not None:
        tokenizer.chat_template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", marker)
    return tokenizer


def _made(kind: str, processor: Any, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    from support.families import _ended

    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **more
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return _ended(model, processor.tokenizer), processor


def _text(kind: str, **more: Any) -> dict[str, Any]:
    from support.families import _text

    return {"model_type": kind, **_text(vocab_size=640, pad_token_id=None, **more)}


def _llava_onevision() -> tuple[Any, Any]:
    """Every image as one tile and as the whole, with a newline after each row of the former."""
    tokenizer = _tokenizer(image_token=IMAGE, video_token="<|video_pad|>")
    pinpoints = [[56, 56], [56, 112], [112, 56]]
    processor = transformers.LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
    vision = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}
    return _made(
        "LlavaOnevision", processor, _text("qwen2"), _VISION | vision,
        image_token_index=tokenizer.image_token_id, video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
    )  # fmt: skip


def _idefics3() -> tuple[Any, Any]:
    """Images are split in tiles; 4 × 4 patches become 2 × 2 tokens."""
    tokens = {"image_token": "<image>", "fake": "<fake_token_around_image>", "end": "<end_of_utterance>"}
    tokenizer = _tokenizer("<image>", **tokens)
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    tokenizer.add_tokens(["<global-img>", *tiles])
    images = Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template
    )
    return _shuffled("Idefics3", processor)


def _smolvlm() -> tuple[Any, Any]:
    """As Idefics3, with images that are not split."""
    tokens = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    tokenizer = _tokenizer(
        "<image>", **tokens, end_of_utterance_token="<end_of_utterance>", global_image_token="<global-img>"
    )
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}, do_image_splitting=False
    )
    processor = transformers.SmolVLMProcessor(
        images, tokenizer, transformers.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=tokenizer.chat_template
    )
    return _shuffled("SmolVLM", processor)


def _shuffled(kind: str, processor: Any) -> tuple[Any, Any]:
    vision = _VISION | {"image_size": 56, "patch_size": 14}
    return _made(kind, processor, _text("llama"), vision, image_token_id=processor.image_token_id, scale_factor=2)


def _internvl() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        IMAGE, context_image_token=IMAGE, start_image_token="<|vision_start|>",
        end_image_token="<|vision_end|>", video_token="<|video_pad|>",
    )  # fmt: skip
    images = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=2)
    processor = transformers.InternVLProcessor(
        images, tokenizer, transformers.InternVLVideoProcessor(), image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    vision = _VISION | {"image_size": [56, 56], "patch_size": [14, 14]}
    return _made(
        "InternVL", processor, _text("qwen2"), vision, image_token_id=processor.image_token_id, image_seq_length=4
    )


def _gemma3() -> tuple[Any, Any]:
    """A layer that sees all tokens between two with a sliding window, shorter than an image, whose 16 tokens see each
    other. The projection of images is not 0, as transformers makes it."""
    tokenizer = _tokenizer(
        "<|vision_start|>", boi_token="<|vision_start|>", eoi_token="<|vision_end|>", image_token=IMAGE
    )
    tokenizer.add_tokens(["\n" * number for number in (1, 2, 3, 4)])  # as Gemma's own, which vLLM relies on
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = transformers.Gemma3Processor(
        images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=16
    )
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    text = _text("gemma3_text", head_dim=32, sliding_window=8, layer_types=layers, query_pre_attn_scalar=24)
    vision = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}
    model, processor = _made(
        "Gemma3", processor, text, _VISION | vision,
        image_token_index=tokenizer.image_token_id, boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id, mm_tokens_per_image=16,
    )  # fmt: skip
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def _qwen3_5() -> tuple[Any, Any]:
    """Every second layer is a linear one, which has no attention weights."""
    from support.families import _qwen

    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 64,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    linear = {f"linear_{name}": 128 for name in ("key_head_dim", "value_head_dim")}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    kinds = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    text = _text("qwen3_5_text", num_hidden_layers=4, head_dim=32, layer_types=kinds, rope_parameters=rope, **linear)
    return _qwen("Qwen3_5", text, vision, patch=16)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava_onevision": _llava_onevision,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "qwen3_5": _qwen3_5,
}

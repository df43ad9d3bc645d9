"""The embedded policy: a small Qwen2.5-VL with its own tokenizer, made on the spot, no download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dapo_stages.data.chat import SYSTEM_PROMPT
from dapo_stages.data.synthetic import COLOURS, LETTERS, OPTIONS, PRIOR, SIZE, WORDINGS
from dapo_stages.models.processor import picture_processor

VOCABULARY = 512  # tokens before the special ones: 256 bytes and the merges of the embedded task's own words

# In the order of Qwen2.5-VL's tokenizer. The first fourteen are special there, the others are ordinary added tokens.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)

CHAT_TEMPLATE = (  # Qwen2.5-VL's own
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(seed: int) -> tuple[Any, Any]:
    """A freshly initialised Qwen2.5-VL of about 1 M parameters, and the tokenizer that goes with it."""
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**_architecture(tokenizer)))
    model.generation_config = GenerationConfig(
        bos_token_id=_id(tokenizer, "<|endoftext|>"),
        eos_token_id=_id(tokenizer, "<|im_end|>"),
        pad_token_id=_id(tokenizer, "<|endoftext|>"),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return model.eval(), tokenizer


def build_processor(tokenizer: Any) -> Any:
    """The processor of the embedded policy: Qwen's, with pixel limits that leave its own pictures alone."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": SIZE * SIZE, "longest_edge": 16 * SIZE * SIZE})
    return picture_processor(pictures, tokenizer, CHAT_TEMPLATE)


def build_tokenizer() -> Any:
    """A byte-level BPE trained on the embedded task's own text: it encodes any text, its own in few tokens."""
    from transformers import Qwen2Tokenizer

    vocabulary, merges = _train_bpe()
    for token in (*SPECIAL_TOKENS, *ADDED_TOKENS):
        vocabulary[token] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        padding_side="left",
    )
    tokenizer.add_tokens(list(ADDED_TOKENS))
    return tokenizer


def completion(shape: str, colour: str, wording: str) -> str:
    """What the warm-up teaches the policy to say when it answers `colour`."""
    return f"<think>\n{wording.format(shape=shape, colour=colour)}\n</think>\n<answer>{LETTERS[colour]}</answer>"


THOUGHTS = ("The {shape} is {colour}.", "I see a {colour} {shape}.", "This {shape} looks {colour}.")


def _corpus() -> Iterator[str]:
    """Every text of the embedded task, each word about as often as it is used."""
    for shape in PRIOR:
        for colour in COLOURS:
            for wording in WORDINGS:
                for thought in THOUGHTS:
                    yield f"system\n{SYSTEM_PROMPT}"
                    yield f"user\n{wording.format(shape)}\n{OPTIONS}"
                    yield f"assistant\n{completion(shape, colour, thought)}"
    yield "You are a helpful assistant."


def _train_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    import json

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    trained.train_from_iterator(_corpus(), trainer)
    bpe = json.loads(trained.to_str())["model"]
    return bpe["vocab"], [tuple(merge) for merge in bpe["merges"]]


def _architecture(tokenizer: Any) -> dict[str, Any]:
    end, pad = _id(tokenizer, "<|im_end|>"), _id(tokenizer, "<|endoftext|>")
    text = {
        "vocab_size": 64 * -(-len(tokenizer) // 64),  # rounded up to a multiple that kernels like
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
    vision = {
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
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": _id(tokenizer, "<|image_pad|>"),
        "video_token_id": _id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": _id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": _id(tokenizer, "<|vision_end|>"),
        "tie_word_embeddings": True,
    }


def _id(tokenizer: Any, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token)

"""The tokenizer of the embedded policy: a byte-level BPE with Qwen2.5-VL's special tokens and chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dapo_stages.data.chat import SYSTEM_PROMPT
from dapo_stages.data.embedded.tasks import TaskName, task

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


def build_tokenizer(name: TaskName = "colours") -> Any:
    """A byte-level BPE trained on an embedded task's own text: it encodes any text, and its own in few tokens."""
    vocabulary, merges = _train_bpe(name)
    for token in (*SPECIAL_TOKENS, *ADDED_TOKENS):
        vocabulary[token] = len(vocabulary)
    return tokenizer_of(vocabulary, merges, 4096)


def tokenizer_of(vocabulary: dict[str, int], merges: list[tuple[str, str]], longest: int) -> Any:
    """Qwen's tokenizer over a BPE whose vocabulary has its special tokens, for texts of at most `longest` tokens."""
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=longest,
        padding_side="left",
    )
    tokenizer.add_tokens(list(ADDED_TOKENS))
    return tokenizer


def _corpus(name: TaskName) -> Iterator[str]:
    """The texts of an embedded task, with words about as frequent as in use."""
    for problem, completion in task(name).texts():
        yield f"system\n{SYSTEM_PROMPT}"
        yield f"user\n{problem}"
        yield f"assistant\n{completion}"
    yield "You are a helpful assistant."


def _train_bpe(name: TaskName) -> tuple[dict[str, int], list[tuple[str, str]]]:
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
    trained.train_from_iterator(_corpus(name), trainer)
    bpe = json.loads(trained.to_str())["model"]
    return bpe["vocab"], [tuple(merge) for merge in bpe["merges"]]

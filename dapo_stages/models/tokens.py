"""What the stages need to know about a policy's tokens: a tokenizer and a few numbers, no model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dapo_stages.errors import ModelError


@dataclass(frozen=True)
class Tokens:
    """The vocabulary of a policy."""

    tokenizer: Any
    vocabulary: int  # rows of logits, which may be more than the tokenizer has tokens
    end_ids: list[int]  # tokens that end a completion
    image_token_id: int | None
    architecture: str  # the model's type, as its configuration has it
    _texts: dict[int, str] = field(default_factory=dict, repr=False)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Every special token, that of pictures, and ids of the vocabulary that stand for no token at all."""
        special = set(self.tokenizer.all_special_ids)
        special |= {self.image_token_id} - {None}
        special |= {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(special | (set(range(self.vocabulary)) - set(self.tokenizer.get_vocab().values())))

    @property
    def suppressed_ids(self) -> frozenset[int]:
        """Tokens that are never sampled: all special ones but the end tokens.

        A sampled image token would ask for a picture that is not there.
        """
        return self.special_ids - set(self.end_ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of a completion, without its end token."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; one that is only part of a character shows as U+FFFD."""
        for token in set(ids) - self._texts.keys():
            self._texts[token] = self.tokenizer.decode([token])
        return [self._texts[token] for token in ids]


def load_tokens(path: str | Path) -> Tokens:
    """The tokens of a checkpoint, by folder or hub id, from its small files alone.

    Raises ModelError if they cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise unusable(path, error) from None
    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError:  # older checkpoints have the settings in the model's configuration
        generation = GenerationConfig.from_model_config(config)
    return Tokens(
        tokenizer,
        int(config.get_text_config().vocab_size),
        end_ids_of(generation, tokenizer),
        getattr(config, "image_token_id", None),
        str(config.model_type),
    )


def end_ids_of(generation: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a completion: those of the generation settings, else the tokenizer's."""
    ends = tokenizer.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [int(ends)]


def unusable(path: str | Path, error: Exception) -> ModelError:
    """The error of a checkpoint that cannot be read."""
    reason = " ".join(str(error).split())[:300]
    return ModelError(
        f"{path}: found no usable checkpoint ({reason}); needed a transformers folder with safetensors, or a hub id "
        "that can be reached. Mend model.name and run init-policy again."
    )

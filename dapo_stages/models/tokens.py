"""What the stages need to know about a policy's tokens: a tokenizer and a few numbers, no model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dapo_stages.errors import ModelError
from dapo_stages.models.families import FAMILIES, architecture_of
from dapo_stages.models.reading import reading


@dataclass(frozen=True)
class Tokens:
    """The vocabulary of a policy."""

    tokenizer: Any
    vocabulary: int  # rows of logits, which may be more than the tokenizer has tokens
    end_ids: list[int]  # tokens that end a completion
    image_token_id: int | None
    architecture: str  # families.architecture_of its configuration
    video_token_id: int | None = None
    _texts: dict[int, str] = field(default_factory=dict, repr=False)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Every special token, the image token, and ids of the vocabulary that have no token."""
        special = set(self.tokenizer.all_special_ids)
        special |= self.vision_ids
        special |= {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(special | (set(range(self.vocabulary)) - set(self.tokenizer.get_vocab().values())))

    @property
    def vision_ids(self) -> frozenset[int]:
        """The tokens that stand for a patch of an image or a video."""
        return frozenset({self.image_token_id, self.video_token_id} - {None})  # type: ignore[arg-type]

    @property
    def suppressed_ids(self) -> frozenset[int]:
        """Tokens that are never sampled: all special ones but the end tokens.

        A sampled image token would refer to an image that does not exist.
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

    def system_end(self, ids: Sequence[int]) -> int:
        """Length of the leading system message of a prompt in any chat format; 0 if it has none.

        It begins with `system`, after special tokens, and ends with the special token after its text. Where a template
        writes it into the user's message (Gemma 3), it is none of its own.
        """
        start = next((place for place, token in enumerate(ids) if token not in self.special_ids), len(ids))
        for place in range(start, len(ids)):
            if ids[place] in self.special_ids:
                text = self.text(ids[start:place]).lower()
                if not text.startswith("system"):
                    return 0
                if text.removeprefix("system").strip(" :\n"):  # the role alone may be between special tokens
                    return place + 1
        return 0


def load_tokens(path: str | Path) -> Tokens:
    """The tokens of a checkpoint, by folder or hub id, from its small files alone.

    Raises ModelError if they cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    with reading(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        try:
            generation = GenerationConfig.from_pretrained(path)
        except OSError:  # older checkpoints have these settings in config.json
            generation = GenerationConfig.from_model_config(config)
        tokens = Tokens(
            tokenizer,
            int(config.get_text_config().vocab_size),
            end_ids_of(generation, tokenizer),
            getattr(config, "image_token_id", None),
            architecture_of(config),
            getattr(config, "video_token_id", None),
        )
        check_tokens(path, tokens)
    return tokens


def check_tokens(path: str | Path, tokens: Tokens) -> None:
    """Refuse a vocabulary whose ids the model's embedding has no rows for. Raises ModelError that names the key."""
    most = max(tokens.tokenizer.get_vocab().values(), default=-1)
    named: list[tuple[str, object]] = [("eos_token_id", end) for end in tokens.end_ids]
    named += [("the tokenizer's largest id", most)]
    named += [("pad_token_id", pad) for pad in [tokens.tokenizer.pad_token_id] if pad is not None]
    named += [("image_token_id", image) for image in [tokens.image_token_id] if image is not None]
    if tokens.architecture in FAMILIES and tokens.image_token_id is None:
        named += [("image_token_id", None)]
    if not tokens.end_ids:
        named += [("eos_token_id", None)]
    for key, value in named:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < tokens.vocabulary:
            raise ModelError(
                f"{path}: {key} is {str(value)[:40]!r}, but must be an id from 0 to {tokens.vocabulary - 1}, below the "
                "vocab_size of config.json. Fix config.json, generation_config.json or the tokenizer."
            )


def end_ids_of(generation: Any, tokenizer: Any) -> list[Any]:
    """The tokens that end a completion: those of the generation settings, else the tokenizer's."""
    ends = tokenizer.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [ends]

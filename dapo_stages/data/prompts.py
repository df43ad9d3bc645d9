"""From a raw row to a prompt: pictures made alike, the conversation in the model's format, its tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from dapo_stages.config import DataConfig
from dapo_stages.data import chat
from dapo_stages.data.columns import Question, UnusableRow, question_of
from dapo_stages.data.images import encode, prepare
from dapo_stages.data.sources import RawRow, RawSource
from dapo_stages.errors import ModelError
from dapo_stages.shards import Row

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Dropped:
    """A row that becomes no prompt."""

    kind: Literal["long", "images", "other"]
    why: str


@dataclass(frozen=True)
class PromptMaker:
    """Makes the prompts of one source for one processor; several threads may use it."""

    source: RawSource
    processor: Any
    data: DataConfig
    parse_solution: Callable[[str], str]
    _alone: Lock = field(default_factory=Lock, repr=False)  # fast tokenizers refuse to be called twice at a time

    def make(self, raw: RawRow, prompt_id: str) -> Row | Dropped:
        """The prompt of a row, in the columns of `held_out`, or why there is none.

        A prompt longer than `max_prompt_length` is dropped, never cut. Raises BadImage for an unreadable picture.
        """
        try:
            question = question_of(raw.values, self.data.columns)
            solution = self.parse_solution(question.solution)
            if not solution:
                raise UnusableRow(f"no answer in {question.solution[:60]!r}")
            conversation = messages_of(question, self.data.system_prompt)
        except UnusableRow as reason:
            return Dropped("other", f"{raw.where}: {reason}")
        images = [self._image(raw, picture) for picture in question.pictures]
        with self._alone:
            try:
                text = self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # whatever a template leads to; it runs in jinja's sandbox
                said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                return Dropped("other", f"{raw.where}: the chat template refuses it ({said})")
            token = getattr(self.processor, "image_token", None)
            if token is not None and text.count(token) != len(images):
                return Dropped("other", f"{raw.where}: {text.count(token)} places for {len(images)} pictures")
            ids, grids = tokens_of(self.processor, text, images)
        if len(ids) > self.data.max_prompt_length:
            return Dropped("long", f"{raw.where}: {len(ids)} tokens, more than data.max_prompt_length")
        return {
            "prompt_id": prompt_id,
            "images": [{"bytes": encode(image), "path": None} for image in images],
            "problem": question.problem,
            "solution": solution,
            "prompt_text": text,
            "prompt_ids": ids,
            "image_grid_thw": grids,
            "source": self.source.name,
            "slice": raw.slice or question.slice,
            "labels": json.dumps(question.labels, ensure_ascii=False) if question.labels else None,
        }

    def _image(self, raw: RawRow, cell: Any) -> Image.Image:
        picture = self.source.picture(raw, cell)
        where = f"{raw.where}: {picture.name}" if isinstance(picture, Path) else raw.where
        return prepare(picture, where, max_size=self.data.max_image_size, max_pixels=self.data.max_image_pixels)


def messages_of(question: Question, system_prompt: str | None) -> list[dict[str, Any]]:
    """The conversation in the chat format of transformers; the row's own system message wins over ours.

    Pictures beyond the `<image>` placeholders come first in the first turn of the user.
    """
    placed = sum(text.count(chat.PLACEHOLDER) for role, text in question.turns if role == "user")
    beyond = len(question.pictures) - placed
    if beyond < 0:
        raise UnusableRow(f"{placed} {chat.PLACEHOLDER} for {len(question.pictures)} pictures")
    ours = chat.SYSTEM_PROMPT if system_prompt is None else system_prompt
    system = ours if question.system is None else question.system
    conversation: list[dict[str, Any]] = []
    if system:
        conversation.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for role, text in question.turns:
        here = text.count(chat.PLACEHOLDER) + beyond if role == "user" else 0
        beyond = 0 if role == "user" else beyond
        turn = chat.messages(text, here, system_prompt=None)[-1]
        conversation.append({**turn, "role": role})
    return conversation


def tokens_of(processor: Any, text: str, images: Sequence[Image.Image]) -> tuple[list[int], list[list[int]]]:
    """Token ids with the picture's placeholders expanded, and the patch grid (time, height, width) of each picture."""
    encoded = processor(text=[text], images=list(images) or None, return_tensors="np")
    ids = [int(token) for token in encoded["input_ids"][0]]
    grids = [[int(size) for size in grid] for grid in encoded.get("image_grid_thw", [])]
    merge = getattr(getattr(processor, "image_processor", None), "merge_size", None)
    token = getattr(processor, "image_token_id", None)
    if grids and merge and token is not None:
        needed = sum(prod(grid) // merge**2 for grid in grids)
        if ids.count(token) != needed:
            raise ModelError(
                f"{type(processor).__name__}: found {ids.count(token)} picture tokens; needed {needed}, one "
                "per merged patch. Use a processor that belongs to its tokenizer."
            )
    return ids, grids

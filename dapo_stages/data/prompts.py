"""From a raw row to a prompt: prepared images, the conversation in the model's format, its tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from dapo_stages.config import DataConfig
from dapo_stages.data import chat
from dapo_stages.data.cells import as_json
from dapo_stages.data.columns import Question, image_columns, question_of
from dapo_stages.data.control import MARK, ControlTokens, texts_of
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.data.encoding import Encoder, processed
from dapo_stages.data.images import encode, prepare
from dapo_stages.data.lengths import bytes_per_token
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.data.survey import Survey
from dapo_stages.data.templates import Template, question_template
from dapo_stages.errors import DataError
from dapo_stages.handoff.schemas import DATASET
from dapo_stages.handoff.shards import Row

if TYPE_CHECKING:
    from PIL import Image

Conversation = list[dict[str, Any]]
Render = Callable[[Conversation, int | None], str]  # a conversation and the longest useful text -> its text


class Refused(Exception):
    """A chat template or processor rejects a conversation."""


class TooLong(Exception):
    """A text is too long to become a prompt."""


@dataclass(frozen=True)
class Dropped:
    """A row that does not become a prompt."""

    kind: Literal["long", "images", "control", "other"]
    why: str


@dataclass(frozen=True)
class PromptMaker:
    """Makes the prompts of one source for one processor; several threads may use it."""

    source: RawSource
    processor: Any
    data: DataConfig
    survey: Survey = field(default_factory=Survey)
    name: str = ""  # of the dataset in data.sources
    render: Render | None = None  # None: use the processor itself, for trusted templates
    _alone: Lock = field(default_factory=Lock, repr=False)  # fast tokenizers refuse concurrent calls

    def make(self, raw: RawRow, prompt_id: str) -> Row | Dropped:
        """The prompt of a row, in the columns of `held_out`, or why there is none.

        A prompt longer than `max_prompt_length` is dropped, never truncated. Raises BadImage for an unreadable image,
        and DataError for a control token if data.on_control_tokens is error.
        """
        try:
            question = question_of(raw.values, self.data.columns, self.survey.solution_format, self._template)
            conversation = messages_of(question, self.survey.system_prompt(self.data))
            conversation = self._as_data(raw, conversation, question)
        except UnusableRow as reason:
            return Dropped("other", f"{raw.where}: {reason}")
        except _ControlTokens as reason:
            return Dropped("control", f"{raw.where}: {reason}")
        images = [self._image(raw, image) for image in question.images]
        with self._alone:
            try:
                text, ids, grids = self._encoded(conversation, images)
            except TooLong as length:
                return Dropped("long", f"{raw.where}: {length}, more than data.max_prompt_length tokens can hold")
            except Refused as reason:
                return Dropped("other", f"{raw.where}: {reason}")
            except _ControlTokens as reason:
                return Dropped("control", f"{raw.where}: {reason}")
        if len(ids) > self.data.max_prompt_length:
            return Dropped("long", f"{raw.where}: {len(ids)} tokens, more than data.max_prompt_length")
        labels = question.labels | ({DATASET: self.name} if self.name else {})
        return {
            "prompt_id": prompt_id,
            "images": [{"bytes": encode(image), "path": None} for image in images],
            "problem": question.problem,
            "solution": question.solution,
            "prompt_text": text,
            "prompt_ids": ids,
            "image_grid_thw": grids,
            "source": self.name or self.source.name,
            "slice": raw.slice or question.slice,
            "labels": json.dumps(labels, ensure_ascii=False) if labels else None,
            "row": as_json(raw.values, image_columns(self.data.columns)),
        }

    def _encoded(
        self, conversation: Conversation, images: Sequence[Image.Image]
    ) -> tuple[str, list[int], list[list[int]]]:
        """The text of a conversation after the chat template, its tokens, and the patch grids of its images."""
        render = self.render or self._rendered
        try:
            text = render(conversation, self._longest and 2 * self._longest)  # room for marks
        except Refused as reason:
            raise Refused(f"the chat template rejects it ({reason})") from None
        size = len(text.replace(MARK, "").encode())
        if self._longest is not None and size > self._longest:
            raise TooLong(f"{size:,} bytes of text")
        token = getattr(self.processor, "image_token", None)
        if token is not None and text.count(token) != len(images):
            raise Refused(f"{text.count(token)} image placeholders for {len(images)} images")
        processor = self._control.processor_of(text) if MARK in text else self.processor
        if processor is None:
            raise _ControlTokens("control tokens that this tokenizer cannot encode as plain text")
        try:
            if processor is self.processor:
                return text, *self._encoder.encode(text, images)
            return text, *processed(processor, text, images)
        except (ValueError, TypeError, KeyError, IndexError, StopIteration) as error:  # from the processor
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise Refused(f"the processor rejects it ({said})") from None

    def _rendered(self, conversation: Conversation, longest: int | None) -> str:
        try:
            return str(self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template may raise anything; it runs in jinja's sandbox
            raise Refused(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None

    @cached_property
    def _longest(self) -> int | None:
        """The longest text, in bytes, that can become a prompt of the allowed length; None if unknown."""
        each = bytes_per_token(getattr(self.processor, "tokenizer", None))
        return None if each is None else each * self.data.max_prompt_length

    @cached_property
    def _template(self) -> Template | None:
        return None if self.data.template is None else question_template(self.data.template)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.processor)

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self.processor)

    def _as_data(self, raw: RawRow, conversation: list[dict[str, Any]], question: Question) -> list[dict[str, Any]]:
        """The conversation with marked control tokens in the row's own texts; our own system message stays unmarked."""
        ours = 1 if question.system is None and conversation[0]["role"] == "system" else 0
        texts = [*texts_of(conversation[ours:]), question.solution]
        if any(MARK in text for text in texts):
            raise UnusableRow(f"text with {MARK!a}, which is reserved to mark control tokens")
        if not (found := self._control.found(texts)):
            return conversation
        problem = f"the text contains control tokens of the tokenizer ({', '.join(found[:3])})"
        if self.data.on_control_tokens == "error":
            raise DataError(raw.where, problem, "Fix the row, or set data.on_control_tokens=escape or drop.")
        if self.data.on_control_tokens == "drop":
            raise _ControlTokens(problem)
        return conversation[:ours] + self._control.as_text(conversation[ours:])

    def _image(self, raw: RawRow, cell: Any) -> Image.Image:
        image = self.source.image(raw, cell)
        where = f"{raw.where}: {image.name}" if isinstance(image, Path) else raw.where
        data = self.data
        return prepare(
            image,
            where,
            max_size=data.max_image_size,
            max_pixels=data.max_image_pixels,
            min_size=data.min_image_size,
        )


class _ControlTokens(Exception):
    """A row to drop because of its control tokens."""


def messages_of(question: Question, system_prompt: str) -> list[dict[str, Any]]:
    """The conversation in the chat format of transformers; the row's own system message overrides ours.

    Images without an `<image>` placeholder come first in the user's first turn.
    """
    placed = sum(text.count(chat.PLACEHOLDER) for role, text in question.turns if role == "user")
    beyond = len(question.images) - placed
    if beyond < 0:
        raise UnusableRow(f"{placed} {chat.PLACEHOLDER} placeholders for {len(question.images)} images")
    system = system_prompt if question.system is None else question.system
    conversation: list[dict[str, Any]] = []
    if system:
        conversation.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for role, text in question.turns:
        here = text.count(chat.PLACEHOLDER) + beyond if role == "user" else 0
        beyond = 0 if role == "user" else beyond
        turn = chat.messages(text, here, system_prompt=None)[-1]
        conversation.append({**turn, "role": role})
    return conversation

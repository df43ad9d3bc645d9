"""From a raw row to a prompt: prepared images, the conversation in the model's format, its tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from dapo_stages.config import DataConfig
from dapo_stages.data import chat
from dapo_stages.data.cells import as_json
from dapo_stages.data.columns import DATASET, Question, image_columns, question_of
from dapo_stages.data.control import MARK, ControlTokens, texts_of
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.data.encoding import Encoder, processed
from dapo_stages.data.image_workers import ImageWorkers, Job
from dapo_stages.data.images import BadImage, Limits, Prepared, decode
from dapo_stages.data.lengths import bytes_per_token
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.data.survey import Survey
from dapo_stages.data.templates import Template, question_template
from dapo_stages.data.video_encoding import VideoEncoder
from dapo_stages.data.videos import Video, VideoLimits, video_of
from dapo_stages.data.visuals import SINGLE, visuals_of
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import Row

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


@dataclass
class _Draft:
    """A row on its way to a prompt."""

    raw: RawRow
    prompt_id: str
    question: Question
    conversation: Conversation
    jobs: list[Job] = field(default_factory=list)
    images: list[Prepared] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    text: str = ""
    seconds: list[float] = field(default_factory=list)  # of each image, if there are videos
    ids: list[int] = field(default_factory=list)
    grids: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class PromptMaker:
    """Makes the prompts of one source for one processor; several threads may use it."""

    source: RawSource
    processor: Any
    data: DataConfig
    survey: Survey = field(default_factory=Survey)
    name: str = ""  # of the dataset in data.sources
    render: Render | None = None  # None: use the processor itself, for trusted templates
    workers: ImageWorkers = field(default_factory=lambda: ImageWorkers(0))
    _alone: Lock = field(default_factory=Lock, repr=False)  # fast tokenizers refuse concurrent calls

    def make(self, raw: RawRow, prompt_id: str) -> Row | Dropped:
        """The prompt of a row, in the columns of `held_out`, or why there is none. `frame_seconds` is for videos only.

        A prompt longer than `max_prompt_length` is dropped, never truncated. Raises BadImage for an unreadable image,
        and DataError for a control token if data.on_control_tokens is error.
        """
        [made] = self.make_all([(raw, prompt_id)])
        if isinstance(made, BadImage):
            raise made
        return made

    def make_all(self, rows: Sequence[tuple[RawRow, str]]) -> list[Row | Dropped | BadImage]:
        """The same for several rows and their prompt ids, one step for all of them at a time, which is faster."""
        drafts: list[_Draft | Dropped | BadImage] = [_tried(raw, partial(self._ask, raw, name)) for raw, name in rows]
        drafts = self._see(drafts)
        with self._alone:
            drafts = _each(drafts, self._say)
            self._tokenize_known([one for one in drafts if isinstance(one, _Draft)])
            drafts = _each(drafts, self._tokenize)
        return [self._row(one) if isinstance(one, _Draft) else one for one in drafts]

    def _ask(self, raw: RawRow, prompt_id: str) -> _Draft:
        question = question_of(raw.values, self.data.columns, self.survey.solution_format, self._template)
        conversation = messages_of(question, self.survey.system_prompt(self.data))
        return _Draft(raw, prompt_id, question, self._as_data(raw, conversation, question))

    def _see(self, drafts: Sequence[_Draft | Dropped | BadImage]) -> list[_Draft | Dropped | BadImage]:
        """Prepare the images of all rows."""
        found = _each(drafts, self._look_up)
        open_ = [draft for draft in found if isinstance(draft, _Draft)]
        jobs = [job for draft in open_ for job in draft.jobs]
        made = iter(self.workers.prepare(jobs, self._limits))
        ended: dict[int, BadImage] = {}
        for draft in open_:
            images = [next(made) for _ in draft.jobs]
            if bad := [image for image in images if isinstance(image, BadImage)]:
                ended[id(draft)] = bad[0]
            draft.images = [image for image in images if isinstance(image, Prepared)]
        return [ended.get(id(draft), draft) for draft in found]

    def _look_up(self, draft: _Draft) -> _Draft:
        """Find the images of a row, and make its videos."""
        draft.jobs = [self._job(draft.raw, image) for image in draft.question.images]
        draft.videos = [video_of(self.source, draft.raw, cell, self._video_limits) for cell in draft.question.videos]
        return draft

    def _say(self, draft: _Draft) -> _Draft:
        """Render the conversation by the chat template."""
        render = self.render or self._rendered
        try:
            draft.text = render(draft.conversation, self._longest and 2 * self._longest)  # room for marks
        except Refused as reason:
            raise Refused(f"the chat template rejects it ({reason})") from None
        if self.data.tags == "plain":
            draft.text = self._control.plain_tags(draft.text)
        size = len(draft.text.replace(MARK, "").encode())
        if self._longest is not None and size > self._longest:
            raise TooLong(f"{size:,} bytes of text, more than data.max_prompt_length tokens can hold")
        for kind, made in (("image", draft.images), ("video", draft.videos)):
            token = getattr(self.processor, f"{kind}_token", None)
            if token is not None and (kind == "image" or made) and draft.text.count(token) != len(made):
                raise Refused(f"{draft.text.count(token)} {kind} placeholders for {len(made)} {kind}s")
        return draft

    def _tokenize_known(self, drafts: Sequence[_Draft]) -> None:
        """Token ids and patch grids of those without marks whose images have known sizes."""
        plain = [draft for draft in drafts if MARK not in draft.text and not draft.videos]
        encoded = self._encoder.encode_known([(draft.text, draft.images) for draft in plain])
        for draft, found in zip(plain, encoded, strict=True):
            if found is not None:
                draft.ids, draft.grids = found

    def _tokenize(self, draft: _Draft) -> _Draft:
        """Token ids and patch grids, unless it has them."""
        if not draft.ids:
            processor = self._control.processor_of(draft.text) if MARK in draft.text else self.processor
            if processor is None:
                raise _ControlTokens("control tokens that this tokenizer cannot encode as plain text")
            if draft.videos:
                return self._checked(self._with_videos(draft, processor.tokenizer))
            encode_ = self._encoder.encode if processor is self.processor else partial(processed, processor)
            try:
                draft.ids, draft.grids = encode_(draft.text, [decode({"bytes": image.png}) for image in draft.images])
            except (ValueError, TypeError, KeyError, IndexError, StopIteration) as error:  # from the processor
                said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise Refused(f"the processor rejects it ({said})") from None
        return self._checked(draft)

    def _with_videos(self, draft: _Draft, tokenizer: Any) -> _Draft:
        """Token ids and patch grids of a row with videos. Its images and frames get the order of the prompt."""
        encoder = self._video_encoder
        images, videos = iter(draft.images), iter(draft.videos)
        found: list[Prepared] = []
        for is_video in encoder.order(draft.text):
            video = next(videos) if is_video else Video([next(images)], [SINGLE])
            found += video.frames
            draft.seconds += video.seconds
        visuals = visuals_of(len(found), draft.seconds)
        sizes = [found[visual.images[0]].size for visual in visuals]
        draft.images = found
        draft.ids, draft.grids = encoder.encode(draft.text, list(zip(visuals, sizes, strict=True)), tokenizer)
        return draft

    def _checked(self, draft: _Draft) -> _Draft:
        if len(draft.ids) > self.data.max_prompt_length:
            raise TooLong(f"{len(draft.ids)} tokens, more than data.max_prompt_length")
        return draft

    def _row(self, draft: _Draft) -> Row:
        question = draft.question
        in_videos = [self.data.columns.videos] if draft.videos else []
        labels = question.labels | ({DATASET: self.name} if self.name else {})
        return {
            "prompt_id": draft.prompt_id,
            "images": [{"bytes": image.png, "path": None} for image in draft.images],
            "problem": question.problem,
            "solution": question.solution,
            "prompt_text": draft.text,
            "prompt_ids": draft.ids,
            "image_grid_thw": draft.grids,
            "source": self.name or self.source.name,
            "slice": draft.raw.slice or question.slice,
            "labels": json.dumps(labels, ensure_ascii=False) if labels else None,
            "row": as_json(draft.raw.values, [*image_columns(self.data.columns), *in_videos]),
            **({"frame_seconds": draft.seconds} if draft.videos else {}),
        }

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
    def _video_encoder(self) -> VideoEncoder:
        return VideoEncoder(self.processor)

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

    def _job(self, raw: RawRow, cell: Any) -> Job:
        image = self.source.image(raw, cell)
        return Job(image, f"{raw.where}: {image.name}" if isinstance(image, Path) else raw.where)

    @cached_property
    def _video_limits(self) -> VideoLimits:
        data = self.data
        return VideoLimits(data.video_fps, data.max_video_frames, data.max_frame_size, data.max_image_pixels)

    @cached_property
    def _limits(self) -> Limits:
        return Limits(self.data.max_image_size, self.data.max_image_pixels, self.data.min_image_size)


class _ControlTokens(Exception):
    """A row to drop because of its control tokens."""


def _each(
    drafts: Sequence[_Draft | Dropped | BadImage], step: Callable[[_Draft], _Draft]
) -> list[_Draft | Dropped | BadImage]:
    """The rows after a step; those that have ended stay as they are."""
    return [_tried(one.raw, partial(step, one)) if isinstance(one, _Draft) else one for one in drafts]


def _tried(raw: RawRow, step: Callable[[], _Draft]) -> _Draft | Dropped | BadImage:
    """A step of a row, or why the row ends there."""
    try:
        return step()
    except BadImage as bad:
        return bad
    except (UnusableRow, Refused) as reason:
        return Dropped("other", f"{raw.where}: {reason}")
    except _ControlTokens as reason:
        return Dropped("control", f"{raw.where}: {reason}")
    except TooLong as reason:
        return Dropped("long", f"{raw.where}: {reason}")


def messages_of(question: Question, system_prompt: str) -> list[dict[str, Any]]:
    """The conversation in the chat format of transformers; the row's own system message overrides ours.

    Images and videos without a placeholder come first in the user's first turn.
    """
    beyond, marks = {}, {chat.PLACEHOLDER: ("images", question.images), chat.VIDEO: ("videos", question.videos)}
    for mark, (kind, given) in marks.items():
        placed = sum(text.count(mark) for role, text in question.turns if role == "user")
        beyond[mark] = len(given) - placed
        if beyond[mark] < 0 and (given or mark == chat.PLACEHOLDER):
            raise UnusableRow(f"{placed} {mark} placeholders for {len(given)} {kind}")
    system = system_prompt if question.system is None else question.system
    conversation: list[dict[str, Any]] = []
    if system:
        conversation.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for role, text in question.turns:
        here = dict.fromkeys(marks, 0)
        if role == "user":
            here = {mark: text.count(mark) + beyond[mark] if marks[mark][1] else 0 for mark in marks}
            beyond = dict.fromkeys(marks, 0)
        turn = chat.messages(text, here[chat.PLACEHOLDER], system_prompt=None, n_videos=here[chat.VIDEO])[-1]
        conversation.append({**turn, "role": role})
    return conversation

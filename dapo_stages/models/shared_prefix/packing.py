"""Groups in one row: each prompt once, its completions after it, nothing padded.

    [prompt 1 | completion 1.1 | completion 1.2 … | prompt 2 | completion 2.1 …]

Positions of every completion restart where its prompt ends, so each sees exactly what it would see in a row of
its own. Shapes: P prompt length, C completion length, N completions of a group, T tokens of the packed row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F

from dapo_stages.models.shared_prefix.visible import visible


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model takes it: token ids [P] with image placeholders expanded, and its images."""

    ids: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    others: Mapping[str, torch.Tensor] = field(default_factory=dict)  # other inputs, by the model's names
    pixel_values_videos: torch.Tensor | None = None
    video_grid_thw: torch.Tensor | None = None
    second_per_grid_ts: torch.Tensor | None = None  # seconds from one temporal step of a video to the next

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """All inputs but the ids, by the model's names."""
        names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        known = {name: getattr(self, name) for name in names}
        return {name: value for name, value in known.items() if value is not None} | dict(self.others)


@dataclass(frozen=True)
class Group:
    """A prompt and N completions of it (token ids [C_i], end token included); none to run the prompt alone."""

    prompt: Prompt
    completions: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Span:
    """Where one group lies in the packed row, and how its completions fold into a padded [N, C] block."""

    start: int
    prefix: int
    lengths: tuple[int, ...]
    fold: torch.Tensor  # [N, C] place of each token among those of the completions; padding repeats the last one
    unfold: torch.Tensor  # [sum C_i] place of each token in the flattened [N * C] block
    ends: torch.Tensor | None = None  # [P] where what each prompt token sees ends, if it is not after itself
    _masks: dict[tuple[str, int | None], torch.Tensor] = field(default_factory=dict, init=False, compare=False)

    @property
    def prompt(self) -> slice:
        """The prompt's tokens in the packed row."""
        return slice(self.start, self.start + self.prefix)

    @property
    def completions(self) -> slice:
        """Those of all of its completions."""
        return slice(self.start + self.prefix, self.start + self.prefix + sum(self.lengths))

    def prompt_mask(self, window: int | None) -> torch.Tensor | None:
        """[P, P] True where a prompt's query sees a key, in layers that see `window` tokens; None if it is causal."""
        if self.ends is None and (window is None or window >= self.prefix):
            return None
        return self._mask("prompt", 0, self.prefix, 0, window, self.ends)

    def first_shared(self, window: int | None) -> int:
        """The first of the prompt's tokens that a completion sees."""
        return 0 if window is None else max(0, self.prefix - window + 1)

    def completion_mask(self, window: int | None) -> torch.Tensor:
        """[C, P' + C] True where a completion's query sees a key, with the P' prompt keys from `first_shared` on."""
        # Padding keys come after every real query of their completion, so the causal mask hides them as well.
        end = self.prefix + self.fold.shape[1]
        return self._mask("completion", self.prefix, end, self.first_shared(window), window)

    def _mask(
        self, whose: str, start: int, end: int, first: int, window: int | None, ends: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Of tokens from `start` to `end` and keys from `first` on; made once for all layers with the same window."""
        if (whose, window) not in self._masks:
            with torch.inference_mode(False):  # an inference tensor could not be used in training
                keys = torch.arange(first, end, device=self.fold.device)
                self._masks[whose, window] = visible(keys[start - first :], keys, window, ends)
        return self._masks[whose, window]


@dataclass(frozen=True)
class Packed:
    """A packed row, ready for the model."""

    input_ids: torch.Tensor  # [1, T]
    position_ids: torch.Tensor  # [3, 1, T], or [1, T] where positions have one axis
    seen: Mapping[str, torch.Tensor]  # inputs about images and videos, by the model's names
    spans: tuple[Span, ...]
    predicting: torch.Tensor  # [sum C] row whose logits predict each completion token
    targets: torch.Tensor  # [sum C] the completion tokens
    block_masks: Mapping[int | None, Any] | None = None  # which tokens see which, by window, for FlexAttention
    sequences: Any = None  # for linear layers (linear_layers.py)

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of the model. The mask stays None: `grouped_attention.grouped` masks by `spans`."""
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": None,
            "use_cache": False,
            "spans": self.spans,
        }
        for name in ("block_masks", "sequences"):
            if getattr(self, name) is not None:
                inputs[name] = getattr(self, name)
        return inputs | dict(self.seen)


def pack(
    groups: Sequence[Group],
    positions: Sequence[torch.Tensor],
    device: torch.device,
    ends: Sequence[torch.Tensor | None] | None = None,
) -> Packed:
    """Pack groups into one row. `positions` holds the prompts' positions [3 or 1, P], as the model computes them, and
    `ends` where what each of their tokens sees ends, [P], if not all see up to themselves (visible.py)."""
    ids: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    predicting: list[torch.Tensor] = []
    spans: list[Span] = []
    start = 0
    for group, prompt_positions, own_ends in zip(groups, positions, ends or [None] * len(groups), strict=True):
        span = _span(start, len(group.prompt.ids), [len(c) for c in group.completions], own_ends)
        after = int(prompt_positions.max()) + 1
        ids += [group.prompt.ids, *(torch.tensor(c, dtype=torch.long) for c in group.completions)]
        places.append(prompt_positions)
        places += [(after + torch.arange(length)).expand(len(prompt_positions), -1) for length in span.lengths]
        last = start + span.prefix - 1
        offset = start + span.prefix
        for length in span.lengths:
            predicting.append(torch.cat([torch.tensor([last]), torch.arange(offset, offset + length - 1)]))
            offset += length
        spans.append(span)
        start = offset
    targets = [torch.tensor(c, dtype=torch.long) for g in groups for c in g.completions]
    return Packed(
        input_ids=torch.cat(ids)[None].to(device),
        position_ids=by_axis(torch.cat(places, 1)[:, None]).to(device),
        seen=_seen([group.prompt.inputs for group in groups], device),
        spans=tuple(_to(span, device) for span in spans),
        predicting=torch.cat([torch.arange(0), *predicting]).to(device),
        targets=torch.cat([torch.arange(0), *targets]).to(device),
    )


def _seen(inputs: Sequence[Mapping[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """What several prompts' inputs say about images and videos.

    What they say of each token (its type, `…token_type_ids`) and of times (`second_per_grid_ts`) is in the positions
    and the ends.
    """
    names = sorted({name for own in inputs for name in own if not name.endswith(("token_type_ids", "_per_grid_ts"))})
    return {name: _joined([own[name] for own in inputs if name in own]).to(device) for name in names}


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after another; zeros where images have fewer tiles or pixels than others."""
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    whole = [
        F.pad(part, [n for most, own in zip(largest[::-1], part.shape[:0:-1], strict=True) for n in (0, most - own)])
        for part in parts
    ]
    return torch.cat(whole)


def by_axis(positions: torch.Tensor) -> torch.Tensor:
    """Positions [axes, rows, T] as a model takes them: without the axes if there is one."""
    return positions[0] if len(positions) == 1 else positions


def _span(start: int, prefix: int, lengths: list[int], ends: torch.Tensor | None = None) -> Span:
    if min(lengths, default=1) < 1:
        raise ValueError("every completion must have at least one token")
    longest = max(lengths, default=0)
    offsets = [0, *accumulate(lengths)][:-1]
    steps = torch.arange(longest)
    rows = [offset + steps.clamp(max=length - 1) for offset, length in zip(offsets, lengths, strict=True)]
    fold = torch.stack(rows) if rows else steps.reshape(0, 0)
    unfold = torch.cat([steps[:0], *(i * longest + torch.arange(length) for i, length in enumerate(lengths))])
    return Span(start, prefix, tuple(lengths), fold, unfold, ends)


def _to(span: Span, device: torch.device) -> Span:
    ends = None if span.ends is None else span.ends.to(device)
    return Span(span.start, span.prefix, span.lengths, span.fold.to(device), span.unfold.to(device), ends)


def fold(states: torch.Tensor, span: Span) -> torch.Tensor:
    """The completions of one group as a padded block: [heads, sum C_i, D] -> [N, heads, C, D]."""
    count, longest = span.fold.shape
    block = states.index_select(1, span.fold.flatten())
    return block.reshape(states.shape[0], count, longest, -1).transpose(0, 1)


@dataclass(frozen=True)
class SeparateRows:
    """Groups whose completions go through the model in separate rows."""

    groups: Sequence[Group]

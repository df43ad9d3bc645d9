"""How much attention each completion token paid to the image, the text of the prompt and the rest, layer by layer.

Only rows of completions are scored, a chunk at a time, and immediately reduced to five masses; a full tokens-by-tokens
matrix is never built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from dapo_stages.models.shared_prefix.attention_rollout import Rollout
from dapo_stages.models.shared_prefix.packing import Packed, Span, fold
from dapo_stages.models.shared_prefix.visible import visible

VISION, TEXT, OTHER, FIRST = range(4)  # kinds of prompt keys; the fifth mass is `generated`


@dataclass(frozen=True)
class Scored:
    """Attention of one completion of C tokens."""

    masses: torch.Tensor  # [L, C, 5] vision, text, other, first, generated; mean over heads
    patches: torch.Tensor | None  # [L, C, V] attention on each vision token; mean over heads
    rollout: torch.Tensor | None = None  # [C] attention rollout on vision tokens
    units: torch.Tensor | None = None  # [L, C, U] attention on each image or temporal step; mean over heads


class _Recorded(Exception):
    """The last layer's masses are recorded: its output, the final norm and the head are not needed."""


class MassRecorder:
    """Collects the masses while a packed batch passes through the layers.

    Row t is the attention of the position that predicted token t (`predicting`: its own key counts as generated,
    except for row 0, which is the prompt's last position) or of token t's own position (`token`).
    """

    def __init__(
        self,
        spans: Sequence[Span],
        kinds: Sequence[torch.Tensor],
        layers: Sequence[int],
        query: Literal["predicting", "token"] = "predicting",
        chunk_rows: int = 256,
        patches: Sequence[Sequence[int]] | None = None,
        *,
        rollout: bool = False,
        units: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """`kinds` [P] per group names the kind of each prompt key; `layers` are those that have attention weights,
        counted from 0; `patches` the completions of each group whose attention is kept per vision token; `rollout` adds
        attention rollout over these layers (attention_rollout.py); `units` [P, U] per group tell which prompt keys
        belong to which image (unit_keys), to sum their attention separately."""
        self._spans, self._query, self._chunk = spans, query, chunk_rows
        self._patches = [list(chosen) for chosen in patches or [()] * len(spans)]
        # On the device once: nothing is copied to or from it while the layers run.
        places = [span.fold.device for span in spans]
        self._one_hot = [F.one_hot(kind, 4).float().to(at) for kind, at in zip(kinds, places, strict=True)]
        self._vision = [(kind == VISION).nonzero()[:, 0].to(at) for kind, at in zip(kinds, places, strict=True)]
        self._chosen = [
            torch.tensor(own, dtype=torch.long).to(at) for own, at in zip(self._patches, places, strict=True)
        ]
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._masses: list[list[torch.Tensor | None]] = [[None] * len(layers) for _ in spans]
        self._looks: list[list[torch.Tensor | None]] = [[None] * len(layers) for _ in spans]
        self._units = None if units is None else [own.float().to(at) for own, at in zip(units, places, strict=True)]
        self._unit_masses: list[list[torch.Tensor | None]] = [[None] * len(layers) for _ in spans]
        self._to_the_end = False
        self._rollouts: list[Rollout] | None = None
        if rollout:
            shifted = query == "predicting"
            self._rollouts = [
                Rollout((kind == VISION).to(span.fold.device), span, shifted=shifted)
                for kind, span in zip(kinds, spans, strict=True)
            ]

    def collect(self, model: Any, packed: Packed) -> list[list[Scored]]:
        """Run a packed batch through the model (without its head) as far as needed; per group, per completion."""
        with torch.inference_mode(), suppress(_Recorded):
            model(**packed.model_inputs, recorder=self)
        return self._results()

    def collect_all(self, model: Any, packed: Packed) -> tuple[list[list[Scored]], torch.Tensor]:
        """The same with a full pass: also the last hidden states of all tokens, [T, D]."""
        self._to_the_end = True
        with torch.inference_mode():
            hidden: torch.Tensor = model(**packed.model_inputs, recorder=self).last_hidden_state[0]
            return self._results(), hidden

    def record(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, window: int | None = None
    ) -> None:
        """Called by the attention of each layer: query [H, T, D], key [H_kv, T, D]; `window` (visible.py)."""
        place = self._places[layer]
        with torch.no_grad():
            for group, span in enumerate(self._spans):
                masses, looks, units = self._score(group, span, query, key, scaling, window)
                self._masses[group][place] = masses
                self._looks[group][place] = looks
                self._unit_masses[group][place] = units
        if not self._to_the_end and all(masses is not None for layers in self._masses for masses in layers):
            raise _Recorded

    def _results(self) -> list[list[Scored]]:
        scored: list[list[Scored]] = []
        for group, span in enumerate(self._spans):
            completions: list[Scored] = []
            masses = _stacked(self._masses[group])
            chosen = self._patches[group]
            looks = _stacked(self._looks[group]) if chosen else None
            rollout = self._rollouts[group].rows.cpu() if self._rollouts is not None else None
            units = _stacked(self._unit_masses[group]) if self._units is not None else None
            for i, length in enumerate(span.lengths):
                patches = looks[:, chosen.index(i), :length] if looks is not None and i in chosen else None
                seen = None if rollout is None else rollout[i, :length]
                of_units = None if units is None else units[:, i, :length]
                completions.append(Scored(masses[:, i, :length], patches, seen, of_units))
            scored.append(completions)
        return scored

    def _score(
        self, group: int, span: Span, query: torch.Tensor, key: torch.Tensor, scaling: float, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        one_hot, vision = self._one_hot[group], self._vision[group]
        own_units = self._units[group] if self._units is not None else None
        rollout = self._rollouts[group] if self._rollouts is not None else None
        masses, looks, units, rolled, start = [], [], [], [], 0
        for probabilities in attention_rows(span, query, key, scaling, self._query, self._chunk, window):
            mean = probabilities.mean(1)  # [N, rows, P + keys]
            prompt = mean[..., : span.prefix]
            generated = mean[..., span.prefix :].sum(-1, keepdim=True)
            masses.append(torch.cat([prompt @ one_hot, generated], -1))
            if own_units is not None:
                units.append(prompt @ own_units)
            if self._patches[group]:
                looks.append(prompt.index_select(0, self._chosen[group]).index_select(-1, vision))
            if rollout is not None:
                rolled.append(rollout.step(mean, start))
            start += mean.shape[1]
        if rollout is not None:
            rollout.advance(torch.cat(rolled, 1), query, key, scaling, self._chunk, window)
        of_patches, of_units = (torch.cat(some, 1) if some else None for some in (looks, units))
        return torch.cat(masses, 1), of_patches, of_units


def attention_rows(
    span: Span,
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    whose: Literal["predicting", "token"],
    chunk_rows: int,
    window: int | None,
) -> Iterator[torch.Tensor]:
    """Attention of a group's completion rows in one layer, about `chunk_rows` at a time: [N, H, rows, P + keys].

    query [H, T, D], key [H_kv, T, D] of the packed row. The first P keys are those of the prompt, the others the
    completion's own, as far as a row of the chunk sees any. In float32.
    """
    repeats = query.shape[0] // key.shape[0]
    q = fold(query[:, span.completions], span)
    shift = int(whose == "predicting")
    if shift:
        before = query[None, :, span.prompt][:, :, -1:].expand(q.shape[0], -1, -1, -1)
        q = torch.cat([before, q[:, :, :-1]], 2)
    narrow = query.dtype.itemsize == 2
    k_prompt, k_own = key[:, span.prompt], fold(key[:, span.completions], span)
    if not narrow:
        k_prompt = k_prompt.repeat_interleave(repeats, 0).float()
        k_own = k_own.repeat_interleave(repeats, 1).float()
    products = _narrow_products if narrow else _products
    steps = max(1, chunk_rows // q.shape[0])
    for start in range(0, q.shape[2], steps):
        rows = q[:, :, start : start + steps]
        # Rows of a chunk see no completion key past their last one, so later keys are left out.
        own = products(rows, k_own[..., : start + steps, :], scaling)
        places, keys = (span.prefix + torch.arange(size, device=own.device) for size in own.shape[-2:])
        places = places + start - shift
        own = own.masked_fill(~visible(places, keys, window), float("-inf"))
        prompt = products(rows, k_prompt, scaling)
        if window is not None:
            keys = torch.arange(span.prefix, device=own.device)
            prompt = prompt.masked_fill(~visible(places, keys, window), float("-inf"))
        yield torch.cat([prompt, own], -1).softmax(-1)


def _products(rows: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """rows [N, H, R, D], keys [H, K, D] or [N, H, K, D] -> [N, H, R, K], in float32."""
    return rows.float() * scaling @ keys.transpose(-1, -2)


def _narrow_products(rows: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """The same of 16-bit numbers, summed in float32, in which their products are exact.

    Keys are by key-value head, [H_kv, K, D] or [N, H_kv, K, D]: none is copied for the heads that share it.
    """
    count, heads, length, _ = rows.shape
    kv = keys.shape[-3]
    grouped = rows.reshape(count, kv, heads // kv, length, -1)  # [N, H_kv, H / H_kv, R, D]
    if keys.ndim == 3:
        found = _summed(grouped.transpose(0, 1).flatten(1, 3), keys)
        found = found.unflatten(1, (count, heads // kv, length)).transpose(0, 1)
    else:
        found = _summed(grouped.flatten(0, 1).flatten(1, 2), keys.flatten(0, 1))
        found = found.unflatten(0, (count, kv)).unflatten(2, (heads // kv, length))
    scores: torch.Tensor = found.reshape(count, heads, length, -1) * scaling
    return scores


def _summed(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [B, R, D], right [B, K, D] -> [B, R, K]: tensor cores on CUDA."""
    if left.is_cuda:
        found: torch.Tensor = torch.bmm(left, right.transpose(1, 2), out_dtype=torch.float32)
        return found
    return torch.bmm(left.float(), right.float().transpose(1, 2))


def prompt_kinds(ids: Sequence[int], vision: Sequence[bool], special: frozenset[int], system_end: int) -> torch.Tensor:
    """The kind of every prompt token, [P]: first, vision, text or other.

    Text is what is not first, not vision, not special and not before `system_end`, the length of the leading
    system message.
    """
    kinds = []
    for place, (token, is_vision) in enumerate(zip(ids, vision, strict=True)):
        if place == 0:
            kinds.append(FIRST)
        elif is_vision:
            kinds.append(VISION)
        else:
            kinds.append(OTHER if token in special or place < system_end else TEXT)
    return torch.tensor(kinds)


def unit_keys(kinds: torch.Tensor, grid_thw: Sequence[Sequence[int]]) -> torch.Tensor:
    """Which prompt keys belong to which image, or temporal step of a video: [P, U], one where they do.

    `kinds` [P] as from prompt_kinds; `grid_thw` counts the patches of each image and video, in the order of the prompt.
    """
    vision = (kinds == VISION).nonzero()[:, 0]
    patches = torch.tensor([rows * columns for steps, rows, columns in grid_thw for _ in range(steps)])
    found = torch.zeros(len(kinds), len(patches))
    if len(vision):
        tokens = patches * len(vision) // patches.sum()
        found[vision, torch.arange(len(patches)).repeat_interleave(tokens)] = 1
    return found


def _stacked(layers: list[torch.Tensor | None]) -> torch.Tensor:
    found = [layer for layer in layers if layer is not None]
    if len(found) != len(layers):
        raise RuntimeError(f"attention was recorded in {len(found)} of {len(layers)} layers")
    return torch.stack(found).cpu()

"""Attention of completions in rows of their own, for any family whose layers use transformers' AttentionInterface.

Query, key, value and mask of every layer reach `attend`. The mask is the family's own: sliding windows, chunks, images
whose tokens see each other. The rows of completions alone go once more through the eager function of the family's own
code, a chunk at a time, and are at once reduced to masses. Layers without attention weights (linear attention) call no
attention function, and are left out. tests/models/test_own_rows.py compares with eager forward passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from dapo_stages.errors import ModelError
from dapo_stages.models.shared_prefix.masses import VISION, Scored

NAME = "dapo_own_rows"
_EAGER = "eager_attention_forward"  # what transformers' modules call it
_RECORDER: ContextVar[RowRecorder | None] = ContextVar(NAME, default=None)

Eager = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class Recorded(Exception):
    """The last layer's masses are recorded: its output, the final norm and the head are not needed."""


class RowRecorder:
    """Collects the masses of a group's completions while its rows [N, P + C] pass through the layers.

    Row t is the attention of the position that predicted token t (`predicting`) or of token t's own position (`token`).
    """

    def __init__(
        self,
        kinds: torch.Tensor,
        lengths: Sequence[int],
        layers: Sequence[int],
        query: Literal["predicting", "token"] = "predicting",
        chunk_rows: int = 256,
        patches: Sequence[int] = (),
        *,
        rollout: bool = False,
        units: torch.Tensor | None = None,
    ) -> None:
        """`kinds` [P] names the kind of each prompt key (shared_prefix/masses.py), `layers` the layers that have
        attention weights, `patches` the completions whose attention is kept per vision token; `rollout` adds attention
        rollout over these layers (shared_prefix/attention_rollout.py); `units` [P, U] tell which prompt keys belong to
        which image (shared_prefix/masses.unit_keys), to sum their attention separately."""
        self._kinds, self._lengths, self._chunk, self._patches = kinds, list(lengths), chunk_rows, list(patches)
        self._first = len(kinds) - int(query == "predicting")
        self._layers = {layer: place for place, layer in enumerate(layers)}
        self._masses: list[torch.Tensor | None] = [None] * len(layers)
        self._looks: list[torch.Tensor | None] = [None] * len(layers)
        self._units, self._unit_masses = units, [torch.empty(0)] * len(layers)
        self._rollout = rollout
        self._seen: torch.Tensor | None = None  # [N, T] of attention rollout, after the layers so far
        self._next: list[torch.Tensor] = []  # the same after the layer that is recorded, by chunks of T
        self.to_the_end = True  # whether what comes after the last layer is needed

    def record(
        self, layer: int, eager: Eager, query: torch.Tensor, keys: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> None:
        """Called by each layer: query [N, H, T, D]; `keys` are key, value [N, H_kv, T, D] and mask [N, 1, T, T].

        `eager` makes weights [N, H, rows, T] of some rows of query and mask.
        """
        place = self._layers[layer]
        masses, looks, units = [], [], []
        last = self._first + max(self._lengths)
        for start, mean in self._rows(eager, query, *keys):
            if self._rollout:
                self._step(start, mean)
            rows = mean[:, max(0, self._first - start) : max(0, last - start)]
            if rows.shape[1]:
                prompt = rows[..., : len(self._kinds)]
                one_hot = F.one_hot(self._kinds, 4).to(rows)
                masses.append(torch.cat([prompt @ one_hot, rows[..., len(self._kinds) :].sum(-1, keepdim=True)], -1))
                if self._units is not None:
                    units.append(prompt @ self._units.to(rows))
                looks.append(prompt[self._patches][..., (self._kinds == VISION).to(rows.device)])
        if self._rollout:
            self._seen, self._next = torch.cat(self._next, 1), []
        self._masses[place], self._looks[place] = torch.cat(masses, 1).cpu(), torch.cat(looks, 1).cpu()
        if self._units is not None:
            self._unit_masses[place] = torch.cat(units, 1).cpu()
        if not self.to_the_end and all(found is not None for found in self._masses):
            raise Recorded

    def results(self) -> list[Scored]:
        """Of each completion."""
        if None in self._masses:
            missing = self._masses.count(None)
            raise RuntimeError(f"attention was recorded in {len(self._masses) - missing} of {len(self._masses)} layers")
        masses = torch.stack([found for found in self._masses if found is not None])  # [L, N, C, 5]
        looks = torch.stack([found for found in self._looks if found is not None])
        scored = []
        for row, length in enumerate(self._lengths):
            patches = looks[:, self._patches.index(row), :length] if row in self._patches else None
            seen = self._seen[row, self._first : self._first + length].cpu() if self._seen is not None else None
            units = None if self._units is None else torch.stack(self._unit_masses)[:, row, :length]
            scored.append(Scored(masses[:, row, :length], patches, seen, units))
        return scored

    def _rows(
        self, eager: Eager, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Where each chunk starts, and its attention [N, rows, T], mean over heads, in float32 or better."""
        exact = torch.float64 if query.dtype == torch.float64 else torch.float32
        key, value = key.to(exact), value.to(exact)
        first, last = (0, query.shape[2]) if self._rollout else (self._first, self._first + max(self._lengths))
        steps = max(1, self._chunk // len(query))
        for start in range(first, last, steps):
            rows = slice(start, min(start + steps, last))
            # the mask's hidden places have the least number of its own type, which is still hidden in a wider one
            weights = eager(query[:, :, rows].to(exact), key, value, mask[:, :, rows].to(exact))[1]
            yield start, weights.mean(1)

    def _step(self, start: int, mean: torch.Tensor) -> None:
        """Attention rollout of some rows in this layer: (attention + identity) / 2."""
        if self._seen is None:
            vision = F.pad((self._kinds == VISION), (0, mean.shape[-1] - len(self._kinds)))
            self._seen = vision.to(mean).expand(len(mean), -1)
        seen = torch.einsum("nrt,nt->nr", mean, self._seen)
        self._next.append((seen + self._seen[:, start : start + mean.shape[1]]) / 2)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of one layer: query [N, H, T, D], key and value [N, H_kv, T, D] -> [N, T, H, D].

    By SDPA, or eagerly where the family has no SDPA.
    """
    eager = _eager_of(module)
    assert eager is not None
    if (recorder := _RECORDER.get()) is not None:

        def weights(*parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return eager(module, *parts, **kwargs)

        with torch.no_grad():
            recorder.record(int(module.layer_idx), weights, query, (key, value, attention_mask))  # type: ignore[arg-type]
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        return eager(module, query, key, value, attention_mask, **kwargs)
    output: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
    return output, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)  # never left out, as SDPA's may be


@contextmanager
def recording(recorder: RowRecorder) -> Iterator[None]:
    """What models with this attention compute inside is recorded."""
    token = _RECORDER.set(recorder)
    try:
        yield
    finally:
        _RECORDER.reset(token)


def set_attention(model: Any, name: str) -> None:
    """Let the decoder of a model use this attention; its other parts, such as a vision tower, keep theirs."""
    config = model.config
    text = config.get_text_config()
    place = next((key for key in config.sub_configs if getattr(config, key) is text), "")
    model.set_attn_implementation({place: name})


def attention_layers(model: Any) -> list[int]:
    """The layers of a model's decoder whose attention weights can be had, counted from 0."""
    return sorted(int(module.layer_idx) for module in _attentions(model))  # type: ignore[arg-type]


def unreadable(model: Any, processor: Any) -> str | None:
    """Why the attention to images cannot be read in a model (its weights are not needed); None if it can."""
    if image_token_id(model.config, processor) is None:
        return "neither its config.json nor its processor says which tokens are an image's"
    crossing = [module for module in model.get_decoder().modules() if "CrossAttention" in type(module).__name__]
    if crossing:
        return "it looks at images by cross-attention, without tokens for them"
    if not attention_layers(model):
        return "its layers do not use transformers' AttentionInterface"
    return None


def image_token_id(config: Any, processor: Any) -> int | None:
    """The token that stands for a part of an image: the one that the model replaces, else the processor's."""
    found = getattr(config, "image_token_id", None)
    found = getattr(processor, "image_token_id", None) if found is None else found
    return None if found is None else int(found)


def require_readable(path: object, family: str, model: Any, processor: Any) -> None:
    """Raise ModelError, with the reason, if the attention to images cannot be read."""
    if (reason := unreadable(model, processor)) is not None:
        raise ModelError(
            f"{path}: the attention of architecture `{family}` cannot be read: {reason}. Set attention.enabled to "
            "false, or model.name to another checkpoint."
        )


def _attentions(model: Any) -> list[torch.nn.Module]:
    """The attention modules of the decoder: those that look up transformers' AttentionInterface."""
    return [
        module
        for module in model.get_decoder().modules()
        if hasattr(module, "layer_idx") and _eager_of(module) is not None
    ]


def _eager_of(module: torch.nn.Module) -> Eager | None:
    """The eager function that a module would use itself; None if it has none."""
    forward = inspect.unwrap(type(module).forward)
    if _EAGER not in forward.__code__.co_names:
        return None
    found: Eager | None = forward.__globals__.get(_EAGER)
    return found

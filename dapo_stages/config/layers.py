"""Which layers of the policy a measure of attention is taken over."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from dapo_stages.config.base import Count

SEGMENTS = ("all", "early", "middle", "late")


def _check(value: Any) -> Any:
    """Refuse what are no layers, in one sentence for all alternatives."""
    if value in SEGMENTS and isinstance(value, str):
        return value
    if isinstance(value, dict) and list(value) == ["last"] and _is_number(value["last"], 1):
        return value
    listed = list(value) if isinstance(value, list | tuple) else []
    if listed and all(_is_number(layer, 0) for layer in listed) and len(set(listed)) == len(listed):
        return sorted(listed)
    raise ValueError(
        f"must be all, early, middle, late, {{last: 6}} or a list of different layers counted from 0, such as [4, 5], "
        f"got {value!r:.100}"
    )


def _is_number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


# A third of the layers, all of them, the last ones, or those that are listed.
Layers = Annotated[
    Literal["all", "early", "middle", "late"] | dict[Literal["last"], Count] | tuple[int, ...], BeforeValidator(_check)
]


def is_segment(layers: Layers) -> bool:
    """Whether the attention files always have the measures over these layers; others are only measured if asked for."""
    return isinstance(layers, str)


def numbers_of(layers: Layers, count: int, linear: Collection[int] = ()) -> list[int]:
    """The layers of `{last: k}` or of a list, in a policy with `count` layers, counted from 0.

    Layers that are `linear` have no attention weights: the others are counted without them, and the last ones are
    among these. Raises ValueError, with the reason, if the policy does not have them.
    """
    scored = [layer for layer in range(count) if layer not in linear]
    if isinstance(layers, dict):
        last = layers["last"]
        if last > len(scored):
            kind = " with attention weights" if linear else ""
            raise ValueError(f"the last {last} layers, but the policy has {len(scored)}{kind}")
        return list(range(len(scored) - last, len(scored)))
    numbers = [int(layer) for layer in layers]
    if numbers[-1] >= count:
        raise ValueError(f"layer {numbers[-1]}, but the policy has {count} layers, counted from 0")
    if without := sorted(set(numbers) & set(linear)):
        raise ValueError(f"layer {without[0]}, a linear one, which has no attention weights")
    return [scored.index(layer) for layer in numbers]


def vgr_column(layers: Layers) -> str:
    """The column of the attention files with the VGR of a completion over these layers."""
    return f"vgr_{layers if is_segment(layers) else 'layers'}"


def token_vgr_column(layers: Layers) -> str:
    """The column with the VGR of each token over these layers."""
    return "vgr" if layers == "all" else f"token_{vgr_column(layers)}"

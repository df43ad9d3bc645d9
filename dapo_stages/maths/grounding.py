"""How much the model attends to the image: visual grounding ratio and efficiency index from attention masses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

KINDS = ("vision", "text", "other", "first", "generated")  # order of the last axis of the masses


@dataclass(frozen=True)
class Summary:
    """Attention of one completion of T tokens."""

    masses: dict[str, FloatArray]  # kind -> [T], mean over layers; the five kinds sum to 1
    vgr: FloatArray  # [T], over all layers; NaN where undefined
    token_vgr: dict[str, FloatArray | None]  # by layers, e.g. "early": [T]; None where the segment does not exist
    scalars: dict[str, float | None]  # e.g. "vgr_early", "attn_text_all"; None where the segment does not exist
    vision_by_image: FloatArray | None = None  # [U] attn_vision_all of each image or temporal step of a video


def segments(num_layers: int) -> dict[str, slice | None]:
    """Layers of each segment: early [0, L//3), middle [L//3, 2L//3), late [2L//3, L), all [0, L).

    The three thirds are disjoint and cover all layers. Below three layers one of them would be empty, so there
    they are None and only `all` exists.
    """
    third, two_thirds = num_layers // 3, 2 * num_layers // 3
    everything = slice(0, num_layers)
    if num_layers < 3:
        return {"early": None, "middle": None, "late": None, "all": everything}
    return {
        "early": slice(0, third),
        "middle": slice(third, two_thirds),
        "late": slice(two_thirds, num_layers),
        "all": everything,
    }


def vgr(a_text: ArrayLike, a_vis: ArrayLike, n_text: ArrayLike, n_vis: ArrayLike) -> FloatArray:
    """Visual grounding ratio (A_text / N_text) / (A_vis / N_vis), elementwise; lower means more visually grounded.

    1 means that an average text token gets as much attention as an average vision token. NaN if there are no
    text or no vision keys, or if neither got any attention; inf if only vision got none.
    """
    text, vision, num_text, num_vision = (np.asarray(x, dtype=np.float64) for x in (a_text, a_vis, n_text, n_vis))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (text / num_text) / (vision / num_vision)
    return np.where((num_text > 0) & (num_vision > 0), ratio, np.nan)


def aei(
    a_m: ArrayLike, a_text: ArrayLike, a_vis: ArrayLike, n_m: ArrayLike, n_text: ArrayLike, n_vis: ArrayLike
) -> FloatArray:
    """Attention efficiency index of modality m, [A_m / (A_text + A_vis)] / [N_m / (N_text + N_vis)], elementwise.

    The share of attention that m gets, over its share of the tokens; 1 is its fair share. Invariant: the mean of
    text and vision weighted by their token shares is 1. NaN if text or vision has no keys (there is nothing to
    share) or if neither got any attention.
    """
    of_m, text, vision, num_m, num_text, num_vision = (
        np.asarray(x, dtype=np.float64) for x in (a_m, a_text, a_vis, n_m, n_text, n_vis)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        index = (of_m / (text + vision)) / (num_m / (num_text + num_vision))
    return np.where((num_text > 0) & (num_vision > 0), index, np.nan)


def summarize(
    masses_LTK: ArrayLike,
    n_text: int,
    n_vision: int,
    layers: Sequence[int] | None = None,
    vgr_layers: Sequence[int] | None = None,
    units_LTU: ArrayLike | None = None,
) -> Summary:
    """All statistics of a completion's attention, from masses [L, T, 5] (mean over heads, order KINDS).

    A_m of a layer and row is its mass on m divided by its mass on the prompt without the first position (vision +
    text + other). A_m of a segment is the mean of those over its layers, and over the rows where one number stands
    for the completion; ratios are formed after averaging. A layer and row without attention on that part of the
    prompt have no A_m and are left out of the means. Without vision keys VGR and AEI are NaN; so is everything of an
    empty completion. `layers` adds token_vgr["layers"] over these layers, `vgr_layers` the scalar of that name.
    `units` [L, T, U] are the vision masses of each of U images, which add up to that on vision.
    """
    masses = np.asarray(masses_LTK, dtype=np.float64)
    if masses.ndim != 3 or masses.shape[2] != len(KINDS):
        raise ValueError(f"masses must have shape [layers, tokens, {len(KINDS)}], got {masses.shape}")
    kinds = dict(zip(KINDS, np.moveaxis(masses, 2, 0), strict=True))
    prompt_LT = kinds["vision"] + kinds["text"] + kinds["other"]
    text_LT, vision_LT = _share(kinds["text"], prompt_LT), _share(kinds["vision"], prompt_LT)

    scalars: dict[str, float | None] = {}
    token_vgr: dict[str, FloatArray | None] = {}
    for segment, place in segments(len(masses)).items():
        names = [f"{name}_{segment}" for name in ("vgr", "aei_text", "aei_vision", "attn_text", "attn_vision")]
        if place is None:
            scalars |= dict.fromkeys(names)
            token_vgr[segment] = None
            continue
        text, vision = float(_mean(text_LT[place], None)), float(_mean(vision_LT[place], None))
        values = (
            float(vgr(text, vision, n_text, n_vision)),
            float(aei(text, text, vision, n_text, n_text, n_vision)),
            float(aei(vision, text, vision, n_vision, n_text, n_vision)),
            text,
            vision,
        )
        scalars |= dict(zip(names, values, strict=True))
        token_vgr[segment] = vgr(_mean(text_LT[place], 0), _mean(vision_LT[place], 0), n_text, n_vision)
    if layers is not None:
        chosen = list(layers)
        token_vgr["layers"] = vgr(_mean(text_LT[chosen], 0), _mean(vision_LT[chosen], 0), n_text, n_vision)
    if vgr_layers is not None:
        chosen = list(vgr_layers)
        text, vision = float(_mean(text_LT[chosen], None)), float(_mean(vision_LT[chosen], None))
        scalars["vgr_layers"] = float(vgr(text, vision, n_text, n_vision))
    by_image = None
    if units_LTU is not None:
        units = np.asarray(units_LTU, dtype=np.float64)
        by_image = np.array([_mean(_share(units[..., unit], prompt_LT), None) for unit in range(units.shape[-1])])
    vgr_T = token_vgr.pop("all")
    assert vgr_T is not None
    return Summary(
        masses={kind: _mean(mass_LT, 0) for kind, mass_LT in kinds.items()},
        vgr=vgr_T,
        token_vgr=token_vgr,
        scalars=scalars,
        vision_by_image=by_image,
    )


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: FloatArray, axis: int | None) -> FloatArray:
    """Mean of the defined (not NaN) values along an axis, or of all; NaN where there is none."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, values, 0.0).sum(axis=axis) / np.asarray(count, dtype=np.float64))

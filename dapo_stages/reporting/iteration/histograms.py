"""Distributions of an iteration, small enough to be kept when its files are pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from dapo_stages.handoff.manifests import Source

FILE = "histograms.json"  # of a report
BINS = 48


class Histogram(TypedDict):
    """`counts[i]` values lie between `edges[i]` and `edges[i + 1]`."""

    edges: list[float]
    counts: list[int]


def histograms(sources: Mapping[str, Source]) -> dict[str, Histogram]:
    """Token weights, and the VGR of tokens and of completions, as far as an iteration has them."""
    values: dict[str, list[Sequence[float]]] = {"token_weights": [], "token_vgr": [], "vgr": []}
    if "weights" in sources:
        for row in sources["weights"].rows("weights", ["token_weights"]):
            values["token_weights"].append(row["token_weights"])
    if "attention" in sources:
        for row in sources["attention"].rows("attention", ["vgr", "vgr_all"]):
            values["token_vgr"].append(row["vgr"] or ())
            values["vgr"].append(() if row["vgr_all"] is None else (row["vgr_all"],))
    # VGR is a ratio, over orders of magnitude.
    found = {name: histogram(_flat(parts), logarithmic=name != "token_weights") for name, parts in values.items()}
    return {name: one for name, one in found.items() if one is not None}


def histogram(values: NDArray[np.float64], *, logarithmic: bool = False) -> Histogram | None:
    """Counts in BINS bins of the same width (or ratio); values that are not finite are left out. None without any."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if logarithmic and 0 < low < high:
        edges = np.geomspace(low, high, BINS + 1)
    else:
        edges = np.histogram_bin_edges(finite, BINS)
    counts, _ = np.histogram(finite, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _flat(parts: Iterable[Sequence[float]]) -> NDArray[np.float64]:
    arrays = [np.asarray(part, dtype=np.float64) for part in parts]
    return np.concatenate(arrays) if arrays else np.empty(0)

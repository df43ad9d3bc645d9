"""Random draws for a group that depend on nothing but the seed, the group and what is drawn."""

from __future__ import annotations

import hashlib

import numpy as np

BLANKS, DIRECTIONS = 4, 5  # streams: what is drawn; others with the same seed have other numbers


def generator(stream: int, seed: int, group_id: str, *draw: int) -> np.random.Generator:
    """The generator of one draw for one group, whatever batch or process it is in."""
    group = int.from_bytes(hashlib.sha256(group_id.encode()).digest()[:8], "big")
    return np.random.default_rng([stream, seed, group, *draw])

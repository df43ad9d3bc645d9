"""The sizes of a vision tower: what turns the patches of an image into vision tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Linears = dict[str, list[tuple[int, int, int]]]  # name -> (how many, in, out) of the linear layers with that name


@dataclass(frozen=True)
class Tower:
    """That of Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Qwen3.5 in numbers."""

    layers: int
    hidden: int
    mlp: int
    full_layers: int  # the others attend inside windows
    window: int  # patches of a window
    patch: int  # values of a patch
    merge: int  # patches that become one vision token
    side: int  # pixels of a side of what a vision token covers
    out: int  # width of a vision token
    gated: bool  # its MLP has a gate, and its norms no bias (Qwen2.5-VL)
    positions: int = 0  # learned ones, where patches have a bias as well (Qwen3-VL, Qwen3.5)
    deepstack: int = 0  # layers whose output goes to the text, too, each through a merger of its own (Qwen3-VL)

    @property
    def wide(self) -> int:
        """Width of the patches that become one token."""
        return self.merge * self.hidden

    @property
    def parameters(self) -> int:
        """Those of patches, positions, blocks, and mergers into the text's width."""
        v, m, wide = self.hidden, self.mlp, self.wide
        norm = v if self.gated else 2 * v
        mlp = 3 * v * m + 2 * m + v if self.gated else 2 * v * m + m + v
        block = 4 * v * v + 4 * v + mlp + 2 * norm
        merger = wide * wide + wide + wide * self.out + self.out
        patches = self.patch * v + (v + self.positions * v if self.positions else 0)
        return patches + self.layers * block + norm + merger + self.deepstack * (2 * wide + merger)

    @property
    def linears(self) -> Linears:
        """Those that adapters can name; the patches' convolution is one as well."""
        v, m, wide, mergers = self.hidden, self.mlp, self.wide, 1 + self.deepstack
        attention: Linears = {"qkv": [(self.layers, v, 3 * v)], "proj": [(self.layers, v, v), (1, self.patch, v)]}
        up, down = (self.layers, v, m), (self.layers, m, v)
        if self.gated:
            return attention | {"gate_proj": [up], "up_proj": [up], "down_proj": [down]}
        if self.positions:
            into, out = (mergers, wide, wide), (mergers, wide, self.out)
            return attention | {"linear_fc1": [up, into], "linear_fc2": [down, out]}
        return attention | {"fc1": [up], "fc2": [down]}


def tower_of(family: str, config: Mapping[str, Any], out: int) -> Tower:
    """From the vision_config of a checkpoint, for a text model of width `out`. Raises KeyError for a missing number."""
    newer, gated = family in ("qwen3_vl", "qwen3_5"), family == "qwen2_5_vl"
    layers, side = config.get("depth", 27 if newer else 32), config.get("patch_size", 16 if newer else 14)
    width = config.get("embed_dim", 1280) if family == "qwen2_vl" else config["hidden_size"]
    channels, merge = config.get("in_channels", config.get("in_chans", 3)), config.get("spatial_merge_size", 2)
    return Tower(
        layers=layers,
        hidden=width,
        mlp=width * config.get("mlp_ratio", 4) if family == "qwen2_vl" else config["intermediate_size"],
        full_layers=len(config.get("fullatt_block_indexes", (7, 15, 23, 31))) if gated else layers,
        window=(config.get("window_size", 112) // side) ** 2,
        patch=channels * config.get("temporal_patch_size", 2) * side**2,
        merge=merge**2,
        side=merge * side,
        out=out,
        gated=gated,
        positions=config.get("num_position_embeddings", 2304) if newer else 0,
        deepstack=len(config.get("deepstack_visual_indexes", (8, 16, 24))) if family == "qwen3_vl" else 0,
    )

"""The sizes of layers with linear attention: a state that every token updates, instead of keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dapo_stages.handoff.policy_folders import LINEAR
from dapo_stages.planning.tower import Linears


@dataclass(frozen=True)
class LinearAttention:
    """The gated delta nets of a text model (three of four layers of Qwen3.5) in numbers."""

    layers: int
    hidden: int  # of the text
    keys: int  # width of a token's queries, and of its keys
    values: int
    heads: int  # of the values; each has a state of its own
    key: int  # width of a head's keys
    taps: int  # tokens that the convolution before the rule sees

    @property
    def mixed(self) -> int:
        """Width of what goes through the convolution: queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def state(self) -> int:
        """Values of a layer's state: a matrix of keys by values for each head."""
        return self.key * self.values

    @property
    def matrices(self) -> int:
        """Weights of a layer's linear projections."""
        return self.hidden * (self.mixed + 2 * self.values + 2 * self.heads)

    @property
    def parameters(self) -> int:
        """Those of a layer, without MLP and its norms: projections, convolution, dt_bias, A_log, the output's norm."""
        return self.matrices + self.mixed * self.taps + 2 * self.heads + self.values // self.heads

    @property
    def linears(self) -> Linears:
        """Those that adapters can name; the convolution is none."""
        h, v = self.hidden, self.values
        heads = (self.layers, h, self.heads)
        return {
            "in_proj_qkv": [(self.layers, h, self.mixed)],
            "in_proj_z": [(self.layers, h, v)],
            "in_proj_a": [heads],
            "in_proj_b": [heads],
            "out_proj": [(self.layers, v, h)],
        }


def linear_attention_of(text: Mapping[str, Any]) -> LinearAttention | None:
    """From the text_config of a Qwen3.5; None if it has no such layers. Raises KeyError for a missing number."""
    layers, every = text["num_hidden_layers"], text.get("full_attention_interval", 4)
    kinds = text.get("layer_types") or [LINEAR] * (layers - layers // every)
    count, heads = kinds.count(LINEAR), text.get("linear_num_value_heads", 32)
    if not count:
        return None
    key = text.get("linear_key_head_dim", 128)
    return LinearAttention(
        layers=count,
        hidden=text["hidden_size"],
        keys=text.get("linear_num_key_heads", 16) * key,
        values=heads * text.get("linear_value_head_dim", 128),
        heads=heads,
        key=key,
        taps=text.get("linear_conv_kernel_dim", 4),
    )

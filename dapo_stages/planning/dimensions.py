"""The sizes of a vision-language model: from its config.json to the numbers that memory and time depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dapo_stages.planning.linear_attention import LinearAttention, linear_attention_of
from dapo_stages.planning.tower import Linears, Tower, tower_of

FAMILIES = {"qwen3_5": "Qwen3.5", "qwen3_vl": "Qwen3-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen2_vl": "Qwen2-VL"}
_HEADS = {"qwen3_vl": 128, "qwen3_5": 256}  # default width of a head; the others divide the hidden size by heads


@dataclass(frozen=True)
class Dimensions:
    """A model of one of FAMILIES in numbers."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int  # width of a head
    mlp: int
    tied: bool  # the output head is the embedding
    tower: Tower
    biased: bool = True  # q, k and v have biases; else q and k have norms (Qwen3)
    gates: bool = False  # attention's output has gates, which q makes, too (Qwen3.5)
    linear: LinearAttention | None = None  # what some of the layers have instead of attention

    @property
    def width(self) -> int:
        """Width of a token's queries, and of attention's output."""
        return self.heads * self.head

    @property
    def kv(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.kv_heads * self.head

    @property
    def attending(self) -> int:
        """Text layers with attention, and so with keys and values."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding; an untied head has as many."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of a text layer with attention: projections, with biases or two norms, gated MLP, two norms."""
        return self._projections + (self.width + 2 * self.kv if self.biased else 2 * self.head) + self._rest

    @property
    def linear_layer(self) -> int:
        """Parameters of a text layer with linear attention; 0 if there is none."""
        return self.linear.parameters + self._rest if self.linear else 0

    @property
    def stack(self) -> int:
        """Parameters of all text layers."""
        return self.attending * self.layer + (self.layers - self.attending) * self.linear_layer

    @property
    def vision(self) -> int:
        """Parameters of the vision tower."""
        return self.tower.parameters

    @property
    def parameters(self) -> int:
        """All parameters; a tied head is counted once."""
        return self.vision + self.embedding * (1 if self.tied else 2) + self.stack + self.hidden

    @property
    def linears(self) -> Linears:
        """Name of an adapter's target -> (how many, in, out) of the linear layers with that name."""
        h, m, width, kv, attending = self.hidden, self.mlp, self.width, self.kv, self.attending
        text = {
            "q_proj": [(attending, h, width * (2 if self.gates else 1))],
            "k_proj": [(attending, h, kv)],
            "v_proj": [(attending, h, kv)],
            "o_proj": [(attending, width, h)],
            "gate_proj": [(self.layers, h, m)],
            "up_proj": [(self.layers, h, m)],
            "down_proj": [(self.layers, m, h)],
            **(self.linear.linears if self.linear else {}),
        }
        tower = self.tower.linears
        return {name: text.get(name, []) + tower.get(name, []) for name in [*text, *tower]}  # some are in both parts

    @property
    def matrices(self) -> int:
        """Weights of the text's linear layers, without biases and head: those that are quantized."""
        linear = self.linear.layers * self.linear.matrices if self.linear else 0
        return self.attending * self._projections + linear + self.layers * 3 * self.hidden * self.mlp

    def adapter(self, rank: int, target_modules: tuple[str, ...]) -> int:
        """Parameters of LoRA adapters: rank · (in + out) per layer. Raises KeyError for an unknown name."""
        return sum(n * rank * (i + o) for name in target_modules for n, i, o in self.linears[name])

    @property
    def _projections(self) -> int:
        """Weights of q (with gates twice), k, v and o."""
        return (3 if self.gates else 2) * self.hidden * self.width + 2 * self.hidden * self.kv

    @property
    def _rest(self) -> int:
        """Parameters of a text layer's MLP and norms."""
        return 3 * self.hidden * self.mlp + 2 * self.hidden


def dimensions_of(config: Mapping[str, Any]) -> Dimensions:
    """From a checkpoint's config.json, flat (as published) or with a text_config (as transformers 5 writes it).

    Raises ValueError for another architecture, KeyError for a missing number.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"architecture `{family}`")
    text = {**config, **(config.get("text_config") or {})}
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    return Dimensions(
        vocabulary=text["vocab_size"],
        hidden=hidden,
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text["num_key_value_heads"],
        head=text.get("head_dim", _HEADS[family]) if family in _HEADS else hidden // heads,
        mlp=text["intermediate_size"],
        tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        tower=tower_of(family, config["vision_config"], hidden),
        biased=family not in _HEADS,
        gates=family == "qwen3_5",
        linear=linear_attention_of(text) if family == "qwen3_5" else None,
    )

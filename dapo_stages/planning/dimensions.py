"""The sizes of a vision-language model: from its config.json to the numbers that memory and time depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dimensions:
    """Qwen2-VL or Qwen2.5-VL in numbers."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool  # the output head is the embedding
    vision_layers: int
    vision_hidden: int
    vision_mlp: int
    vision_full_layers: int  # the others attend inside windows
    window: int  # patches of a window
    patch: int  # values of a patch
    merge: int  # patches that become one vision token
    gated: bool  # the vision tower's MLP has a gate, and its norms no bias (Qwen2.5-VL)

    @property
    def kv(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.kv_heads * self.hidden // self.heads

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding; an untied head has as many."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of a text layer: projections (q, k, v with biases), gated MLP, two norms."""
        h, kv = self.hidden, self.kv
        return 2 * h * h + h + 2 * (h * kv + kv) + 3 * h * self.mlp + 2 * h

    @property
    def vision(self) -> int:
        """Parameters of the vision tower: patches, blocks, and the merger into the text's width."""
        v, m, wide = self.vision_hidden, self.vision_mlp, self.merge * self.vision_hidden
        norm = v if self.gated else 2 * v
        mlp = 3 * v * m + 2 * m + v if self.gated else 2 * v * m + m + v
        block = 4 * v * v + 4 * v + mlp + 2 * norm
        merger = norm + wide * wide + wide + wide * self.hidden + self.hidden
        return self.patch * v + self.vision_layers * block + merger

    @property
    def parameters(self) -> int:
        """All parameters; a tied head is counted once."""
        return self.vision + self.embedding * (1 if self.tied else 2) + self.layers * self.layer + self.hidden

    @property
    def linears(self) -> dict[str, list[tuple[int, int, int]]]:
        """Name of an adapter's target -> (how many, in, out) of the linear layers with that name."""
        h, m, kv, v, vm = self.hidden, self.mlp, self.kv, self.vision_hidden, self.vision_mlp
        text, tower = self.layers, self.vision_layers
        found = {
            "q_proj": [(text, h, h)],
            "k_proj": [(text, h, kv)],
            "v_proj": [(text, h, kv)],
            "o_proj": [(text, h, h)],
            "gate_proj": [(text, h, m)],
            "up_proj": [(text, h, m)],
            "down_proj": [(text, m, h)],
            "qkv": [(tower, v, 3 * v)],
            "proj": [(tower, v, v), (1, self.patch, v)],
        }
        if self.gated:  # the same names in both parts
            for name, shape in (("gate_proj", (v, vm)), ("up_proj", (v, vm)), ("down_proj", (vm, v))):
                found[name].append((tower, *shape))
        else:
            found |= {"fc1": [(tower, v, vm)], "fc2": [(tower, vm, v)]}
        return found

    @property
    def matrices(self) -> int:
        """Weights of the text's linear layers, without biases and head: those that are quantized."""
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * self.kv + 3 * self.hidden * self.mlp)

    def adapter(self, rank: int, target_modules: tuple[str, ...]) -> int:
        """Parameters of LoRA adapters: rank · (in + out) per layer. Raises KeyError for an unknown name."""
        return sum(n * rank * (i + o) for name in target_modules for n, i, o in self.linears[name])


def dimensions_of(config: Mapping[str, Any]) -> Dimensions:
    """From a checkpoint's config.json, flat (as published) or with a text_config (as transformers 5 writes it).

    Raises ValueError for another architecture, KeyError for a missing number.
    """
    family = config.get("model_type")
    if family not in ("qwen2_5_vl", "qwen2_vl"):
        raise ValueError(f"architecture `{family}`")
    text = {**config, **(config.get("text_config") or {})}
    tower = config["vision_config"]
    gated = family == "qwen2_5_vl"
    width = tower["hidden_size"] if gated else tower.get("embed_dim", 1280)
    patch_size, channels = tower.get("patch_size", 14), tower.get("in_channels", tower.get("in_chans", 3))
    merge = tower.get("spatial_merge_size", 2)
    full = tower.get("fullatt_block_indexes", (7, 15, 23, 31)) if gated else range(tower.get("depth", 32))
    return Dimensions(
        vocabulary=text["vocab_size"],
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        mlp=text["intermediate_size"],
        tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        vision_layers=tower.get("depth", 32),
        vision_hidden=width,
        vision_mlp=tower["intermediate_size"] if gated else width * tower.get("mlp_ratio", 4),
        vision_full_layers=len(full),
        window=(tower.get("window_size", 112) // patch_size) ** 2,
        patch=channels * tower.get("temporal_patch_size", 2) * patch_size**2,
        merge=merge**2,
        gated=gated,
    )


def _published(
    family: str, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, vision_mlp: int = 0
) -> dict[str, Any]:
    """The relevant part of a config.json on the hub."""
    tower = {"hidden_size": 1280, "intermediate_size": vision_mlp} if family == "qwen2_5_vl" else {"embed_dim": 1280}
    return {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": vocabulary == 151936,
        "vision_config": {"depth": 32, **tower},
    }


# From the config.json of each model on the hub (https://huggingface.co/Qwen/…/blob/main/config.json). The resulting
# parameter counts equal those of the published weights exactly (tests/planning/test_dimensions.py).
PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _published("qwen2_5_vl", 2048, 11008, 36, 16, 2, 151936, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": _published("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": _published("qwen2_5_vl", 5120, 27648, 64, 40, 8, 152064, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _published("qwen2_5_vl", 8192, 29568, 80, 64, 8, 152064, 3456),
    "Qwen/Qwen2-VL-2B-Instruct": _published("qwen2_vl", 1536, 8960, 28, 12, 2, 151936),
    "Qwen/Qwen2-VL-7B-Instruct": _published("qwen2_vl", 3584, 18944, 28, 28, 4, 152064),
}

# The embedded policy (models/embedded/embedded_policy.py).
EMBEDDED: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 448,
    "tie_word_embeddings": True,
    "vision_config": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "fullatt_block_indexes": [1]},
}

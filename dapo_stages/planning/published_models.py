"""Configurations of published models, and of the embedded policy, as far as `plan` reads them."""

from __future__ import annotations

from typing import Any


def _qwen2(
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


def _newer(
    family: str, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, tower: dict[str, Any], **text: Any
) -> dict[str, Any]:
    """The same of a Qwen3-VL or Qwen3.5, whose text has a section of its own."""
    return {
        "model_type": family,
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            **text,
        },
        "tie_word_embeddings": tower is not _TOWERS["large"],
        "vision_config": {**tower, "out_hidden_size": hidden},
    }


def _qwen3_vl(hidden: int, mlp: int, layers: int, heads: int, tower: str) -> dict[str, Any]:
    sizes, deepstack = _TOWERS[tower], [8, 16, 24] if tower == "large" else [5, 11, 17]
    about = _newer("qwen3_vl", hidden, mlp, layers, heads, 8, sizes, head_dim=128, vocab_size=151936)
    about["vision_config"]["deepstack_visual_indexes"] = deepstack
    return about


def _qwen3_5(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, value_heads: int, tower: str
) -> dict[str, Any]:
    """Three of four layers have linear attention, with 16 heads of keys."""
    linear = {"full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": value_heads}
    more = {"head_dim": 256, "vocab_size": 248320, **linear}
    return _newer("qwen3_5", hidden, mlp, layers, heads, kv_heads, _TOWERS[tower], **more)


_TOWERS = {
    "small": {"depth": 12, "hidden_size": 768, "intermediate_size": 3072},
    "medium": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096},
    "large": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304},
}

# From the config.json of each model on the hub (https://huggingface.co/Qwen/…/blob/main/config.json). The resulting
# parameter counts equal those of the published weights exactly (tests/planning/test_dimensions.py). Those of a Qwen3.5
# have one more layer, which predicts a further token; transformers leaves it out, and so do these.
PUBLISHED = {
    "Qwen/Qwen3.5-0.8B": _qwen3_5(1024, 3584, 24, 8, 2, 16, "small"),
    "Qwen/Qwen3.5-2B": _qwen3_5(2048, 6144, 24, 8, 2, 16, "medium"),
    "Qwen/Qwen3.5-4B": _qwen3_5(2560, 9216, 32, 16, 4, 32, "medium"),
    "Qwen/Qwen3.5-9B": _qwen3_5(4096, 12288, 32, 16, 4, 32, "large"),
    "Qwen/Qwen3.5-27B": _qwen3_5(5120, 17408, 64, 24, 4, 48, "large"),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3_vl(2048, 6144, 28, 16, "medium"),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl(2560, 9728, 36, 32, "medium"),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl(4096, 12288, 36, 32, "large"),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3_vl(5120, 25600, 64, 64, "large"),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2("qwen2_5_vl", 2048, 11008, 36, 16, 2, 151936, 3420),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2("qwen2_5_vl", 3584, 18944, 28, 28, 4, 152064, 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2("qwen2_5_vl", 5120, 27648, 64, 40, 8, 152064, 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen2("qwen2_5_vl", 8192, 29568, 80, 64, 8, 152064, 3456),
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2("qwen2_vl", 1536, 8960, 28, 12, 2, 151936),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2("qwen2_vl", 3584, 18944, 28, 28, 4, 152064),
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

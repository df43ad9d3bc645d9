"""Parameters from a configuration, against published counts and real models without memory (torch's meta device)."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_stages.planning.dimensions import Dimensions, dimensions_of
from dapo_stages.planning.published_models import EMBEDDED, PUBLISHED

# Parameters as the hub shows them for the published safetensors.
COUNTS = {
    "Qwen/Qwen3.5-0.8B": 873_438_784,
    "Qwen/Qwen3.5-2B": 2_274_069_824,
    "Qwen/Qwen3.5-4B": 4_659_865_088,
    "Qwen/Qwen3.5-9B": 9_653_104_368,
    "Qwen/Qwen3.5-27B": 27_781_427_952,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3-VL-32B-Instruct": 33_357_390_064,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_models_have_the_published_number_of_parameters(name: str) -> None:
    d = dimensions_of(PUBLISHED[name])
    # A Qwen3.5's files also predict a further token: by a layer with attention, from the hidden state and an embedding
    # side by side, with a norm of each and one of the output. transformers leaves that out.
    further = d.layer + 2 * d.hidden**2 + 3 * d.hidden if "Qwen3.5" in name else 0
    assert d.parameters + further == COUNTS[name]


def on_meta(config: dict[str, Any]) -> Any:
    """transformers' model of this configuration, without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    flat = {key: value for key, value in config.items() if isinstance(value, int) and key != "tie_word_embeddings"}
    text = config.get("text_config", flat)
    tower = dict(config["vision_config"])
    tower["hidden_size" if "embed_dim" in tower else "out_hidden_size"] = text["hidden_size"]
    made = AutoConfig.for_model(
        config["model_type"],
        text_config=text,
        vision_config=tower,
        tie_word_embeddings=config["tie_word_embeddings"],
    )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(made)


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "Qwen/Qwen2-VL-2B-Instruct",
        "Qwen/Qwen3-VL-4B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
        "Qwen/Qwen3.5-0.8B",
        "Qwen/Qwen3.5-9B",
    ],
)
def test_they_are_those_of_the_real_model_part_by_part(name: str) -> None:
    model, d = on_meta(PUBLISHED[name]), dimensions_of(PUBLISHED[name])

    def count(part: Any) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(model) == d.parameters
    assert count(model.model.visual) == d.vision
    layers = model.model.language_model.layers
    assert count(layers[-1]) == d.layer  # in Qwen3.5 the fourth has attention, the first is linear
    assert count(layers[0]) == (d.linear_layer or d.layer)
    assert count(layers) == d.stack
    assert dimensions_of(model.config.to_dict()) == d


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("gate_proj", "down_proj", "qkv"), ("o_proj", "proj")])
def test_adapters_have_as_many_as_peft_makes(modules: tuple[str, ...]) -> None:
    assert dimensions_of(EMBEDDED).adapter(4, modules) == adapter_of(on_meta(EMBEDDED), modules)


def adapter_of(model: Any, modules: tuple[str, ...]) -> int:
    """Parameters of peft's adapters of rank 4."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=list(modules)))
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


ALL_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", ALL_SEVEN),
        ("Qwen/Qwen3-VL-4B-Instruct", ("qkv", "proj", "linear_fc1", "linear_fc2")),
        ("Qwen/Qwen3.5-0.8B", ALL_SEVEN),
        (
            "Qwen/Qwen3.5-0.8B",
            ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", "linear_fc1", "linear_fc2"),
        ),
    ],
)
def test_so_have_those_of_newer_models(name: str, modules: tuple[str, ...]) -> None:
    import copy

    few = copy.deepcopy(PUBLISHED[name])
    few["text_config"]["num_hidden_layers"] = 4
    few["vision_config"] |= {"depth": 3} | ({"deepstack_visual_indexes": [0, 2]} if "Qwen3-VL" in name else {})
    assert dimensions_of(few).adapter(4, modules) == adapter_of(on_meta(few), modules)


def test_every_linear_layer_of_newer_models_has_a_name() -> None:
    """Those of torch, without the head; what quantization applies to are those of the text."""
    import torch

    for name in ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3.5-0.8B"):
        model, d = on_meta(PUBLISHED[name]), dimensions_of(PUBLISHED[name])
        kinds = (torch.nn.Linear, torch.nn.Conv3d)
        made = sum(part.weight.numel() for part in model.model.modules() if isinstance(part, kinds))
        assert sum(n * i * o for sizes in d.linears.values() for n, i, o in sizes) == made
        text = [part for part in model.model.language_model.modules() if isinstance(part, torch.nn.Linear)]
        assert d.matrices == sum(part.weight.numel() for part in text)


def test_the_embedded_policy_is_as_its_checkpoint_says(checkpoint: Any) -> None:
    import json

    assert dimensions_of(json.loads((checkpoint / "config.json").read_text())) == embedded()


def embedded() -> Dimensions:
    return dimensions_of(EMBEDDED)


def test_another_architecture_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="architecture `llava`"):
        dimensions_of({"model_type": "llava"})

"""Parameters from a configuration, against published counts and real models without memory (torch's meta device)."""

from __future__ import annotations

from typing import Any

import pytest

from dapo_stages.planning.dimensions import EMBEDDED, PUBLISHED, Dimensions, dimensions_of

# Parameters as the hub shows them for the published safetensors.
COUNTS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_models_have_the_published_number_of_parameters(name: str) -> None:
    assert dimensions_of(PUBLISHED[name]).parameters == COUNTS[name]


def on_meta(config: dict[str, Any]) -> Any:
    """transformers' model of this configuration, without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {key: value for key, value in config.items() if isinstance(value, int) and key != "tie_word_embeddings"}
    tower = dict(config["vision_config"])
    tower["hidden_size" if "embed_dim" in tower else "out_hidden_size"] = config["hidden_size"]
    made = AutoConfig.for_model(
        config["model_type"],
        text_config=text,
        vision_config=tower,
        tie_word_embeddings=config["tie_word_embeddings"],
    )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(made)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"])
def test_they_are_those_of_the_real_model_part_by_part(name: str) -> None:
    model, d = on_meta(PUBLISHED[name]), dimensions_of(PUBLISHED[name])

    def count(part: Any) -> int:
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(model) == d.parameters
    assert count(model.model.visual) == d.vision
    assert count(model.model.language_model.layers[0]) == d.layer
    assert dimensions_of(model.config.to_dict()) == d


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("gate_proj", "down_proj", "qkv"), ("o_proj", "proj")])
def test_adapters_have_as_many_as_peft_makes(modules: tuple[str, ...]) -> None:
    from peft import LoraConfig, get_peft_model

    model = on_meta(EMBEDDED)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=list(modules)))
    made = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert dimensions_of(EMBEDDED).adapter(4, modules) == made


def test_the_embedded_policy_is_as_its_checkpoint_says(checkpoint: Any) -> None:
    import json

    assert dimensions_of(json.loads((checkpoint / "config.json").read_text())) == embedded()


def embedded() -> Dimensions:
    return dimensions_of(EMBEDDED)


def test_another_architecture_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="architecture `llava`"):
        dimensions_of({"model_type": "llava"})

"""Which checkpoints are taken, and what is saved of those of other families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.families import OTHER, OWN_ROWS, QWEN, SOME
from support.prompts import groups, image

from dapo_stages.config import ModelConfig
from dapo_stages.data.images import encode
from dapo_stages.errors import DataError
from dapo_stages.models.families import named
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import check_family, load_policy, save_policy

Checkpoints = Callable[[str], Path]
PROCESSORS = {
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor"),
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLImageProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen2VLImageProcessor"),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen2VLImageProcessor"),
    "internvl": ("InternVLProcessor", "GotOcr2ImageProcessor"),
    "llava_onevision": ("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor"),
    "idefics3": ("Idefics3Processor", "Idefics3ImageProcessor"),
    "gemma3": ("Gemma3Processor", "Gemma3ImageProcessor"),
    OTHER: ("LlavaProcessor", "CLIPImageProcessor"),
}


@pytest.mark.parametrize("family", [*SOME, OTHER])
def test_saved_checkpoints_name_the_standard_classes(checkpoints: Checkpoints, family: str) -> None:
    folder = checkpoints(family)
    processor, images = PROCESSORS[family]
    for name in ("processor_config.json", "preprocessor_config.json"):
        assert json.loads((folder / name).read_text())["processor_class"] == processor
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"] == images
    assert json.loads((folder / "config.json").read_text())["model_type"] == family.partition(" ")[0]


@pytest.mark.parametrize("policy", [*SOME, OTHER], indirect=True)
def test_saving_and_loading_gives_the_same_prompts(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path, ModelConfig(name="embedded", dtype="float32", device="cpu"))
    for one, other in zip(groups(policy), groups(again), strict=True):
        assert one.prompt.ids.equal(other.prompt.ids)
        assert one.prompt.inputs.keys() == other.prompt.inputs.keys()
        assert all(value.equal(other.prompt.inputs[name]) for name, value in one.prompt.inputs.items())


@pytest.mark.parametrize("policy", [*SOME, OTHER], indirect=True)
def test_the_vision_tower_is_found(policy: Policy) -> None:
    names = [name for name, module in policy.base.named_modules() if module is policy.vision]
    towers = {**dict.fromkeys(QWEN, "visual"), "idefics3": "vision_model"}
    assert names == [f"model.{towers.get(policy.architecture, 'vision_tower')}"]


@pytest.mark.parametrize(
    ("model_type", "text", "name"),
    [
        ("llava", {}, "llava"),
        ("llava", {"model_type": "mistral", "sliding_window": None}, "llava"),
        ("llava", {"model_type": "mistral", "sliding_window": 4096}, "llava"),
        ("internvl", {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768}, "internvl"),
        ("internvl", {"model_type": "gpt_oss"}, "internvl with gpt_oss"),
        ("gemma3", {"model_type": "gemma3_text", "sliding_window": 512}, "gemma3"),
        ("gemma3", {"model_type": "gemma3_text", "use_bidirectional_attention": True}, "gemma3 with gemma3_text"),
    ],
)
def test_a_family_shares_prompts_only_around_decoders_that_are_causal_and_were_tried(
    model_type: str, text: dict[str, object], name: str
) -> None:
    assert named(model_type, text) == name


@pytest.mark.parametrize("family", [SOME[0], *OWN_ROWS])
def test_attention_can_be_read_of_every_family(checkpoints: Checkpoints, family: str) -> None:
    assert check_family(checkpoints(family), attention=True) == family


@pytest.mark.parametrize(
    ("policy", "tokens", "mapped"),
    [
        ("llava", 16, True), ("llava", 32, False), ("internvl", 4, True), ("internvl", 16, False),
        ("llava_onevision", 16, False), ("gemma3", 16, True), ("idefics3", 16, False),
    ],
    indirect=["policy"],
)  # fmt: skip
def test_only_images_that_are_one_square_of_tokens_have_a_map(policy: Policy, tokens: int, mapped: bool) -> None:
    """Four tiles of 2 × 2 tokens are as many as one square of 4 × 4, but lie elsewhere."""
    row = {"image_grid_thw": [], "images": [None], "prompt_ids": [1, *[policy.image_token_id] * tokens, 2]}
    assert policy.is_mapped(row) == mapped


@pytest.mark.parametrize("policy", [OTHER], indirect=True)
def test_a_prompt_of_another_tokenizer_is_refused(policy: Policy) -> None:
    """The processor of another family must make the same prompt as in the data."""
    text = "Look: <|image_pad|>"
    row = {"prompt_id": "train-000001", "prompt_text": text, "images": [{"bytes": encode(image(56, 56, 0))}]}
    ids = policy.processor(text=[text], images=[image(56, 56, 0)])["input_ids"][0]
    prompt = prompt_of(row | {"prompt_ids": ids}, policy.processor)
    assert prompt.ids.tolist() == ids and prompt.inputs.keys() == {"pixel_values"}
    with pytest.raises(DataError) as refusal:
        prompt_of(row | {"prompt_ids": ids[1:]}, policy.processor)
    assert str(refusal.value) == (
        f"prompt train-000001: the processor's {len(ids)} tokens differ from the {len(ids) - 1} in the data. Run "
        "prepare-data again with this policy."
    )

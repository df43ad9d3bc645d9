"""LoRA adapters: which layers they may be on, and that the trained policy is the one sampled from and merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.pipeline import Run
from support.prompts import prompt

from dapo_stages.config import LoraSettings, ModelConfig
from dapo_stages.errors import ConfigError, DapoStagesError
from dapo_stages.models.adapters import add_adapter, check_targets, load_adapter
from dapo_stages.models.checkpoints import Adapted, Checkpoint, empty_model, names_in_memory
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy, save_policy
from dapo_stages.models.precision import use_master_weights
from dapo_stages.models.shared_prefix.packing import Group

TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")


def lora(*targets: str) -> LoraSettings:
    return LoraSettings(rank=4, alpha=8, target_modules=targets)


def logprobs(policy: Policy) -> torch.Tensor:
    policy.attend("grouped")
    group = Group(prompt(policy, "What colour is the circle?", [(56, 56)]), [[30, 31, 32, 33], [40, 41]])
    with torch.no_grad():
        found: torch.Tensor = GroupLogprobs(policy, 1.0)(policy.pack([group]))[0]
    return found


@pytest.fixture(scope="module")
def untied(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with its own head."""
    policy = load_policy(checkpoint, TINY)
    for config in (policy.model.config, policy.model.config.text_config):
        config.tie_word_embeddings = False
    torch.manual_seed(0)
    policy.model = type(policy.model)(policy.model.config).eval()
    folder = tmp_path_factory.mktemp("untied")
    save_policy(policy, folder)
    assert "lm_head.weight" in Checkpoint(folder).shapes
    return folder


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "language_model.embed_tokens"])
def test_adapters_of_weights_that_two_layers_share_are_refused(checkpoint: Path, untied: Path, target: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_targets(empty_model(checkpoint), lora("q_proj", target))
    assert str(error.value) == (
        f"train.lora.target_modules: {target} shares its weights with another layer (lm_head, "
        "model.language_model.embed_tokens). Remove it, because an adapter needs a layer with weights of its own."
    )
    check_targets(empty_model(untied), lora("q_proj", target))


@pytest.mark.parametrize("target", ["all-linear", ".*head", "q_pro"])
def test_a_target_that_is_no_layers_name_is_refused(checkpoint: Path, target: str) -> None:
    """peft takes the items of a list as names, not as patterns."""
    with pytest.raises(ConfigError) as error:
        check_targets(empty_model(checkpoint), lora("q_proj", target))
    assert str(error.value) == (
        f"train.lora.target_modules: {target} matches no layer of this model. Use the names of layers or their ends, "
        "such as q_proj."
    )


def test_they_are_refused_before_anything_is_trained(small_run: Run, tmp_path: Path) -> None:
    tied = {"train__lora": "{target_modules: [q_proj, lm_head]}"}
    for stage, inputs in (("init-policy", []), ("train-step", small_run.train_inputs(1))):
        result = small_run.attempt(stage, *inputs, "--out", tmp_path / stage, **tied)
        assert result.code == 3 and "train.lora.target_modules: lm_head shares its weights" in result.stderr
        assert "steps" not in result.stderr and "updates" not in result.stderr


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens", "v_proj")])
def test_an_untied_head_is_trained_sampled_and_merged_alike(
    untied: Path, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """Unmerged in training, merged by peft for sampling, merged file by file: the same logprobs."""
    trained = load_policy(untied, TINY)
    before = logprobs(trained)
    add_adapter(trained, lora(*targets))
    torch.manual_seed(1)
    for name, parameter in trained.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    saved, sampled, merged = tmp_path / "adapter", load_policy(untied, TINY), load_policy(untied, TINY)
    save_policy(trained, saved)
    assert all(".lora_" in name for name in load_file(saved / "adapter_model.safetensors"))
    load_adapter(sampled, saved, trainable=False)
    tensors, names = Adapted(Checkpoint(untied), saved), names_in_memory(Checkpoint(untied))
    merged.model.load_state_dict({name: tensors.read(stored) for stored, name in names.items()})
    assert (logprobs(trained) - before).abs().max() > 1e-3
    for other in (sampled, merged):
        torch.testing.assert_close(logprobs(other), logprobs(trained), atol=1e-5, rtol=0)


@pytest.mark.parametrize("gathered", [False, True])
def test_a_tied_head_is_saved_once(checkpoint: Path, gathered: bool, tmp_path: Path) -> None:
    """Weights under training are rounded as they are saved, those in memory as well as those gathered from ranks."""
    policy = load_policy(checkpoint, ModelConfig(name="embedded", dtype="bfloat16", device="cpu"))
    use_master_weights(policy.model.parameters())
    save_policy(policy, tmp_path, policy.model.state_dict(keep_vars=True) if gathered else None)
    found, before = load_file(tmp_path / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert found.keys() == before.keys()
    assert all(torch.equal(value, before[name].bfloat16()) for name, value in found.items())


@pytest.mark.parametrize("how", ["one factor less", "another shape", "NaN", "rank 0", "settings are a list"])
def test_a_damaged_adapter_is_refused(how: str, checkpoint: Path, tmp_path: Path) -> None:
    """peft would initialize a missing factor at random."""
    policy = load_policy(checkpoint, TINY)
    add_adapter(policy, lora("q_proj"))
    save_policy(policy, tmp_path)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "lora_A" in name)
    if how == "one factor less":
        del tensors[name]
    elif how == "another shape":
        tensors[name] = torch.ones(2, 3)
    elif how == "NaN":
        tensors[name][0, 0] = float("nan")
    elif how == "rank 0":
        settings.write_text(settings.read_text().replace('"r": 4', '"r": 0'))
    else:
        settings.write_text("[]")
    save_file(tensors, file)
    for trainable in (False, True):
        with pytest.raises(DapoStagesError, match=rf"{tmp_path}.*: .*\. (Pass|Set|Download) .*\.$"):
            load_adapter(load_policy(checkpoint, TINY), tmp_path, trainable=trainable)
    if how != "NaN":
        with pytest.raises(DapoStagesError, match=rf"{tmp_path}.*: .*\. (Pass|Set) .*\.$"):
            Adapted(Checkpoint(checkpoint), tmp_path)

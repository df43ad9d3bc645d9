"""Commands of a process that keeps policies and states write what commands of processes of their own write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import keeping
from support.pipeline import Run

from dapo_stages.config import ModelConfig
from dapo_stages.errors import DataError
from dapo_stages.handoff import behind
from dapo_stages.handoff.manifests import read_manifest
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.models import policy_loading
from dapo_stages.models.policy import Policy
from dapo_stages.training import kept_states, state

FLOAT = ModelConfig(dtype="float32", device="cpu")
LORA = "{rank: 4, alpha: 8, dropout: 0.1, target_modules: [q_proj, v_proj]}"
MOVING = {"train__beta": 0.1, "train__reference_update_every": 1}
Settings = dict[str, Any]

# Settings of train-steps after one another: what one of them left behind would change the next.
CHAINS: dict[str, list[Settings]] = {
    "the same": [{}, {}, {}],
    "bfloat16": [{"model__dtype": "bfloat16"}] * 3,
    "muon": [{"train__optimizer": "muon"}] * 2,
    "adapter": [{"train__lora": LORA}] * 3,
    "moving reference": [MOVING] * 3,
    "frozen, not frozen": [{"train__freeze_vision": True}, {"train__freeze_vision": False}] * 2,
    "checkpoints, none": [{"train__gradient_checkpointing": True}, {}, {"train__gradient_checkpointing": True}],
    "types": [{}, {"model__dtype": "bfloat16"}, {}],
    "losses": [{}, {"train__entropy_coefficient": 0.01}, {"train__loss_type": "bnpo"}, {}],
}


@pytest.fixture()
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded from files: the folder of each checkpoint, and `state`."""
    found: list[str] = []
    load_policy, load_state = policy_loading.load_policy, state.load_state

    def policy(path: Any, settings: ModelConfig) -> Policy:
        found.append(f"{Path(path).parent.name}/{Path(path).name}")
        return load_policy(path, settings)

    def of_files(worker: Any, folder: Path) -> None:
        found.append("state")
        load_state(worker, folder)

    monkeypatch.setattr(policy_loading, "load_policy", policy)
    monkeypatch.setattr(kept_states, "load_state", of_files)
    return found


def chain(run: Run, place: Path, settings: list[Settings]) -> list[str]:
    """Train on the same completions again and again; content hashes of policies and states."""
    folder, policy, reference, found = run.at(1), run.policy(0), run.policy(0), []
    for number, own in enumerate(settings):
        out = place / str(number)
        inputs = ["--policy", policy, "--rollouts", folder / "rollout", "--weights", folder / "weights"]
        inputs += ["--reference", reference] if "train__beta" in own else []
        if number and own == settings[number - 1]:  # a state fits only what was trained before
            inputs += ["--state", policy.parent / "state"]
        run.command("train-step", *inputs, "--out", out, **own)
        policy = out / "policy"
        reference = out / "reference" if (out / "reference").exists() else reference
    behind.finish()
    for number in range(len(settings)):
        found += [read_manifest(place / str(number) / part).content_hash for part in ("policy", "state", ".")]
    return found


@pytest.mark.parametrize("name", CHAINS)
def test_what_a_train_step_leaves_behind_does_not_change_the_next(small_run: Run, tmp_path: Path, name: str) -> None:
    alone = chain(small_run, tmp_path / "alone", CHAINS[name])
    with keeping():
        together = chain(small_run, tmp_path / "together", CHAINS[name])
    assert together == alone


def test_train_steps_after_one_another_load_nothing(small_run: Run, tmp_path: Path, loaded: list[str]) -> None:
    """But in the first step, and once more if saving changes files beside the weights, as init-policy's."""
    with keeping():
        chain(small_run, tmp_path, [{}] * 4)
    assert loaded == ["run/policy", "0/policy"]


def test_a_reference_is_loaded_once(small_run: Run, tmp_path: Path, loaded: list[str]) -> None:
    with keeping():
        chain(small_run, tmp_path, [{"train__beta": 0.1}] * 3)
    assert loaded == ["run/policy", "run/policy", "0/policy"]


def test_an_iteration_shares_its_policy(small_run: Run, tmp_path: Path, loaded: list[str]) -> None:
    """Two whole iterations: the outputs of processes of their own, and two loads instead of eight."""
    here, names = Run(tmp_path, small_run.settings), ("rollout", "attention", "weights", "train", "eval")
    for name in ("policy", "data", "config.yaml"):
        (tmp_path / name).symlink_to(small_run.folder / name)
    with keeping():
        here.iteration(1)
        here.iteration(2)
    for number in (1, 2):
        for name in names:
            kept_hash, own_hash = (read_manifest(run.at(number) / name).content_hash for run in (here, small_run))
            assert kept_hash == own_hash, (number, name)
    assert [Path(path).name for path in loaded] == ["policy", "policy"]


def test_a_policy_is_handed_out_as_it_is_loaded(small_run: Run, tmp_path: Path) -> None:
    """After everything that a train-step does to it: types, flags, hooks, modes, attention, configuration."""
    for own in (
        {},
        {"train__freeze_vision": True},
        {"train__gradient_checkpointing": True, "model__dtype": "bfloat16"},
    ):
        settings = FLOAT.model_copy(update={"dtype": own.get("model__dtype", "float32")})
        place = tmp_path / str(len(own))
        with keeping():
            chain(small_run, place, [own] * 2)
            folder = PolicyFolder(place / "1/policy")
            found = policy_loading.open_policy(folder, settings)
        fresh = policy_loading.load_policy(folder.folder, settings)
        assert found is not fresh and described(found) == described(fresh)


def described(policy: Policy) -> dict[str, Any]:
    """What may differ between two policies with the same weights."""
    model = policy.model
    return {
        "weights": {name: (p.dtype, p.requires_grad, p.grad, p.shape) for name, p in model.named_parameters()},
        "values": [p.double().sum().item() for p in model.parameters()],
        "buffers": {name: (b.dtype, b.tolist()) for name, b in model.named_buffers()},
        "modes": {
            name: (one.training, getattr(one, "gradient_checkpointing", None), len(one._forward_hooks))
            for name, one in model.named_modules()
        },
        "attention": [model.config._attn_implementation, model.config.get_text_config()._attn_implementation],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "tokens": (policy.end_ids, sorted(policy.special_ids), policy.suppressed.tolist(), policy.pad_id),
        "processor": policy.processor.tokenizer.backend_tokenizer.to_str(),
        "template": policy.processor.chat_template,
        "computed": (policy.dtype, policy.device, policy.flex, policy.compiled),
    }


def test_what_is_kept_is_of_the_very_files(small_run: Run, tmp_path: Path, loaded: list[str]) -> None:
    """Not for other settings, not for another policy, and not for a file that has changed since, which is an error."""
    own = shutil.copytree(small_run.policy(1), tmp_path / "policy")
    with keeping():
        first = policy_loading.open_policy(PolicyFolder(small_run.policy(1)), FLOAT)
        assert policy_loading.open_policy(PolicyFolder(small_run.policy(1)), FLOAT) is first
        other = FLOAT.model_copy(update={"dtype": "float64"})
        assert policy_loading.open_policy(PolicyFolder(small_run.policy(1)), other).dtype == torch.float64
        assert policy_loading.open_policy(PolicyFolder(small_run.policy(2)), FLOAT) is not first
        second = policy_loading.open_policy(PolicyFolder(own), FLOAT)
        assert policy_loading.open_policy(PolicyFolder(own), FLOAT) is second
        with (own / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))
        with pytest.raises(DataError, match=r"model\.safetensors: has changed"):
            policy_loading.open_policy(PolicyFolder(own), FLOAT)
    assert len(loaded) == 4


def test_a_process_of_its_own_keeps_nothing(small_run: Run) -> None:
    first = policy_loading.open_policy(PolicyFolder(small_run.policy(1)), FLOAT)
    assert policy_loading.open_policy(PolicyFolder(small_run.policy(1)), FLOAT) is not first and not first.loaded

"""merge: adapters into their base, averages of policies, mergekit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from reporting.tiny_run import publish
from safetensors.torch import load_file, save_file
from support.commands import Result, run
from support.pipeline import Run
from support.prompts import prompt

from dapo_stages.config import ModelConfig
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.models.checkpoints import Checkpoint
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.merging import copy_beside
from dapo_stages.models.policy_loading import open_policy
from dapo_stages.models.shared_prefix.packing import Group

LORA = {"train__lora": "{rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}"}
TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")


def merge(out: Path, *arguments: object) -> Path:
    result = run("merge", "--out", out, *arguments)
    assert result.code == 0, result.stderr
    return out


def refused(result: Result, text: str) -> None:
    assert result.code == 3 and text in result.stderr, result.stderr


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def logprobs(folder: Path, *, trainable: bool = False) -> np.ndarray:
    policy = open_policy(PolicyFolder(folder), TINY, trainable=trainable)
    policy.attend("grouped")
    group = Group(prompt(policy, "What colour is the circle?", [(56, 56)]), [[30, 31, 32, 33], [40, 41]])
    with torch.no_grad():
        found: np.ndarray = GroupLogprobs(policy, 1.0, 64)(policy.pack([group]))[0].numpy()
    return found


@pytest.fixture(scope="module")
def adapter(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of a train-step with LoRA, far enough from its base to be told from it."""
    out = tmp_path_factory.mktemp("adapter") / "train"
    small_run.command(
        "train-step", *small_run.train_inputs(1), "--out", out, **LORA,
        train__learning_rate=0.01, train__updates_per_iteration=6,
    )  # fmt: skip
    return out / "policy"


def test_a_merged_adapter_gives_the_logprobs_of_the_adapter(small_run: Run, adapter: Path, tmp_path: Path) -> None:
    merged = merge(tmp_path / "merged", "--policy", adapter)
    apart, together, base = logprobs(adapter, trainable=True), logprobs(merged), logprobs(small_run.policy(0))
    assert np.abs(together - apart).max() < 1e-5
    assert np.abs(base - apart).max() > 1e-2


def test_merging_adds_scale_times_b_a_and_leaves_the_rest(small_run: Run, adapter: Path, tmp_path: Path) -> None:
    merged, base = weights_of(merge(tmp_path / "merged", "--policy", adapter)), weights_of(small_run.policy(0))
    low = load_file(adapter / "adapter_model.safetensors")
    module = "base_model.model.model.language_model.layers.2.self_attn.v_proj"
    delta = 8 / 4 * low[f"{module}.lora_B.weight"] @ low[f"{module}.lora_A.weight"]
    name = "model.layers.2.self_attn.v_proj.weight"
    assert torch.allclose(merged[name], base[name] + delta, atol=1e-7)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {
        f"model.layers.{layer}.{part}.weight" for layer in range(4) for part in ("self_attn.q_proj", "self_attn.v_proj")
    }


def test_a_merged_policy_is_a_standard_checkpoint_that_stages_take(
    small_run: Run, adapter: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    merged = merge(tmp_path / "merged", "--policy", adapter)
    model = AutoModelForImageTextToText.from_pretrained(merged)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    about = Source(merged, "merge").manifest.policy
    assert (about["version"], about["model"]) == (1, "embedded")
    assert about["prompting"] == Source(small_run.policy(1)).manifest.policy["prompting"]
    result = small_run.command(
        "evaluate", "--policy", merged, "--data", small_run.folder / "data", "--out", tmp_path / "eval", "--json"
    )
    assert json.loads(result.stdout)["counts"]["questions"] == 12
    small_run.command(
        "train-step", "--policy", merged, "--rollouts", small_run.at(1) / "rollout", "--weights",
        small_run.at(1) / "weights", "--out", tmp_path / "train",
    )  # fmt: skip


def test_the_mean_of_policies_is_that_of_their_tensors(small_run: Run, tmp_path: Path) -> None:
    one, two = (weights_of(small_run.policy(number)) for number in (1, 2))
    policies = [word for number in (1, 2) for word in ("--policy", small_run.policy(number))]
    even = weights_of(merge(tmp_path / "even", *policies))
    uneven = weights_of(merge(tmp_path / "uneven", *policies, "--weights", "1,3"))
    assert even.keys() == uneven.keys() == one.keys()
    for name in one:
        assert torch.allclose(even[name], (one[name] + two[name]) / 2, atol=1e-7)
        assert torch.allclose(uneven[name], 0.25 * one[name] + 0.75 * two[name], atol=1e-7)


def test_the_moving_average_goes_from_old_to_new(small_run: Run, tmp_path: Path) -> None:
    tensors = [weights_of(small_run.policy(number)) for number in (0, 1, 2)]
    policies = [word for number in (0, 1, 2) for word in ("--policy", small_run.policy(number))]
    found = weights_of(merge(tmp_path / "ema", *policies, "--method", "ema", "--decay", 0.6))
    for name in found:
        want = 0.6 * (0.6 * tensors[0][name] + 0.4 * tensors[1][name]) + 0.4 * tensors[2][name]
        assert torch.allclose(found[name], want, atol=1e-6)


def test_adapters_are_averaged_together_with_their_bases(small_run: Run, adapter: Path, tmp_path: Path) -> None:
    merged = weights_of(merge(tmp_path / "merged", "--policy", adapter))
    plain = weights_of(small_run.policy(2))
    found = weights_of(merge(tmp_path / "mean", "--policy", adapter, "--policy", small_run.policy(2)))
    assert all(torch.allclose(found[name], (merged[name] + plain[name]) / 2, atol=1e-7) for name in merged)


def test_bfloat16_is_averaged_exactly_and_rounded_once(small_run: Run, tmp_path: Path) -> None:
    low = {"model__dtype": "bfloat16"}
    folders = []
    for number in (1, 2):
        out = tmp_path / str(number)
        small_run.command("train-step", *small_run.train_inputs(number), "--out", out, **low)
        folders.append(out / "policy")
    found = weights_of(merge(tmp_path / "mean", *(word for folder in folders for word in ("--policy", folder))))
    one, two = (weights_of(folder) for folder in folders)
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, ((one[name].double() + two[name].double()) / 2).bfloat16())
    start, mean = small_run.policy(0), tmp_path / "with the start"
    assert weights_of(merge(mean, "--policy", folders[0], "--policy", start)).keys() == weights_of(start).keys()


def test_a_tied_head_that_was_saved_as_well_is_left_out(small_run: Run, tmp_path: Path) -> None:
    start, twice = small_run.policy(0), tmp_path / "twice"
    tensors = weights_of(start)
    head = tensors["model.embed_tokens.weight"].clone()

    def fill(output: Output) -> None:
        copy_beside(start, output.folder)
        save_file(tensors | {"lm_head.weight": head}, output.folder / "model.safetensors", metadata={"format": "pt"})
        output.add_files(*(path.name for path in output.folder.iterdir() if not path.name.startswith(".")))

    publish(Plan("init-policy", twice, {}, 0), fill)
    assert "lm_head.weight" in weights_of(twice)
    for order in ((twice, start), (start, twice)):
        out = tmp_path / order[0].name / "mean"
        found = weights_of(merge(out, *(word for folder in order for word in ("--policy", folder))))
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    head += 1
    save_file(tensors | {"lm_head.weight": head}, twice / "model.safetensors")
    assert Checkpoint(twice).shapes.keys() == tensors.keys() | {"lm_head.weight"}  # transformers would not tie it


def test_a_checkpoint_in_several_files_stays_cut_as_it_is(small_run: Run, adapter: Path, tmp_path: Path) -> None:
    """The base as a hub model is stored: two files and an index. At no time is more than one of them in memory."""
    whole, base = weights_of(small_run.policy(0)), tmp_path / "base"
    base.mkdir()
    for path in small_run.policy(0).iterdir():
        if path.suffix in {".json", ".jinja"} and path.name != "manifest.json":
            (base / path.name).write_bytes(path.read_bytes())
    names = sorted(whole)
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, base / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "pytorch_model.bin").write_bytes(b"never copied")
    start = tmp_path / "policy"
    small_run.command("init-policy", "--out", start, model__name=base)
    small_run.command(
        "train-step", "--policy", start, *small_run.train_inputs(1)[2:], "--out", tmp_path / "train", **LORA,
        model__name=base,
    )  # fmt: skip
    merged = merge(tmp_path / "merged", "--policy", tmp_path / "train/policy")
    assert {file: sorted(load_file(merged / file)) for file in parts} == {f: sorted(part) for f, part in parts.items()}
    assert not (merged / "pytorch_model.bin").exists()
    assert np.abs(logprobs(merged) - logprobs(tmp_path / "train/policy", trainable=True)).max() < 1e-5


@pytest.mark.parametrize(
    ("index", "found"),
    [
        ('{"weight_map": {"lm_head.weight": "/etc/model.safetensors"}}', "weight_map names '/etc/model.safetensors'"),
        ('{"weight_map": {"lm_head.weight": "../model.safetensors"}}', "weight_map names '../model.safetensors'"),
        ('{"weight_map": {"lm_head.weight": "model.bin"}}', "weight_map names 'model.bin'"),
        ("{", "cannot read its weight_map"),
        ("{}", "cannot read its weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, index: str, found: str) -> None:
    """A downloaded one says what is read, and what a merge writes."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DataError, match=r"weight_map.*\. Download the checkpoint again\.") as error:
        _ = Checkpoint(tmp_path).layout
    assert found in str(error.value)


def test_an_adapter_over_another_family_merges(small_run: Run, tmp_path: Path) -> None:
    """Qwen3-VL's tensors have other names in files and in memory than Qwen2.5-VL's."""
    from support.families import save_tiny

    from dapo_stages.config import LoraSettings
    from dapo_stages.models.adapters import add_adapter
    from dapo_stages.models.checkpoints import Adapted, Checkpoint
    from dapo_stages.models.policy_loading import load_policy, save_policy

    for family in ("qwen2_vl", "qwen3_vl", "llava"):
        base, saved = tmp_path / family, tmp_path / f"{family}-adapter"
        save_tiny(family, base)
        policy = load_policy(base, TINY)
        add_adapter(policy, LoraSettings(rank=2, alpha=4))
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        save_policy(policy, saved)
        tensors = Adapted(Checkpoint(base), saved)
        names = {name for name in tensors.shapes if not torch.equal(tensors.read(name), Checkpoint(base).read(name))}
        policy.model.merge_and_unload().save_pretrained(tmp_path / f"{family}-peft")
        peft = Checkpoint(tmp_path / f"{family}-peft")
        assert all(torch.allclose(tensors.read(name), peft.read(name), atol=1e-5) for name in tensors.shapes)
        assert any("q_proj" in name for name in names)


def test_other_architectures_and_shapes_are_refused(small_run: Run, tmp_path: Path) -> None:
    from support.families import save_tiny

    save_tiny("qwen3_vl", tmp_path / "qwen3")
    small_run.command("init-policy", "--out", tmp_path / "other", model__name=tmp_path / "qwen3")
    result = run("merge", "--policy", small_run.policy(0), "--policy", tmp_path / "other", "--out", tmp_path / "out")
    refused(result, f"{tmp_path}/qwen3: config.architectures is ['Qwen3VLForConditionalGeneration'], but")

    cut = tmp_path / "cut"
    tensors = weights_of(small_run.policy(0))
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()

    def fill(output: Output) -> None:
        copy_beside(small_run.policy(0), output.folder)
        save_file(tensors, output.folder / "model.safetensors", metadata={"format": "pt"})
        output.add_files(*(path.name for path in output.folder.iterdir() if not path.name.startswith(".")))

    publish(Plan("init-policy", cut, {}, 0), fill)
    result = run("merge", "--policy", small_run.policy(0), "--policy", cut, "--out", tmp_path / "out")
    refused(result, f"{cut}: {name} has shape (343, 128), but (344, 128) in {small_run.policy(0)}. Merge")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], ": expected an adapter or several policies, got one. Repeat --policy."),
        (["--weights", "1,2"], "--weights: expected a weight for each policy (1), such as 1,3, got 2. Fix it."),
        (["--weights", "-1"], "--weights: weights must be finite, not negative and not all 0, got [-1.0]. Fix it."),
        (["--weights", "x"], "--weights: expected a number for each policy, such as 1,3, got 'x'. Fix it."),
        (["--decay", "0.5"], "--decay: --method linear only takes --weights. Leave it out."),
        (["--method", "ema"], "--method ema: --decay is missing. Pass one, such as 0.9."),
        (["--method", "ema", "--decay", "1"], "--decay: decay must be at least 0 and less than 1, got 1.0. Fix it."),
        (["--method", "mergekit"], "--method mergekit: --recipe is missing. Pass the YAML file for mergekit."),
    ],
)
def test_impossible_requests_are_refused(arguments: list[str], text: str, small_run: Run, tmp_path: Path) -> None:
    result = run("merge", "--policy", small_run.policy(1), "--out", tmp_path / "out", *arguments)
    refused(result, text)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_more_than_plain_lora_is_refused(small_run: Run, adapter: Path, tmp_path: Path) -> None:
    from dapo_stages.errors import ModelError
    from dapo_stages.models.checkpoints import Adapted, Checkpoint

    settings = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    (tmp_path / "adapter_model.safetensors").symlink_to(adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r": use_dora is True, but an adapter must be plain LoRA \(use_dora False\)"):
        Adapted(Checkpoint(small_run.policy(0)), tmp_path)


RECIPE = "merge_method: linear\nmodels: []\n"
# Does what mergekit-yaml does as seen from outside: two arguments in; weights, configuration and a card out.
STAND_IN = """#!/bin/sh
test "$(cat "$1")" = "$(printf 'merge_method: linear\\nmodels: []')" || {{ echo "no such merge method"; exit 1; }}
mkdir "$2" && cp {made}/model.safetensors {made}/config.json "$2" && echo card > "$2/README.md"
"""


@pytest.fixture()
def mergekit(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, and a program called mergekit-yaml that leaves the weights of the second iteration."""
    program = tmp_path / "bin/mergekit-yaml"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(made=small_run.policy(2)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_a_recipe_is_handed_to_mergekit(small_run: Run, mergekit: Path, tmp_path: Path) -> None:
    by = ("--policy", small_run.policy(1), "--method", "mergekit", "--recipe", mergekit)
    merged = merge(tmp_path / "merged", *by)
    assert weights_of(merged).keys() == weights_of(small_run.policy(2)).keys()
    assert np.allclose(logprobs(merged), logprobs(small_run.policy(2)))
    listed = {shard.name for shard in Source(merged).manifest.shards}
    assert {"model.safetensors", "config.json", "processor_config.json", "recipe.yaml"} <= listed
    assert "README.md" not in listed and not (merged / "mergekit").exists()
    mergekit.write_text("merge_method: nonsense\n")
    result = run("merge", *by, "--out", tmp_path / "other")
    refused(result, "--recipe: mergekit failed (… no such merge method). Fix the recipe.")


def test_a_missing_mergekit_is_named_with_the_way_to_install_it(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    result = run(
        "merge", "--policy", small_run.policy(1), "--method", "mergekit", "--recipe", tmp_path / "recipe.yaml",
        "--out", tmp_path / "out",
    )  # fmt: skip
    refused(result, "`mergekit-yaml` is not on the PATH. Install mergekit, preferably in its own environment: "
            "pipx install mergekit (or pip install mergekit).")  # fmt: skip


def test_an_interrupted_merge_keeps_the_files_it_has(
    small_run: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dapo_stages.models import merging

    with monkeypatch.context() as patched:
        patched.setattr(merging, "copy_beside", lambda *arguments: (_ for _ in ()).throw(OSError(28, "full")))
        assert run("merge", "--policy", adapter, "--out", tmp_path / "out").code == 3
    before = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
    merge(tmp_path / "out", "--policy", adapter)
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == before

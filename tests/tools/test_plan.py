"""plan: what it prints, what it refuses, and what it advises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import ROOT, fresh, run

from dapo_stages.config import load_config

REFERENCE = ("--config", ROOT / "pipelines/reference-7b.yaml")


def plan(*arguments: object) -> dict[str, Any]:
    result = run("plan", *arguments, "--json")
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_reference_configuration_fits_on_four_gpus_of_80_gb() -> None:
    found = plan(*REFERENCE, "--gpus", 4, "--memory", 80)
    assert (found["parameters"], found["parallel"]) == (8_292_166_656, "zero2")
    assert found["fits"] == {"rollout": True, "score-attention": True, "train-step": True, "evaluate": True}
    assert found["bytes"]["train-step: state"] == 12 * 8_292_166_656
    assert found["bytes"]["train-step: policy"] == 2 * 8_292_166_656


def test_what_does_not_fit_is_told_what_helps() -> None:
    found = plan(*REFERENCE, "--gpus", 1, "--memory", 80)
    assert found["fits"]["train-step"] is False
    assert all(peak <= found["usable"] for peak in found["ways"]["train-step"].values())
    lora = plan(*REFERENCE, "--gpus", 1, "--memory", 80, "--set", "train.lora={rank: 16}")
    assert lora["fits"]["train-step"] is True
    shown = run("plan", *REFERENCE, "--gpus", 1, "--memory", 80).stdout
    assert "train-step does not fit: " in shown and "  train.lora={rank: 16}: " in shown


def test_72b_trains_on_nodes_and_is_too_large_for_a_rank_to_hold_whole() -> None:
    model = "Qwen/Qwen2.5-VL-72B-Instruct"
    found = plan(*REFERENCE, "--model", model, "--gpus", 8, "--nodes", 4, "--parallel", "zero3")
    assert found["fits"] == {"rollout": False, "score-attention": False, "train-step": True, "evaluate": False}
    shown = run("plan", *REFERENCE, "--model", model, "--gpus", 8, "--nodes", 4).stdout
    assert "a rank holds the whole model here: vLLM (engines.vllm.tensor_parallel_size) or a server" in shown


def test_engines_of_rollout_are_sized_by_what_they_hold() -> None:
    large = (*REFERENCE, "--model", "Qwen/Qwen2.5-VL-72B-Instruct", "--gpus", 8, "--parallel", "zero3")
    split = plan(*large, "--set", "rollout.engine=vllm", "--set", "engines.vllm.tensor_parallel_size=4")
    assert split["fits"]["rollout"] and split["room"] > 64
    assert plan(*large, "--set", "rollout.engine=vllm")["room"] < 0
    assert plan(*large, "--set", "rollout.engine=server")["fits"]["rollout"]


def test_newer_models_are_planned_with_patches_of_their_own() -> None:
    """Vision tokens of 32 pixels, of 4 patches; vLLM has room for more rows of Qwen3.5-9B than of Qwen3-VL-8B, whose
    cache grows in all layers. By hand: 36 layers of 2 · 1024 values a token; 8 of these, and 49.5 MiB a row."""
    size = ("--memory", 80, "--set", "data.max_image_size=320", "--set", "rollout.engine=vllm")
    lengths = ("--prompt", 1024, "--completion", 1024)
    eight, nine = (plan("--model", f"Qwen/{name}", *size, *lengths) for name in ("Qwen3-VL-8B-Instruct", "Qwen3.5-9B"))
    assert eight["parameters"] == 8_767_123_696 and eight["group"]["vision"] == nine["group"]["vision"] == 100
    share = int(80 * 2**30 * load_config(ROOT / "pipelines/reference-7b.yaml").engines.vllm.gpu_memory_utilization)
    assert eight["room"] == (share - 2 * 8_767_123_696) // (2048 * 36 * 2 * 1024 * 2)
    assert nine["room"] == (share - 2 * 9_409_813_744) // (2048 * 8 * 2 * 1024 * 2 + 51_904_512)


def test_what_fits_on_a_gpu_together_is_said() -> None:
    """Peaks of the pairs added up; vLLM takes its share of a GPU however little it needs."""
    found = plan(*REFERENCE, "--gpus", 4, "--memory", 80)
    peaks = {stage: memory["total"] for stage, memory in found["memory"].items()}
    assert found["beside"]["rollout + train-step"] == {"total": peaks["rollout"] + peaks["train-step"], "fits": False}
    assert found["beside"]["rollout + evaluate"]["fits"] is True
    shown = run("plan", *REFERENCE, "--gpus", 4, "--memory", 80).stdout
    assert "rollout + evaluate               39.77  fits\n" in shown
    vllm = plan(*REFERENCE, "--gpus", 4, "--memory", 80, "--set", "rollout.engine=vllm")["beside"]
    assert vllm["rollout + evaluate"]["total"] == pytest.approx(0.9 * 80 * 2**30 + peaks["evaluate"], abs=1)
    server = plan(*REFERENCE, "--gpus", 4, "--memory", 80, "--set", "rollout.engine=server")["beside"]
    assert "rollout + evaluate" not in server and "train-step + evaluate" in server


def test_longer_prompts_need_more_and_checkpointing_less() -> None:
    def peak(*arguments: object) -> int:
        return int(plan("--model", "embedded", "--device", "cpu", *arguments)["memory"]["train-step"]["total"])

    assert peak("--prompt", 512) < peak("--prompt", 2048)
    assert peak() < peak("--set", "train.gradient_checkpointing=false")


def test_groups_in_reserve_are_sampled_and_trained_on_only_where_they_are_kept() -> None:
    """64 groups on 2 ranks, in shards of 16: 2 shards each. 1.5 times of them asked for: 3 each."""
    base: tuple[object, ...] = (
        *REFERENCE,
        "--gpus",
        2,
        "--informative",
        1,
        "--set",
        "rollout.prompts_per_iteration=64",
    )
    base += ("--set", "rollout.groups_per_shard=16")
    spare = (*base, "--set", "rollout.oversample=1.5")
    plain, discarding, keeping = plan(*base), plan(*spare), plan(*spare, "--set", "rollout.surplus=keep")

    def seconds(found: dict[str, Any]) -> list[float]:
        parts = found["seconds"]
        own = (("rollout", "generation"), ("score-attention", "forward"), ("train-step", "updates"))
        return [parts[stage][part] / plain["seconds"][stage][part] for stage, part in own]

    assert seconds(discarding) == pytest.approx([1.5, 1, 1])
    assert seconds(keeping) == pytest.approx([1.5, 1.5, 1.5])
    assert discarding["bytes"]["rollout"] == pytest.approx(1.5 * plain["bytes"]["rollout"])


def test_dynamic_sampling_asks_for_groups_until_enough_are_informative() -> None:
    """160 groups of which half are informative: 10 shards of 32 are needed (tests/planning/test_stage_costs.py); all
    are kept without dynamic sampling, and only the informative ones are scored with it."""
    assert plan(*REFERENCE, "--informative", 0.5)["sampled"] == 320
    fixed = plan(*REFERENCE, "--informative", 0.5, "--set", "rollout.dynamic_sampling=false")
    assert fixed["sampled"] == 160
    dynamic = plan(*REFERENCE, "--informative", 0.5)
    assert dynamic["seconds"]["score-attention"] == pytest.approx(fixed["seconds"]["score-attention"])
    generation = [found["seconds"]["rollout"]["generation"] for found in (dynamic, fixed)]
    assert generation[0] == pytest.approx(2 * generation[1])


def test_files_are_read_hashed_and_written_by_those_who_do() -> None:
    """7B on 4 ranks: a policy of 16.6 GB, which every rank reads and the first writes and hashes, and a state of 99.5
    GB, of which each reads and writes a quarter, assembles all (149 GB over 270 GB/s), and hashes a quarter: in four
    threads 4.3 s, while the policy is written; the disk gives and takes 2 GB/s. Nothing is hashed twice."""
    policy, state = 2 * 8.292166656, 12 * 8.292166656
    found = plan(*REFERENCE, "--gpus", 4)["seconds"]
    assert found["train-step"]["verify"] == 0
    assert found["train-step"]["load"] == pytest.approx((policy + state) / 2)
    assert found["train-step"]["save"] == pytest.approx((policy + state) / 2 + 0.75 * 2 * state / 270)
    assert found["train-step"]["hash"] == pytest.approx(policy / 1.43)
    for stage in ("rollout", "score-attention", "evaluate"):
        assert (found[stage]["verify"], found[stage]["load"]) == pytest.approx((0, policy / 2))


def test_a_fast_disk_gives_each_rank_its_part_of_the_state_and_those_of_ddp_all_of_it() -> None:
    """Four ranks, 100 GB/s: 2.4 GB/s for each from the page cache."""
    policy, state = 2 * 8.292166656, 12 * 8.292166656
    for parallel, part in (("zero2", 4), ("ddp", 1)):
        found = plan(*REFERENCE, "--gpus", 4, "--disk", 100, "--parallel", parallel)["seconds"]["train-step"]["load"]
        assert found == pytest.approx(policy / 2.4 + state / part / 2.4)


def test_one_rank_hashes_the_whole_state_for_longer_than_the_policy_is_written() -> None:
    """99.5 GB in four threads take 17.4 s, and the policy 8.3 to write."""
    policy, state = 2 * 8.292166656, 12 * 8.292166656
    found = plan(*REFERENCE, "--gpus", 1)["seconds"]["train-step"]["hash"]
    assert found == pytest.approx(policy / 1.43 + state / (4 * 1.43) - policy / 2)


def test_files_of_others_are_hashed_once_on_each_machine_and_all_files_always_if_configured() -> None:
    """Of two machines, one has written the policy and half of the state; evaluate is the first to read the policy."""
    policy, state = 2 * 8.292166656, 12 * 8.292166656
    two = plan(*REFERENCE, "--gpus", 2, "--nodes", 2)["seconds"]
    hashed = {stage: parts.get("verify", 0) for stage, parts in two.items()}
    assert hashed["evaluate"] == pytest.approx(policy / 1.43)
    assert hashed["train-step"] == pytest.approx(state / 2 / 1.43)
    assert hashed["rollout"] == hashed["score-attention"] == 0
    found = plan(*REFERENCE, "--gpus", 4, "--set", "verify=always")["seconds"]
    assert found["train-step"]["verify"] == pytest.approx((policy + state) / 1.43)
    for stage in ("rollout", "score-attention", "evaluate"):
        assert found[stage]["verify"] == pytest.approx(policy / 1.43)


def test_ranks_of_a_machine_send_over_nvlink_and_of_several_over_the_network() -> None:
    """10 updates of 7B in one micro-batch send .622 TB under ZeRO-2, in four 2.11; 60 % of 450 GB/s and of 50 GB/s."""
    one = plan(*REFERENCE, "--gpus", 4)["seconds"]["train-step"]["between ranks"]
    assert one == pytest.approx(621.9 / 270, rel=1e-3)
    in_groups = plan(*REFERENCE, "--gpus", 4, "--set", "train.batch_completions=8")
    assert in_groups["seconds"]["train-step"]["between ranks"] == pytest.approx(2114.5 / 270, rel=1e-3)
    several = plan(*REFERENCE, "--gpus", 2, "--nodes", 2)["seconds"]["train-step"]["between ranks"]
    assert several == pytest.approx(one * 9)


def test_an_adapter_is_saved_in_float32_but_by_deepspeed() -> None:
    """Rank 16 on q_proj and v_proj of 28 layers: 28 · 16 · (2 · 3584 + 3584 + 512) weights."""
    sizes = {
        parallel: plan(*REFERENCE, "--gpus", 2, "--parallel", parallel, "--set", "train.lora={rank: 16}")["bytes"]
        for parallel in ("ddp", "fsdp2", "zero2")
    }
    weights = 28 * 16 * (3 * 3584 + 512)
    assert {kind: found["train-step: policy"] / weights for kind, found in sizes.items()} == {
        "ddp": 4, "fsdp2": 4, "zero2": 2
    }  # fmt: skip


def test_an_adapter_reads_its_base_and_hashes_and_writes_itself() -> None:
    """Both are hashed only with `verify: always`: 16.6 GB of the base, which was hashed by init-policy."""
    found = plan(*REFERENCE, "--gpus", 1, "--set", "train.lora={rank: 16}")
    adapter = found["bytes"]["train-step: policy"] / 1e9
    assert adapter < 0.1
    seconds = found["seconds"]["rollout"]
    assert seconds["verify"] == 0
    assert seconds["load"] == pytest.approx((2 * 8.292166656 + adapter) / 2)
    always = plan(*REFERENCE, "--gpus", 1, "--set", "train.lora={rank: 16}", "--set", "verify=always")
    assert always["seconds"]["rollout"]["verify"] == pytest.approx((2 * 8.292166656 + adapter) / 1.43)


def test_held_out_questions_are_answered_greedily_and_by_samples() -> None:
    """900 questions in shards of 32 on 4 ranks: 8 shards of 2 batches each for the busiest, and 384 steps of 2 310
    calls of 7 µs for each way of answering, more than 7B's weights take an H100 to read."""
    found = plan(*REFERENCE, "--gpus", 4)["seconds"]["evaluate"]["generation"]
    steps = 16 * 2 * 384 * 2310 * 7e-6
    assert steps < found < 1.15 * steps  # and prefills
    blank = plan(*REFERENCE, "--gpus", 4, "--set", "evaluate.blank_image=true")["seconds"]["evaluate"]["generation"]
    assert blank == pytest.approx(1.5 * found, rel=0.01)
    fewer = plan(*REFERENCE, "--gpus", 4, "--questions", 450)["seconds"]["evaluate"]["generation"]
    assert fewer == pytest.approx(found / 2)
    assert (
        plan("--model", "embedded", "--set", "data.source=embedded", "--questions", 0)["seconds"]["evaluate"][
            "generation"
        ]
        == 0
    )


def test_answers_may_be_longer_than_completions() -> None:
    """Another 384 steps for each batch and way of answering, as above; other stages take as long as before."""
    found, longer = plan(*REFERENCE), plan(*REFERENCE, "--set", "evaluate.max_completion_length=768")
    before, after = (one["seconds"].pop("evaluate")["generation"] for one in (found, longer))
    assert after - before == pytest.approx(29 * 2 * 2 * 384 * 2310 * 7e-6, rel=0.01)
    assert longer["seconds"] == found["seconds"]


def test_an_iteration_takes_what_its_stages_take() -> None:
    found = plan(*REFERENCE, "--gpus", 4)
    assert list(found["seconds"]) == ["rollout", "score-attention", "weight-tokens", "train-step", "evaluate", "report"]
    assert found["iteration"] == pytest.approx(sum(sum(parts.values()) for parts in found["seconds"].values()))
    outside = {"start", "verify", "load", "save", "hash"}
    work = sum(seconds for parts in found["seconds"].values() for part, seconds in parts.items() if part not in outside)
    assert found["work"] == pytest.approx(work / found["iteration"])
    shown = run("plan", *REFERENCE, "--gpus", 4).stdout
    assert f"{found['work']:.0%} is work; 100 iterations: {found['iteration'] / 36:.1f} hours" in shown


def test_rates_are_those_of_the_device() -> None:
    """An H100 has 989 / 165 of the operations of an RTX 4090, which 24 GB stand for; a CPU
    computes float32 more slowly than bfloat16."""

    def updates(*arguments: object) -> float:
        return float(plan("--model", "Qwen/Qwen2.5-VL-3B-Instruct", *arguments)["seconds"]["train-step"]["updates"])

    large = updates()
    assert updates("--memory", 80) == updates("--gpu", "h100") == large
    assert updates("--memory", 24) == updates("--gpu", "rtx4090") == pytest.approx(large * 989 / 165)
    assert updates("--gpu", "l4") == pytest.approx(large * 989 / 121)
    assert updates("--device", "cpu") == pytest.approx(large * 989 / 1.5)
    assert updates("--device", "cpu", "--set", "model.dtype=float32") == pytest.approx(large * 989 / 0.35)
    assert updates("--tflops", 494.5) == pytest.approx(2 * large)
    assert "1 node(s) of 1 × RTX4090" in run("plan", *REFERENCE, "--memory", 24).stdout


def test_a_reference_that_moves_is_another_policy_on_disk() -> None:
    still = plan(*REFERENCE, "--set", "train.beta=0.01")
    moving = plan(*REFERENCE, "--set", "train.beta=0.01", "--set", "train.reference_update_every=4")
    policy = 2 * 8_292_166_656
    assert moving["bytes"]["train-step: reference"] == policy and "train-step: reference" not in still["bytes"]
    assert moving["kept"] - still["kept"] == policy
    more = moving["seconds"]["train-step"]["save"] - still["seconds"]["train-step"]["save"]
    assert more == pytest.approx(policy / 4 / 2e9)  # every fourth iteration, 2 GB/s


def test_a_process_that_stays_reads_nothing_and_writes_the_state_while_others_run() -> None:
    """One GPU: policy and state stay in memory. 16.6 GB are written at 2 GB/s and hashed by one thread; the state takes
    49.8 s to write and 17.4 in four threads to hash, less than the other stages."""
    policy, state = 2 * 8.292166656, 12 * 8.292166656
    found = plan(*REFERENCE, "--gpus", 1)
    stays = found["resident"]
    assert all(parts.get("load", 0) == parts.get("verify", 0) == 0 for parts in stays["seconds"].values())
    assert stays["seconds"]["rollout"]["start"] == 0.1 and stays["seconds"]["report"]["start"] == 1.0
    train = stays["seconds"]["train-step"]
    assert (train["save"], train["hash"]) == pytest.approx((policy / 2, policy / 1.43))
    assert stays["behind"] == pytest.approx(state / 2 + state / (4 * 1.43)) and found["behind"] == 0
    for stage, parts in found["seconds"].items():
        work = {part: seconds for part, seconds in parts.items() if part in ("generation", "forward", "updates")}
        assert work.items() <= stays["seconds"][stage].items()


def test_train_step_waits_for_the_rest_of_a_state_that_takes_longer_than_the_other_stages() -> None:
    policy, state = 2 * 8.292166656, 12 * 8.292166656
    stays = plan(*REFERENCE, "--gpus", 1, "--disk", 0.05)["resident"]
    others = sum(sum(parts.values()) for stage, parts in stays["seconds"].items() if stage != "train-step")
    behind = state / 0.05 + state / (4 * 1.43)
    assert others < behind
    assert stays["seconds"]["train-step"]["save"] == pytest.approx(policy / 0.05 + behind - others)


def test_a_process_that_stays_holds_the_state_while_other_stages_run() -> None:
    """3B on one GPU: moments and exact weights are 12 bytes of each of 3.75 G weights, a reference 2."""
    base = (*REFERENCE, "--model", "Qwen/Qwen2.5-VL-3B-Instruct", "--gpus", 1, "--memory", 80)
    found = plan(*base)
    for stage in ("rollout", "score-attention", "evaluate"):
        more = found["resident"]["memory"][stage]["total"] - found["memory"][stage]["total"]
        assert more == 12 * 3_754_622_976
    assert found["resident"]["memory"]["train-step"] == found["memory"]["train-step"]
    kept = plan(*base, "--set", "train.beta=0.01")["resident"]["memory"]
    assert kept["rollout"]["device"]["kept reference"] == kept["train-step"]["device"]["kept reference"] == 7509245952


def test_what_does_not_fit_beside_what_is_held_is_told_what_helps() -> None:
    """2B on one GPU of 40 GiB, 32 groups sampled at a time."""
    model = ("--model", "Qwen/Qwen2-VL-2B-Instruct", "--gpus", 1, "--memory", 40)
    base = (*REFERENCE, *model, "--set", "rollout.batch_groups=32")
    found = plan(*base)
    assert found["fits"]["rollout"] and not found["resident"]["fits"]["rollout"]
    ways = found["resident"]["ways"]["rollout"]
    assert ways["RESIDENT=0"] == found["memory"]["rollout"]["total"]
    assert ways["train.lora={rank: 16}"] <= found["usable"]
    shown = run("plan", *base).stdout
    assert "With RESIDENT=1, rollout does not fit: " in shown and "  RESIDENT=0: " in shown


def test_two_launches_that_stay_hold_memory_of_the_same_gpus() -> None:
    """A process is 1.5 GiB of a GPU. With a lag the policy that samples is kept, 8,292,166,656 weights in bfloat16.

    A new policy is read twice, by each launch. Of the state, 12 bytes per weight, a quarter is kept by each rank, and
    another quarter until it is written; the ranks have sent what they assemble, ¾ · 2 of it at 270 GB/s, before.
    """
    found = plan(*REFERENCE, "--gpus", 4)
    alone, stays = ({stage: one["total"] for stage, one in way["memory"].items()} for way in (found, found["resident"]))
    process = 3 * 2**29
    assert stays["rollout"] == alone["rollout"] + process
    assert stays["train-step"] == alone["train-step"] + process
    lagging = plan(*REFERENCE, "--gpus", 4, "--set", "lag=1")["resident"]["memory"]["train-step"]["total"]
    assert lagging == stays["train-step"] + 2 * 8_292_166_656
    quarter = {"kept optimizer state": 3 * 8_292_166_656, "its share to be written": 3 * 8_292_166_656}
    memory = found["resident"]["memory"]
    assert (
        memory["rollout"]["host"] == quarter and memory["train-step"]["host"] == found["memory"]["train-step"]["host"]
    )
    train, kept = (way["seconds"]["train-step"] for way in (found, found["resident"]))
    assert kept["start"] == 0.1 and kept["updates"] == train["updates"] and kept["hash"] == train["hash"]
    assert kept["load"] == pytest.approx(8.292166656)
    assert kept["save"] == pytest.approx(8.292166656 + 1.5 * 12 * 8.292166656 / 270)
    on_disk, hashed = 12 * 8.292166656 / 2, 12 * 8.292166656 / 4 / (4 * 1.43)
    assert found["resident"]["behind"] == pytest.approx(on_disk + hashed, rel=1e-2)
    loads = {stage: parts.get("load") for stage, parts in found["resident"]["seconds"].items()}
    assert loads["rollout"] == loads["score-attention"] == 0
    assert loads["evaluate"] == pytest.approx(8.292166656)


def test_launches_on_several_machines_do_not_stay() -> None:
    found = plan(*REFERENCE, "--gpus", 4, "--nodes", 2, "--set", "train.beta=0.01")
    assert {key: found[key] for key in found["resident"]} == found["resident"]
    assert "With RESIDENT=1" not in run("plan", *REFERENCE, "--gpus", 4, "--nodes", 2).stdout


def test_a_folder_is_read(checkpoint: Path) -> None:
    assert plan("--model", checkpoint)["parameters"] == plan("--model", "embedded")["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nobody/nothing"), "nobody/nothing: no config.json in a folder or on the hub ("),
        (
            ("--parallel", "single", "--gpus", 2),
            "--parallel single: expected one GPU, got 2. Use ddp or zero1 … zero3.",
        ),
        (
            ("--set", "train.lora={target_modules: [nose]}"),
            "train.lora.target_modules: 'nose' is not one of q_proj,",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("plan", *arguments)
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr.startswith(message)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    result = run("plan", "--model", tmp_path)
    assert result.code == 3
    assert result.stderr == (
        f"{tmp_path}: expected the configuration of a Qwen3.5, Qwen3-VL, Qwen2.5-VL or Qwen2-VL, got architecture "
        "`llava`. Name one with --model.\n"
    )


def test_it_needs_no_torch() -> None:
    hidden = (
        "import sys; sys.modules |= {'torch': None, 'transformers': None}\n"
        "from dapo_stages.entrypoints import cli; cli.main()"
    )
    result = fresh("plan", *REFERENCE, "--gpus", 4, code=hidden)
    assert result.code == 0, result.stderr
    assert result.stdout.startswith("Qwen/Qwen2.5-VL-7B-Instruct: 8,292,166,656 parameters")

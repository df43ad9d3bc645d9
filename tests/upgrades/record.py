"""How the run in `recorded/` was made: `python record.py FOLDER`, by the version that tests/test_upgrades.py names.

A full fine-tune of a Qwen2.5-VL of about 0.1 M parameters with random weights. Such a policy never answers, so a reward
of the completion's number in its group stands in for a signal. The folder becomes the working folder, so that all paths
in the manifests are relative, but that of the checkpoint, which nothing needs once iteration 1 is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFIG = """\
planned_iterations: 3
model: {name: checkpoint, dtype: float32, device: cpu}
data: {source: embedded, synthetic: {train: 8, held_out: 2}, max_prompt_length: 512}
rollout:
  {prompts_per_iteration: 4, num_generations: 4, max_completion_length: 8, dynamic_sampling: false, groups_per_shard: 2,
   batch_groups: 2}
rewards: {plugins: {turn: "turns.py:turn"}, overlong_cache: 4, symbolic: false}
attention: {patch_completions: 1}
weights:
  reward_weights: {plugins: {turn: 1.0}}
  early_reward_weights: {plugins: {turn: 1.0}}
  mask_truncated_completions: false
  replay: {size: 4, min_reward: -2.0}
train: {updates_per_iteration: 2, batch_completions: 4, learning_rate: 1.0e-3}
evaluate: {num_generations: 2, blank_image: true}
report: {trackers: []}
keep: {states: null}
"""

TURNS = '''\
"""turns.py: the later in the group, the better."""


def turn(completions, rows):
    return [row["sample"] / 4 for row in rows]
'''


def main(folder: Path) -> None:
    """Fill the folder with a checkpoint and iteration 1 of a run."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    save_checkpoint(Path("checkpoint"))
    Path("run.yaml").write_text(CONFIG)
    Path("turns.py").write_text(TURNS)
    here, config = Path("run/iter-0001"), "run/config.yaml"
    stage("config", "--config", "run.yaml", "--out", config)
    stage("init-policy", "--config", config, "--out", "run/policy")
    stage("prepare-data", "--config", config, "--policy", "run/policy", "--out", "run/data")
    evaluate = ["evaluate", "--config", config, "--data", "run/data"]
    stage(*evaluate, "--policy", "run/policy", "--out", "run/iter-0000/eval")
    stage("report", "--config", config, "--run", "run", "--iteration", "0")
    policy = ["--policy", "run/policy"]
    stage("rollout", "--config", config, *policy, "--data", "run/data", "--iteration", "1", "--out", here / "rollout")
    rollouts = ["--rollouts", here / "rollout"]
    stage("score-attention", "--config", config, *policy, *rollouts, "--out", here / "attention")
    attention = ["--attention", here / "attention", "--iteration", "1"]
    stage("weight-tokens", "--config", config, *rollouts, *attention, "--out", here / "weights")
    stage("train-step", "--config", config, *policy, *rollouts, "--weights", here / "weights", "--out", here / "train")
    stage(*evaluate, "--policy", here / "train/policy", "--out", here / "eval")
    stage("report", "--config", config, "--run", "run", "--iteration", "1")


def stage(name: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "dapo_stages", name, *map(str, arguments)], check=True)


def save_checkpoint(folder: Path) -> None:
    """The embedded policy's architecture, narrower, with random weights."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from dapo_stages.models.embedded import embedded_policy
    from dapo_stages.models.embedded.embedded_tokenizer import build_tokenizer
    from dapo_stages.models.policy import Policy
    from dapo_stages.models.policy_loading import save_policy

    tokenizer = build_tokenizer("colours")
    shape = embedded_policy._architecture(tokenizer)
    shape["text_config"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    shape["text_config"]["rope_parameters"] |= {"mrope_section": [1, 1, 2]}
    shape["vision_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**shape)).eval()
    policy = Policy(model, embedded_policy.build_processor(tokenizer), torch.device("cpu"), torch.float32)
    save_policy(policy, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

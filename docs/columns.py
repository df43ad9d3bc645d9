"""What the files and columns of a run mean, for docs/files.md; schemas.py says which there are, and their types."""

from __future__ import annotations

from typing import NamedTuple


class File(NamedTuple):
    """One kind of shard."""

    kind: str
    title: str
    name: str  # as in a run folder
    rows: str  # what a row is
    written_by: str
    read_by: str


class Column(NamedTuple):
    """One column; `kind` where it means something else than elsewhere."""

    name: str
    unit: str
    meaning: str
    kind: str = ""


FILES = [
    File("train", "Training prompts", "data/train-00000.parquet", "prompt", "prepare-data", "rollout"),
    File("held_out", "Held-out prompts", "data/held_out-00000.parquet", "prompt", "prepare-data", "evaluate"),
    File(
        "prompts",
        "Prompts of a rollout",
        "iter-0001/rollout/prompts-00000.parquet",
        "group: a prompt that was sampled",
        "rollout",
        "score-attention, weight-tokens, train-step, report, inspect",
    ),
    File(
        "completions",
        "Completions",
        "iter-0001/rollout/completions-00000.parquet",
        "completion",
        "rollout",
        "score-attention, weight-tokens, train-step, report, inspect",
    ),
    File(
        "attention",
        "Attention",
        "iter-0001/attention/attention-00000.parquet",
        "completion",
        "score-attention",
        "weight-tokens, report, inspect",
    ),
    File(
        "weights",
        "Weights",
        "iter-0001/weights/weights-00000.parquet",
        "completion that is trained on, or was considered",
        "weight-tokens",
        "train-step, report, inspect, compare-weights",
    ),
    File(
        "replayed-prompts",
        "Replayed prompts",
        "iter-0001/weights/replayed-prompts-00000.parquet",
        "group from the buffer that replaces one without signal",
        "weight-tokens",
        "train-step, report, inspect",
    ),
    File(
        "replayed-completions",
        "Replayed completions",
        "iter-0001/weights/replayed-completions-00000.parquet",
        "completion of such a group",
        "weight-tokens",
        "train-step, report, inspect",
    ),
    File(
        "buffer",
        "Replay buffer",
        "iter-0001/weights/buffer-00000.parquet",
        "stored group",
        "weight-tokens",
        "weight-tokens of the next iteration",
    ),
    File(
        "buffer-completions",
        "Completions in the replay buffer",
        "iter-0001/weights/buffer-completions-00000.parquet",
        "completion of a stored group",
        "weight-tokens",
        "weight-tokens of the next iteration",
    ),
    File(
        "metrics",
        "Metrics of a train-step",
        "iter-0001/train/metrics.parquet",
        "metric of an update",
        "train-step",
        "report",
    ),
    File(
        "evaluation",
        "Completions of an evaluation",
        "iter-0001/eval/completions-00000.parquet",
        "completion of a held-out prompt",
        "evaluate",
        "report, compare-evals",
    ),
]

_SEGMENTS = {"early": "the first third of the layers", "middle": "the second third", "late": "the last third"}
_SEGMENTS["all"] = "all layers"
_OF_SEGMENTS = [
    ("vgr", "", "VGR of the completion: attention per text token over attention per image token; null without image"),
    ("aei_text", "", "AEI of the text: its share of the attention over its share of the tokens"),
    ("aei_vision", "", "AEI of the image"),
    ("attn_text", "0 … 1", "share of the attention to the prompt that its text gets, mean over the tokens"),
    ("attn_vision", "0 … 1", "share that the image gets"),
    ("patch_attention", "0 … 1", "attention to each patch of the image, for some completions: [T, patches]"),
]

COLUMNS = [
    Column("prompt_id", "", "`train-000017`: part and row of the dataset; with several datasets, also its name"),
    Column("images", "PNG", "the prompt's images as prepared, in order; what `datasets.Image()` reads"),
    Column("problem", "", "text of the question, with its options; `<image>` marks where images go"),
    Column("solution", "", "the correct answer as rewards compare it: a letter, several, or text (docs/rewards.md)"),
    Column("prompt_text", "", "the conversation after the chat template"),
    Column("prompt_ids", "token ids", "the prompt, image tokens expanded"),
    Column("image_grid_thw", "patches", "patch grid of each image and video: [time, height, width]"),
    Column("frame_seconds", "s", "of each image: the second of its video, -1 if it is no frame; null: no videos"),
    Column("source", "", "the dataset: data.source, or its name in data.sources"),
    Column("source", "", "`fresh`: sampled in this iteration; `replay`: from the buffer", kind="weights"),
    Column("slice", "", "value of data.columns.slice; empty if there is none"),
    Column("labels", "JSON", "values of data.columns.slices by column; `dataset` with several datasets"),
    Column("row", "JSON", "all columns of the dataset's row but the images, for plug-ins"),
    Column("group_id", "", "`i0003-g000012`: iteration and number of the group"),
    Column("iteration", "", "iteration that sampled the group", kind=""),
    Column("iteration", "", "iteration of the train-step", kind="metrics"),
    Column("round", "", "round of dynamic sampling, from 0"),
    Column("num_correct", "completions", "completions with reward_accuracy 1"),
    Column("kept", "", "whether the group goes on: informative, and not surplus"),
    Column("informative", "", "whether the reward of rollout.informative makes it so; null without that setting"),
    Column("completion_id", "", "group and number of the completion: `i0003-g000012-c002`"),
    Column("sample", "", "number of the completion in its group, from 0"),
    Column("text", "", "the completion, without the end token"),
    Column("completion_ids", "token ids", "as sampled, end token included: [T]"),
    Column("token_texts", "", "text of each token: [T]"),
    Column("sampling_logprobs", "nats", "logprob of each token where it was sampled: [T]"),
    Column("finish_reason", "", "`stop`: the end token; `length`: cut off by the limit"),
    Column("engine", "", "engine that sampled it"),
    Column("policy_version", "iteration", "iteration whose train-step made the policy; 0 for the starting one"),
    Column("reward_accuracy", "0 … 1", "1 for a right answer; in between for graded answers and partial credit"),
    Column("reward_format", "0 or 1", "whether it is one thought and one answer block, and nothing else"),
    Column("reward_overlong", "-1 … 0", "penalty for length (DAPO, eq. 13)"),
    Column("reward_vgr", "", "reward for a low VGR within the group; 0 where it does not count"),
    Column("answer", "", "the answer that the accuracy reward read; null for none"),
    Column("read_from", "", "where: `tags`, `stated`, `lone`, `unclosed` or `none` (docs/rewards.md)"),
    Column("loss_mask", "", "whether the policy wrote the token, so that it is in the loss; null: all of them: [T]"),
    Column("status", "", "`ok`, or what is missing: `no_image`; `not_kept` and `off`: not measured at all"),
    Column("mass_vision", "0 … 1", "attention of each token to the image, mean of all heads and layers: [T]"),
    Column("mass_text", "0 … 1", "the same, to the prompt's text: [T]"),
    Column("mass_other", "0 … 1", "the same, to the rest of the prompt, such as the chat format: [T]"),
    Column("mass_first", "0 … 1", "the same, to the first token of the prompt, the attention sink: [T]"),
    Column("mass_generated", "0 … 1", "the same, to the completion so far: [T]"),
    Column("vgr", "", "VGR of each token over all layers; infinite if it saw nothing of the image: [T]"),
    *(
        Column(f"{name}_{segment}", unit, f"{meaning}; {layers}")
        for name, unit, meaning in _OF_SEGMENTS
        for segment, layers in _SEGMENTS.items()
    ),
    Column("num_text_tokens", "tokens", "tokens of the prompt's text"),
    Column("num_vision_tokens", "tokens", "tokens of its images"),
    Column("attn_vision_by_image", "0 … 1", "attn_vision_all by image, or by step of a video, if there are several"),
    Column("logprobs", "nats", "logprob of each token under the policy (attention.logprobs): [T]"),
    Column("entropy", "nats", "entropy of the next-token distribution (attention.logprobs): [T]"),
    Column("blank_logprobs", "nats", "logprob with the image blanked (attention.blank_image, attention.blank): [T]"),
    Column("visual_kl", "nats", "KL from the distribution with the image to that with it blanked: [T]"),
    Column("token_vgr_early", "", "VGR of each token over the first third; null below three layers: [T]"),
    Column("token_vgr_middle", "", "the same over the middle third: [T]"),
    Column("token_vgr_late", "", "the same over the last third: [T]"),
    Column("token_vgr_layers", "", "the same over the layers of weights.layers, if these are no segment: [T]"),
    Column("vgr_layers", "", "VGR of the completion over the layers of weights.vgr_layers, if these are no segment"),
    Column("blank_entropy", "nats", "entropy of the next-token distribution with the image blanked: [T]"),
    Column("jsd", "0 … log 2", "Jensen-Shannon divergence of the distributions with the image and blanked: [T]"),
    Column("k3", "nats", "q/p - log(q/p) - 1 of its probabilities with the image, p, and with it blanked, q: [T]"),
    Column("vision_cosine", "-1 … 1", "cosine of the hidden state that predicted it and the image's mean one: [T]"),
    Column("rollout_mass", "0 … 1", "attention rollout to the image, of all layers together: [T]"),
    Column("vision_gradient", "nats", "norm of the logprob's gradient at the image's embeddings: [T]"),
    Column("source_iteration", "", "iteration that sampled the completion"),
    Column("reward", "", "total reward: the weighted sum of the rewards in this phase"),
    Column("reward_phase", "", "`early` or `regular`: which reward weights applied"),
    Column("advantage", "", "of the completion: the reward, standardized in its group (weights.scale_rewards)"),
    Column("importance", "", "factor of a replayed group that corrects for how it was drawn; null: 1"),
    Column("token_weights", "", "weight of each token in the loss, mean 1 within the bounds; 0 outside loss_mask: [T]"),
    Column("in_loss", "", "whether it is trained on"),
    Column("why", "", "why not; empty if it is"),
    Column("score", "", "of the group: Σ\\|advantage\\| · std of its rewards; the lowest leaves first"),
    Column("mean_reward", "", "mean of the group's total rewards when it was stored"),
    Column("std_reward", "", "their standard deviation"),
    Column("draws", "iterations", "in how many iterations it has been trained on again; null: 0"),
    Column("update", "", "optimizer step of the iteration, from 0"),
    Column("name", "", "of the metric (docs/objective.md)"),
    Column("value", "", "its value; null if it is not finite"),
    Column("mode", "", "`greedy`, `sample`, or `blank`: greedy with the image blanked"),
    Column("num_tokens", "tokens", "length of the completion"),
    Column("num_options", "", "options that the question offers; null if it offers none"),
]

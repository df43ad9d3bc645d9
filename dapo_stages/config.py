"""One YAML file configures a run; these frozen models say which keys exist, their ranges and their meaning.

A stage stores the sections it used in its manifest, so keys that change no result (engines, report, keep) live apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dapo_stages.errors import ConfigError

if TYPE_CHECKING:
    import yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """Which checkpoint the run starts from and how it is held in memory."""

    name: str = Field(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        description="Hub id or folder of the starting policy; `embedded` builds the small model that ships with us.",
    )
    dtype: Literal["bfloat16", "float32", "float64"] = Field("bfloat16", description="Type of weights and activations.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device; auto takes CUDA where there is one.")
    attention: Literal["sdpa", "flex"] = Field(
        "sdpa", description="Kernel of training and scoring: SDPA group by group, or FlexAttention in one call (CUDA)."
    )
    compile: bool = Field(
        False,
        description="torch.compile for decoding, with a static cache, and for log-probs. Worth it on CUDA for long "
        "completions; rows then stay in their batch until all are finished.",
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None,
        description="Hold the language model under an adapter (train.lora) in 4 or 8 bits by bitsandbytes, in every "
        "stage; the vision tower stays as it is.",
    )


class WarmUpConfig(Section):
    """Supervised warm-up of the embedded policy, which gives it the answer format and a language prior."""

    steps: Annotated[int, Field(ge=0)] = Field(80, description="Steps of the warm-up; 0 leaves random weights.")
    batch_size: Count = Field(64, description="Questions per step.")
    biased: Fraction = Field(0.5, description="Share of questions whose shape has its usual colour.")
    hearsay: Fraction = Field(0.7, description="Share of the others that are answered with the usual colour anyway.")


class ColumnsConfig(Section):
    """Names of the data set's columns."""

    image: str = Field("image", description="Picture(s): an image, or a list of images.")
    problem: str = Field("problem", description="The question, with its options; `<image>` marks where pictures go.")
    solution: str = Field("solution", description="The right answer: a bare letter, or inside <answer>…</answer>.")
    messages: str | None = Field(
        None, description="Conversation column (`prompt`/`messages`), used where `problem` is missing."
    )
    slice: str | None = Field(None, description="Column whose values the evaluation reports separately.")


class SyntheticConfig(Section):
    """Sizes of the embedded synthetic task."""

    train: Count = Field(4096, description="Training questions.")
    held_out: Count = Field(512, description="Held-out questions.")


class DataConfig(Section):
    """Where the questions come from and how they become prompts."""

    source: str = Field(
        "lujunxi57/DDM",
        description="Hub id, Parquet/JSONL file or folder, image folder, save_to_disk folder, or `embedded`.",
    )
    split: str = Field("train", description="Split of a hub data set.")
    columns: ColumnsConfig = ColumnsConfig()
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="Share held out for evaluation.")
    split_seed: int = Field(42, description="Seed of the train/held-out split.")
    max_rows: Count | None = Field(None, description="Use only the first rows of the source.")
    max_image_size: Annotated[int, Field(ge=28)] = Field(
        1024, description="Pictures are fitted into a square of this many pixels a side, keeping their shape."
    )
    max_image_pixels: Count = Field(
        50_000_000, description="A picture with more pixels is bad: it is refused before it is decoded."
    )
    max_prompt_length: Count = Field(
        1024, description="Longest prompt in tokens, image tokens included; longer ones are dropped and counted."
    )
    on_bad_image: Literal["skip", "error"] = Field("skip", description="Drop and count an unreadable row, or stop.")
    system_prompt: str | None = Field(
        None, description="System message; null takes the built-in one, '' leaves it out."
    )
    synthetic: SyntheticConfig = SyntheticConfig()


class SamplerConfig(Section):
    """The distribution that completions are drawn from. Special tokens but the end token are never sampled."""

    temperature: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="Softmax temperature.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Nucleus sampling; 1 is off.")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="Keep the k most likely tokens; 0 is off.")
    min_p: Fraction = Field(0.0, description="Drop tokens below this share of the likeliest one; 0 is off.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="1 is off.")


class RolloutConfig(Section):
    """Completions of an iteration and DAPO's dynamic sampling."""

    engine: Literal["transformers", "vllm", "server", "paged"] = Field(
        "transformers",
        description="What generates the completions: transformers; vLLM in this process; a server (engines.server).",
    )
    prompts_per_iteration: Count = Field(128, description="Groups an iteration asks for.")
    num_generations: Annotated[int, Field(ge=2)] = Field(8, description="Completions per prompt (the group size).")
    max_completion_length: Count = Field(384, description="Most tokens of a completion, end token included.")
    sampler: SamplerConfig = SamplerConfig()
    dynamic_sampling: bool = Field(True, description="Ask for informative groups: some but not all correct.")
    max_resample_rounds: Count = Field(
        4, description="Rounds of new prompts at most, the first included; then go on with what there is."
    )
    groups_per_shard: Count = Field(
        32, description="Groups per Parquet shard, and per piece of work that is resumed, or shared by processes."
    )
    batch_groups: Count = Field(
        8, description="Groups that transformers generates at the same time; the others are given a shard's at once."
    )


class RewardsConfig(Section):
    """Rewards of a single completion (those that need the group or attention are weight-tokens' part)."""

    overlong_max_length: Count | None = Field(
        None, description="L_max of the overlong reward; null takes rollout.max_completion_length."
    )
    overlong_cache: Count = Field(50, description="L_cache: the reward falls over this many tokens before L_max.")
    symbolic: bool = Field(True, description="Compare non-letter answers with math-verify.")
    symbolic_timeout: Annotated[float, Field(gt=0)] = Field(5.0, description="Seconds for one symbolic comparison.")
    plugins: dict[str, str] = Field(
        {},
        description="Further rewards: name -> path/to/file.py:function, inside the working folder.",
    )


class AttentionConfig(Section):
    """How the look at the picture is measured."""

    enabled: bool = Field(True, description="Off: every token weighs 1 and the VGR reward is neutral.")
    query: Literal["predicting", "token"] = Field(
        "predicting", description="Whose attention counts for token t: the position that predicted it, or its own."
    )
    groups: Literal["kept", "all"] = Field("kept", description="Score only groups that go on to training, or all.")
    batch_completions: Count = Field(64, description="Completions per forward pass.")
    chunk_rows: Count = Field(256, description="Rows of attention held in memory at the same time, per group.")
    patch_completions: Annotated[int, Field(ge=0)] = Field(
        8, description="Completions per iteration whose attention is kept per image token, for pictures."
    )


class RewardWeights(Section):
    """Weight of each reward in the total."""

    accuracy: float = Field(2.5, description="Weight of reward_accuracy.")
    vgr: float = Field(0.0, description="Weight of reward_vgr.")
    format: float = Field(0.5, description="Weight of reward_format.")
    overlong: float = Field(1.0, description="Weight of reward_overlong.")
    plugins: dict[str, float] = Field({}, description="Weights of plug-in rewards; 1 where not named.")


class EarlyRewardWeights(RewardWeights):
    """The same for the first phase: the format first."""

    accuracy: float = Field(1.0, description="Weight of reward_accuracy.")
    format: float = Field(2.0, description="Weight of reward_format.")


class ReplayConfig(Section):
    """Buffer of informative groups that stand in for groups without signal."""

    size: Annotated[int, Field(ge=0)] = Field(64, description="Groups kept; 0 switches replay off.")
    var_epsilon: Annotated[float, Field(ge=0)] = Field(1e-6, description="A group enters above this reward deviation.")
    min_reward: float = Field(1.5, description="A group enters above this mean reward.")
    max_staleness: Count = Field(10, description="Iterations after which a group leaves.")


class WeightsConfig(Section):
    """From attention and rewards to advantages and token weights."""

    scheme: Literal["vgr", "uniform"] = Field("vgr", description="Token weights: 1/VGR, or all 1.")
    clip: tuple[float, float] = Field((0.2, 3.0), description="Bounds of a token weight; they enclose 1.")
    smooth_sigma: Annotated[float, Field(ge=0)] = Field(0.0, description="Gaussian smoothing over tokens; 0 is off.")
    mean_preserving: bool = Field(True, description="Keep the mean of a completion's weights at 1 inside the bounds.")
    reward_weights: RewardWeights = RewardWeights()
    early_reward_weights: EarlyRewardWeights = EarlyRewardWeights()
    early_fraction: Fraction = Field(0.1, description="Share of planned_iterations under early_reward_weights.")
    vgr_mapping: Literal["quantile", "mad"] = Field("quantile", description="From a group's VGR to rewards.")
    vgr_min_range: Annotated[float, Field(ge=0)] = Field(5.0, description="Least quantile range that counts.")
    vgr_sigma: Annotated[float, Field(gt=0)] = Field(1.0, description="Width of the mad mapping.")
    hard_negative: bool = Field(False, description="VGR reward for correct completions only, centred on zero.")
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="What divides the advantage.")
    mask_truncated_completions: bool = Field(True, description="Truncated completions stay out of the loss.")
    replay: ReplayConfig = ReplayConfig()

    @model_validator(mode="after")
    def _clip_encloses_one(self) -> Self:
        if not 0 <= self.clip[0] < 1 < self.clip[1]:
            raise ValueError(f"clip must satisfy 0 <= lo < 1 < hi, found {list(self.clip)}")
        return self


class LoraSettings(Section):
    """Low-rank adapters instead of training every weight."""

    rank: Count = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="Scale is alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapters' input; above 0 the policy ratio no longer starts at 1."
    )
    target_modules: tuple[str, ...] = Field(("q_proj", "v_proj"), description="Layers that get an adapter.")


class TrainConfig(Section):
    """The DAPO update."""

    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = Field(
        "dapo", description="How tokens are averaged; whatever the number of processes."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field("token", description="Level of the policy ratio.")
    epsilon_low: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="Lower clip of the ratio.")
    epsilon_high: Annotated[float, Field(gt=0)] = Field(0.28, description="Upper clip of the ratio (clip-higher).")
    delta: Annotated[float, Field(gt=1)] | None = Field(
        None, description="Dual clip of large ratios, above 1 + epsilon_high; null is off."
    )
    engine_is_cap: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Cap of the importance weight between trainer and engine."
    )
    beta: Annotated[float, Field(ge=0)] = Field(0.0, description="Weight of the KL to the policy given as --reference.")
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of tokens, by entropy, that the loss keeps; 1 keeps all."
    )
    updates_per_iteration: Count = Field(4, description="Mini-batches (optimiser steps) per iteration.")
    batch_completions: Count = Field(
        4,
        description="Completions per forward and backward of a process; gradients accumulate over a mini-batch, whose "
        "micro-batches the processes share.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: matrices by Muon, the rest by AdamW; alone or under DDP."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Peak learning rate.")
    muon_learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Peak learning rate of Muon's matrices (scaled to match AdamW's update size)."
    )
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="AdamW's moments.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Decoupled weight decay.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Over all planned updates.")
    warmup_fraction: Fraction = Field(0.05, description="Share of the planned updates that warms up.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradient clipping.")
    gradient_checkpointing: bool = Field(True, description="Recompute activations in the backward pass.")
    freeze_vision: bool = Field(False, description="Keep the vision tower as it is.")
    lora: LoraSettings | None = Field(None, description="Adapters; null trains every weight.")
    logprob_chunk: Count = Field(1024, description="Rows of logits held in memory at the same time.")

    @model_validator(mode="after")
    def _delta_is_above_the_clip(self) -> Self:
        if self.delta is not None and self.delta <= 1 + self.epsilon_high:
            raise ValueError(
                f"delta must exceed 1 + epsilon_high, {1 + self.epsilon_high:g}, or be null, found {self.delta:g}"
            )
        return self


class EvaluateConfig(Section):
    """Held-out questions."""

    num_generations: Annotated[int, Field(ge=0)] = Field(4, description="Samples per question (mean@k).")
    greedy: bool = Field(True, description="Also answer greedily.")
    blank_image: bool = Field(False, description="Also answer greedily with the picture blanked.")
    max_questions: Count | None = Field(None, description="Use only the first questions.")
    questions_per_shard: Count = Field(
        32, description="Questions per Parquet shard, and per piece of work that is resumed, or shared by processes."
    )
    batch_groups: Count = Field(16, description="Questions generated at the same time.")


class ReportConfig(Section):
    """What people look at."""

    samples: Annotated[int, Field(ge=0)] = Field(4, description="Groups shown in full per iteration.")
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = Field((), description="Where the figures go besides files.")
    project: str = Field("dapo-stages", description="W&B project.")


class KeepConfig(Section):
    """How many iterations' worth of large files stay; null keeps all."""

    rollouts: Count | None = Field(None, description="Rollout, attention and weights folders.")
    states: Count | None = Field(2, description="Optimiser states: a train-step needs the one before.")
    policies: Count | None = Field(None, description="Policies; one that a kept adapter belongs to stays as well.")
    best: bool = Field(
        True, description="Keep the policy with the best held-out accuracy too, however old (best.json names it)."
    )


class VllmConfig(Section):
    """vLLM in the process of rollout. None of it changes what is sampled from."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="Share of the GPU's memory.")
    tensor_parallel_size: Count = Field(1, description="GPUs that share the model.")
    enforce_eager: bool = Field(
        False, description="Without CUDA graphs: a quicker start, slower decoding. Always so on CPUs."
    )
    max_model_len: Count | None = Field(
        None, description="Longest prompt and completion together; null takes what data and rollout allow."
    )


class ServerConfig(Section):
    """A server with OpenAI's chat completions that gives token ids. Its key is DAPO_STAGES_API_KEY of the environment,
    or OPENAI_API_KEY over https or on this machine. None of it changes what is sampled from."""

    url: str = Field(
        "http://localhost:8000", pattern=r"^https?://[^\s/]+", description="Where it answers, without /v1."
    )
    model: str | None = Field(None, description="Name of the model there; null takes the first it lists.")
    concurrency: Count = Field(32, description="Requests under way at the same time, one per prompt.")
    timeout: Annotated[float, Field(gt=0)] = Field(600.0, description="Seconds to wait for an answer.")
    retries: Annotated[int, Field(ge=0)] = Field(5, description="Further tries after a failure that may pass.")
    backoff: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Seconds before the first further try; twice as long before each one after it, at most 60."
    )


class EnginesConfig(Section):
    """Where and how engines run, and what is said of their mismatch with the trainer."""

    vllm: VllmConfig = VllmConfig()
    server: ServerConfig = ServerConfig()
    diff_warn: Annotated[float, Field(gt=0)] = Field(
        0.05, description="train-step warns if log-probs of engine and trainer differ by more than this on average."
    )


class Config(Section):
    """A whole run."""

    seed: int = Field(42, ge=0, description="Seed of everything that is drawn.")
    planned_iterations: Count = Field(
        100, description="Length of the run behind learning-rate schedule and reward phases; ITERS never changes it."
    )
    lag: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Train-steps by which the policy that samples is older than it could be, so that both run at "
        "the same time; make sets it by LAG.",
    )
    model: ModelConfig = ModelConfig()
    warm_up: WarmUpConfig = WarmUpConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    engines: EnginesConfig = EnginesConfig()
    rewards: RewardsConfig = RewardsConfig()
    attention: AttentionConfig = AttentionConfig()
    weights: WeightsConfig = WeightsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    keep: KeepConfig = KeepConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        longest = self.rewards.overlong_max_length or self.rollout.max_completion_length
        if self.rewards.overlong_cache > longest:
            raise ValueError(
                f"rewards.overlong_cache must not exceed the longest completion, {longest} tokens, "
                f"found {self.rewards.overlong_cache}"
            )
        if self.model.quantization is not None and self.train.lora is None:
            raise ValueError(
                f"model.quantization {self.model.quantization} needs an adapter to train (train.lora: {{rank: 16}}); "
                "found train.lora null, which trains every weight"
            )
        for phase in ("reward_weights", "early_reward_weights"):
            unknown = sorted(getattr(self.weights, phase).plugins.keys() - self.rewards.plugins.keys())
            if unknown:
                raise ValueError(f"weights.{phase}.plugins names {unknown[0]!r}, which is not in rewards.plugins")
        rollout, temperature = self.rollout, self.rollout.sampler.temperature
        if rollout.engine == "paged":
            raise ValueError(
                "rollout.engine: found paged, the continuous batching of transformers (generate_batch), which takes "
                "token ids and no pictures; needed transformers, vllm or server"
            )
        if rollout.engine != "transformers" and self.model.quantization is not None:
            raise ValueError(
                f"rollout.engine: found {rollout.engine} with model.quantization {self.model.quantization}; needed "
                "transformers, which samples from the quantised base that is trained"
            )
        if rollout.engine != "transformers" and temperature > 2:
            raise ValueError(
                f"rollout.sampler.temperature: found {temperature}; needed at most 2 with engine {rollout.engine}, "
                "because it divides what keeps special tokens from being sampled"
            )
        return self

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections (dotted names reach inside one) as plain values, for a manifest."""
        everything = self.model_dump(mode="json")
        found: dict[str, Any] = {}
        for name in names:
            value: Any = everything
            for key in name.split("."):
                value = value[key]
            found[name] = value
        return found


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply `section.key=value` overrides (values are YAML too).

    A file may begin with `extends: other.yaml`, relative to itself, and then names only what differs.

    Raises ConfigError naming the file, the key, what was found and what is allowed.
    """
    values = _read(path)
    for override in overrides or []:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, every key spelled out."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _strict_loader()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}). Name a YAML file, such as pipelines/embedded.yaml."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())}). Mend the file.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}; needed keys and values, such as `seed: 42`.")
    base = values.pop("extends", None)
    if base is None:
        return values
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself, by way of {base}. Mend the files.")
    return _merged(_read(path.parent / str(base), (*seen, path.resolve())), values)


def _strict_loader() -> type[yaml.SafeLoader]:
    """YAML's safe loader, which by itself keeps the last of two sections of the same name without a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    problem=f"`{twice}` stands there twice", problem_mark=node.start_mark
                )
            return super().construct_mapping(node, deep)

    return Loader


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    import yaml

    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"--set {override}: found no `=`; needed section.key=value, such as train.learning_rate=1e-5."
        )
    *parents, last = key.strip().split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: `{parent}` is a single value and has no keys below it.")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML. Quote it.") from None


def _explain(path: Path, error: ValidationError) -> str:
    import difflib

    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(problem["loc"])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}."
            lines.append(f"{path}: unknown key `{key}`; {hint}")
        elif not key:  # sections that do not agree; the message says what was found
            lines.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}.")
        else:
            lines.append(f"{path}: `{key}`: found {problem['input']!r}; needed: {problem['msg']}.")
    return "\n".join([*lines, "Mend the file, or the --set option, and run the command again."])


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)

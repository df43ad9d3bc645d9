"""The policy update."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dapo_stages.config.attention import BlankKind
from dapo_stages.config.base import Count, Fraction, Later, Momentum, Positive, Section, named_or_own
from dapo_stages.config.objective import EngineMaskSettings, EntropyControl, KlSettings

LOSSES = (
    "dapo", "grpo", "bnpo", "dr_grpo", "gspo", "cispo", "sapo", "gmpo", "luspo", "vespo", "dppo_tv", "dppo_kl",
    "clip_cov", "kl_cov",
)  # fmt: skip
AggregationName = Literal[
    "token_mean", "token_sum", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"
]
OF_SEQUENCE = ("gspo", "gmpo", "luspo")  # losses whose ratio is the completion's
OF_TOKEN = ("vespo", "dppo_tv", "dppo_kl", "clip_cov", "kl_cov")  # losses whose ratio is the token's
INSTEAD = {
    "gspo": "loss_type grpo is the token ratio with gspo's normalizer",
    "luspo": "loss_type dapo with aggregation seq_mean_token_sum is the token ratio with luspo's normalizer",
}
NO_DELTA = {
    "cispo": "epsilon_high caps its ratio for advantages of either sign",
    "sapo": "its gate closes for large ratios by itself",
    "gmpo": "it clips each token's log-ratio",
    "vespo": "its weight falls for large ratios by itself",
    "clip_cov": "verl's has no dual clip either",
    "kl_cov": "it clips nothing",
}

# What the KL term was before it had settings.
_KL_BEFORE = {"estimator": "k3", "gradient": "own", "clamp": None, "target": None, "horizon": 10000.0}


class LoraSettings(Section):
    """Low-rank adapters, instead of training every weight."""

    rank: Count = Field(16, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="The scale is alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapters' input; above 0, the policy ratio no longer starts at 1."
    )
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        description="Layers that get an adapter, by name or end of the name; not layers with tied weights.",
    )


class PerceptionSettings(Section):
    """A term that ties the policy to its images: KL between what it says of an image and of a changed one
    (docs/objective.md)."""

    term: Literal["papo", "dvrp"] = Field(
        "papo",
        description="papo: away from what the policy says of a blanked image. dvrp: also toward what it says of a "
        "slightly noised one.",
    )
    coefficient: Positive = Field(0.01, description="Weight of each KL term (PAPO: 0.01 to 0.02; DVRP: 0.01).")
    blank: BlankKind = Field("patches", description="What becomes of blanked images, as with attention.blank.")
    blank_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.6, description="Probability that a square is blackened, for blank: patches."
    )
    blank_patch: Count = Field(14, description="Side of such a square, in pixels.")
    noise: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5,
        description="For dvrp: standard deviation of the noise in noised images, on pixels from -1 to 1, which are "
        "scaled down by sqrt(1 - noise²).",
    )
    recompute: bool = Field(
        False,
        description="Compute the logprobs with changed images in every update, with a gradient; if off, once, before "
        "the first update, as PAPO's code does by default.",
    )
    entropy_coefficient: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Weight of a penalty on entropies (nats): for papo with the image and with the blanked one, for "
        "dvrp with both changed ones (PAPO: 0.03 to 0.05). Without recompute, only that with the image has a gradient.",
    )
    clamp: Positive | None = Field(
        10.0, description="Largest KL of a token, beyond which it has no gradient (PAPO's code: 10); null is off."
    )

    @property
    def views(self) -> int:
        """Changed prompts that each prompt with images is compared with."""
        return 1 if self.term == "papo" else 2

    @model_validator(mode="after")
    def _penalty_has_a_gradient(self) -> Self:
        if self.term == "dvrp" and self.entropy_coefficient > 0 and not self.recompute:
            raise ValueError(
                "entropy_coefficient needs recompute: true with term dvrp, whose penalty is on changed images only and "
                "would have no gradient"
            )
        return self


class GuardSettings(Section):
    """What to do when training diverges: `skip` leaves weights and moments unchanged, `halt` ends the stage without an
    output."""

    non_finite: Literal["skip", "halt"] = Field("skip", description="For a loss or gradient that is NaN or infinite.")
    grad_norm: Literal["skip", "halt"] = Field(
        "skip", description="For a gradient norm above max_grad_norm, before clipping."
    )
    max_grad_norm: Positive | None = Field(
        1e6, description="Gradient norm that means divergence (train.max_grad_norm only clips); null is off."
    )
    ratio: Literal["skip", "halt"] = Field("halt", description="For log-ratios above max_log_ratio.")
    max_log_ratio: Positive | None = Field(
        5.0,
        description="Mean of abs(log-ratio) in nats per token, between the policy and the one before this train-step, "
        "and between the latter and the engine's logprobs; null is off.",
    )
    no_signal: Literal["skip", "halt", "train"] = Field(
        "skip",
        description="For an update whose advantages are all 0 (all rewards equal), without KL, entropy bonus and "
        "perception term; `train` lets momentum move the policy.",
    )
    max_skipped: Count | None = Field(
        8,
        description="Updates in a row, across iterations, that non_finite, grad_norm and ratio may skip; one more "
        "halts. null is off.",
    )
    collapse_below: Fraction | None = Field(
        0.02,
        description="Halt if the fraction of well-formed, or of finished, completions falls below this after it was "
        "half or more in an earlier iteration. null is off.",
    )


class TrainConfig(Section):
    """The DAPO update."""

    loss_type: str = Field(
        "dapo",
        description="The loss, and how it averages over tokens (the same for any number of processes): "
        f"{', '.join(LOSSES)} (docs/objective.md). Or a function of yours, path/to/file.py:function, averaged as dapo.",
    )
    aggregation: Annotated[AggregationName | None, Later(None)] = Field(
        None, description="How token losses are averaged, as verl's loss_agg_mode; null is the loss type's own way."
    )
    importance_sampling_level: Literal["token", "sequence"] | None = Field(
        None, description="Level of the policy ratio; null is sequence for gspo, gmpo and luspo, else token."
    )
    epsilon_low: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="Lower clip of the ratio, 1 - epsilon_low; not used by cispo, sapo, vespo and kl_cov. gmpo clips "
        "the log-ratio, dppo_tv the probability's change, dppo_kl its KL.",
    )
    epsilon_high: Annotated[float, Field(gt=0)] = Field(
        0.28,
        description="Upper clip of the ratio, 1 + epsilon_high (clip-higher); not used by sapo, vespo and kl_cov; "
        "others as above.",
    )
    cispo_epsilon_low: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Later(None)] = Field(
        None,
        description="Lower clip of cispo's weight, 1 - cispo_epsilon_low (verl: 0.2); null is none.",
    )
    sapo_temperatures: Annotated[tuple[Positive, Positive], Later([1.0, 1.05])] = Field(
        (1.0, 1.05), description="Sharpness of sapo's gate for advantages above 0, and for others."
    )
    vespo_k: Annotated[tuple[Positive, Positive], Later([2.0, 3.0])] = Field(
        (2.0, 3.0), description="Exponent k of vespo's weight w^k exp(λ (1 - w)), for advantages from 0, and below."
    )
    vespo_lambda: Annotated[tuple[Positive, Positive], Later([3.0, 2.0])] = Field(
        (3.0, 2.0), description="λ of that weight, for advantages from 0, and below."
    )
    covariance_share: Annotated[Annotated[float, Field(gt=0, le=1)], Later(0.0002)] = Field(
        0.0002, description="Share of tokens that clip_cov leaves out, or that kl_cov holds back."
    )
    covariance_range: Annotated[tuple[Annotated[float, Field(ge=0)], Positive], Later([1.0, 5.0])] = Field(
        (1.0, 5.0), description="Covariances of advantage and logprob between which clip_cov leaves tokens out."
    )
    covariance_kl: Annotated[Positive, Later(1.0)] = Field(
        1.0, description="What kl_cov weighs the abs(log-ratio) of these tokens by."
    )
    delta: Annotated[float, Field(gt=1)] | None = Field(
        None, description="Dual clip of large ratios, above 1 + epsilon_high; null is off."
    )
    engine_is_cap: Annotated[float, Field(gt=0)] | None = Field(
        2.0,
        description="Cap of the importance weight that corrects for the mismatch of trainer and engine; null: none.",
    )
    engine_is_floor: Annotated[Positive | None, Later(None)] = Field(
        None, description="Lower bound of that weight; null is none."
    )
    engine_is_level: Literal["token", "sequence", "sequence_mean", "none"] = Field(
        "token",
        description="Whether that weight is per token, or the product or the geometric mean over the completion; none: "
        "every token weighs 1.",
    )
    engine_mask: Annotated[EngineMaskSettings | None, Later(None)] = Field(
        None, description="Leave out tokens, or completions, on which trainer and engine differ too much; null is off."
    )
    off_policy_threshold: Annotated[Positive | None, Later(None)] = Field(
        None,
        description="Leave out completions with a negative advantage whose mean of sampling - new (nats per token) is "
        "above this; null is off.",
    )
    beta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the KL to the reference policy (--reference)."
    )
    kl: Annotated[KlSettings, Later(_KL_BEFORE, only_with="beta")] = KlSettings()
    reference_update_every: Count | None = Field(
        None,
        description="Every how many train-steps the reference moves toward the policy (TR-DPO); null keeps it. The new "
        "reference is in the train-step's folder. Read if beta > 0.",
    )
    reference_mixup_alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        0.6, description="Fraction of the policy in the new reference, the rest being the old one; 1 replaces it."
    )
    entropy_coefficient: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of a bonus for the mean entropy (nats) of the tokens in the policy term; 0 is off."
    )
    entropy_control: Annotated[EntropyControl | None, Later(None)] = Field(
        None, description="Let that weight follow the entropy, from entropy_coefficient on; null keeps it."
    )
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Fraction of tokens, those with the highest entropy, that the loss keeps; 1 keeps all."
    )
    perception: Annotated[PerceptionSettings | None, Later(None)] = Field(
        None, description="A term that ties the policy to its images, as PAPO and DVRP have; null is off."
    )
    updates_per_iteration: Count = Field(
        4, description="Mini-batches of an iteration: optimizer steps of each of its passes."
    )
    passes: Annotated[Count, Later(1)] = Field(
        1,
        description="How often an iteration trains on each mini-batch, as TRL's num_iterations and verl's ppo_epochs; "
        "each pass takes them in an order of its own.",
    )
    batch_completions: Count | Literal["auto"] = Field(
        4,
        description="Completions per forward and backward pass (micro-batch) of a process; gradients accumulate over a "
        "mini-batch, whose micro-batches are divided among the processes. auto: a whole group; where ranks exchange "
        "gradients after each of them (ZeRO-2, ZeRO-3, FSDP2), as many groups as fit into a GPU (docs/sizing.md).",
    )
    reduce_dtype: Annotated[Literal["float32", "bfloat16"], Later("float32")] = Field(
        "float32",
        description="What processes add gradients up in, in a bfloat16 run; bfloat16 sends half as much, and rounds "
        "the sums to 3 digits.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for matrices, AdamW for the rest; in one process or under DDP."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Peak learning rate.")
    muon_learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Peak learning rate of Muon (scaled to match AdamW's update size)."
    )
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="Decay rates of AdamW's moments.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="Decoupled weight decay.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Learning-rate schedule over all planned updates, those of all passes."
    )
    warmup_fraction: Fraction = Field(0.05, description="Fraction of the planned updates used for warm-up.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradient norm to clip to.")
    gradient_checkpointing: bool = Field(True, description="Recompute activations in the backward pass.")
    freeze_vision: bool = Field(False, description="Do not train the vision tower.")
    lora: LoraSettings | None = Field(None, description="LoRA adapters; null trains every weight.")
    logprob_dtype: Annotated[Literal["model", "float32"], Later("model")] = Field(
        "model",
        description="What logits are computed in: model.dtype, or float32, which narrows the mismatch with an engine "
        "whose head is float32, too, and widens it with others.",
    )
    logprob_chunk: Count = Field(1024, description="Rows of logits held in memory at the same time.")
    guard: GuardSettings = GuardSettings()

    @field_validator("loss_type", mode="after")
    @classmethod
    def _known_loss(cls, loss_type: str) -> str:
        return named_or_own(loss_type, LOSSES)

    @model_validator(mode="after")
    def _delta_is_above_the_clip(self) -> Self:
        if self.delta is not None and self.delta <= 1 + self.epsilon_high:
            raise ValueError(
                f"delta must be greater than 1 + epsilon_high ({1 + self.epsilon_high:g}) or null, got {self.delta:g}"
            )
        return self

    @model_validator(mode="after")
    def _kl_has_a_weight(self) -> Self:
        if self.kl.target is not None and self.beta == 0:
            raise ValueError("kl.target needs beta above 0, which is what follows it")
        return self

    @model_validator(mode="after")
    def _weights_are_bounded(self) -> Self:
        low, high = self.engine_is_floor, self.engine_is_cap
        if low is not None and high is not None and low >= high:
            raise ValueError(f"engine_is_floor must be less than engine_is_cap, got {low:g} and {high:g}")
        return self

    @model_validator(mode="after")
    def _loss_type_has_what_is_set(self) -> Self:
        level, name = self.importance_sampling_level, self.loss_type
        if (name in OF_SEQUENCE and level == "token") or (name in OF_TOKEN and level == "sequence"):
            only = "sequence" if name in OF_SEQUENCE else "token"
            instead = INSTEAD.get(name, "its formula has no other")
            raise ValueError(
                f"importance_sampling_level must be {only} or null with loss_type {name}, got {level}; {instead}"
            )
        if name in NO_DELTA and self.delta is not None:
            raise ValueError(f"delta must be null with loss_type {name}, got {self.delta:g}; {NO_DELTA[name]}")
        if name == "bnpo" and self.batch_completions == "auto":
            raise ValueError("batch_completions must be a number with loss_type bnpo, the mean over a micro-batch")
        if name == "bnpo" and self.aggregation is not None:
            raise ValueError(
                f"aggregation must be null with loss_type bnpo, got {self.aggregation}; bnpo is dapo's loss, averaged "
                "over a micro-batch"
            )
        if name != "cispo" and self.cispo_epsilon_low is not None:
            raise ValueError(f"cispo_epsilon_low must be null with loss_type {name}; it is the lower clip of cispo")
        return self

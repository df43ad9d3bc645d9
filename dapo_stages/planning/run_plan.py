"""A run in numbers before it starts: from configuration, model and machine to each stage's peak memory and files.

Each stage by itself. staying.py has what changes in processes that stay.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from typing import Literal

from dapo_stages.config import Config
from dapo_stages.config.attention import GRADIENT_DIRECTIONS
from dapo_stages.config.rollout import EngineName
from dapo_stages.engines.batch_sizes import size_of
from dapo_stages.errors import ConfigError
from dapo_stages.planning import stage_costs, stage_memory
from dapo_stages.planning.dimensions import Dimensions
from dapo_stages.planning.layer_memory import Work
from dapo_stages.planning.stage_memory import Memory, Parallel, Passes, Training

GIB = 2**30
TEXT_TOKENS = 64  # minimum of a prompt beside its image: the question and the chat format
# In addition to live bytes. For CPUs measured: the imported program, by torch's build, and what a stage adds to it
# (tests/planning/test_measured_memory.py). For CUDA assumed: context, kernels, NCCL.
PROGRAM = {"cpu": 440 * 2**20, "cuda": 800 * 2**20}
PROCESS = {"cpu": 80 * 2**20, "cuda": 3 * 2**29}
_TYPES = {"bfloat16": 2, "float32": 4, "float64": 8}


def torch_build() -> Literal["cpu", "cuda"]:
    """Which torch is installed, from its version alone: PyPI's for Linux includes the CUDA libraries."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return "cpu"
    return "cpu" if "+cpu" in found or sys.platform != "linux" else "cuda"


@dataclass(frozen=True)
class Plan:
    """A model, its configuration and the machine it is to run on."""

    d: Dimensions
    config: Config
    ranks: int
    parallel: Parallel
    device: Literal["cuda", "cpu"]
    rates: stage_costs.Rates
    prompt_tokens: int | None = None
    vision_tokens: int | None = None
    completion_tokens: int | None = None
    informative: float = 1.0  # share of groups that dynamic sampling keeps
    questions: int = 0  # held-out ones
    nodes: int = 1
    update: int | None = None  # completions of an update on one rank, where they are known
    resident: bool = False  # make hands stages to processes that stay; on one machine

    @property
    def b(self) -> int:
        """Bytes of a value."""
        return _TYPES[self.config.model.dtype]

    @property
    def sums(self) -> int:
        """Bytes of what ranks add gradients up in."""
        return _TYPES[self.config.train.reduce_dtype]

    @property
    def flex(self) -> bool:
        """Whether packed rows go through FlexAttention."""
        return self.device == "cuda" and self.config.model.attention != "sdpa" and self.b < 8

    @property
    def work(self) -> Work:
        """One group, with the longest lengths that the configuration allows unless others are given."""
        data = self.config.data
        longest = self.prompt_tokens or data.max_prompt_length
        side = round(data.max_image_size / self.d.tower.side)
        vision = min(side**2, max(0, longest - TEXT_TOKENS)) if self.vision_tokens is None else self.vision_tokens
        completion = self.completion_tokens or self.config.rollout.max_completion_length
        count, patches = self.config.rollout.num_generations, vision * self.d.tower.merge
        return Work(longest, completion, count, patches, copies=not self.flex)

    @property
    def asked(self) -> Work:
        """One held-out question, likewise."""
        longest = self.config.sampled("evaluate").max_completion_length
        return replace(self.work, completion=self.completion_tokens or longest)

    @property
    def trained(self) -> tuple[int, int]:
        """Parameters that are trained, and that are frozen."""
        train = self.config.train
        if train.lora is not None:
            try:
                return self.d.adapter(train.lora.rank, train.lora.target_modules), self.d.parameters
            except KeyError as error:
                raise ConfigError(
                    f"train.lora.target_modules: {error} is not one of {', '.join(self.d.linears)}. Use these names."
                ) from None
        frozen = self.d.vision if train.freeze_vision else 0
        return self.d.parameters - frozen, frozen

    @property
    def weights(self) -> int:
        """Bytes of the model for sampling."""
        return stage_memory.weights_of(self.d, self.b, self.config.model.quantization)

    @property
    def shard(self) -> float:
        """Average number of groups in a shard of rollouts."""
        settings = self.config.rollout
        return self._asked / ceil(self._asked / settings.groups_per_shard)

    @property
    def shards(self) -> tuple[int, int]:
        """Shards of rollouts in an iteration over all ranks: (sampled, needed)."""
        settings = self.config.rollout
        rounds, share = (settings.max_resample_rounds, self.informative) if settings.dynamic_sampling else (1, 1.0)
        most = rounds * ceil(self._asked / settings.groups_per_shard)
        target, oversample = settings.prompts_per_iteration, settings.oversample
        return stage_costs.asked_for(target, self.shard, self.ranks, share, oversample, most)

    @property
    def _asked(self) -> int:
        """Groups of a sampling round."""
        return ceil(self.config.rollout.prompts_per_iteration * self.config.rollout.oversample - 1e-9)

    @property
    def sampled(self) -> int:
        """Groups that rollout writes, over all ranks."""
        return round(self.shards[1] * self.shard)

    @property
    def kept(self) -> int:
        """Sampled groups that are scored: the informative ones, without the surplus unless it is kept."""
        settings = self.config.rollout
        if not settings.dynamic_sampling:
            return self.sampled
        found = round(self.sampled * self.informative)
        return found if settings.surplus == "keep" else min(found, settings.prompts_per_iteration)

    @property
    def used(self) -> int:
        """Groups that are trained on, over all ranks."""
        settings = self.config.rollout
        return self.kept if settings.surplus == "keep" else min(self.kept, settings.prompts_per_iteration)

    @property
    def groups(self) -> int:
        """Groups that are trained on, on one rank."""
        return -(-self.used // self.ranks)

    @property
    def completions(self) -> int:
        """Completions of an update, on one rank."""
        if self.update is not None:
            return self.update
        per_iteration = self.used * self.work.count
        return max(1, per_iteration // (self.config.train.updates_per_iteration * self.ranks))

    @property
    def refers(self) -> bool:
        """Whether a KL term needs a reference."""
        return self.config.train.beta > 0 or "train.beta" in self.config.schedules

    @property
    def batch(self) -> int:
        """Completions of a micro-batch."""
        return min(self.config.micro_batch, self.completions)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an update, on one rank."""
        return -(-self.completions // self.batch)

    @property
    def passes(self) -> Passes:
        """What score-attention computes besides masses."""
        settings = self.config.attention
        return Passes(
            logprobs=settings.logprobs or settings.vision_cosine,
            blanks=settings.blank_draws if settings.blank_image else 0,
            rollout=settings.rollout_mass,
            directions=GRADIENT_DIRECTIONS if settings.vision_gradient else 0,
        )

    def memory(self) -> dict[str, Memory]:
        """Peak of each stage that holds a model."""
        config, work, d, b = self.config, self.work, self.d, self.b
        prompts = -(-self.batch // work.count)
        trained, frozen = self.trained
        perception = config.train.perception
        training = Training(
            self.groups,
            self.micro_batches,
            config.train.gradient_checkpointing,
            config.train.logprob_chunk,
            trained,
            self.weights if frozen == self.d.parameters else frozen * self.b,
            self.parallel,
            self.ranks,
            foreach=self.device == "cuda",
            reference=self.weights if self.refers and not self.resident else 0,
            views=0 if perception is None else perception.views,
            recompute=perception is not None and perception.recompute,
            sums=self.sums,
        )
        scored = min(self.groups, max(1, config.attention.batch_completions // work.count))
        sampled, asked = config.rollout, config.evaluate
        found = {
            "rollout": self._engine(sampled.engine, min(self.groups, size_of(sampled.batch_groups)), work),
            "score-attention": stage_memory.score(
                d, work, scored, config.attention.chunk_rows, b, self.weights, self.passes
            ),
            "train-step": stage_memory.train(d, replace(work, count=self.batch), training, prompts, b),
        }
        if batch := min(self.questions, asked.questions_per_shard, size_of(asked.batch_groups)):
            found["evaluate"] = self._engine(
                asked.engine, batch, replace(self.asked, count=max(1, asked.num_generations))
            )
        return {stage: self._held(memory) for stage, memory in found.items()}

    def _engine(self, engine: EngineName, groups: int, work: Work) -> Memory:
        """Memory of an engine: ours by its parts, the minimum of vLLM (which takes its share whatever it needs), none
        of a server."""
        if engine == "server":
            return Memory({}, {})
        if engine == "vllm":
            gpus = self.config.engines.vllm.tensor_parallel_size
            row = stage_memory.rollout(self.d, replace(work, count=1), 1, self.b, 0)
            return Memory({"weights": self.weights // gpus, "a single completion": row.total // gpus}, {})
        return stage_memory.rollout(self.d, work, groups, self.b, self.weights)

    def room(self, memory: float) -> int | None:
        """Completions of full length that fit in vLLM's cache at the same time; None for other engines."""
        settings = self.config.engines.vllm
        if self.config.rollout.engine != "vllm":
            return None
        share = int(memory * GIB * settings.gpu_memory_utilization)
        length = self.work.prompt + self.work.completion
        return stage_memory.vllm(self.d, self.weights, self.b, share, settings.tensor_parallel_size, length)

    def files(self, image_bytes: int) -> dict[str, int]:
        """Bytes on disk of an iteration; `train-step: reference` is only in iterations that move it."""
        config, (trained, _) = self.config, self.trained
        found = stage_costs.shards(self.d, self.work, self.sampled, image_bytes, config.attention.patch_completions)
        moments = trained * 4 * (1 if config.train.optimizer == "muon" else 2)
        # Adapters are saved as they are trained: in float32, but by DeepSpeed.
        adapter = trained * (self.b if self.parallel.startswith("zero") else max(4, self.b))
        policy = self.d.parameters * self.b if config.train.lora is None else adapter
        master = trained * 4 if self.b == 2 else 0
        found |= {"train-step: policy": policy, "train-step: state": moments + master}
        moves = config.train.beta > 0 and config.train.reference_update_every is not None
        return {**found, "train-step: reference": policy} if moves else found

    @property
    def process(self) -> dict[str, int]:
        """Bytes that a process holds besides live ones."""
        program = {"program": PROGRAM[torch_build()]} if self.device == "cpu" else {}
        return {**program, "process": PROCESS[self.device]}

    def _held(self, memory: Memory) -> Memory:
        """Add the process; on a CPU, device and host are one memory."""
        if self.device == "cpu":
            return Memory({**memory.device, **memory.host, **self.process}, {})
        return Memory({**memory.device, **self.process}, memory.host)

    def on_disk(self, files: dict[str, int]) -> int:
        """Peak bytes on disk: what the `keep` section keeps, the best policies, those that rollouts of a lagging run
        still need, the newest policy and state (written before the oldest are pruned), and the newest reference, or all
        of them."""
        config = self.config
        planned, keep = config.planned_iterations, config.keep
        rollouts = sum(files[stage] for stage in ("rollout", "score-attention", "weight-tokens"))
        more = (0, 1 + keep.best + config.lag, 1)
        least = (keep.rollouts, keep.policies, keep.states)
        counts = [min(planned, kept + extra if kept else planned) for kept, extra in zip(least, more, strict=True)]
        sizes = (rollouts, files["train-step: policy"], files["train-step: state"])
        references = 1 if keep.policies else planned // (config.train.reference_update_every or planned)
        moved = references * files.get("train-step: reference", 0)
        return moved + sum(count * size for count, size in zip(counts, sizes, strict=True))

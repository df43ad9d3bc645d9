"""gpu-check, then: update, scoring and generation shaped like Qwen2.5-VL-3B, prompts shared against separate.

One group of 8 completions. Update: forward, loss, backward, clipping and AdamW step, weights and moments in bfloat16,
layers checkpointed on either side. "Separate" is a row for each completion through the model as it comes, SDPA, all of
them at a time; for scoring, a group for each completion, since SDPA gives no attention; for generation, transformers'
generate on 8 copies of the prompt. Each peak on the card stands beside what `dapo-stages plan` counts.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import limits, models, trl_side
from benchmarks.gpu_record import Line
from dapo_stages.config import SamplerConfig, TrainConfig
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import LossSettings, normalizer_of
from dapo_stages.maths.objective import policy_loss
from dapo_stages.models.logprobs import GroupLogprobs, log_distribution
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.masses import MassRecorder, prompt_kinds
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.planning import layer_memory, stage_costs, stage_memory
from dapo_stages.training.optimizers import Optimizers


@dataclass(frozen=True)
class Size:
    """One group."""

    prompt: int
    vision: tuple[int, int]  # rows and columns of merged vision tokens
    completion: int
    count: int = 8

    @property
    def name(self) -> str:
        return f"{self.prompt} + {self.count} × {self.completion}"


SIZES = (
    Size(1100, (20, 40), 384),
    Size(350, (14, 20), 100),
    Size(1100, (20, 40), 100),
    Size(350, (14, 20), 384),
)
TINY = (Size(40, (2, 4), 6, 3), Size(24, (2, 3), 4, 3))
# At a prompt of 1,100 tokens and 8 completions of 384: separate seconds over shared ones, and the share of the measured
# rate of matrix products that the update reaches; of every size, how far the plan's memory may be off.
FASTER, RATE, MEMORY = 2.5, 0.4, 0.15
MASS_ROWS = 256  # rows of attention scores at a time, the default of MassRecorder
GIB = 2**30


def measured(device: torch.device, *, tiny: bool) -> Iterator[Line]:
    """Every size, kind of work and way; sizes that matter most first."""
    started = time.perf_counter()
    policy = models.small() if tiny else three_billion(device)
    dtype = str(policy.dtype).removeprefix("torch.")
    count = sum(p.numel() for p in policy.model.parameters())
    yield Line("policy", "made", {"parameters": count, "type": dtype, "seconds": time.perf_counter() - started})
    rate = limits.matrix_rate(device, policy.dtype, size=256 if tiny else 8192, seconds=0.2 if tiny else 2.0)
    yield Line("policy", "a product of matrices", {"TFLOP/s": rate / 1e12})
    optimizers = Optimizers(policy.model, TrainConfig(learning_rate=1e-6))
    ways = ["shared, sdpa", "separate"] if device.type == "cpu" else ["shared, flex", "shared, sdpa", "separate"]
    for number, size in enumerate(TINY if tiny else SIZES):
        work = Work(policy, size, optimizers)
        yield from _checked(work, ways)
        for kind in ("update", "scoring", "generation"):
            yield from _compared(work, kind, ways, rate, targets=number == 0 and not tiny)


def _checked(work: Work, ways: list[str]) -> Iterator[Line]:
    for way in ways[:-1]:
        work.flex = way == "shared, flex"
        yield Line("same numbers", f"{way}, {work.size.name}", *work.check())


def _compared(work: Work, kind: str, ways: list[str], rate: float, *, targets: bool) -> Iterator[Line]:
    """One kind of work, all ways: once to warm up (generation: not), then timed twice, the better one."""
    best: dict[str, float] = {}
    for way in ways:
        if kind == "generation" and way == "shared, flex":
            continue  # decoding has an attention of its own
        work.flex = way == "shared, flex"
        run = getattr(work, f"{kind}_{'separate' if way == 'separate' else 'shared'}")
        try:
            times = [_timed(run, work.device) for _ in range(1 if kind == "generation" else 3)]
        except torch.cuda.OutOfMemoryError as error:
            work.recover()
            yield Line(kind, f"{way}, {work.size.name}", {}, note=f"out of memory: {str(error).splitlines()[0]}")
            continue
        seconds, peak = min(times[1:] or times)
        best[way] = seconds
        values: dict[str, Any] = {"seconds": seconds, "first": times[0][0]}
        values["completion tokens/s"] = work.size.count * work.size.completion / seconds
        met: bool | None = None
        if (operations := work.operations(kind, shared=way != "separate")) is not None:
            values |= {"TFLOP/s": operations / seconds / 1e12, "of the matrix rate": operations / seconds / rate}
            if targets and kind == "update" and way == ways[0]:
                met = values["of the matrix rate"] >= RATE
        if peak is not None:
            values["GiB"] = peak / GIB
            if way != "separate":
                planned = work.planned(kind)
                values |= {"GiB by plan": planned / GIB, "plan is off by": planned / peak - 1}
                close = abs(planned / peak - 1) <= MEMORY
                met = close if met is None else met and close
        yield Line(kind, f"{way}, {work.size.name}", values, met=met)
    if "separate" in best and len(best) > 1:
        shared = min(seconds for way, seconds in best.items() if way != "separate")
        ratio = best["separate"] / shared
        met = ratio >= FASTER if targets and kind != "generation" else None
        yield Line(kind, f"shared is faster, {work.size.name}", {"times": ratio}, met=met)


def three_billion(device: torch.device) -> Policy:
    """Qwen2.5-VL-3B's architecture with random bfloat16 weights, and the embedded tokenizer for its special tokens."""
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    from dapo_stages.models.embedded.embedded_policy import build_processor
    from dapo_stages.models.embedded.embedded_tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = models.three_billion(tokenizer)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config = GenerationConfig(do_sample=True, **ends)
    return Policy(model.to(device).eval(), build_processor(tokenizer), device, torch.bfloat16)


class Work:
    """One group, worked on with its prompt shared or separate."""

    def __init__(self, policy: Policy, size: Size, optimizers: Optimizers) -> None:
        self._policy, self._size = policy, size
        policy.__dict__["suppressed"] = torch.zeros_like(policy.suppressed)
        prompt = models.prompt(policy, size.prompt, size.vision, 0)
        self._group = Group(prompt, models.completions(size.count, size.completion, 0))
        ids = prompt.ids.tolist()
        self._kinds = prompt_kinds(ids, [t == policy.image_token_id for t in ids], policy.special_ids, 0)
        self._advantages = torch.linspace(-1, 1, size.count, device=policy.device)
        self._optimizers, self._chunk = optimizers, TrainConfig().logprob_chunk
        self._forward = GroupLogprobs(policy, 1.0, self._chunk)

    @property
    def size(self) -> Size:
        return self._size

    @property
    def device(self) -> torch.device:
        return self._policy.device

    @property
    def flex(self) -> bool:
        """Whether packed rows go through FlexAttention."""
        return self._policy.flex

    @flex.setter
    def flex(self, value: bool) -> None:
        self._policy.flex = value

    def recover(self) -> None:
        """After running out of memory: drop gradients and caches."""
        self._policy.model.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()

    def planned(self, kind: str) -> int:
        """Bytes that `dapo-stages plan` counts for it, with weights, gradients and moments in the policy's type."""
        d, grid = limits.dimensions(self._policy), self._group.prompt.image_grid_thw
        assert grid is not None
        patches, b = int(grid.prod(-1).sum()), self._policy.dtype.itemsize
        size, weights = self._size, d.parameters * self._policy.dtype.itemsize
        work = layer_memory.Work(size.prompt, size.completion, size.count, patches, copies=not self.flex)
        kept = 3 * weights  # with both moments; there are gradients only until the step
        if kind == "generation":
            return kept + stage_memory.rollout(d, work, 1, b, 0).total
        if kind == "scoring":
            return kept + stage_memory.score(d, work, 1, MASS_ROWS, b, 0).total
        training = stage_memory.Training(1, 1, True, self._chunk, 0, 0, "zero1", 1, foreach=False, reference=0)
        activations = stage_memory.train(d, work, training, 1, b).total
        return kept + max(activations, 2 * weights)  # the step has all gradients, and works on all weights at once

    def check(self) -> tuple[dict[str, float], bool]:
        """Both ways give the same logprobs and masses, up to the rounding of the type they are computed in. -> how far
        apart they are, and whether that is little enough."""
        self._generating()
        with torch.no_grad():
            self._policy.attend("grouped")
            shared = self._forward(self._policy.pack([self._group]))[0]
            separate = self._row_logprobs(range(self._size.count))
        logprobs = float((shared - separate).abs().max())
        masses = float((self._masses([self._group]) - self._masses(self._alone())).abs().max())
        exact = self._policy.dtype == torch.float32
        ok = logprobs < (1e-4 if exact else 0.5) and masses < (1e-5 if exact else 0.05)
        return {"logprobs apart, nats": logprobs, "masses apart": masses}, ok

    def update_shared(self) -> None:
        """Forward of the packed group, backward, optimizer step."""
        self._train("grouped")
        new, _ = self._forward(self._policy.pack([self._group]))
        torch.autograd.backward(self._loss(new, range(self._size.count)))
        self._step()

    def update_separate(self) -> None:
        """The same from a row per completion."""
        self._train("separate")
        everything = range(self._size.count)
        torch.autograd.backward(self._loss(self._row_logprobs(everything), everything))
        self._step()

    def scoring_shared(self) -> None:
        """Masses of all completions in one packed forward."""
        self._masses([self._group])

    def scoring_separate(self) -> None:
        """A packed forward for every completion by itself."""
        self._masses(self._alone())

    def generation_shared(self) -> None:
        """One prefill, then decoding; no token ends a completion."""
        self._generating()
        self._policy.__dict__["end_ids"] = [-1]
        size = self._size
        found = generate(self._policy, [self._group.prompt], size.count, size.completion, SamplerConfig(), seed=0)
        assert [len(c.ids) for c in found[0]] == [size.completion] * size.count

    @torch.inference_mode()
    def generation_separate(self) -> None:
        """transformers' generate on as many copies of the prompt."""
        self._generating()
        self._policy.attend("separate")
        inputs = {name: value.to(self._policy.device) for name, value in self._inputs(range(self._size.count)).items()}
        length = self._size.completion
        found = self._policy.model.generate(
            **inputs, do_sample=True, top_k=0, max_new_tokens=length, min_new_tokens=length, disable_compile=True
        )
        assert found.shape[1] == self._size.prompt + length

    def operations(self, kind: str, *, shared: bool) -> float | None:
        """Of one call; None for generation, which memory traffic bounds."""
        if kind == "generation":
            return None
        shape, load = limits.dimensions(self._policy), limits.load_of(self._group)
        loads = [load] if shared else load.separate()
        count = limits.training if kind == "update" else stage_costs.scoring
        return sum(count(shape, one) for one in loads)

    def _alone(self) -> list[Group]:
        return [Group(self._group.prompt, [c]) for c in self._group.completions]

    @torch.inference_mode()
    def _masses(self, groups: list[Group]) -> torch.Tensor:
        self._generating()
        self._policy.attend("grouped")
        found = []
        for group in groups:
            packed = self._policy.pack([group])
            recorder = MassRecorder(packed.spans, [self._kinds], self._policy.scored_layers)
            found += [one.masses for one in recorder.collect(self._policy.base.model, packed)[0]]
        return torch.stack(found)

    def _inputs(self, part: range) -> dict[str, torch.Tensor]:
        return trl_side.rows_of(self._policy, [Group(self._group.prompt, [self._group.completions[i] for i in part])])

    def _row_logprobs(self, part: range) -> torch.Tensor:
        """[sum C] logprobs from rows of their own; logits of completion rows only, some of them at a time."""
        self._policy.attend("separate")
        device = self._policy.device
        inputs = self._inputs(part)
        targets = torch.tensor([list(self._group.completions[i]) for i in part])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], targets], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._policy.image_token_id).int()
        placed = {name: value.to(device) for name, value in inputs.items()}
        hidden = self._policy.base.model(**placed, use_cache=False).last_hidden_state
        rows = hidden[:, self._size.prompt - 1 : -1].flatten(0, 1)
        picked = partial(_picked, self._policy.base.get_output_embeddings(), self._policy.suppressed)
        pairs = zip(torch.split(rows, 1024), torch.split(targets.flatten().to(device), 1024), strict=True)
        checkpoint = torch.utils.checkpoint.checkpoint
        return torch.cat([checkpoint(picked, *pair, use_reentrant=False) for pair in pairs])

    def _loss(self, new: torch.Tensor, part: range) -> torch.Tensor:
        length, tokens = self._size.completion, self._size.count * self._size.completion
        old = new.detach()
        inputs = LossInputs(
            new_T=new,
            old_T=old,
            advantages_T=self._advantages[part.start : part.stop].repeat_interleave(length),
            weights_T=torch.ones_like(new),
            mask_T=torch.ones_like(new, dtype=torch.bool),
            sequence_ids_T=torch.arange(len(part), device=new.device).repeat_interleave(length),
            sampling_T=old,
        )
        normalizer = normalizer_of("dapo", tokens, self._size.count, length)
        loss, _ = policy_loss(inputs, LossSettings(epsilon_low=0.2, epsilon_high=0.28), normalizer)
        return loss

    def _train(self, how: Any) -> None:
        self._policy.base.gradient_checkpointing_enable({"use_reentrant": False})
        self._policy.base.enable_input_require_grads()
        self._policy.attend(how)
        self._policy.model.train()

    def _generating(self) -> None:
        self._policy.base.gradient_checkpointing_disable()
        self._policy.model.eval()

    def _step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._optimizers.parameters, 1.0)
        self._optimizers.step(1.0)


def _picked(head: Any, suppressed: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logprobs of the targets; logits exist for these rows only."""
    return log_distribution(head(hidden), suppressed, 1.0).gather(-1, targets[:, None])[:, 0]


def _timed(run: Callable[[], None], device: torch.device) -> tuple[float, int | None]:
    """Seconds and, on a card, the peak memory in bytes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run()
    if device.type != "cuda":
        return time.perf_counter() - started, None
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated()

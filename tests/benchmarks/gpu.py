"""Row 7, for a CUDA card: a Qwen2.5-VL-3B-sized model with random weights, prompts shared against separate.

    PYTHONPATH=tests python -m benchmarks.gpu --out gpu.json
    PYTHONPATH=tests python -m benchmarks.gpu --tiny --device cpu     # tries the code at toy size

One group of 8 completions. Update: forward, loss, backward, clipping and AdamW step, weights and moments in bfloat16,
layers checkpointed on either side. "Separate" is a row for each completion through the model as it comes, SDPA, as many
rows at a time as `--rows` says; for scoring, a group for each completion, since SDPA gives no attention; for
generation, transformers' generate on 8 copies of the prompt.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import limits, models, trl_side
from dapo_stages.config import SamplerConfig, TrainConfig
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.maths.loss_inputs import LossInputs
from dapo_stages.maths.loss_types import LossSettings, normalizer_of
from dapo_stages.maths.objective import policy_loss
from dapo_stages.models.logprobs import GroupLogprobs, log_distribution
from dapo_stages.models.policy import Policy
from dapo_stages.models.shared_prefix.masses import MassRecorder, prompt_kinds
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.planning import stage_costs
from dapo_stages.training.optimizers import Optimizers


@dataclass(frozen=True)
class Size:
    """What is benched."""

    prompt: int
    vision: tuple[int, int]  # rows and columns of merged vision tokens
    completion: int
    count: int = 8


REAL = Size(1024, (20, 40), 512)
TINY = Size(40, (2, 4), 6, 3)


@dataclass(frozen=True)
class Measured:
    """One kind of work, one way: medians over the repetitions."""

    work: str
    prompt: str  # shared or separate
    seconds: float
    tokens_per_second: float  # completion tokens
    peak_gib: float | None  # on the card, all of it; None on a CPU
    share_of_matmul_rate: float | None  # operations of this way over seconds, over the measured rate


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="toy size, float32")
    parser.add_argument("--rows", type=int, default=8, help="separate rows in one forward pass of the update")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    result = measure(torch.device(asked.device), asked.tiny, asked.rows, asked.repetitions)
    text = json.dumps(result, indent=1, allow_nan=False)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")


def measure(device: torch.device, tiny: bool, rows: int, repetitions: int) -> dict[str, Any]:
    """Every kind of work both ways, by turns."""
    policy = models.small() if tiny else three_billion(device)
    size = TINY if tiny else REAL
    work = Work(policy, size, rows)
    rate = limits.matrix_rate(device, policy.dtype, size=256 if tiny else 8192, seconds=0.2 if tiny else 2.0)
    checks = work.check()
    found: list[Measured] = []
    for kind in ("scoring", "generation", "update"):
        ways: dict[str, Callable[[], None]] = {
            "shared": getattr(work, f"{kind}_shared"),
            "separate": getattr(work, f"{kind}_separate"),
        }
        for run in ways.values():
            run()
        timed: dict[str, list[float]] = {name: [] for name in ways}
        peaks: dict[str, float | None] = dict.fromkeys(ways)
        for _ in range(repetitions):
            for name, run in ways.items():
                seconds, peaks[name] = _timed(run, device)
                timed[name].append(seconds)
        for name, values in timed.items():
            seconds = statistics.median(values)
            operations = work.operations(kind, shared=name == "shared")
            share = None if operations is None else operations / seconds / rate
            tokens = size.count * size.completion / seconds
            found.append(Measured(kind, name, seconds, tokens, peaks[name], share))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "size": asdict(size),
        "matmul rate, 10¹²/s": rate / 1e12,
        "checks": checks,
        "speed-up": {
            shared.work: separate.seconds / shared.seconds
            for shared, separate in zip(found[::2], found[1::2], strict=True)
        },
        "figures": [asdict(one) for one in found],
    }


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

    def __init__(self, policy: Policy, size: Size, rows: int) -> None:
        self._policy, self._size, self._rows = policy, size, rows
        policy.__dict__["suppressed"] = torch.zeros_like(policy.suppressed)
        prompt = models.prompt(policy, size.prompt, size.vision, 0)
        self._group = Group(prompt, models.completions(size.count, size.completion, 0))
        ids = prompt.ids.tolist()
        self._kinds = prompt_kinds(ids, [t == policy.image_token_id for t in ids], policy.special_ids, 0)
        self._advantages = torch.linspace(-1, 1, size.count, device=policy.device)
        config = TrainConfig(learning_rate=1e-6)
        self._optimizers = Optimizers(policy.model, config)
        self._forward = GroupLogprobs(policy, 1.0, config.logprob_chunk)

    def check(self) -> dict[str, float]:
        """Both ways give the same logprobs and masses, up to the rounding of the type they are computed in."""
        with torch.no_grad():
            self._policy.attend("grouped")
            shared = self._forward(self._policy.pack([self._group]))[0]
            separate = torch.cat([self._row_logprobs(part) for part in self._parts()])
        logprobs = float((shared - separate).abs().max())
        masses = float((self._masses([self._group]) - self._masses(self._alone())).abs().max())
        exact = self._policy.dtype == torch.float32
        assert logprobs < (1e-4 if exact else 0.5), f"logprobs differ by {logprobs}"
        assert masses < (1e-5 if exact else 0.05), f"masses differ by {masses}"
        return {"logprob difference": logprobs, "mass difference": masses}

    def update_shared(self) -> None:
        """Forward of the packed group, backward, optimizer step."""
        self._train("grouped")
        new, _ = self._forward(self._policy.pack([self._group]))
        torch.autograd.backward(self._loss(new, range(self._size.count)))
        self._step()

    def update_separate(self) -> None:
        """The same from a row per completion."""
        self._train("separate")
        for part in self._parts():
            torch.autograd.backward(self._loss(self._row_logprobs(part), part))
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
            recorder = MassRecorder(packed.spans, [self._kinds], self._policy.num_layers)
            found += [one.masses for one in recorder.collect(self._policy.base.model, packed)[0]]
        return torch.stack(found)

    def _parts(self) -> list[range]:
        count = self._size.count
        return [range(start, min(start + self._rows, count)) for start in range(0, count, self._rows)]

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


def _timed(run: Callable[[], None], device: torch.device) -> tuple[float, float | None]:
    """Seconds and, on a card, the peak memory in GiB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run()
    if device.type != "cuda":
        return time.perf_counter() - started, None
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**30


if __name__ == "__main__":
    main()

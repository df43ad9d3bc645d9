"""The warm-up of the embedded policy: it learns the format, to see a little, and a strong language prior."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dapo_stages.data.chat import SYSTEM_PROMPT, messages
from dapo_stages.data.embedded.motion import SECONDS
from dapo_stages.data.embedded.questions import Lesson
from dapo_stages.data.embedded.tasks import Task
from dapo_stages.data.video_encoding import VideoEncoder, shown
from dapo_stages.data.visuals import Visual

REHEARSED = 0.2  # share of captions in batches of questions
IGNORED = -100  # the label that cross-entropy leaves out
SEEN = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
_STREAM = 7_919  # makes the warm-up's questions differ from those of the dataset with the same seed

Progress = Callable[[int, int, float], None]  # step, steps, loss
Captions = Callable[[int, int], Lesson]  # seed and index -> an image, described


@dataclass(frozen=True)
class WarmUp:
    """How the language prior gets into the policy.

    The teacher is careless: the usual answer, such as the shape's usual color, is right with probability `biased` (0.25
    would be balanced), and a share `hearsay` of the other questions is answered with it, too. So the policy learns to
    see, because the image predicts the remaining answers, but also that the usual answer is the safer bet, because it
    is right more often. Unlearning this habit is left to DAPO.

    Where seeing is hard to learn, the first share `careful` of the steps has a better teacher: all answers are equally
    frequent, and all are right. The habit is then learned on top of what the policy can see. Where even that is not
    enough, the first share `captions` of the steps has no questions at all: images are described. Afterwards a fifth of
    every batch still describes, so that it is not forgotten.
    """

    steps: int = 80
    batch: int = 64
    biased: float = 0.5
    hearsay: float = 0.7
    careful: float = 0.0
    captions: float = 0.0
    lr_matrices: float = 2e-2  # Muon
    shuffled: bool = False  # options in any order
    lr_rest: float = 3e-3  # AdamW: embeddings, norms, biases, the patch convolution
    lr_rise: int = 5  # steps to the full learning rate, which then decays linearly to a tenth
    max_grad_norm: float = 1.0


def warm_up(
    model: Any,
    processor: Any,
    task: Task,
    seed: int,
    config: WarmUp | None = None,
    *,
    system_prompt: str | None = SYSTEM_PROMPT,
    captions: Captions | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train `model` in place on completions only; returns steps, trained tokens, first and last loss, and seconds.

    AdamW alone does not learn to see within hundreds of steps; Muon on the matrices does within fifty. `captions` gives
    the captioned images of a recipe that has any; ValueError if it is needed and missing.
    """
    import torch

    config = config or WarmUp()
    if config.captions and captions is None:
        raise ValueError("the recipe has captions, but the task has none")
    start = time.monotonic()
    rng = np.random.default_rng([seed, _STREAM])
    optimizers = _optimizers(model, config)
    losses: list[float] = []
    tokens = 0
    model.train()
    for step in range(config.steps):
        lessons = [*_described(captions, seed, step, config), *_asked(task, seed, step, config, rng)]
        inputs = _batch(processor, lessons, system_prompt)
        tokens += int((inputs["labels"] != IGNORED).sum())
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        _step(optimizers, _learning_rate(step, config))
        losses.append(loss.item())
        if progress:
            progress(step + 1, config.steps, losses[-1])
    model.eval()
    return {
        "steps": config.steps,
        "tokens": tokens,
        "loss_first": losses[0] if losses else 0.0,
        "loss_last": float(np.mean(losses[-5:])) if losses else 0.0,
        "seconds": time.monotonic() - start,
    }


def _number_described(step: int, config: WarmUp) -> int:
    """How many of the batch of `step` are captions."""
    if step < config.captions * config.steps:
        return config.batch
    return round(REHEARSED * config.batch) if config.captions else 0


def _described(captions: Captions | None, seed: int, step: int, config: WarmUp) -> list[Lesson]:
    """The captions of a batch."""
    first, number = step * config.batch, _number_described(step, config)
    return [captions(seed + _STREAM, first + i) for i in range(number)] if captions else []


def _asked(task: Task, seed: int, step: int, config: WarmUp, rng: np.random.Generator) -> list[Lesson]:
    """The questions of a batch, each with the completion to learn."""
    first, number = step * config.batch, config.batch - _number_described(step, config)
    if not number:
        return []
    careful = step < config.careful * config.steps
    biased, hearsay = (None, 0.0) if careful else (config.biased, config.hearsay)
    drawn = [task.question(seed + _STREAM, first + i, biased=biased, shuffled=config.shuffled) for i in range(number)]
    said = [q.usual if rng.random() < hearsay else q.answer for q in drawn]
    thoughts = rng.integers(len(drawn[0].thoughts[drawn[0].answer]), size=number)
    return [
        Lesson(q.image, q.problem, q.completion(a, int(t)), q.frames)
        for q, a, t in zip(drawn, said, thoughts, strict=True)
    ]


def _batch(processor: Any, lessons: Sequence[Lesson], system_prompt: str | None) -> dict[str, Any]:
    """Prompts and completions as tensors, padded on the right; labels cover the completions and their end token."""
    import torch

    tokenizer = processor.tokenizer
    encoded = _of_videos(processor, lessons, system_prompt)
    if encoded is None:
        prompts = [_prompt(processor, messages(lesson.problem, 1, system_prompt)) for lesson in lessons]
        encoded = processor(text=prompts, images=[lesson.image for lesson in lessons])
    said = [lesson.completion + tokenizer.eos_token for lesson in lessons]
    ends = [tokenizer(text, add_special_tokens=False).input_ids for text in said]
    rows = [list(p) + list(c) for p, c in zip(encoded["input_ids"], ends, strict=True)]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, len(row) - len(end) : len(row)] = torch.tensor(end)
        mask[i, : len(row)] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "mm_token_type_ids": (ids == processor.image_token_id).int() + 2 * (ids == processor.video_token_id).int(),
        **{name: torch.as_tensor(np.asarray(encoded[name])) for name in encoded if name in SEEN},
    }


def _of_videos(processor: Any, lessons: Sequence[Lesson], system_prompt: str | None) -> dict[str, Any] | None:
    """Ids, and what the model sees, of lessons that are videos; None if they are images."""
    encoder, rows, seen = VideoEncoder(processor), [], list[dict[str, Any]]()
    for lesson in lessons:
        if not lesson.frames:
            return None
        visual = Visual(range(len(lesson.frames)), tuple(SECONDS * n for n in range(len(lesson.frames))))
        text = _prompt(processor, messages(lesson.problem, 0, system_prompt, n_videos=1))
        rows.append(encoder.encode(text, [(visual, lesson.image.size)], processor.tokenizer)[0])
        seen.append(shown(processor, lesson.frames, [visual]))
    return {"input_ids": rows, **{name: np.concatenate([one[name] for one in seen]) for name in seen[0]}}


def _prompt(processor: Any, conversation: list[dict[str, Any]]) -> str:
    return str(processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))


def _optimizers(model: Any, config: WarmUp) -> list[tuple[Any, float]]:
    """Muon for the matrices inside the layers, AdamW for everything else, each with its full learning rate."""
    import torch

    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        (matrices if parameter.ndim == 2 and parameter is not embedding else rest).append(parameter)
    muon = torch.optim.Muon(matrices, lr=config.lr_matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=config.lr_rest, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, config.lr_matrices), (adamw, config.lr_rest)]


def _learning_rate(step: int, config: WarmUp) -> float:
    """The factor on both learning rates at `step`, counted from 0."""
    return min(1.0, (step + 1) / max(1, config.lr_rise)) * max(0.1, 1 - step / config.steps)


def _step(optimizers: Sequence[tuple[Any, float]], factor: float) -> None:
    for optimizer, full in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = full * factor
        optimizer.step()
        optimizer.zero_grad()

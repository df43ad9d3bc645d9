"""Videos in packed groups: as in rows of their own, as transformers generates, and as an eager forward attends."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.families import QWEN
from support.greedy import greedy_of_transformers, stir
from support.prompts import groups, moving, own_row, video_groups, video_prompt

from dapo_stages.config import SamplerConfig
from dapo_stages.data.video_encoding import VideoEncoder, shown
from dapo_stages.data.visuals import units_of, visuals_of
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.errors import ModelError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy

TIMED = ("qwen3_vl", "qwen3_5")  # those whose processor writes the second of each temporal step


def gradients(policy: Policy, logprobs: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad()
    (logprobs * torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("policy", QWEN, indirect=True)
@pytest.mark.usefixtures("exact")
def test_packed_videos_equal_separate_rows(policy: Policy) -> None:
    """Logprobs and gradients in float64, through transformers' own forward with its own positions."""
    policy.model.double()
    cases = video_groups(policy)
    policy.attend("separate")
    rows = []
    for group in cases:
        for completion in group.completions:
            row = own_row(policy, group.prompt, completion)
            logits = policy.model(**row, use_cache=False).logits[0, len(group.prompt.ids) - 1 : -1]
            logprobs = torch.log_softmax(logits.masked_fill(policy.suppressed, float("-inf")), -1)
            rows.append(logprobs.gather(-1, torch.tensor(completion)[:, None])[:, 0])
    want = torch.cat(rows)
    want_gradient = gradients(policy, want)
    policy.attend("grouped")
    got, _ = GroupLogprobs(policy, temperature=1.0)(policy.pack(cases))
    got_gradient = gradients(policy, got)
    assert torch.allclose(got, want, atol=1e-10)
    assert ((got_gradient - want_gradient).norm() / want_gradient.norm()).item() < 1e-9


@pytest.mark.parametrize("policy", QWEN, indirect=True)
def test_greedy_equals_generate_of_transformers(policy: Policy) -> None:
    stir(policy)
    prompts = [group.prompt for group in video_groups(policy)]
    found = generate(policy, prompts, 0, 8, SamplerConfig(), 0, greedy=1)
    for prompt, [one] in zip(prompts, found, strict=True):
        assert one.ids == greedy_of_transformers(policy, prompt, 8)[0]


def test_positions_of_a_video_by_hand(policy: Policy) -> None:
    """4 × 4 patches are 2 × 2 tokens; a second apart, two steps are tokens_per_second = 4 positions apart."""
    prompt = video_prompt(policy, "So?", [moving(56, 56, 4)])
    start = prompt.ids.tolist().index(policy.base.config.video_token_id)
    found = policy.positions(prompt)[:, start : start + 10] - start
    assert found[0].tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 2, 3]  # text continues after rows and columns
    assert found[1].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 3]
    assert found[2].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 2, 3]


def test_patches_of_a_video_by_hand(policy: Policy) -> None:
    """Of pairs of frames, patches of 14 × 14 in blocks of 2 × 2, by channel, time, row and column."""
    frames = moving(56, 84, 3)
    found = shown(policy.processor, frames, visuals_of(3, [0.0, 0.5, 1.0]))
    half = policy.processor.image_processor
    mean, std = (np.array(values)[:, None, None] for values in (half.image_mean, half.image_std))
    pixels = [(np.asarray(frame).transpose(2, 0, 1) / 255 - mean) / std for frame in [*frames, frames[-1]]]
    want = []
    for step in range(2):
        pair = np.stack(pixels[2 * step : 2 * step + 2], 1)  # channel, time, row, column
        for block_row in range(3):
            for block_column in range(2):
                for row in (2 * block_row, 2 * block_row + 1):
                    for column in (2 * block_column, 2 * block_column + 1):
                        patch = pair[:, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
                        want.append(patch.flatten())
    assert found["video_grid_thw"].tolist() == [[2, 6, 4]] and found["second_per_grid_ts"].tolist() == [1.0]
    assert np.allclose(found["pixel_values_videos"], np.array(want), atol=1e-5)
    assert found.keys() == {"pixel_values_videos", "video_grid_thw", "second_per_grid_ts"}


@pytest.mark.parametrize("policy", QWEN, indirect=True)
def test_placeholders_become_what_transformers_writes(policy: Policy) -> None:
    """The processors' own text of a video, which needs only sizes and times of their video half."""
    processor = policy.processor
    half = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    metadata = SimpleNamespace(fps=2.0, frames_indices=np.arange(3))
    video = {"video_grid_thw": np.array([[2, 4, 6]]), "video_metadata": [metadata]}
    text = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Go?<|im_end|>\n"
    size = processor.image_processor.patch_size
    visual = (visuals_of(3, [0.0, 0.5, 1.0])[0], (6 * size, 4 * size))
    ids, grids = VideoEncoder(processor).encode(text, [visual], processor.tokenizer)
    processor.video_processor = half
    wrapped = "<|vision_start|><|video_pad|><|vision_end|>"
    whole = processor.replace_video_token(video, 0)
    want = text.replace(wrapped if policy.architecture in TIMED else "<|video_pad|>", whole)
    assert ids == processor.tokenizer(want)["input_ids"] and grids == [[2, 4, 6]]
    assert ("<0.2 seconds>" in want and "<1.0 seconds>" in want) == (policy.architecture in TIMED)


def test_other_processors_take_no_videos() -> None:
    with pytest.raises(ModelError, match=r"SimpleNamespace: cannot make a prompt with a video"):
        VideoEncoder(SimpleNamespace())


def test_units_of_attention_are_images_and_temporal_steps() -> None:
    visuals = visuals_of(9, [-1.0, 0.0, 0.5, 1.0, -1.0, 0.0, 0.5, 1.0, 1.5])
    assert [list(visual.images) for visual in visuals] == [[0], [1, 2, 3], [4], [5, 6, 7, 8]]
    assert units_of(visuals, [[1, 4, 4], [2, 4, 4], [1, 2, 2], [2, 4, 4]]) == [0, 1, 3, 4, 5, 7]
    assert units_of(visuals_of(2, None), [[1, 2, 2], [1, 4, 4]]) == [0, 1]


def test_images_beside_videos_stay_what_they_are(policy: Policy) -> None:
    """The row of a group with an image alone is the same, with or without videos in its batch."""
    policy.attend("grouped")
    alone = policy.pack(groups(policy)[:1])
    beside = policy.pack(video_groups(policy))
    start = beside.spans[2].start
    assert beside.input_ids[:, start:].equal(alone.input_ids)
    assert beside.position_ids[..., start:].equal(alone.position_ids)
    pixels = alone.seen["pixel_values"]
    assert beside.seen["pixel_values"][-len(pixels) :].equal(pixels)

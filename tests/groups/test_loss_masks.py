"""weight-tokens weighs a completion as if the tokens outside its loss mask were not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.groups import sampled, weigh
from support.pipeline import table
from support.rows import rows

from dapo_stages.errors import DataError
from dapo_stages.groups.loss_masks import own_tokens
from dapo_stages.groups.token_words import text_of, token_kinds
from dapo_stages.handoff.schemas import SCHEMAS
from dapo_stages.handoff.shards import write_shard

VGR = {"weights__scheme": "vgr", "weights__replay__min_reward": 0.1}


def every_third(completion_id: str, tokens: int) -> list[bool] | None:
    """Tokens with VGR 4 were given to the policy; the second has no mask, nothing of the third is its own."""
    third: list[bool] = [place % 3 != 2 for place in range(tokens)]
    return {"s1": None, "s2": [False] * tokens}.get(completion_id[-2:], third)


def test_only_own_tokens_share_the_weight_and_masks_go_through_the_buffer(tmp_path: Path) -> None:
    """VGR 1, 2, 4, 1, 2, 4, …, of 11 tokens and of 8. Without the 4s the raw weights 1/VGR are 1, .5, 1, .5, …: of 8
    tokens four and four, with the mean .75; of 6 three and three."""
    inputs = sampled(tmp_path, 1, [[1, 0, 0, 0]], vgr=(1, 2, 4), masks=every_third)
    first = weigh(tmp_path / "w1", inputs, **VGR)
    weights = table(first, "weights")
    assert weights.in_loss.tolist() == [True, True, False, True]
    assert weights.why.tolist() == ["", "", "no token in its loss_mask", ""]
    high, low = 4 / 3, 2 / 3
    assert weights.token_weights[0].tolist() == pytest.approx([high, low, 0] * 3 + [high, low], abs=1e-5)
    assert weights.token_weights[3].tolist() == pytest.approx([high, low, 0] * 2 + [high, low], abs=1e-5)
    assert min(weights.token_weights[1]) > 0 and not any(weights.token_weights[2])
    stored = table(first, "buffer-completions").set_index("sample").loss_mask
    sampled_ = table(tmp_path / "iter-0001/rollout", "completions").set_index("sample").loss_mask
    assert stored[0].tolist() == sampled_[0].tolist() == [True, True, False] * 3 + [True, True]
    assert stored[1] is None

    equal = sampled(tmp_path, 2, [[1, 1, 1, 1]])
    second = weigh(tmp_path / "w2", equal, first, **VGR)
    replayed = table(second, "replayed-completions").set_index("sample").loss_mask
    assert replayed[0].tolist() == sampled_[0].tolist() and replayed[1] is None
    again = table(second, "weights")
    assert again[again.source == "replay"].in_loss.tolist() == [True, True, False, True]


def test_without_masks_no_file_has_the_column(tmp_path: Path) -> None:
    first = weigh(tmp_path / "w1", sampled(tmp_path, 1, [[1, 0, 0, 0]]), **VGR)
    second = weigh(tmp_path / "w2", sampled(tmp_path, 2, [[1, 1, 1, 1]]), first, **VGR)
    for folder, kind in ((first, "buffer-completions"), (second, "replayed-completions")):
        assert len(table(folder, kind)) == 4 and "loss_mask" not in table(folder, kind)


def test_baselines_that_count_tokens_count_those_in_the_loss(tmp_path: Path) -> None:
    """OPO's baseline: rewards 1, 0, 0 of 8, 11 and 0 tokens, and 0 of 6; 8 / 25 is subtracted."""
    inputs = sampled(tmp_path, 1, [[1, 0, 0, 0]], masks=every_third)
    found = table(weigh(tmp_path / "w", inputs, weights__advantage="opo"), "weights").advantage
    assert found.tolist() == pytest.approx([17 / 25, -8 / 25, -8 / 25, -8 / 25], abs=1e-6)


def test_words_are_found_in_what_the_policy_said() -> None:
    """What a tool says may look like an answer. A character that is split over tokens stays whole."""
    texts = ["<answer>", "A", "</answer>", "<answer>", "B", "</answer>", "é", "\ufffd", "\ufffd", "<|im_end|>"]
    text = "<answer>A</answer><answer>B</answer>é漢"
    mask = [True] * 3 + [False] * 3 + [True] * 4
    assert text_of(text, texts, mask) == "<answer>A</answer>é漢"
    row = own_tokens({"text": text, "token_texts": texts, "completion_ids": [*range(10)], "loss_mask": mask})
    assert row["completion_ids"] == [0, 1, 2, 6, 7, 8, 9]
    assert token_kinds(row["text"], row["token_texts"]).answer == [1]
    assert token_kinds(text, texts).answer == [4]


@pytest.mark.parametrize("length", [2, 4])
def test_a_mask_of_another_length_is_refused(length: int, tmp_path: Path) -> None:
    schema = SCHEMAS["completions"]
    bad = [row | {"loss_mask": [True] * length} for row in rows(schema, 1)]
    said = f"column loss_mask has {length} values, expected 3, as in column completion_ids: one per token"
    with pytest.raises(DataError, match=said):
        write_shard(tmp_path / "completions-00000.parquet", schema, bad)


def test_attention_of_another_length_than_the_mask_is_refused(tmp_path: Path) -> None:
    inputs = sampled(tmp_path, 1, [[1, 0, 0, 0]], vgr=(1, 2), columns=lambda *_: {"vgr": [1.0] * 5}, masks=every_third)
    with pytest.raises(AssertionError, match="expected a value per token, got 5 values of vgr for 11 tokens"):
        weigh(tmp_path / "w", inputs, **VGR)

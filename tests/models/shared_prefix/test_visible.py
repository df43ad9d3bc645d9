"""Which keys a token sees, by tables written by hand."""

from __future__ import annotations

import torch

from dapo_stages.models.shared_prefix.packing import _span
from dapo_stages.models.shared_prefix.visible import image_ends, visible


def table(seen: torch.Tensor | None) -> list[str]:
    assert seen is not None
    return ["".join(".x"[int(one)] for one in row) for row in seen]


def test_tokens_of_an_image_see_each_other_and_a_window_hides_what_is_before_it() -> None:
    """A word, an image of three tokens, a word; in windows of two tokens the image's last sees none of its first."""
    ends, places = image_ends(torch.tensor([False, True, True, True, False])), torch.arange(5)
    assert ends.tolist() == [1, 4, 4, 4, 5]
    assert table(visible(places, places, None, ends)) == ["x....", "xxxx.", "xxxx.", "xxxx.", "xxxxx"]
    assert table(visible(places, places, 2, ends)) == ["x....", "xxxx.", ".xxx.", "..xx.", "...xx"]
    assert image_ends(torch.tensor([True, False, True, True])).tolist() == [1, 2, 4, 4]


def test_a_window_reaches_from_completions_into_their_prompt() -> None:
    """Four tokens of prompt, completions of up to three: the first token sees the prompt's last two, and itself."""
    span = _span(0, 4, [3, 1])
    assert span.prompt_mask(None) is None and span.prompt_mask(4) is None, "causal attention needs no mask"
    assert table(span.prompt_mask(3)) == ["x...", "xx..", "xxx.", ".xxx"]
    assert span.first_shared(None) == 0 and span.first_shared(3) == 2 and span.first_shared(9) == 0
    assert table(span.completion_mask(3)) == ["xxx..", ".xxx.", "..xxx"]
    assert table(span.completion_mask(None)) == ["xxxxx..", "xxxxxx.", "xxxxxxx"]

"""Token ids of images whose sizes are known, compared with the processor called directly."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from dapo_stages.data import encoding
from dapo_stages.data.encoding import Encoder

SIZES: list[list[tuple[int, int]]] = [[(56, 56)], [(140, 84)], [(56, 56), (140, 84)], [(140, 84), (56, 56)], []]


def prompt(processor: Any, number: int, sizes: list[tuple[int, int]]) -> tuple[str, list[Image.Image]]:
    content = [{"type": "image"} for _ in sizes] + [{"type": "text", "text": f"What is {number}?\nA. red B. blue é 红"}]
    turns = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text, [Image.new("RGB", size, (number, 0, 0)) for size in sizes]


def directly(processor: Any, text: str, images: list[Image.Image]) -> tuple[list[int], list[list[int]]]:
    encoded = processor(text=[text], images=images or None, return_tensors="np")
    return encoded["input_ids"][0].tolist(), [list(map(int, grid)) for grid in encoded.get("image_grid_thw", [])]


def test_known_sizes_give_what_the_processor_gives_without_calling_it(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, called = Encoder(processor), list[str]()
    prompts = [prompt(processor, number, SIZES[number % len(SIZES)]) for number in range(20)]
    wanted = [directly(processor, *one) for one in prompts]
    assert encoder.encode_known(prompts) == [None] * 20
    real = encoding.processed

    def noted(processor: Any, text: str, images: Any) -> Any:
        called.append(text)
        return real(processor, text, images)

    monkeypatch.setattr(encoding, "processed", noted)
    assert [encoder.encode(*one) for one in prompts] == wanted
    assert len(called) == len(SIZES)
    assert encoder.encode_known(prompts) == wanted
    assert len(called) == len(SIZES)


def test_a_processor_that_writes_more_than_its_image_token_is_always_called(processor: Any) -> None:
    """As some do, with a token at the end of each row of patches: what is made here would differ."""

    class Rows:
        image_token, image_token_id, tokenizer = processor.image_token, processor.image_token_id, processor.tokenizer

        def __call__(self, text: list[str], **kwargs: Any) -> Any:
            return processor(text=[text[0].replace("<|vision_end|>", "\n<|vision_end|>")], **kwargs)

    encoder = Encoder(Rows())
    first, second = (prompt(processor, number, [(56, 56)]) for number in (1, 2))
    assert encoder.encode(*first) == directly(Rows(), *first)
    assert encoder.encode_known([second]) == [None]
    assert encoder.encode(*second) == directly(Rows(), *second)

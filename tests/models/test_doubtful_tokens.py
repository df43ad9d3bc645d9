"""Added tokens that a checkpoint never learned: rows of its embedding set by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run

from dapo_stages.data.chat import SYSTEM_PROMPT
from dapo_stages.models.checkpoints import Checkpoint
from dapo_stages.models.doubtful_tokens import doubtful_tokens
from dapo_stages.models.processor import load_processor
from dapo_stages.models.tokens import load_tokens

OPEN, CLOSE = "<think>", "</think>"
Rows = Callable[[torch.Tensor, dict[str, int]], None]


@pytest.fixture()
def made(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """The checkpoint with added tokens for thoughts, its embedding changed by `rows`."""

    def make(rows: Rows = lambda *_: None, *, special: bool = False) -> Path:
        folder = shutil.copytree(checkpoint, tmp_path / "model")
        processor = load_processor(folder)
        processor.tokenizer.add_tokens([OPEN, CLOSE], special_tokens=special)
        processor.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in weights if name.endswith("embed_tokens.weight"))
        rows(weights[name], processor.tokenizer.get_vocab())
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def doubts(folder: Path, *, plain_tags: bool = False) -> dict[str, str]:
    parts = load_tokens(folder), load_processor(folder), Checkpoint(folder)
    return doubtful_tokens(*parts, SYSTEM_PROMPT, plain_tags=plain_tags)


def small_and_alike(rows: torch.Tensor, ids: dict[str, int]) -> None:
    """A tag with a norm of a twentieth, one that is a row without a token, and a turn's end that is all zeros.

    The image token's row is zero as well, but images take its place."""
    rows[ids[OPEN]] *= 0.05 * rows[:300].norm(dim=1).median() / rows[ids[OPEN]].norm()
    rows[ids[CLOSE]] = rows[-1] * 1.001
    rows[ids["<|im_end|>"]] = rows[ids["<|image_pad|>"]] = 0


def test_rows_that_nothing_was_learned_for(made: Callable[..., Path]) -> None:
    folder = made(small_and_alike)
    found = doubts(folder)
    assert found.keys() == {OPEN, CLOSE, "<|im_end|>"}
    assert found[OPEN].startswith("looks untrained: the norm of its embedding is ")
    assert found[CLOSE] == "looks untrained: its embedding is that of id 447, which no token has"
    assert found["<|im_end|>"].startswith("looks untrained: the norm of its embedding is 0,")
    assert doubts(folder, plain_tags=True).keys() == {"<|im_end|>"}


def test_rows_like_any_other_raise_no_doubt(made: Callable[..., Path]) -> None:
    def just_learned(rows: torch.Tensor, ids: dict[str, int]) -> None:
        rows[ids[OPEN]] *= 0.2 * rows[:300].norm(dim=1).median() / rows[ids[OPEN]].norm()
        rows[ids[CLOSE]] = rows[-1] * 1.05

    assert doubts(made(just_learned)) == {}


def test_init_policy_names_them_and_what_to_do(made: Callable[..., Path], tmp_path: Path) -> None:
    def equal(rows: torch.Tensor, ids: dict[str, int]) -> None:
        rows[ids[CLOSE]] = rows[ids[OPEN]]

    config = tmp_path / "config.yaml"
    config.write_text(f"seed: 1\nmodel: {{name: {made(equal)}}}\n", encoding="utf-8")
    result = run("init-policy", "--config", config, "--out", tmp_path / "policy")
    assert result.code == 0, result.stderr
    for tag, other in ((OPEN, CLOSE), (CLOSE, OPEN)):
        said = f"warning: {tag} looks untrained: its embedding is that of {other}. Set data.tags=plain"
        assert said in " ".join(result.stderr.split())


def test_a_special_tag_is_never_sampled(made: Callable[..., Path]) -> None:
    found = doubts(made(special=True))
    assert found == dict.fromkeys((OPEN, CLOSE), "is a special token of the tokenizer, which is never sampled")

"""Tokens read from a checkpoint's small files are those of the policy in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.families import OTHER, SOME

from dapo_stages.config import ModelConfig
from dapo_stages.errors import ModelError
from dapo_stages.models.policy_loading import check_family, load_policy
from dapo_stages.models.processor import load_processor
from dapo_stages.models.tokens import Tokens, load_tokens


@pytest.mark.parametrize("family", [*SOME, OTHER])
def test_files_and_model_say_the_same(checkpoints: Callable[[str], Path], family: str) -> None:
    tokens = load_tokens(checkpoints(family))
    policy = load_policy(checkpoints(family), ModelConfig(name="embedded", dtype="float32", device="cpu"))
    assert tokens.end_ids == policy.end_ids
    assert tokens.special_ids == policy.special_ids
    assert tokens.image_token_id == policy.image_token_id
    assert (tokens.vocabulary, tokens.architecture) == (policy.vocabulary, policy.architecture)
    assert sorted(tokens.suppressed_ids) == policy.suppressed.nonzero()[:, 0].tolist()


def test_special_tokens_are_all_but_text(checkpoint: Path) -> None:
    tokens = load_tokens(checkpoint)
    names = tokens.tokenizer.convert_ids_to_tokens(sorted(tokens.suppressed_ids & set(range(len(tokens.tokenizer)))))
    assert {"<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>"} <= set(names)
    assert "<|im_end|>" not in names and all(name.startswith("<|") for name in names)
    assert tokens.text([*tokens.tokenizer("red")["input_ids"], *tokens.end_ids]) == "red"


def test_end_tokens_may_be_in_the_configuration_of_the_model_alone(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "older")
    ends = load_tokens(checkpoint).end_ids
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [*ends, 7]}))
    assert load_tokens(folder).end_ids == [*ends, 7]


def test_ids_without_a_token_are_never_sampled(checkpoint: Path) -> None:
    """Vocabularies may have holes, also before tokens."""

    class Holed:
        all_special_ids: ClassVar = [0]
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

        def __len__(self) -> int:
            return 4

        def get_vocab(self) -> dict[str, int]:
            return {"<end>": 0, "a": 1, "b": 3, "c": 6}

    assert Tokens(Holed(), 8, [0], None, "qwen2").special_ids == {0, 2, 4, 5, 7}


@pytest.mark.parametrize("load", [load_tokens, check_family, load_processor])
def test_code_of_a_checkpoint_is_never_run_nor_asked_about(
    load: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "looks_new", "auto_map": {"AutoConfig": "configuration_new.NewConfig"}})
    )
    (tmp_path / "configuration_new.py").write_text("raise SystemExit('it was run')")
    asked: list[str] = []

    def refuse(text: str = "") -> str:
        asked.append(text)
        return "n"

    monkeypatch.setattr("builtins.input", refuse)
    with pytest.raises((ModelError, OSError, ValueError), match=f"{tmp_path}.*"):
        load(tmp_path)
    assert not asked


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}: cannot load the checkpoint"):
        load_tokens(tmp_path)

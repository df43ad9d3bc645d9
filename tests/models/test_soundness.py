"""Hostile and damaged checkpoints: refused, with file and key, by init-policy and by every loader."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import run
from support.families import OTHER, SOME
from support.pipeline import CONFIG
from transformers import AutoModelForImageTextToText, AutoTokenizer

from dapo_stages.config import ModelConfig
from dapo_stages.errors import DapoStagesError
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.soundness import check_checkpoint

TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWN = "model.layers.0.mlp.down_proj.weight"
Tamper = Callable[[Path], object]


@pytest.fixture()
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "model")


def config(*keys: str, file: str = "config.json", to: Any) -> Tamper:
    """Set one value in a JSON file."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        inner = values
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = to
        (folder / file).write_text(json.dumps(values))

    return change


def images(*keys: str, to: Any) -> Tamper:
    """The same in both files from which an image processor may be read."""

    def change(folder: Path) -> None:
        config(*keys, file="preprocessor_config.json", to=to)(folder)
        config("image_processor", *keys, file="processor_config.json", to=to)(folder)

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Tamper:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return rewrite


def content(file: str, text: str) -> Tamper:
    return lambda folder: (folder / file).write_text(text)


def cut(change: Callable[[dict[str, object], dict[str, dict[str, torch.Tensor]]], object]) -> Tamper:
    """Weights in two files with an index, in which something is changed before it is written."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        names = sorted(tensors)
        files = {f"part-{n}.safetensors": {name: tensors[name] for name in names[n::2]} for n in (0, 1)}
        index: dict[str, object] = {name: file for file, part in files.items() for name in part}
        change(index, files)
        (folder / WEIGHTS).unlink()
        for file, part in files.items():
            save_file(part, folder / file, {"format": "pt"})
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))

    return rewrite


def _both(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    cut(lambda index, files: None)(folder)
    (folder / WEIGHTS).write_bytes(whole)


def _larger_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<more {number}>" for number in range(700 - len(tokenizer))])
    tokenizer.save_pretrained(folder)


# name -> what is changed, words of the error.
CASES: dict[str, tuple[Tamper, tuple[str, ...]]] = {
    # tensors
    "missing": (weights(lambda t: t.pop(DOWN)), (WEIGHTS, "is missing", "layers.0.mlp.down_proj.weight")),
    "unexpected": (weights(lambda t: t.update(strange=torch.ones(2))), (WEIGHTS, "tensor strange")),
    "shape": (weights(lambda t: t.update({DOWN: torch.ones(64, 7)})), (WEIGHTS, "down_proj.weight", "(64, 7)")),
    "transposed": (weights(lambda t: t.update({DOWN: t[DOWN].T.contiguous()})), (WEIGHTS, "down_proj.weight")),
    "nan": (weights(lambda t: t[DOWN].fill_(float("nan"))), ("NaN or infinity", "down_proj.weight")),
    "infinity": (weights(lambda t: t[DOWN].view(-1)[5:6].fill_(float("inf"))), ("NaN or infinity", "down_proj.weight")),
    "empty file": (content(WEIGHTS, ""), (WEIGHTS,)),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), (WEIGHTS,)),
    # indexes
    "missing shard": (cut(lambda i, f: f.pop("part-1.safetensors")), ("part-1.safetensors",)),
    "wrong file": (cut(lambda i, f: i.update({DOWN: next(f for f in f if f != i[DOWN])})), ("down_proj.weight",)),
    "not in the index": (cut(lambda i, f: i.pop(DOWN)), ("down_proj.weight", "index")),
    "in no file": (cut(lambda i, f: i.update(strange="part-0.safetensors")), ("strange", "part-0.safetensors")),
    "file elsewhere": (cut(lambda i, f: i.update({DOWN: "../x.safetensors"})), (INDEX, "../x.safetensors")),
    "file is a number": (cut(lambda i, f: i.update({DOWN: 7})), (INDEX, "7")),
    "both": (_both, (WEIGHTS, INDEX)),
    "index is a list": (content(INDEX, "[]"), (INDEX,)),
    # config.json
    "no config": (lambda folder: (folder / "config.json").unlink(), ("config.json",)),
    "config is a list": (content("config.json", "[1]"), ("config.json",)),
    "config is deep": (content("config.json", "[" * 100_000), ("config.json",)),
    "an adapter": (content("adapter_config.json", "{}"), ("adapter_config.json",)),
    "layers: huge": (config("text_config", "num_hidden_layers", to=10**9), ("config.json", "num_hidden_layers")),
    "layers: beyond 64 bits": (config("text_config", "num_hidden_layers", to=10**30), ("num_hidden_layers",)),
    "layers: more": (config("text_config", "num_hidden_layers", to=5), ("num_hidden_layers",)),
    "layers: fewer": (config("text_config", "num_hidden_layers", to=1), ("num_hidden_layers",)),
    "layers: none": (config("text_config", "num_hidden_layers", to=0), ("num_hidden_layers",)),
    "layers: text": (config("text_config", "num_hidden_layers", to="many"), ()),
    "layers: null": (config("text_config", "num_hidden_layers", to=None), ()),
    "layers: list": (config("text_config", "num_hidden_layers", to=[3]), ()),
    "layers: fraction": (config("text_config", "num_hidden_layers", to=2.5), ()),
    "depth: huge": (config("vision_config", "depth", to=10**12), ("config.json", "vision_config.depth")),
    "depth: text": (config("vision_config", "depth", to="deep"), ()),
    "heads: 0": (config("text_config", "num_attention_heads", to=0), ()),
    "heads: 3": (config("text_config", "num_attention_heads", to=3), ()),
    "heads: -4": (config("text_config", "num_attention_heads", to=-4), ()),
    "vision heads: 3": (config("vision_config", "num_heads", to=3), ()),
    "vision heads: 0": (config("vision_config", "num_heads", to=0), ()),
    "hidden: 0": (config("text_config", "hidden_size", to=0), ()),
    "hidden: huge": (config("text_config", "hidden_size", to=10**11), ()),
    "hidden: beyond": (config("text_config", "hidden_size", to=10**20), ("config.json", "hidden_size")),
    "vocabulary: larger": (config("text_config", "vocab_size", to=600), ("embed_tokens.weight",)),
    "vocabulary: huge": (config("text_config", "vocab_size", to=10**12), ()),
    "vocabulary: 0": (config("text_config", "vocab_size", to=0), ()),
    "vocabulary: text": (config("text_config", "vocab_size", to="576"), ()),
    "activation": (config("text_config", "hidden_act", to="explode"), ("explode",)),
    "rope: unknown": (config("text_config", "rope_parameters", to={"rope_type": "odd"}), ()),
    "rope: sections": (config("text_config", "rope_parameters", "mrope_section", to=[1, 1, 1]), ()),
    "rope: text": (config("text_config", "rope_parameters", "rope_theta", to="big"), ()),
    "rope: 0": (config("text_config", "rope_parameters", "rope_theta", to=0), ("inv_freq",)),
    "norm: NaN": (config("text_config", "rms_norm_eps", to=float("nan")), ("config.json", "rms_norm_eps")),
    "norm: negative": (config("text_config", "rms_norm_eps", to=-1e6), ("NaN or infinity",)),
    "norm: text": (config("text_config", "rms_norm_eps", to="small"), ()),
    "vision patch: 0": (config("vision_config", "patch_size", to=0), ()),
    "vision merge: 0": (config("vision_config", "spatial_merge_size", to=0), ()),
    "vision merge: 3": (config("vision_config", "spatial_merge_size", to=3), ()),
    "vision window: 0": (config("vision_config", "window_size", to=0), ()),
    "image token: none": (config("image_token_id", to=None), ()),
    "image token: beyond": (config("image_token_id", to=10**6), ("image_token_id",)),
    "image token: negative": (config("image_token_id", to=-1), ("image_token_id",)),
    "image token: text": (config("image_token_id", to="<image>"), ()),
    "image token: another": (config("image_token_id", to=7), ()),
    "vision: text": (config("vision_config", to="none"), ()),
    "text: null": (config("text_config", to=7), ()),
    # tokens
    "end: text": (config("eos_token_id", file="generation_config.json", to="two"), ("eos_token_id", "two")),
    "end: beyond": (config("eos_token_id", file="generation_config.json", to=[3, 10**7]), ("eos_token_id", "10000000")),
    "end: negative": (config("eos_token_id", file="generation_config.json", to=-1), ("eos_token_id",)),
    "end: nothing": (config("eos_token_id", file="generation_config.json", to=[]), ("eos_token_id",)),
    "end: nested": (config("eos_token_id", file="generation_config.json", to=[[1]]), ("eos_token_id",)),
    "end: object": (config("eos_token_id", file="generation_config.json", to={"a": 1}), ("eos_token_id",)),
    "generation is a list": (content("generation_config.json", "[]"), ()),
    "larger tokenizer": (_larger_tokenizer, ("tokenizer", "699")),
    "broken tokenizer": (content("tokenizer.json", '{"model": {}}'), ()),
    "tokenizer is a list": (content("tokenizer.json", "[]"), ()),
    "empty tokenizer": (content("tokenizer.json", ""), ()),
    "tokenizer settings": (content("tokenizer_config.json", "[]"), ()),
    "no image token": (config("image_token", file="tokenizer_config.json", to=7), ()),
    # image processors
    "patch: 0": (images("patch_size", to=0), ("patch_size is 0",)),
    "patch: negative": (images("patch_size", to=-14), ("patch_size is -14",)),
    "patch: text": (images("patch_size", to="two"), ()),
    "patch: another": (images("patch_size", to=7), ()),
    "patch: huge": (images("patch_size", to=10**6), ("patch_size is 1000000",)),
    "merge: 0": (images("merge_size", to=0), ("merge_size is 0",)),
    "frames: 0": (images("temporal_patch_size", to=0), ("temporal_patch_size is 0",)),
    "size: 0": (images("size", to={"shortest_edge": 0, "longest_edge": 0}), ("edge is 0",)),
    "size: huge": (images("size", to={"shortest_edge": 10**12, "longest_edge": 10**13}), ("size.",)),
    "size: list": (images("size", to=[1, 2]), ()),
    "size: text": (images("size", to="large"), ()),
    "least pixels": (config("min_pixels", file="preprocessor_config.json", to=10**12), ("min_pixels",)),
    "spread: 0": (images("image_std", to=[0, 0, 0]), ("image_std",)),
    "mean: one number": (images("image_mean", to=[0.5]), ()),
    "image processor is a list": (content("preprocessor_config.json", "[]"), ("preprocessor_config.json",)),
}  # fmt: skip
# Overridden by a processor_config.json beside it, or harmless: such a checkpoint may be loaded, too.
HARMLESS = {"no image token"}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    tamper, words = CASES[name]
    tamper(folder)
    result = run("init-policy", "--config", CONFIG, "--set", f"model.name={folder}", "--out", tmp_path / "policy")
    assert "Traceback" not in result.stderr and result.code in {0, 3}
    try:
        load_policy(folder, TINY)
        loaded = ""
    except DapoStagesError as error:
        loaded = str(error)
    if name in HARMLESS:
        return
    assert loaded, "it was loaded"
    assert re.search(r": .+\. (Download|Fix|Merge|Pass|Remove|Save|Set) .*\.$", loaded, re.S), loaded
    assert all(word in loaded for word in [str(folder), *words]), loaded
    if result.code == 3:  # it does not notice what only a forward pass shows
        assert all(word in result.stderr for word in [str(folder), *words]), result.stderr
        assert not (tmp_path / "policy/manifest.json").exists()


@pytest.mark.parametrize("family", [*SOME, OTHER])
def test_every_family_passes_as_transformers_saves_it(family: str, checkpoints: Callable[[str], Path]) -> None:
    check_checkpoint(checkpoints(family))


def test_what_a_family_leaves_out_or_has_in_addition(folder: Path) -> None:
    """A tied head that is saved, too, buffers of older versions, and earlier names in transformers."""
    tensors = load_file(folder / WEIGHTS)
    head = tensors["model.embed_tokens.weight"].clone()
    old = {"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(tensors | old, folder / WEIGHTS, {"format": "pt"})
    load_policy(folder, TINY)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / WEIGHTS, {"format": "pt"})
    load_policy(folder, TINY)


@pytest.mark.parametrize("name", ["patch: 0", "patch: text", "size: huge", "size: text", "mean: one number"])
def test_prepare_data_looks_at_what_makes_its_prompts(name: str, folder: Path, tmp_path: Path) -> None:
    """Without a policy it has only the model's name."""
    CASES[name][0](folder)
    settings = ["--set", f"model.name={folder}", "--out", tmp_path / "data"]
    result = run("prepare-data", "--config", CONFIG, *settings)
    assert result.code == 3 and "Traceback" not in result.stderr and str(folder) in result.stderr

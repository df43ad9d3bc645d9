"""No stage runs code that came with data: pickles, YAML tags, modules of a checkpoint, templates, PostScript."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pytest
import torch
import yaml
from jinja2 import Environment
from PIL import Image
from reporting import tiny_run
from support.commands import ROOT, Result, run
from support.words import WordProcessor

from dapo_stages.config import ModelConfig
from dapo_stages.errors import DapoStagesError
from dapo_stages.handoff.manifests import Source
from dapo_stages.models.policy_loading import check_family, load_policy
from dapo_stages.models.tokens import load_tokens
from faults import data_sets, forged, payloads
from faults.images import noise, saved
from faults.table import record

ROW = 12
TINY = ModelConfig(name="embedded", dtype="float32", device="cpu")
IMAGE = saved(Image.fromarray(noise()))


@pytest.fixture()
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder that no test may make."""
    place = tmp_path / "canary"
    yield place
    assert not place.exists()


@pytest.fixture()
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to be tampered with."""
    shutil.copytree(checkpoint, tmp_path / "policy")
    return tmp_path / "policy"


def refused(result: Result, words: str = "") -> None:
    assert (result.code, result.stdout) == (3, ""), result.stderr
    assert "Traceback" not in result.stderr and words in result.stderr, result.stderr
    record(ROW, 1)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- the canary can sing


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy", "yaml", "jinja", "module"])
def test_careless_readers_would_run_these(kind: str, tmp_path: Path) -> None:
    import io

    import numpy as np

    canary = tmp_path / "canary"
    careless: dict[str, Callable[[], object]] = {
        "pickle": lambda: pickle.loads(payloads.pickled(canary)),
        "torch": lambda: torch.load(io.BytesIO(payloads.of_torch(canary)), weights_only=False),
        "numpy": lambda: np.load(io.BytesIO(payloads.of_numpy(canary)), allow_pickle=True),
        "yaml": lambda: yaml.unsafe_load(payloads.yaml_tags(canary)["object/apply"]),
        "jinja": lambda: Environment().from_string(payloads.templates(canary)["globals of a macro"]).render(),
        "module": lambda: exec(payloads.module(canary)),
    }
    careless[kind]()
    assert canary.exists()


# ---- checkpoints


def _only_pickles(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(payloads.of_torch(canary))


def _pickle_as_safetensors(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(payloads.of_torch(canary))


def _index_of_pickles(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "weights.bin").write_bytes(payloads.of_torch(canary))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "weights.bin"}}')


def _pickle_as_tokenizer(folder: Path, canary: Path) -> None:
    (folder / "tokenizer.json").write_bytes(payloads.pickled(canary))


def _model_of_its_own(folder: Path, canary: Path) -> None:
    (folder / "modeling_mine.py").write_text(payloads.module(canary) + "class Mine: pass\nclass MineConfig: pass\n")
    auto = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForImageTextToText": "modeling_mine.Mine"}
    change(folder / "config.json", model_type="mine", architectures=["Mine"], auto_map=auto)


def _kernel_of_the_hub(folder: Path, canary: Path) -> None:
    change(folder / "config.json", attn_implementation="someone/kernel")


def _kernel_in_a_part(folder: Path, canary: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["attn_implementation"] = "someone/kernel"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "tamper",
    [_only_pickles, _pickle_as_safetensors, _index_of_pickles, _pickle_as_tokenizer, _model_of_its_own,
     _kernel_of_the_hub],
)  # fmt: skip
def test_a_checkpoint_with_code_is_refused(tamper: Callable[[Path, Path], None], folder: Path, canary: Path) -> None:
    tamper(folder, canary)
    with pytest.raises(DapoStagesError, match=rf"^{folder}.*: .+\. (Download|Fix|Pass|Remove|Set) .+\.$"):
        load_policy(folder, TINY)
    record(ROW, 1)


def _pickles_beside(folder: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(payloads.of_torch(canary))


def _classes_of_its_own(folder: Path, canary: Path) -> None:
    """All that transformers looks up in an auto_map, for an architecture that it knows, too."""
    (folder / "mine.py").write_text(payloads.module(canary) + "class Mine: pass\n")
    parts = ("Config", "Model", "ModelForImageTextToText", "Processor", "ImageProcessor", "Tokenizer")
    auto: dict[str, Any] = {f"Auto{part}": "mine.Mine" for part in parts} | {
        "AutoTokenizer": ["mine.Mine", "mine.Mine"]
    }
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        change(folder / name, auto_map=auto)


def _generation_of_its_own(folder: Path, canary: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(payloads.module(canary) + "def generate(*a, **k): pass\n")
    change(folder / "generation_config.json", custom_generate="custom_generate")


def _scripts(folder: Path, canary: Path) -> None:
    for name in ("modeling_qwen2_5_vl.py", "tokenization.py", "__init__.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(payloads.module(canary))


@pytest.mark.parametrize(
    "tamper", [_pickles_beside, _classes_of_its_own, _generation_of_its_own, _scripts, _kernel_in_a_part]
)
def test_code_beside_good_weights_is_left_alone(
    tamper: Callable[[Path, Path], None], folder: Path, canary: Path
) -> None:
    tamper(folder, canary)
    try:
        assert load_policy(folder, TINY).architecture == "qwen2_5_vl"
        assert load_tokens(folder).architecture == check_family(folder) == "qwen2_5_vl"
    except DapoStagesError as refusal:  # which is as well
        assert "must be torch's. Remove attn_implementation" in str(refusal)
    record(ROW, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"megatron_config": {}, "megatron_core": "mine"},
        {"peft_type": "PREFIX_TUNING"},
        {"auto_mapping": {"base_model_class": "Mine", "parent_library": "mine"}},
    ],
)
def test_an_adapter_is_plain_lora_in_safetensors(
    settings: dict[str, Any], folder: Path, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dapo_stages.models.adapters import load_adapter

    (tmp_path / "mine.py").write_text(payloads.module(canary))
    monkeypatch.syspath_prepend(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": None}
    (adapter / "adapter_config.json").write_text(json.dumps(plain | settings))
    (adapter / "adapter_model.bin").write_bytes(payloads.of_torch(canary))
    with pytest.raises(DapoStagesError, match=r"must be plain LoRA|safetensors of the adapter is missing"):
        load_adapter(load_policy(folder, TINY), adapter, trainable=True)
    record(ROW, 1)


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer-00000-00000.safetensors"])
def test_an_optimizer_state_is_never_unpickled(name: str, canary: Path, tmp_path: Path) -> None:
    from safetensors import SafetensorError

    from dapo_stages.training.state import load_state

    (tmp_path / name).write_bytes(payloads.of_torch(canary))
    about = {"optimizer": "adamw", "weights": [], "files": {name: []}}
    (tmp_path / "state.json").write_text(json.dumps(about))
    with pytest.raises((ValueError, SafetensorError)):  # train-step says what to do
        load_state(Mock(optimizer="adamw", trained=[]), tmp_path)
    record(ROW, 1)


# ---- chat templates


TEMPLATES = list(payloads.templates(Path("canary")))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(("chat_template.jinja", name) for name in TEMPLATES),
        ("tokenizer_config.json", TEMPLATES[0]),
        *(pytest.param("tokenizer_config.json", name, marks=pytest.mark.faults) for name in TEMPLATES[1:]),
    ],
)
def test_a_chat_template_stays_in_its_sandbox(
    place: str, name: str, folder: Path, canary: Path, tmp_path: Path
) -> None:
    template = payloads.templates(canary)[name]
    if place.endswith(".jinja"):
        (folder / place).write_text(template)
    else:
        (folder / "chat_template.jinja").unlink()
        change(folder / place, chat_template=template)
    forged.publish(folder, "init-policy")
    table = data_sets.write_rows(tmp_path / "rows.parquet", [IMAGE, IMAGE])
    refused(data_sets.prepare(table, tmp_path, "--policy", folder), "none of 2 rows is usable for train")


# ---- datasets


@pytest.mark.parametrize(
    "name", ["rows.npy", "rows.pt", "rows.pkl", "rows.bin", "rows.parquet", "rows.csv", "rows.json"]
)
@pytest.mark.parametrize("kind", [payloads.pickled, payloads.of_torch, payloads.of_numpy])
def test_a_pickle_is_no_table(kind: Callable[[Path], bytes], name: str, canary: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(kind(canary))
    refused(data_sets.prepare(tmp_path / name, tmp_path), str(tmp_path / name))


@pytest.mark.parametrize("name", ["set.py", "dataset.py", "rows.py"])
def test_a_script_beside_the_rows_is_left_alone(
    name: str, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(payloads.module(canary))
    result = data_sets.prepare(tmp_path / "set", tmp_path)
    refused(result, "no table in the folder (expected a .parquet")
    data_sets.write_rows(tmp_path / "set/rows.parquet", [IMAGE, IMAGE])
    assert data_sets.prepare(tmp_path / "set", tmp_path).code == 0


@pytest.mark.parametrize("kind", ["a pickle", "an extension type"])
def test_a_saved_data_set_runs_nothing(kind: str, canary: Path, tmp_path: Path) -> None:
    """Old releases of Arrow unpickled the metadata of arrow.py_extension_type (CVE-2023-47248)."""
    import datasets

    rows = {"image": ["x"], "problem": ["A or B?"], "solution": ["A"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    path = next((tmp_path / "set").glob("*.arrow"))
    if kind == "a pickle":
        path.write_bytes(payloads.pickled(canary))
    else:
        about = {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": payloads.pickled(canary),
        }
        names = ("image", "problem", "solution")
        schema = pa.schema([pa.field(name, pa.string(), metadata=about if name == "image" else None) for name in names])
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(pa.table([["x"], ["?"], ["A"]], schema=schema))
    result = data_sets.prepare(tmp_path / "set", tmp_path)
    assert result.code == 3 and "Traceback" not in result.stderr
    record(ROW, 1)


# ---- configuration


@pytest.mark.parametrize("name", payloads.yaml_tags(Path("canary")))
@pytest.mark.parametrize("place", ["file", "extends", "--set"])
def test_yaml_is_only_data(place: str, name: str, canary: Path, tmp_path: Path) -> None:
    tag = payloads.yaml_tags(canary)[name]
    (tmp_path / "run.yaml").write_text({"file": f"seed: {tag}\n", "extends": "extends: base.yaml\n"}.get(place, ""))
    (tmp_path / "base.yaml").write_text(f"seed: {tag}\n")
    options = ["--set", f"seed={tag}"] if place == "--set" else []
    refused(run("config", "--config", tmp_path / "run.yaml", *options), "valid YAML")


@pytest.mark.parametrize("command", ["status", "report", "push", "config"])
def test_the_configuration_in_a_strangers_run_is_only_data(command: str, canary: Path, tmp_path: Path) -> None:
    tiny = tiny_run.build(tmp_path / "tiny")
    config = tiny / "config.yaml"
    config.write_text(f"seed: {payloads.yaml_tags(canary)['object/apply']}\n")
    own = ROOT / "pipelines/embedded.yaml"
    options: dict[str, list[object]] = {
        "status": ["--run", tiny],
        "report": ["--config", config, "--run", tiny],
        "push": ["--policy", tiny / "iter-0001/train/policy", "--repo", "user/name", "--dry-run"],
        "config": ["--config", own, "--out", config],
    }
    result = run(command, *options[command])
    assert result.code in {0, 3} and "Traceback" not in result.stderr
    record(ROW, 1)


# ---- files of a run


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("rollout", "completions-00000.parquet"),
        ("rollout", "prompts-00000.parquet"),
        ("attention", "attention-00000.parquet"),
    ],
)
def test_a_shard_is_never_unpickled(part: str, name: str, canary: Path, tmp_path: Path) -> None:
    tiny = tiny_run.build(tmp_path / "tiny", last="weights")
    here = tiny / "iter-0001"
    forged.replace(here / part, name, payloads.pickled(canary))
    if part == "rollout":
        forged.follow(here / "attention", "rollouts", here / "rollout")
    folders = ["--rollouts", here / "rollout", "--attention", here / "attention", "--out", tiny / "out"]
    result = run("weight-tokens", "--config", tiny / "config.yaml", *folders, "--iteration", 1)
    refused(result, f"{here / part / name}: the Parquet file is damaged (")


def test_a_replay_buffer_is_never_unpickled(canary: Path, tmp_path: Path) -> None:
    tiny = tiny_run.build(tmp_path / "tiny", last="weights")
    one, two = tiny / "iter-0001", tiny / "iter-0002"
    for name in ("buffer-00000.parquet", "buffer-completions-00000.parquet"):
        (one / "weights" / name).write_bytes(payloads.pickled(canary))
    forged.publish(one / "weights", "weight-tokens")
    folders = ["--rollouts", two / "rollout", "--attention", two / "attention", "--out", tiny / "out"]
    options = ["--iteration", 2, "--replay", one / "weights", "--set", "weights.replay.size=8"]
    result = run("weight-tokens", "--config", tiny / "config.yaml", *folders, *options)
    refused(result, f"{one}/weights/buffer-00000.parquet: the Parquet file is damaged (")


@pytest.mark.parametrize("command", ["report", "inspect"])
def test_an_image_in_a_shard_is_never_handed_to_another_program(
    command: str, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow gives EPS to Ghostscript; the one that stands in for it here sings."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\nmkdir {canary}\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", str(tmp_path / "bin/gs"))
    monkeypatch.setattr(tiny_run, "image", lambda which: payloads.postscript(tmp_path / "canary"))
    tiny = tiny_run.build(tmp_path / "tiny")
    if command == "report":
        result = run("report", "--config", tiny / "config.yaml", "--run", tiny)
    else:
        monkeypatch.setenv("FORCE_COLOR", "1")  # so that the image is drawn
        result = run("inspect", "--run", tiny, "it1-p0-s0")
    assert result.code == 0, result.stderr
    record(ROW, 1)


def test_a_judges_cache_is_never_unpickled(canary: Path, tmp_path: Path) -> None:
    from dapo_stages.rewards.judging.judge_cache import JudgeCache

    (tmp_path / "cache").write_bytes(payloads.pickled(canary))
    with pytest.raises(DapoStagesError, match="cannot read or write the judge's answers"):
        JudgeCache(tmp_path / "cache").get("x")
    with sqlite3.connect(tmp_path / "kept") as kept:
        kept.execute("CREATE TABLE answers (request TEXT PRIMARY KEY, text TEXT NOT NULL, whole INT NOT NULL)")
        kept.execute("INSERT INTO answers VALUES ('x', ?, 1)", (payloads.pickled(canary),))
    answer = JudgeCache(tmp_path / "kept").get("x")
    assert answer is not None and isinstance(answer.text, str)
    record(ROW, 1)


def test_a_policy_that_is_loaded_by_a_stage_is_verified_first(folder: Path, canary: Path) -> None:
    """A file that was put in after the manifest is never opened."""
    forged.publish(folder, "init-policy")
    _pickle_as_safetensors(folder, canary)
    with pytest.raises(DapoStagesError, match=r"model\.safetensors: has \d+ bytes, expected "):
        Source(folder).verify_all()
    record(ROW, 1)


# ---- the code itself

CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "torch.load", "marshal.loads",
    "yaml.unsafe_load", "yaml.full_load", "joblib.load", "shelve.open", "dill.load", "dill.loads", "cloudpickle.load",
}  # fmt: skip
IMPORTS = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
SOURCES = sorted((ROOT / "dapo_stages").rglob("*.py"))


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "dapo_stages").as_posix())
def test_nothing_in_the_package_could(path: Path) -> None:
    """Nor is a shell ever started, or code of a checkpoint allowed."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & IMPORTS, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        assert dotted(node.func) not in CALLS, ast.unparse(node)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        for name in ("shell", "allow_pickle", "trust_remote_code"):
            value = given.get(name)
            assert value is None or (isinstance(value, ast.Constant) and value.value is False), ast.unparse(node)
        if dotted(node.func) == "yaml.load":
            assert ast.unparse(node.args[1]) == "_strict_loader()"
        if dotted(node.func).endswith("from_pretrained") and dotted(node.func).startswith("Auto"):
            assert "trust_remote_code" in given, ast.unparse(node)

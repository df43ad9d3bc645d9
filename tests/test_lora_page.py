"""docs/lora-3b.md: its commands, in their order, with a tiny checkpoint; make's are those that `make -n` shows."""

from __future__ import annotations

import json
import re
import shlex
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from support.commands import ROOT, run
from support.make import dry, with_makefile
from support.pipeline import PLACE
from support.server import FakeServer, reply

from dapo_stages.handoff.manifests import Source

PAGE = (ROOT / "docs/lora-3b.md").read_text(encoding="utf-8")
# The recipe's for two questions and a CPU; rewarded by place, so that every group has something to learn.
SMALLER: dict[str, Any] = {
    "planned_iterations": 1,
    "model": {"device": "cpu", "dtype": "float32"},
    "data": {"held_out_fraction": 0.5, "max_image_size": 84},
    "rollout": {
        "prompts_per_iteration": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "dynamic_sampling": False,
    },
    "rewards": {"overlong_cache": 4, "plugins": {"place": "place.py:place"}},
    "weights": {
        "mask_truncated_completions": False,
        "early_fraction": 0.0,
        "reward_weights": {"accuracy": 0, "vgr": 0, "format": 0, "overlong": 0, "plugins": {"place": 1}},
    },
    "train": {"updates_per_iteration": 1, "warmup_fraction": 0.0, "learning_rate": 0.01},
    "evaluate": {"num_generations": 1},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture()
def place(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a checkpoint, a dataset and the page's configuration, as far as the latter leaves it open."""
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    with_makefile(tmp_path)
    ours = yaml.safe_load(blocks("yaml")[0])
    (tmp_path / ours["model"]["name"]).parent.mkdir()
    (tmp_path / ours["model"]["name"]).symlink_to(checkpoint)
    (tmp_path / "images").mkdir()
    line = json.loads(blocks("json")[0])
    rows = [line | {"image": f"images/{color}.png"} for color in ("red", "blue", "green", "gray")]
    for row in rows:
        Image.new("RGB", (84, 56), Path(row["image"]).stem).save(tmp_path / row["image"])
    (tmp_path / ours["data"]["source"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for section, values in SMALLER.items():
        ours[section] = ours.get(section, {}) | values if isinstance(values, dict) else values
    (tmp_path / "place.py").write_text(PLACE)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(ours))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def carry_out(line: str, folder: Path) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        shown = dry(folder, *[argument for argument in arguments if argument != "iterate"], "iterate")
        commands = [words[words.index("-m") + 2 :] for words in map(shlex.split, shown) if "-m" in words]
    else:
        assert program == ".venv/bin/dapo-stages"
        commands = [arguments]
    assert commands
    for command in commands:
        done = run(*command)
        assert done.code == 0, (command, done.stderr)


class Answering(FakeServer):
    """A chat server as plain as clients expect it: notes what it read, and says something."""

    def answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        self.requests.append(request)
        reply(handler, {"choices": [{"message": {"content": "<answer>A</answer>"}}]})


def test_the_page_runs_from_a_checkpoint_to_an_adapter_that_is_served(place: Path) -> None:
    """The merged policy gives the logits of base and adapter in peft; transformers and a server read the prompt that
    was trained on."""
    pytest.importorskip("torchvision", reason="make setup installs it", exc_type=ImportError)
    for line in "".join(blocks("bash")).replace("iter-0120", "iter-0001").splitlines():
        carry_out(line, place)
    adapter = place / "training_logs/mine/iter-0001/train/policy"
    data = Source(place / "training_logs/mine/data")
    prompts = [list(row["prompt_ids"]) for kind in ("train", "held_out") for row in data.rows(kind, ["prompt_ids"])]
    loads, asks = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(loads, "docs/lora-3b.md", "exec"), names)
    assert names["inputs"]["input_ids"][0].tolist() in prompts
    with torch.no_grad():
        merged = names["model"](**names["inputs"]).logits
        apart = as_peft(place / yaml.safe_load(blocks("yaml")[0])["model"]["name"], adapter, names["inputs"])
    assert torch.allclose(merged, apart[0], atol=1e-4)
    assert not torch.allclose(merged, apart[1], atol=1e-4)  # it has learned something
    with Answering(place / "merged") as server:
        exec(compile(asks.replace("http://localhost:8000", server.url), "docs/lora-3b.md", "exec"), names)
    assert names["answer"] == "<answer>A</answer>"
    read = server.read(server.requests[0]["messages"])
    assert read["input_ids"].tolist() == names["inputs"]["input_ids"].tolist()


def test_its_figures_are_those_of_plan() -> None:
    """On a GPU that nobody else uses, make keeps processes (RESIDENT=1)."""
    planned = run("plan", "--config", ROOT / "pipelines/lora-3b-24gb.yaml", "--memory", 24, "--json")
    found = json.loads(planned.stdout)
    most = max(peak["total"] for peak in found["resident"]["memory"].values()) / 2**30
    seconds = {stage: sum(parts.values()) for stage, parts in found["resident"]["seconds"].items()}
    evaluate = seconds.pop("evaluate") / 60
    text = " ".join(PAGE.split())
    assert f"at most {most:.1f} GiB of 24, {sum(seconds.values()) / 60:.1f} minutes per iteration" in text
    assert f"{evaluate:.1f} more for an evaluation of 900 questions" in text
    sizes = found["bytes"]["train-step: policy"] / 1e9, found["bytes"]["train-step: state"] / 1e9
    assert f"writes {sizes[0]:.1f} GB for its adapter and {sizes[1]:.1f} GB for the optimizer's state" in text


def as_peft(base: Path, adapter: Path, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of base and adapter, loaded by transformers and peft alone, and of the base."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    plain = model(**inputs).logits
    return PeftModel.from_pretrained(model, adapter)(**inputs).logits, plain

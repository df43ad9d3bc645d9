"""A run of one iteration whose tokens each looked at one image token, at another one in each layer segment."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from reporting import tiny_run

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import MASSES, SEGMENTS, TOKEN_SCORES
from dapo_stages.handoff.shards import Row

# Qwen2.5-VL's processor rounds both sides to multiples of 28 pixels, 2 × 2 patches of 14: 300 × 200 becomes 308 × 196.
SIZE, GRID, ROWS, COLUMNS = (300, 200), [1, 14, 22], 7, 11


def place(segment: str, token: int) -> tuple[int, int]:
    """Row and column that a token looked at."""
    return {"early": (0, 0), "middle": (3, 5), "late": (6, 10), "all": (token % ROWS, 3 * token % COLUMNS)}[segment]


def build(run: Path) -> Path:
    """Four completions; the first two have attention per image token."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    tiny_run.publish(Plan("prepare-data", run / "data", {}, 1), lambda output: None)
    tiny_run.publish(Plan("init-policy", run / "policy", {}, 1), lambda output: None)
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (128, 128, 128)).save(buffer, format="PNG")
    image = {"images": [{"bytes": buffer.getvalue(), "path": None}], "image_grid_thw": [GRID]}
    here = run / "iter-0001"
    plan = Plan("rollout", here / "rollout", {"iteration": 1}, 1, {"policy": Source(run / "policy")})
    with_rows = {
        "prompts": [tiny_run.prompt(1, 0, correct=2) | image],
        "completions": [tiny_run.read(tiny_run.completion(1, 0, sample)) for sample in range(4)],
    }

    def fill(output: Output) -> None:
        for kind, rows in with_rows.items():
            output.write(kind, 0, rows)

    tiny_run.publish(plan, fill)
    plan = Plan("score-attention", here / "attention", {}, 1, {"rollouts": Source(here / "rollout")})
    tiny_run.publish(plan, lambda output: output.write("attention", 0, [_scores(sample) for sample in range(4)]))
    tiny_run.weights(run, 1)
    return run


def _scores(sample: int) -> Row:
    length = tiny_run.LENGTHS[sample]
    row: Row = {"completion_id": f"it1-p0-s{sample}", "status": "ok", "vgr": [0.5] * length}
    row |= {f"mass_{kind}": [0.2] * length for kind in MASSES}
    for segment in SEGMENTS:
        kinds = ("vgr", "aei_text", "aei_vision", "attn_text", "attn_vision")
        row |= {f"{kind}_{segment}": 0.5 for kind in kinds}
        row[f"patch_attention_{segment}"] = (
            [_look(*place(segment, token)) for token in range(length)] if sample < 2 else None
        )
    return {**row, "num_text_tokens": 9, "num_vision_tokens": ROWS * COLUMNS, **dict.fromkeys(TOKEN_SCORES)}


def _look(row: int, column: int) -> list[float]:
    """Half the attention on one image token, a hundredth of that on each other."""
    return [0.5 if index == row * COLUMNS + column else 0.005 for index in range(ROWS * COLUMNS)]

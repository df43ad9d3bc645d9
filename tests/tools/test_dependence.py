"""compare-weights --dependence against forward passes of separate rows, and as a person meets it."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from reporting.tiny_run import HOSTILE
from support.commands import run as command
from support.pipeline import Run, table
from support.prompts import own_row

from dapo_stages.config import ModelConfig
from dapo_stages.data.blanks import Blank, Blanks, OtherImages, blanked
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.reporting.documents.dependence_shown import dependence_document, dependence_plot
from dapo_stages.training import token_dependence

TEMPERATURE = 1.2  # of the small run
TOKENS = 150


class Truth(NamedTuple):
    """What separate rows say of the tokens that are measured."""

    tokens: pd.DataFrame
    groups: int


@pytest.fixture(scope="module")
def truth(small_run: Run) -> Truth:
    """Each completion of the chosen groups in a row of its own, eager attention, float64."""
    policy = load_policy(small_run.policy(0), ModelConfig(name="embedded", dtype="float64", device="cpu"))
    policy.base.set_attn_implementation("eager")
    rollout = Source(small_run.at(1) / "rollout")
    prompts = list(rollout.rows("prompts"))
    completions = table(rollout.folder, "completions")
    lengths = completions.completion_ids.map(len)
    names = list(dict.fromkeys(completions.group_id))
    count = int(np.ceil(TOKENS * len(names) / lengths.sum()))
    chosen = [names[number * len(names) // count] for number in range(count)]
    exchanged = Blanks(Blank("exchanged"), rollout.manifest.seed, None, OtherImages(prompts, "here"))
    rows: list[dict[str, float]] = []
    with torch.no_grad():
        for group in chosen:
            prompt = next(row for row in prompts if row["group_id"] == group)
            changed = [blanked(prompt), *(exchanged(prompt, draw) for draw in range(4))]
            for one in completions[completions.group_id == group].itertuples():
                rows += _of_completion(policy, prompt, changed, [int(token) for token in one.completion_ids])
    return Truth(pd.DataFrame(rows), count)


def _of_completion(policy: Any, prompt: Row, changed: list[Row], ids: list[int]) -> list[dict[str, float]]:
    first = len(prompt["prompt_ids"]) - 1

    def logs(row: Row) -> tuple[torch.Tensor, Any]:
        inputs = own_row(policy, prompt_of(row, policy.processor), ids)
        made = policy.model(**inputs, use_cache=False, output_attentions=True)
        logits = made.logits[0, first:-1].masked_fill(policy.suppressed, float("-inf")) / TEMPERATURE
        return logits.log_softmax(-1), made.attentions

    seen, attentions = logs(prompt)
    targets = torch.tensor(ids)[:, None]
    unseen = [logs(row)[0] for row in changed]
    kls = [
        torch.where(seen.isinf(), 0, seen.exp() * (seen.masked_fill(seen.isinf(), 0) - other)).nansum(-1)
        for other in unseen
    ]
    changes = [(seen - other).gather(-1, targets)[:, 0].abs() for other in unseen[1:]]
    tokens = policy.processor.tokenizer.convert_ids_to_tokens(prompt["prompt_ids"])
    vision = [place for place, token in enumerate(tokens) if token == "<|image_pad|>"]
    mass = torch.stack([layer[0][:, first : first + len(ids)][..., vision].sum(-1) for layer in attentions])
    late = mass[2 * len(mass) // 3 :].mean((0, 1))
    entropy = -(seen.exp() * seen.masked_fill(seen.isinf(), 0)).sum(-1)
    columns = {
        "kl": torch.stack(kls[1:]).mean(0),
        "change": torch.stack(changes).mean(0),
        "KL, gray image": kls[0],
        "entropy": entropy,
        "vision mass, late third": late,
        "vision mass, strongest head": mass.amax((0, 1)),
    }
    return [{name: float(values[place]) for name, values in columns.items()} for place in range(len(ids))]


@pytest.fixture(scope="module")
def measured(small_run: Run, truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its output, with a threshold that half of the tokens are above, whatever the policy has learned."""
    out = tmp_path_factory.mktemp("dependence") / "start"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(token_dependence, "THRESHOLD", threshold(truth))
        measure(small_run, out)
    return out


def threshold(truth: Truth) -> float:
    kl = np.sort(truth.tokens.kl)
    return float(kl[len(kl) // 2 - 1 : len(kl) // 2 + 1].mean())


def arguments(run: Run, *more: object) -> list[object]:
    rollout = run.at(1) / "rollout"
    return ["compare-weights", "--dependence", "--rollouts", rollout, "--policy", run.policy(0), *more]


def measure(run: Run, out: Path, *more: object) -> dict[str, Any]:
    result = command(*arguments(run, "--tokens", TOKENS, "--out", out, "--json", *more))
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def found_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "dependence.json").read_text(encoding="utf-8"))
    return found


# What is measured


def test_figures_are_those_of_separate_rows(truth: Truth, measured: Path) -> None:
    found, tokens = found_in(measured), truth.tokens
    assert (found["tokens"], found["groups"]) == (len(tokens), truth.groups)
    assert found["mean_kl"] == pytest.approx(tokens.kl.mean(), rel=1e-3)
    assert found["mean_change"] == pytest.approx(tokens.change.mean(), rel=1e-3)
    depends = tokens.kl > threshold(truth)
    assert found["dependent"] == depends.sum()
    scores = {score["name"]: score for score in found["scores"]}
    for name in ("KL, gray image", "entropy", "vision mass, late third", "vision mass, strongest head"):
        score, one = tokens[name], scores[name]
        assert one["undefined"] == 0
        correlations = tokens[[name, "kl", "change"]].corr(method="spearman").iloc[0]
        assert one["spearman"] == pytest.approx(correlations["kl"], abs=2e-3)
        assert one["spearman_change"] == pytest.approx(correlations["change"], abs=2e-3)
        pairs = [(a > b) + 0.5 * (a == b) for a in score[depends] for b in score[~depends]]
        assert one["auc"] == pytest.approx(np.mean(pairs), abs=2e-3)


def test_every_kind_is_counted_once(small_run: Run, measured: Path) -> None:
    found = found_in(measured)
    assert sum(kind["tokens"] for kind in found["kinds"]) == found["tokens"]
    assert sum(kind["dependent"] for kind in found["kinds"]) == found["dependent"]


# The command


def test_page_plot_and_table_say_the_same(small_run: Run, measured: Path) -> None:
    found = found_in(measured)
    assert {path.name for path in measured.iterdir()} >= {"dependence.md", "dependence.json", "dependence.svg"}
    page = (measured / "dependence.md").read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(token_dependence, "THRESHOLD", found["threshold"])
        again = command(*arguments(small_run, "--tokens", TOKENS, "--out", measured))
    assert again.code == 0 and "unchanged" in again.stderr
    for score in found["scores"]:
        shown = [f"{round(score[name], 2) + 0.0:.2f}" for name in ("spearman", "spearman_change", "auc")]
        [line] = [line for line in page.splitlines() if line.startswith(f"| {score['name']} | ") and "%" in line[-9:]]
        assert [cell.strip() for cell in line.split("|")[2:5]] == shown
        assert any(line.split()[-4:-1] == shown for line in again.stdout.splitlines() if score["name"] in line)
    names = [
        one.text for one in ElementTree.parse(measured / "dependence.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"1/VGR, all layers", "entropy"} <= set(names)


def test_two_measurements_side_by_side(small_run: Run, measured: Path, tmp_path: Path) -> None:
    result = command(
        "compare-weights", "--dependence", "--rollouts", small_run.at(1) / "rollout",
        "--policy", small_run.policy(1), "--tokens", 30, "--beside", measured, "--out", tmp_path / "c",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    found, before = found_in(tmp_path / "c"), found_in(measured)
    assert found["beside"] == before
    entropies = [next(s for s in one["scores"] if s["name"] == "entropy") for one in (before, found)]
    want = [f"{round(entropy['spearman'], 2) + 0.0:.2f}" for entropy in entropies]
    page = (tmp_path / "c/dependence.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith("| entropy | ") and line.count("|") == 10]
    assert [cell.strip() for cell in line.split("|")[2:4]] == want
    assert str(small_run.policy(0)) in result.stdout and str(small_run.policy(1)) in result.stdout


def test_an_output_of_other_tokens_is_stale(small_run: Run, measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured, tmp_path / "c")
    result = command(*arguments(small_run, "--tokens", 10, "--out", tmp_path / "c"))
    assert result.code == 3 and "--overwrite" in result.stderr
    result = command(*arguments(small_run, "--tokens", 10, "--out", tmp_path / "c", "--overwrite"))
    assert result.code == 0 and found_in(tmp_path / "c")["groups"] == 1


def test_what_excludes_each_other_is_a_usage_error(small_run: Run, measured: Path, tmp_path: Path) -> None:
    weights, out = small_run.at(1) / "weights", ["--out", tmp_path / "c"]
    for wrong in (
        arguments(small_run, weights, *out),
        arguments(small_run, "--groups", 3, *out),
        arguments(small_run, *out)[:4] + out,
        ["compare-weights", weights, weights, "--tokens", 5, *out],
        ["compare-weights", weights, weights, "--beside", measured, *out],
    ):
        assert command(*wrong).code == 2
    assert not (tmp_path / "c").exists()


def test_a_comparison_of_weights_cannot_stand_beside(small_run: Run, tmp_path: Path) -> None:
    weights = small_run.at(1) / "weights"
    assert command("compare-weights", weights, weights, "--out", tmp_path / "w").code == 0
    result = command(*arguments(small_run, "--beside", tmp_path / "w", "--out", tmp_path / "c"))
    assert result.code == 3 and not (tmp_path / "c").exists()
    assert result.stderr.startswith(f"{tmp_path}/w: expected an output of compare-weights --dependence")


@pytest.mark.parametrize(
    "images, problem",
    [
        ([None, None], "no prompt has any"),
        ([b"x", None], "only one prompt has any"),
        ([b"x", b"x", b"x"], "all have the same"),
    ],
)
def test_without_images_to_exchange_nothing_is_loaded(images: list[bytes | None], problem: str) -> None:
    class Rollouts:
        folder = Path("somewhere/rollout")

        @staticmethod
        def rows(kind: str, columns: list[str]) -> list[Row]:
            assert (kind, columns) == ("prompts", ["images"])
            return [{"images": None if one is None else [{"bytes": one, "path": None}]} for one in images]

    with pytest.raises(DataError, match=f"^somewhere/rollout: expected .*, but {problem}. Pass "):
        token_dependence.check_images(Rollouts())  # type: ignore[arg-type]


def test_text_of_tokens_is_data(measured: Path) -> None:
    found = found_in(measured)
    found["texts"][0]["text"] = HOSTILE
    found |= {"policy": "<script>&", "beside": found | {"policy": HOSTILE}}
    page = dependence_document(found)
    assert "<script>" not in page.replace("\\<script", "") and "\x1b" not in page and "\n# 标题" not in page
    for part in page.split("\n\n"):  # tables whose lines have as many cells each
        widths = {line.count("|") - line.count("\\|") for line in part.splitlines() if line.startswith("|")}
        assert len(widths) <= 1
    ElementTree.fromstring(dependence_plot(found))

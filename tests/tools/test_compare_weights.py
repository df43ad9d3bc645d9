"""All weighting schemes on one rollout folder, and what compare-weights says of them."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from reporting.tiny_run import HOSTILE
from support.commands import run as command
from support.pipeline import Run, table
from support.prompts import own_row

from dapo_stages.config import ModelConfig
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.reporting.documents.weights_compared import comparison_document, comparison_plot

TEMPERATURE = 1.2  # of the small run
SCHEMES = ("uniform", "vgr", "aei", "vision_mass", "entropy", "visual_kl", "vgr_entropy", "vppo", "vepo")
SCORED = (*SCHEMES, "rollout_mass", "vision_gradient", "pgpo", "pepo", "vgpo")  # these are not compared below
OPEN = {"weights__clip": "[0.01, 9.0]"}


@pytest.fixture(scope="module")
def schemes(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights for each scheme, from one rollout folder and one attention folder."""
    here, root = small_run.at(1), tmp_path_factory.mktemp("schemes")
    small_run.command(
        "score-attention", "--policy", small_run.policy(0), "--rollouts", here / "rollout", "--blank-image",
        "--out", root / "attention", attention__rollout_mass=True, attention__vision_cosine=True,
        attention__vision_gradient=True,
    )  # fmt: skip
    for scheme in SCORED:
        weigh(small_run, root / scheme, root / "attention", scheme, **OPEN)
    return root


def weigh(run: Run, out: Path, attention: Path, scheme: str, **settings: Any) -> Path:
    run.command(
        "weight-tokens", "--rollouts", run.at(1) / "rollout", "--attention", attention, "--iteration", 1,
        "--out", out, weights__scheme=scheme, **settings,
    )  # fmt: skip
    return out


def scaled(values: Any) -> Any:
    return (values - values.min()) / (np.ptp(values) or 1.0)


def pgpo(dependence: Any) -> Any:
    return np.where(dependence < 0.4, dependence / 0.4, 1 + 2 * (dependence - 0.4) / 0.6)


def pepo(cosine: Any, mixed: Any) -> Any:
    return np.exp(cosine * (1 + 0.05 * np.tanh(mixed - mixed.mean())))


def compare(out: Path, *arguments: object) -> dict[str, Any]:
    result = command("compare-weights", *arguments, "--out", out, "--json")
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def pair_of(found: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    return next(pair for pair in found["pairs"] if {pair["a"], pair["b"]} == {a, b})


# The schemes


@pytest.mark.parametrize("scheme", SCORED)
def test_weights_are_in_the_proportion_of_the_scheme(schemes: Path, scheme: str) -> None:
    """Between the bounds, tokens of a completion weigh as its formula says, up to a common factor."""
    attention = table(schemes / "attention", "attention").set_index("completion_id")
    weights = table(schemes / scheme, "weights").set_index("completion_id")
    formulas: dict[str, Callable[[Any], Any]] = {
        "uniform": lambda row: np.ones(len(row.vgr)),
        "vgr": lambda row: 1 / row.vgr,
        "aei": lambda row: (
            (1 / (1 + row.vgr * row.num_text_tokens / row.num_vision_tokens))
            * (1 + row.num_text_tokens / row.num_vision_tokens)
        ),
        "vision_mass": lambda row: row.mass_vision,
        "entropy": lambda row: row.entropy,
        "visual_kl": lambda row: row.visual_kl,
        "vgr_entropy": lambda row: row.entropy / row.vgr,
        "vppo": lambda row: np.minimum(row.k3, 10),
        "vepo": lambda row: (
            (1 - (1 - scaled(row.jsd)) * (1 - scaled(abs(row.entropy - row.blank_entropy)))) * row.entropy
        ),
        "rollout_mass": lambda row: row.rollout_mass,
        "vision_gradient": lambda row: row.vision_gradient,
        "pgpo": lambda row: pgpo(scaled(np.log1p(row.k3))),
        "pepo": lambda row: pepo(row.vision_cosine, scaled(row.vision_cosine) + scaled(row.entropy)),
        "vgpo": lambda row: 1 + scaled(row.vision_cosine) - scaled(row.vision_cosine).mean(),
    }
    formula = formulas[scheme]
    compared = 0
    for key, row in weights.iterrows():
        raw, found = formula(attention.loc[key]), np.asarray(row.token_weights)
        assert found.mean() == pytest.approx(1, abs=1e-5)
        if not np.any(raw):
            assert (found == 1).all()
            continue
        free = (found > 0.0101) & (found < 8.99)
        factor = found[free] / raw[free]
        assert np.allclose(factor, factor.mean(), rtol=1e-4)
        compared += free.sum()
    assert compared > (0.2 if scheme == "pgpo" else 0.5) * weights.token_weights.map(len).sum()


def test_schemes_that_need_another_pass_say_which(small_run: Run, tmp_path: Path) -> None:
    here = small_run.at(1)
    for scheme, option in (("entropy", "--set attention.logprobs=true"), ("visual_kl", "--blank-image")):
        result = small_run.attempt(
            "weight-tokens", *small_run.weights_inputs(1), "--out", tmp_path / "w", weights__scheme=scheme
        )
        assert result.code == 3 and not (tmp_path / "w").exists()
        assert result.stderr.startswith(
            f"{here}/attention: no {scheme} per token, which weights.scheme={scheme} needs."
        )
        assert f"Run dapo-stages score-attention {option} " in result.stderr
        assert f"--rollouts {here}/rollout --out {here}/attention --overwrite" in result.stderr


# What is compared


@pytest.fixture(scope="module")
def compared(small_run: Run, schemes: Path) -> dict[str, Any]:
    folders = [schemes / scheme for scheme in SCHEMES]
    return compare(schemes / "comparison", *folders, "--policy", small_run.policy(0), "--groups", 3)


def tokens_in_the_loss(schemes: Path) -> pd.DataFrame:
    """A column of weights for each scheme."""
    columns = {}
    for scheme in SCHEMES:
        weights = table(schemes / scheme, "weights")
        columns[scheme] = np.concatenate(weights[weights.in_loss].token_weights.to_list()).astype(float)
    return pd.DataFrame(columns)


def test_correlations_and_spreads_are_those_of_pandas(schemes: Path, compared: dict[str, Any]) -> None:
    tokens = tokens_in_the_loss(schemes)
    assert compared["tokens"] == len(tokens) and len(compared["pairs"]) == 36
    for a, b in combinations(SCHEMES, 2):
        pair = pair_of(compared, a, b)
        if "uniform" in (a, b):
            assert pair["pearson"] is None and pair["spearman"] is None
        else:
            for name in ("pearson", "spearman"):
                assert pair[name] == pytest.approx(tokens[[a, b]].corr(method=name).iloc[0, 1], abs=1e-9)
        assert pair["mean_difference"] == pytest.approx((tokens[a] - tokens[b]).abs().mean())
    for one in compared["weights"]:
        values = tokens[one["name"]]
        assert one["std"] == pytest.approx(values.std(ddof=0), abs=1e-12)
        assert (one["min"], one["max"]) == (values.min(), values.max())
        assert one["at_low"] == pytest.approx((values <= 0.01001).mean())


def test_the_tokens_named_are_those_furthest_apart(small_run: Run, schemes: Path, compared: dict[str, Any]) -> None:
    completions = table(small_run.at(1) / "rollout", "completions").set_index("completion_id")
    weights = {name: table(schemes / name, "weights").set_index("completion_id") for name in ("vgr", "visual_kl")}
    pair = pair_of(compared, "vgr", "visual_kl")
    tokens = tokens_in_the_loss(schemes)
    in_loss = table(schemes / "vgr", "weights").query("in_loss").completion_id
    tokens["text"] = np.concatenate([completions.token_texts[key] for key in in_loss])
    tokens["apart"] = (tokens.vgr - tokens.visual_kl).abs()
    by_text = tokens.groupby("text")
    assert [abs(one["a"] - one["b"]) for one in pair["tokens"]] == pytest.approx(list(by_text.apart.max().nlargest(8)))
    for token in pair["tokens"]:
        texts, index = completions.token_texts[token["completion_id"]], token["index"]
        assert token["text"] == texts[index]
        assert token["times"] == by_text.size()[token["text"]]
        assert token["mean_a"] == pytest.approx(by_text.vgr.mean()[token["text"]])
        assert token["mean_b"] == pytest.approx(by_text.visual_kl.mean()[token["text"]])
        assert "".join(texts).find(token["before"] + token["text"] + token["after"]) >= 0
        for name, side in (("vgr", "a"), ("visual_kl", "b")):
            assert token[side] == weights[name].token_weights[token["completion_id"]][index]


def test_the_cosine_is_that_of_autograd_on_separate_rows(
    small_run: Run, schemes: Path, compared: dict[str, Any]
) -> None:
    policy = load_policy(small_run.policy(0), ModelConfig(name="embedded", dtype="float64", device="cpu"))
    policy.attend("separate")
    rollout = Source(small_run.at(1) / "rollout")
    prompts = {row["group_id"]: row for row in rollout.rows("prompts")}
    ids = {row["completion_id"]: row["completion_ids"] for row in rollout.rows("completions")}
    weights = {name: list(Source(schemes / name).rows("weights")) for name in ("vgr", "visual_kl")}
    names = list(dict.fromkeys(row["group_id"] for row in weights["vgr"] if row["in_loss"]))
    chosen = [names[index * len(names) // 3] for index in range(3)]
    gradients = []
    for rows in weights.values():
        policy.model.zero_grad()
        for row in rows:
            if not row["in_loss"] or row["group_id"] not in chosen:
                continue
            prompt = prompt_of(prompts[row["group_id"]], policy.processor)
            completion = ids[row["completion_id"]]
            logits = policy.model(**own_row(policy, prompt, completion), use_cache=False).logits[0]
            logits = logits[len(prompt.ids) - 1 : -1].masked_fill(policy.suppressed, float("-inf")) / TEMPERATURE
            logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
            (row["advantage"] * (torch.tensor(row["token_weights"], dtype=torch.float64) * logprobs).sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
    first, second = gradients
    want = torch.nn.functional.cosine_similarity(first, second, dim=0).item()
    assert compared["gradients"]["groups"] == 3
    assert want < 0.999
    assert pair_of(compared, "vgr", "visual_kl")["gradient_cosine"] == pytest.approx(want, abs=1e-5)
    norms = dict(zip(SCHEMES, compared["gradients"]["norms"], strict=True))
    assert norms["vgr"] == pytest.approx(gradients[0].norm().item(), rel=1e-5)


def test_identical_weights_agree_exactly(small_run: Run, schemes: Path, tmp_path: Path) -> None:
    shutil.copytree(schemes / "entropy", tmp_path / "copy")
    found = compare(
        tmp_path / "c", schemes / "entropy", tmp_path / "copy", "--policy", small_run.policy(0), "--groups", 2
    )
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("entropy (entropy)", "entropy (copy)")
    assert pair["pearson"] == pair["spearman"] == pair["gradient_cosine"] == 1.0
    assert pair["mean_difference"] == 0 and pair["tokens"] == []


# The command


def test_a_page_a_plot_and_a_table_say_the_same(schemes: Path, compared: dict[str, Any], tmp_path: Path) -> None:
    out = schemes / "comparison"
    assert {path.name for path in out.iterdir()} >= {"comparison.md", "comparison.json", "comparison.svg"}
    page = (out / "comparison.md").read_text(encoding="utf-8")
    plain = compare(tmp_path / "c", schemes / "vgr", schemes / "aei")
    pair = plain["pairs"][0]
    assert pair["pearson"] == pair_of(compared, "vgr", "aei")["pearson"]
    assert pair["gradient_cosine"] is None and plain["gradients"] is None
    again = command("compare-weights", schemes / "vgr", schemes / "aei", "--out", tmp_path / "c")
    assert again.code == 0 and "unchanged" in again.stderr
    for text in (page, again.stdout):
        assert f"{pair['pearson']:.3f}" in text and f"{pair['spearman']:.3f}" in text
    names = [one.text for one in ElementTree.parse(out / "comparison.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert set(SCHEMES) <= set(names)


def test_rollouts_that_moved_are_found_where_they_are_named(small_run: Run, schemes: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(small_run.at(1) / "rollout", before)
    for name in ("a", "b"):
        small_run.command(
            "weight-tokens", "--rollouts", before, "--attention", schemes / "attention", "--iteration", 1,
            "--out", tmp_path / name,
        )  # fmt: skip
    before.rename(after)
    result = command("compare-weights", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert result.code == 3 and not (tmp_path / "c").exists()
    assert result.stderr == (
        f"{before}: no output of rollout, which {tmp_path}/a was made from. Pass its folder with --rollouts DIR.\n"
    )
    assert compare(tmp_path / "c", tmp_path / "a", tmp_path / "b", "--rollouts", after)["tokens"] > 0
    other = small_run.at(2) / "rollout"
    result = command("compare-weights", tmp_path / "a", tmp_path / "b", "--rollouts", other, "--out", tmp_path / "d")
    assert result.code == 3 and "made from other rollouts" in result.stderr


def test_weights_of_other_rollouts_are_refused(small_run: Run, schemes: Path, tmp_path: Path) -> None:
    other = small_run.at(2) / "weights"
    result = command("compare-weights", schemes / "vgr", other, "--out", tmp_path / "c")
    assert result.code == 3 and not (tmp_path / "c").exists()
    assert result.stderr.startswith(f"{other}/manifest.json: was made from other rollouts (")


def test_a_single_folder_is_a_usage_error(schemes: Path, tmp_path: Path) -> None:
    assert command("compare-weights", schemes / "vgr", "--out", tmp_path / "c").code == 2


def test_text_of_tokens_is_data() -> None:
    token = {"text": HOSTILE, "before": "| <b>", "after": "`", "a": 2.0, "b": 0.5, "completion_id": HOSTILE, "index": 0}
    token |= {"times": 3, "mean_a": 1.5, "mean_b": 1.0}
    spread = dict.fromkeys(("mean", "std", "min", "max", "at_low", "at_high"), 1.0)
    found = {
        "completions": 1,
        "tokens": 1,
        "gradients": None,
        "weights": [{"name": name, **spread, "quantiles": [0.5, 1.0, 2.0]} for name in ("<script>&", "b")],
        "pairs": [
            {"a": "<script>&", "b": "b", "pearson": 0.5, "spearman": None, "mean_difference": 1.5,
             "gradient_cosine": None, "tokens": [token]}
        ],
    }  # fmt: skip
    page = comparison_document(found)
    assert "<script>" not in page.replace("\\<script", "") and "\x1b" not in page and "\n# 标题" not in page
    assert all(line.count("|") - line.count("\\|") == 8 for line in page.splitlines() if "标题" in line and "⟦" in line)
    for part in page.split("\n\n"):  # tables whose lines have as many cells each
        widths = {line.count("|") - line.count("\\|") for line in part.splitlines() if line.startswith("|")}
        assert len(widths) <= 1
    ElementTree.fromstring(comparison_plot(found))


def test_the_plan_knows_what_decides_the_result(schemes: Path, compared: dict[str, Any]) -> None:
    made = Source(schemes / "comparison", "compare-weights").manifest
    assert set(made.inputs) == {*(f"weights-{number}" for number in range(1, 10)), "rollouts", "policy"}
    inputs = {name: Source(Path(given.path)) for name, given in made.inputs.items()}
    assert Plan(made.stage, schemes / "comparison", made.config, made.seed, inputs).state() == "complete"

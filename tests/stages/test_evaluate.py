"""evaluate: the figures are those of the rows."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import machine
from support.pipeline import Run, table
from support.server import FakeServer
from support.updates import TINY

from dapo_stages.config import SamplerConfig
from dapo_stages.data.images import decode, encode
from dapo_stages.engines.transformers_engine import generate
from dapo_stages.errors import InterruptedStage
from dapo_stages.groups.answer_metrics import metrics
from dapo_stages.groups.answer_tallies import OTHER, Tallies, by_slices
from dapo_stages.handoff.manifests import Source, read_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.maths.question_statistics import METHOD
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.tokens import Tokens
from dapo_stages.reporting.documents.markdown import eval_fragment
from dapo_stages.reporting.iteration.figures import collect


def test_metrics_are_means_of_the_rows(small_run: Run) -> None:
    folder = small_run.at(2) / "eval"
    rows, found = table(folder, "completions"), json.loads((folder / "metrics.json").read_text())
    assert found["questions"] == 12 == rows.prompt_id.nunique()
    by_mode = rows.groupby("mode").reward_accuracy.mean()
    assert found["greedy_accuracy"] == pytest.approx(by_mode["greedy"])
    assert found["sampled_accuracy"] == pytest.approx(by_mode["sample"])
    assert found["blank_accuracy"] == pytest.approx(by_mode["blank"])
    sampled = rows[rows["mode"] == "sample"]
    assert len(sampled) == 12 * 2
    assert found["sampled_format"] == pytest.approx(sampled.reward_format.mean())
    formed = sampled[sampled.reward_format == 1]
    assert found["sampled_accuracy_well_formed"] == (
        pytest.approx(formed.reward_accuracy.mean()) if len(formed) else None
    )


def test_slices_are_reported_apart(small_run: Run) -> None:
    folder = small_run.at(2) / "eval"
    rows, found = table(folder, "completions"), json.loads((folder / "metrics.json").read_text())
    assert set(found["by_slice"]) == {"prior-consistent", "prior-violating"} == set(rows.slice)
    for name, part in rows[rows["mode"] == "greedy"].groupby("slice"):
        assert found["by_slice"][name]["greedy_accuracy"] == pytest.approx(part.reward_accuracy.mean())
        assert found["slices"][name] == len(part)


def test_a_part_of_the_questions_without_samples(small_run: Run, tmp_path: Path) -> None:
    small_run.command(
        "evaluate", "--policy", small_run.policy(1), "--data", small_run.folder / "data", "--out", tmp_path / "e",
        evaluate__max_questions=5, evaluate__num_generations=0, evaluate__blank_image="false",
    )  # fmt: skip
    found = json.loads((tmp_path / "e/metrics.json").read_text())
    assert found["questions"] == 5 and found["sampled_accuracy"] is None and found["blank_accuracy"] is None
    assert set(table(tmp_path / "e", "completions")["mode"]) == {"greedy"}


# Figures of several samples, against subsets of the rows


def test_pass_and_majority_are_those_of_the_rows(evaluated: Path) -> None:
    rows, found = table(evaluated, "completions"), metrics_of(evaluated)
    sampled = [part for _, part in rows[rows["mode"] == "sample"].groupby("prompt_id")]
    assert {len(part) for part in sampled} == {4}
    for k in (1, 2, 4):
        passed, won = [], []
        for part in sampled:
            answers = list(zip(part.answer, part.reward_accuracy, strict=True))
            subsets = list(combinations(answers, k))
            passed.append(sum(any(right for _, right in subset) for subset in subsets) / len(subsets))
            won.append(sum(map(share_of_the_right, subsets)) / len(subsets))
        assert found["pass_at_k"][str(k)] == pytest.approx(sum(passed) / len(passed))
        assert found["majority_at_k"][str(k)] == pytest.approx(sum(won) / len(won))
    assert found["pass_at_k"]["1"] == found["majority_at_k"]["1"] == pytest.approx(found["sampled_accuracy"])
    assert list(found["pass_at_k"]) == list(found["majority_at_k"]) == ["1", "2", "4"]

    assert 0 < found["majority_at_k"]["4"] < found["pass_at_k"]["4"] < 1


def share_of_the_right(answers: tuple[tuple[str | None, float], ...]) -> float:
    """Of the answers that most samples give: 1, a share of a tie, or 0."""
    votes = Counter(answer for answer, _ in answers if isinstance(answer, str))
    leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
    right = {answer for answer, correct in answers if correct}
    return len(right & set(leaders)) / len(leaders) if leaders else 0.0


def test_strict_answers_and_where_they_were_read(evaluated: Path) -> None:
    rows, found = table(evaluated, "completions"), metrics_of(evaluated)
    for mode, name in (("greedy", "greedy"), ("sample", "sampled")):
        part = rows[rows["mode"] == mode]
        strict = part.text.str.fullmatch(r"(?s)\s*<think>.*</think>\s*<answer>.*\S.*</answer>\s*") & (
            part.reward_accuracy == 1
        )
        assert found[f"{name}_strict_accuracy"] == pytest.approx(strict.mean())
        shares = part.read_from.value_counts(normalize=True)
        assert found["read_from"][name] == pytest.approx({place: shares.get(place, 0.0) for place in PLACES})
        tagged = part.text.str.contains(r"<answer>\s*[A-D]\s*</answer>", regex=True)
        assert tagged.any() and (part[tagged].read_from == "tags").all()
        assert (part[part.read_from == "none"].answer.isna()).all()
    assert (
        found["sampled_strict_accuracy"] <= found["sampled_accuracy"]
    )  # which solutions there are depends on the seed
    assert sum(found["read_from"]["sampled"].values()) == pytest.approx(1)


def test_the_prior_share_is_what_survives_without_the_image(evaluated: Path) -> None:
    found = metrics_of(evaluated)
    greedy, blank = found["greedy_accuracy"], found["blank_accuracy"]
    assert found["chance_accuracy"] == 0.25  # four options, embedded task
    assert found["prior_share"] == (pytest.approx(blank / greedy) if greedy else None)
    above = found["prior_share_above_chance"]
    assert above == (pytest.approx((blank - 0.25) / (greedy - 0.25)) if greedy > 0.25 else None)


def counted(
    *questions: Mapping[str, float | None],
    options: int | None = 4,
    resamples: int = 500,
    ill_formed: Collection[int] = (),
) -> dict[str, Any]:
    """The figures of questions that say which mode was right; `ill_formed` are numbers of questions."""
    tallies = Tallies()
    for number, question in enumerate(questions):
        for mode, right in question.items():
            tallies.add(
                {
                    "prompt_id": str(number), "slice": "", "labels": None, "num_options": options, "solution": "A",
                    "mode": mode, "num_tokens": 3, "reward_accuracy": right, "answer": None,
                    "reward_format": float(number not in ill_formed), "read_from": "none",
                }
            )  # fmt: skip
    tallies.settle()
    return metrics(tallies.questions, resamples=resamples, confidence=0.9, seed=0)


def test_strict_accuracy_worked_by_hand() -> None:
    """Of three samples two are right, and one of these is well-formed."""
    found = counted({"sample": 1.0}, {"sample": 1.0}, {"sample": 0.0}, ill_formed=[1])
    assert found["sampled_accuracy"] == pytest.approx(2 / 3)
    assert found["sampled_strict_accuracy"] == pytest.approx(1 / 3)
    assert found["sampled_accuracy_well_formed"] == pytest.approx(1 / 2)


def test_the_prior_share_worked_by_hand() -> None:
    """Greedily 4 of 5 right, 2 of 5 without the image: a half; above chance (.4 - .25) / (.8 - .25)."""
    greedy, blank = [1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0]
    found = counted(*({"greedy": g, "blank": b} for g, b in zip(greedy, blank, strict=True)))
    assert found["prior_share"] == 0.5
    assert found["prior_share_above_chance"] == pytest.approx(0.15 / 0.55)
    assert found["sampled_accuracy"] is None and found["sampled_strict_accuracy"] is None


def test_there_is_no_prior_share_without_right_answers_or_options() -> None:
    found = counted({"greedy": 0.0, "blank": 1.0}, {"greedy": 0.0, "blank": 1.0})
    assert found["prior_share"] is None and found["prior_share_above_chance"] is None
    found = counted({"greedy": 1.0, "blank": 1.0}, {"greedy": 1.0, "blank": 0.0}, options=None)
    assert found["prior_share"] == 0.5 and found["chance_accuracy"] is None
    assert found["prior_share_above_chance"] is None
    assert counted({"greedy": 1.0}, {"greedy": 1.0})["prior_share"] is None


def test_the_prior_share_is_paired() -> None:
    """Blank answers are right exactly where greedy ones are, in 20 questions: only one more, right with the image
    or without it, moves the share from 1, to S / (S + 1) or (S + 1) / S of the 20 questions' weight S. The first is
    Beta(20, 1), whose quantile of .05 is .05^(1/20)."""
    found = counted(*({"greedy": float(n % 2), "blank": float(n % 2)} for n in range(40)), resamples=20_000)
    low = 0.05 ** (1 / 20)
    assert found["intervals"]["prior_share"] == pytest.approx([low, 1 / low], abs=0.005)


@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_32_of_32_right_still_allow_for_wrong_ones(mode: str) -> None:
    """The interval of Clopper and Pearson: .05^(1/32) is the share under which 32 of 32 have a probability of .05."""
    figure = {"greedy": "greedy_accuracy", "sample": "sampled_accuracy"}[mode]
    one, none = (counted(*({mode: right} for _ in range(32))) for right in (1.0, 0.0))
    assert one["intervals"][figure] == pytest.approx([0.05 ** (1 / 32), 1], abs=1e-6)
    assert none["intervals"][figure] == pytest.approx([0, 1 - 0.05 ** (1 / 32)], abs=1e-6)
    if mode == "sample":
        assert one["intervals"]["pass_at_k"]["1"] == one["intervals"][figure]
    assert one["intervals"]["mean_tokens"] == [3, 3]


def test_an_evaluation_of_nothing_has_no_figures() -> None:
    found = counted()
    assert found["questions"] == 0 and found["greedy_accuracy"] is None and found["by"] == {}


def test_rare_values_of_a_slice_come_together() -> None:
    tallies = Tallies()
    for number in range(100):
        tallies.add(
            {
                "prompt_id": str(number), "slice": f"s{max(number, 30):03d}", "labels": None, "num_options": None,
                "solution": "x", "mode": "greedy", "num_tokens": 3, "reward_accuracy": 1.0, "reward_format": 1.0,
                "answer": "x", "read_from": "tags",
            }
        )  # fmt: skip
    found = by_slices(tallies.questions)["slice"]
    assert len(found) == 65 and len(found["s030"]) == 31 and len(found[OTHER]) == 6
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(100))


# Slices and intervals


def test_other_columns_are_slices_too(evaluated: Path) -> None:
    rows, found = table(evaluated, "completions"), metrics_of(evaluated)
    greedy = rows[rows["mode"] == "greedy"]
    shapes = greedy.labels.map(lambda text: json.loads(text)["shape"])
    assert set(found["by"]) == {"num_options", "shape", "solution_letter"}
    assert set(found["by"]["shape"]) == set(shapes) <= {"circle", "square", "triangle", "diamond"}
    for shape, part in greedy.groupby(shapes):
        assert found["by"]["shape"][shape]["questions"] == len(part)
        assert found["by"]["shape"][shape]["greedy_accuracy"] == pytest.approx(part.reward_accuracy.mean())
    for letter, part in greedy.groupby("solution"):
        assert found["by"]["solution_letter"][letter]["greedy_accuracy"] == pytest.approx(part.reward_accuracy.mean())
    assert found["by"]["num_options"]["4"]["questions"] == 12


def test_every_figure_lies_in_its_interval(evaluated: Path) -> None:
    found = metrics_of(evaluated)
    assert found["interval"] == {"confidence": 0.95, "resamples": 2000, "over": "questions", "method": METHOD}
    seen = 0
    for part in (found, *found["by_slice"].values(), *found["by"]["shape"].values()):
        for value, interval in pairs(part, part["intervals"]):
            seen += interval is not None
            assert interval is None or interval[0] - 1e-6 <= value <= interval[1] + 1e-6
            assert value is not None or interval is None
    assert seen > 30


def pairs(figures: dict[str, Any], intervals: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Each figure with its interval, which stands at the same place."""
    for name, interval in intervals.items():
        if isinstance(interval, dict):
            yield from pairs(figures[name], interval)
        else:
            yield figures[name], interval


def test_the_report_shows_the_intervals(evaluated: Path) -> None:
    source, found = Source(evaluated, "evaluate"), metrics_of(evaluated)
    shown = eval_fragment(collect(3, {"eval": source}), source, 0)
    low, high = (100 * end for end in found["intervals"]["sampled_accuracy"])
    cell = f"{100 * found['sampled_accuracy']:.1f}% ({low:.1f}–{high:.1f})"
    assert f"| {cell} |" in shown and f"- pass@k: k = 1 {cell}, k = 2 " in shown
    assert "- sampled answers read: in <answer> " in shown
    assert "In brackets: 95% intervals over questions (Clopper-Pearson for one answer a question, " in shown
    old = {**found, "interval": {"confidence": 0.95, "resamples": 2000, "over": "questions"}}
    shown = eval_fragment({"iteration": 3, "eval": old}, source, 0)
    assert "In brackets: 95% intervals over questions (percentile bootstrap)." in shown


# Commands


def test_the_flag_answers_without_the_image_whatever_is_configured(small_run: Run, tmp_path: Path) -> None:
    inputs = ["--policy", small_run.policy(1), "--data", small_run.folder / "data"]
    few = {"evaluate__max_questions": 3, "evaluate__num_generations": 0}
    for flag, configured, expected in (("--blank-image", "false", 2), ("--no-blank-image", "true", 1)):
        out = tmp_path / flag
        small_run.command("evaluate", *inputs, "--out", out, flag, evaluate__blank_image=configured, **few)
        assert table(out, "completions")["mode"].nunique() == expected
        assert (metrics_of(out)["blank_accuracy"] is None) == (expected == 1)


def test_answers_are_those_of_a_pass_for_each_mode(small_run: Run) -> None:
    """Greedily, by samples, and over gray images: what is computed together changes nothing."""
    rows = table(small_run.at(2) / "eval", "completions").set_index("completion_id")
    policy = load_policy(small_run.policy(2), TINY)
    questions = list(Source(small_run.folder / "data").rows("held_out"))
    gray = []
    for question in questions:
        sizes = [decode(image).size for image in question["images"]]
        images = [Image.new("RGB", size, (127, 127, 127)) for size in sizes]
        gray.append(question | {"images": [{"bytes": encode(image)} for image in images]})
    seed = int(np.random.SeedSequence([machine.seed(), 0, 0]).generate_state(1)[0])
    for mode, asked, samples in (("greedy", questions, 0), ("sample", questions, 2), ("blank", gray, 0)):
        prompts = [prompt_of(row, policy.processor) for row in asked]
        sampler = SamplerConfig(temperature=1.2)
        found = generate(policy, prompts, samples, 32, sampler, seed, greedy=int(not samples))
        for question, completions in zip(questions, found, strict=True):
            for sample, one in enumerate(completions):
                row = rows.loc[f"{question['prompt_id']}-{mode}-{sample:03d}"]
                assert list(row.completion_ids) == one.ids
                assert list(row.sampling_logprobs) == pytest.approx(one.logprobs, abs=1e-6)
    assert len(rows) == 12 * 4


def test_the_default_engine_is_not_recorded(small_run: Run) -> None:
    """So that evaluations from before there was a choice keep their hashes."""
    assert "engine" not in Source(small_run.at(2) / "eval").manifest.config["evaluate"]


def test_a_sampler_of_its_own(small_run: Run, tmp_path: Path) -> None:
    """Ours decodes as far as it says and with it; the sampler of rollout, 1.2 and 32 tokens, has no part in it."""
    inputs = ["--policy", small_run.policy(2), "--data", small_run.folder / "data", "--out", tmp_path / "e"]
    own = {"evaluate__sampler": "{temperature: 0.4, top_p: 0.6}", "evaluate__max_completion_length": 5}
    small_run.command("evaluate", *inputs, evaluate__max_questions=6, evaluate__blank_image="true", **own)
    rows = table(tmp_path / "e", "completions")
    assert rows.num_tokens.max() == 5 and set(rows["mode"]) == {"greedy", "sample", "blank"}
    policy = load_policy(small_run.policy(2), TINY)
    questions = list(Source(small_run.folder / "data").rows("held_out"))[:6]
    seed = int(np.random.SeedSequence([machine.seed(), 0, 0]).generate_state(1)[0])
    prompts = [prompt_of(row, policy.processor) for row in questions]
    found = generate(policy, prompts, 2, 5, SamplerConfig(temperature=0.4, top_p=0.6), seed, greedy=1)
    written = {row.completion_id: list(row.completion_ids) for row in rows.itertuples()}
    for question, (greedy, *samples) in zip(questions, found, strict=True):
        assert written[f"{question['prompt_id']}-greedy-000"] == greedy.ids
        assert [written[f"{question['prompt_id']}-sample-{i:03d}"] for i in range(2)] == [one.ids for one in samples]
    recorded = Source(tmp_path / "e").manifest.config
    assert "rollout.sampler" not in recorded and recorded["evaluate"]["sampler"]["top_p"] == 0.6
    before = Source(small_run.at(2) / "eval").manifest.config  # as evaluations from before had it
    assert before["rollout.sampler"]["temperature"] == 1.2
    assert before["evaluate"].keys().isdisjoint({"sampler", "max_completion_length"})


def test_a_server_answers(small_run: Run, tmp_path: Path) -> None:
    """It is asked greedily and for samples, and greedily over gray images; its tokens become the rows."""
    inputs = ["--policy", small_run.policy(2), "--data", small_run.folder / "data", "--out", tmp_path / "e"]
    few = {"evaluate__max_questions": 3, "evaluate__blank_image": "true", "evaluate__num_generations": 2}
    own: dict[str, object] = {"evaluate__sampler": "{temperature: 0.7}", "evaluate__max_completion_length": 7}
    with FakeServer(small_run.policy(2)) as server:
        small_run.command("evaluate", *inputs, evaluate__engine="server", engines__server__url=server.url, **few, **own)
    assert {request["max_completion_tokens"] for request in server.requests} == {7}
    rows = table(tmp_path / "e", "completions")
    assert Counter(rows["mode"]) == {"greedy": 3, "sample": 6, "blank": 3}
    assert Source(tmp_path / "e").manifest.config["evaluate"]["engine"] == "server"
    greedy = [request for request in server.requests if request["temperature"] == 0]
    samples = [request for request in server.requests if request["temperature"] == 0.7]
    assert [request["n"] for request in greedy] == [1] * 6 and [request["n"] for request in samples] == [2] * 3
    written = Counter(
        tuple(one["token_ids"]) for request in server.requests for one in server._completions(request)["choices"]
    )
    assert Counter(map(tuple, rows.completion_ids)) == written
    colors = [images(request)[0].getextrema() for request in greedy]
    assert sum(found == ((127, 127),) * 3 for found in colors) == 3


def images(request: dict[str, Any]) -> list[Image.Image]:
    """Those that a request to a server shows."""
    urls = [part["image_url"]["url"] for m in request["messages"] for part in m["content"] if "image_url" in part]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def test_vllm_that_is_not_there_says_where_it_would_be(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it fails, installed or not
    inputs = ["--policy", small_run.policy(2), "--data", small_run.folder / "data", "--out", tmp_path / "e"]
    result = small_run.attempt("evaluate", *inputs, evaluate__engine="vllm")
    assert result.code == 3 and "evaluate.engine: cannot import vllm in this Python environment" in result.stderr
    assert "EVALUATE_PYTHON=.venv-vllm/bin/python" in result.stderr


def test_a_killed_evaluation_carries_on_to_the_same_figures(
    evaluated: Path, sliced: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Output.write

    def once(output: Output, kind: str, index: int | None, rows: Any) -> None:
        if index == 2:
            raise InterruptedStage("here")
        write(output, kind, index, rows)

    monkeypatch.setattr(Tokens, "text", texts_in_turn())
    monkeypatch.setattr(Output, "write", once)
    command = ["evaluate", *EVALUATED, "--out", tmp_path / "e"]
    inputs = ["--policy", sliced.policy(0), "--data", sliced.folder / "data"]
    assert sliced.attempt(*command, *inputs).code == 130
    assert (tmp_path / "e/completions-00001.parquet").exists() and not (tmp_path / "e/metrics.json").exists()
    monkeypatch.setattr(Output, "write", write)
    sliced.command(*command, *inputs)
    assert (tmp_path / "e/metrics.json").read_bytes() == (evaluated / "metrics.json").read_bytes()
    assert read_manifest(tmp_path / "e").content_hash == read_manifest(evaluated).content_hash
    assert '"unchanged"' in sliced.command(*command, *inputs, "--json").stdout


EVALUATED = (
    "--set", "evaluate.num_generations=4", "--set", "evaluate.questions_per_shard=5",
    "--set", "rewards.truncated_answers=any",  # the lengths are not those of the texts
)  # fmt: skip
PLACES = ("tags", "stated", "lone", "unclosed", "none")


@pytest.fixture(scope="module")
def sliced(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The policy of a run, and its questions with a further column."""
    folder = tmp_path_factory.mktemp("sliced")
    (folder / "policy").symlink_to(small_run.folder / "policy")
    run = Run(folder, (*small_run.settings, "data.columns.slices=[shape]"))
    run.command("prepare-data", "--policy", folder / "policy", "--out", folder / "data")
    return run


@pytest.fixture(scope="module")
def evaluated(sliced: Run) -> Path:
    """Its evaluation, four samples a question, as if it wrote what TEXTS has."""
    inputs = ["--policy", sliced.policy(0), "--data", sliced.folder / "data"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tokens, "text", texts_in_turn())
        sliced.command("evaluate", *EVALUATED, *inputs, "--out", sliced.folder / "eval")
    return sliced.folder / "eval"


# The policy of these tests has learned nothing yet: its completions are taken for these texts, one after the other.
TEXTS = (
    *(f"<think>x</think><answer>{letter}</answer>" for letter in "ABCDABCD"),
    "<answer>A</answer>", "So the answer is B.", "<answer>C", "A or B?", "<answer>A or B</answer>", "", "It is (d)",
    "<think>It is red.\nC",
)  # fmt: skip


def texts_in_turn() -> Callable[[Tokens, list[int]], str]:
    texts = cycle(TEXTS)
    return lambda tokens, ids: next(texts)


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found

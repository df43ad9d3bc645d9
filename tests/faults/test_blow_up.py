"""A numerical blow-up: the update is skipped, bitwise, or the run halted, the last policy kept, the reason said.

Everything is provoked from outside: poisoned weights, logprobs, gradients and rewards, learning rates beyond reason.
Where the guard can be switched off, each case is shown to do its harm then.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from reporting import tiny_run
from safetensors.torch import load_file, save_file
from support.commands import Result, run
from support.pipeline import Run, metrics
from support.updates import train_groups, trainer_of

from dapo_stages.config import GuardSettings, TrainConfig
from dapo_stages.handoff.manifests import Manifest, Source, content_hash, read_manifest, write_manifest
from dapo_stages.handoff.shards import describe_file
from dapo_stages.models.policy import Policy
from dapo_stages.reporting.documents.markdown import rollout_fragment
from dapo_stages.reporting.iteration.figures import collect
from dapo_stages.reporting.page.curves import curves
from dapo_stages.training.batches import MiniBatch, mini_batch
from dapo_stages.training.blow_ups import REASONS
from dapo_stages.training.update import Trainer
from faults.table import record

OFF: dict[str, Any] = {"max_grad_norm": None, "max_log_ratio": None, "no_signal": "train"}
# Tests that show what the guard leaves alone, and how its numbers are computed and shown: no blow-ups that are stopped.
OTHERS = (
    "test_without_the_guard",
    "test_what_an_older",
    "test_equal_rewards_leave",
    "test_the_log_ratio",
    "test_status",
)
tried: set[str] = set()


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    yield
    record(18, len(tried), "updates skipped bitwise, or runs halted with the last policy kept")


@pytest.fixture(autouse=True)
def _noted(request: pytest.FixtureRequest) -> None:
    if not request.node.name.startswith(OTHERS):
        tried.add(request.node.name)


# ---- One update ------------------------------------------------------------------------------------------------------


@dataclass
class Training:
    """A policy that has made one good update, so that there are moments to lose, and the next mini-batch."""

    trainer: Trainer
    policy: Policy
    work: MiniBatch

    def parameter(self) -> torch.nn.Parameter:
        named = self.policy.model.named_parameters()
        found: torch.nn.Parameter = next(
            p for name, p in named if name.endswith("language_model.layers.0.mlp.up_proj.weight")
        )
        return found

    def everything(self) -> dict[str, bytes]:
        """Weights, moments and their steps, byte for byte: NaN differs from NaN otherwise."""
        worker = self.trainer.worker
        found = {f"{name}/{key}": value for name in worker.trained for key, value in worker.state_of(name).items()}
        return {name: value.numpy().tobytes() for name, value in (found | self.policy.model.state_dict()).items()}


def training(checkpoint: Path, *, guard: dict[str, Any] | None = None, **settings: Any) -> Training:
    config = TrainConfig(learning_rate=1e-4, guard=GuardSettings(**guard or {}), **settings)
    trainer, policy = trainer_of(checkpoint, config)

    def work() -> MiniBatch:
        made = mini_batch(train_groups(policy)[:-1], 4)
        for batch in made.batches:
            batch.old = trainer.logprobs(batch)
            batch.reference = batch.old - 0.1
        return made

    assert trainer.update(work(), 1.0)["skipped"] == 0
    return Training(trainer, policy, work())


def broken_weight(value: float) -> Callable[[Training], None]:
    def poison(case: Training) -> None:
        with torch.no_grad():
            case.parameter()[0, 0] = value

    return poison


def broken_gradient(case: Training) -> None:
    case.parameter().register_hook(lambda gradient: gradient * math.inf)


def advantages(value: float) -> Callable[[Training], None]:
    def poison(case: Training) -> None:
        for batch in case.work.batches:
            for sample in batch.samples:
                sample.advantage = value

    return poison


def old_logprobs(case: Training) -> None:
    old = case.work.batches[-1].old
    assert old is not None
    old[0] = math.nan


def sampling_logprobs(value: float, tokens: int) -> Callable[[Training], None]:
    def poison(case: Training) -> None:
        for batch in case.work.batches[:1] if tokens == 1 else case.work.batches:
            for sample in batch.samples:
                sample.sampling = [value] * tokens + list(sample.sampling)[tokens:]
                sample.sampling = sample.sampling[: len(sample.ids)]

    return poison


def huge_step(case: Training) -> None:
    """A step of a learning rate of 10, which is that of a broken configuration; the clip does not bound it."""
    assert case.trainer.update(case.work, 1e5)["skipped"] == 0


CASES: dict[str, tuple[str, Callable[[Training], None], dict[str, Any]]] = {
    "a weight is NaN": ("non_finite", broken_weight(math.nan), {}),
    "a weight is infinite": ("non_finite", broken_weight(math.inf), {}),
    "a weight is NaN, top-entropy tokens only": ("non_finite", broken_weight(math.nan), {"top_entropy_quantile": 0.5}),
    "a weight is NaN, Muon": ("non_finite", broken_weight(math.nan), {"optimizer": "muon"}),
    "the gradient alone is infinite": ("non_finite", broken_gradient, {}),
    "the loss overflows": ("non_finite", advantages(1e38), {}),
    "an old logprob is NaN": ("non_finite", old_logprobs, {}),
    "the gradient explodes": ("grad_norm", advantages(1e12), {}),
    "the ratio explodes": ("ratio", huge_step, {}),
    "the ratio of sequences explodes": ("ratio", huge_step, {"loss_type": "gspo"}),
    "the ratio explodes under CISPO": ("ratio", huge_step, {"loss_type": "cispo"}),
    "logprobs of the engine are of something else": ("engine_ratio", sampling_logprobs(-60.0, 99), {}),
    "a logprob of the engine is infinite": ("engine_ratio", sampling_logprobs(math.inf, 1), {}),
    "all rewards are equal": ("no_signal", advantages(0.0), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_update_that_has_blown_up_is_skipped_and_changes_nothing(checkpoint: Path, name: str) -> None:
    reason, poison, settings = CASES[name]
    case = training(checkpoint, **settings)
    poison(case)
    before = case.everything()
    assert any(key.endswith(("exp_avg", "momentum_buffer")) for key in before)
    found = case.trainer.update(case.work, 1.0)
    assert found["skipped"] == 1 and [key for key in found if key.startswith("skipped_")] == [f"skipped_{reason}"]
    assert case.everything() == before
    assert all(parameter.grad is None for parameter in case.policy.model.parameters())


@pytest.mark.parametrize("name", [name for name, (reason, _, _) in CASES.items() if reason != "non_finite"])
def test_without_the_guard_the_same_update_is_made(checkpoint: Path, name: str) -> None:
    _, poison, settings = CASES[name]
    case = training(checkpoint, guard=OFF, **settings)
    poison(case)
    before = case.everything()
    assert case.trainer.update(case.work, 1.0)["skipped"] == 0
    assert case.everything() != before


def test_the_update_after_a_skipped_one_goes_on_from_before_it(checkpoint: Path) -> None:
    disturbed, undisturbed = training(checkpoint), training(checkpoint)
    good = [sample.advantage for batch in disturbed.work.batches for sample in batch.samples]
    advantages(math.nan)(disturbed)
    assert disturbed.trainer.update(disturbed.work, 1.0)["skipped"] == 1
    for sample, value in zip((s for b in disturbed.work.batches for s in b.samples), good, strict=True):
        sample.advantage = value
    for case in (disturbed, undisturbed):
        assert case.trainer.update(case.work, 1.0)["skipped"] == 0
    assert disturbed.everything() == undisturbed.everything()


def test_what_an_older_policy_sampled_may_differ(checkpoint: Path) -> None:
    case = training(checkpoint)
    sampling_logprobs(-60.0, 99)(case)
    for batch in case.work.batches:
        for sample in batch.samples:
            sample.lag = 3
    assert case.trainer.update(case.work, 1.0)["skipped"] == 0


def test_equal_rewards_leave_the_kl_term_its_update(checkpoint: Path) -> None:
    case = training(checkpoint, beta=0.1)
    advantages(0.0)(case)
    assert case.trainer.update(case.work, 1.0)["skipped"] == 0


def test_the_log_ratio_is_its_mean_size_over_tokens(checkpoint: Path) -> None:
    """Old logprobs 3 nats above the present ones for half of the completions, 1 below for the rest: by hand."""
    case = training(checkpoint, guard=OFF)
    apart, tokens = 0.0, 0
    for number, batch in enumerate(case.work.batches):
        assert batch.old is not None
        batch.old += 3.0 if number == 0 else -1.0
        apart, tokens = apart + batch.rows * (3.0 if number == 0 else 1.0), tokens + batch.rows
    assert case.trainer.update(case.work, 1.0)["log_ratio_mean"] == pytest.approx(apart / tokens, rel=1e-5)


# ---- The stage -------------------------------------------------------------------------------------------------------


def train(small_run: Run, out: Path, *more: object, number: int = 1, **settings: object) -> Result:
    return small_run.attempt("train-step", *small_run.train_inputs(number), *more, "--out", out, **settings)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_halted(result: Result, out: Path, *said: str) -> None:
    """Exit code 5, the problem and what to do; nothing published, the reason beside the metrics so far."""
    assert result.code == 5, result.stderr
    message = result.stderr.splitlines()[-1]
    assert [part for part in said if part not in message] == [], message
    assert "run the same command again" in message and "Traceback" not in result.stderr
    assert not (out / "manifest.json").exists() and not (out / "policy").exists() and not (out / "state").exists()
    assert json.loads((out / ".partial-halted.json").read_text())["why"] == message
    assert (out / "metrics.parquet").exists()


def rewritten(folder: Path, **changes: Any) -> Manifest:
    """Publish a folder again as it is now."""
    made = read_manifest(folder)
    shards = [describe_file(folder, folder / s.name) if s.rows is None else s for s in made.shards]
    made = made.model_copy(update={"shards": shards, **changes})
    made = made.model_copy(update={"content_hash": content_hash(made.stage, made.config, made.seed, made.shards)})
    write_manifest(folder, made)
    return made


def test_a_learning_rate_beyond_reason_halts_and_another_one_carries_on(small_run: Run, tmp_path: Path) -> None:
    out, policy = tmp_path / "t", small_run.policy(0)
    first, again = (train(small_run, out, train__learning_rate=1.0) for _ in range(2))
    for result in (first, again):
        needed = f"{out}: update 1 has a mean abs(log-ratio) of ", "max_log_ratio=5 nats", f"{policy} stays"
        assert_halted(result, out, *needed, "Lower train.learning_rate", "run the same command again.")
    found = metrics(out)
    assert found.skipped.tolist() == [0, 1] and found.skipped_ratio[1] == 1 and found.log_ratio_mean[1] > 5
    trained = train(small_run, out)
    assert trained.code == 0, trained.stderr
    assert Source(out).manifest.content_hash == Source(small_run.at(1) / "train").manifest.content_hash
    assert not (out / ".partial-halted.json").exists()


def test_a_halt_leaves_the_output_that_was_to_be_replaced(small_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "t"
    assert train(small_run, out).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert train(small_run, out, "--overwrite", train__learning_rate=1.0).code == 5
    assert {path: path.read_bytes() for path in before} == before
    assert train(small_run, out).code == 0


def test_the_same_may_be_skipped_instead_and_metrics_and_report_say_so(small_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "t"
    result = train(small_run, out, train__learning_rate=1.0, train__guard__ratio="skip")
    assert result.code == 0 and f"train-step: skipped update 1: {REASONS['ratio']}\n" in result.stderr
    found = metrics(out)
    assert found.skipped.tolist() == [0, 1] and found.skipped_ratio[1] == 1
    counts = Source(out).manifest.counts
    assert (counts["skipped"], counts["guard"]["ratio"], counts["guard"]["skipped_in_a_row"]) == (1, 1, 1)
    figures = collect(1, {"train": Source(out)})
    assert f"\n1 of 2 updates were skipped (1: {REASONS['ratio']}).\n" in rollout_fragment(figures, [])
    (chart,) = [chart for chart in curves([figures], {}) if chart.title == "Skipped updates"]
    assert chart.series[0].points == [(1.0, 0.5)]
    healthy = collect(1, {"train": Source(small_run.at(1) / "train")})
    assert "skipped" not in rollout_fragment(healthy, [])
    assert "Skipped updates" not in [chart.title for chart in curves([healthy], {})]


def test_skipped_updates_are_counted_over_iterations_until_they_halt(small_run: Run, tmp_path: Path) -> None:
    """Every gradient is above the limit. Two updates per iteration, three may be skipped in a row."""
    limits: dict[str, Any] = {"train__guard__max_grad_norm": 1e-9, "train__guard__max_skipped": 3}
    assert train(small_run, tmp_path / "one", **limits).code == 0
    before, after = weights_of(small_run.policy(0)), weights_of(tmp_path / "one/policy")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert metrics(tmp_path / "one").skipped_grad_norm.tolist() == [1, 1]
    second = small_run.attempt(
        "train-step", "--policy", tmp_path / "one/policy", *small_run.train_inputs(2)[2:],
        "--state", tmp_path / "one/state", "--out", tmp_path / "two", **limits,
    )  # fmt: skip
    assert_halted(second, tmp_path / "two", "skipped 4 updates in a row", "max_skipped=3", str(tmp_path / "one/policy"))
    afresh = train(small_run, tmp_path / "three", number=2, **limits)  # without a state nothing is known of before
    assert afresh.code == 0, afresh.stderr


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_policy_whose_weights_are_broken_is_named(small_run: Run, tmp_path: Path, value: float) -> None:
    """It is bad input, found when it is loaded. Under ZeRO-3, where no rank has them whole, the guard finds it."""
    broken, out = tmp_path / "policy", tmp_path / "t"
    shutil.copytree(small_run.policy(0), broken)
    weights = weights_of(broken)
    weights[next(name for name in weights if name.endswith("mlp.up_proj.weight"))][0, 0] = value
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    rewritten(broken)
    result = small_run.attempt("train-step", "--policy", broken, *small_run.train_inputs(1)[2:], "--out", out)
    assert (result.code, result.stdout) == (3, "") and "Traceback" not in result.stderr
    assert f"{broken}: NaN or infinity in tensor model.language_model.layers.0.mlp.up_proj" in result.stderr
    assert not out.exists()


def test_weights_that_the_last_update_broke_are_not_published(small_run: Run, tmp_path: Path) -> None:
    """A weight of 1 is decayed to -3.3e38; a step of 3e37 more is beyond float32."""
    beyond: dict[str, Any] = {
        "train__learning_rate": 3e37,
        "train__weight_decay": 11,
        "train__updates_per_iteration": 1,
    }
    result = train(small_run, tmp_path / "t", **beyond)
    assert_halted(result, tmp_path / "t", "weights are NaN or infinite after 1 updates")


@pytest.mark.parametrize(
    ("reason", "settings", "said"),
    [
        ("grad_norm", {"max_grad_norm": 1e-9}, "update 0 has a gradient norm of "),
        ("no_signal", {}, "no completion is in the loss, because rewards do not differ within any group"),
    ],
)
def test_a_policy_of_halting_halts_at_once(
    small_run: Run, tmp_path: Path, reason: str, settings: dict[str, object], said: str
) -> None:
    """For equal rewards: completions are rewarded by nothing."""
    inputs = small_run.train_inputs(1)
    if reason == "no_signal":
        constant: dict[str, object] = {"weights__reward_weights": "{accuracy: 0, vgr: 0, format: 0, overlong: 0}"}
        constant["weights__early_fraction"] = 0.0
        small_run.command("weight-tokens", *small_run.weights_inputs(1), "--out", tmp_path / "w", **constant)
        inputs = [*inputs[:4], "--weights", tmp_path / "w"]
    guard = {f"train__guard__{key}": value for key, value in {reason: "halt", **settings}.items()}
    result = small_run.attempt("train-step", *inputs, "--out", tmp_path / "t", **guard)
    assert_halted(result, tmp_path / "t", said)


@pytest.mark.parametrize("filtered", ["reward", "none"])
def test_equal_rewards_keep_the_policy(small_run: Run, tmp_path: Path, filtered: str) -> None:
    constant: dict[str, object] = {"weights__reward_weights": "{accuracy: 0, vgr: 0, format: 0, overlong: 0}"}
    constant |= {"weights__early_fraction": 0.0, "weights__filter": filtered}
    small_run.command("weight-tokens", *small_run.weights_inputs(2), "--out", tmp_path / "w", **constant)
    result = small_run.attempt(
        "train-step", *small_run.train_inputs(2)[:4], "--weights", tmp_path / "w",
        "--state", small_run.at(1) / "train/state", "--out", tmp_path / "t",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    before, after = weights_of(small_run.policy(1)), weights_of(tmp_path / "t/policy")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    if filtered == "none":
        assert metrics(tmp_path / "t").skipped_no_signal.tolist() == [1, 1]
        assert Source(tmp_path / "t").manifest.counts["guard"]["skipped_in_a_row"] == 0


@pytest.mark.parametrize(
    ("what", "sampler", "least"),
    [
        # At a temperature of 10 a policy writes noise; few completions end within four tokens.
        ("well-formed completions", {"rollout__sampler__temperature": 10.0}, 0.02),
        (
            "completions that end by themselves",
            {"rollout__max_completion_length": 4, "rewards__overlong_cache": 2},
            0.4,
        ),
    ],
)
def test_a_format_that_collapses_halts_the_run(
    small_run: Run, tmp_path: Path, what: str, sampler: dict[str, object], least: float
) -> None:
    rollout, state = tmp_path / "rollout", tmp_path / "state"
    small_run.command("rollout", *small_run.rollout_inputs(2), "--out", rollout, **sampler)
    scored = ["--rollouts", rollout, "--out", tmp_path / "a"]
    small_run.command("score-attention", "--policy", small_run.policy(1), *scored)
    weighed = ["--rollouts", rollout, "--attention", tmp_path / "a", "--iteration", 2, "--out", tmp_path / "w"]
    small_run.command("weight-tokens", *weighed)
    shutil.copytree(small_run.at(1) / "train/state", state)
    known = read_manifest(state).counts
    known["guard"] = {**known["guard"], "best": {what: 0.9}}  # what a run has that had learned it
    rewritten(state, counts=known)
    inputs = ["--policy", small_run.policy(1), "--rollouts", rollout, "--weights", tmp_path / "w", "--state", state]
    limit = {"train__guard__collapse_below": least}
    result = small_run.attempt("train-step", *inputs, "--out", tmp_path / "t", **limit)
    found = f"{what}, below train.guard.collapse_below={least}, while an earlier iteration had 90.0%. "
    assert_halted(result, tmp_path / "t", f"{rollout}: only ", found)
    off = small_run.attempt("train-step", *inputs, "--out", tmp_path / "t", train__guard__collapse_below="null")
    assert off.code == 0, off.stderr
    known["guard"]["best"] = {what: 0.4}
    rewritten(state, counts=known)  # a policy that never had it may go on learning it
    never = small_run.attempt("train-step", *inputs, "--out", tmp_path / "u", **limit)
    assert never.code == 0, never.stderr


def test_status_and_report_say_why_a_run_was_halted(tmp_path: Path) -> None:
    made = tiny_run.build(tmp_path / "run", last="weights")
    train_folder = made / "iter-0002/train"
    train_folder.mkdir()
    (train_folder / ".partial-halted.json").write_text(json.dumps({"why": "train: is \x1b[31m9, above 5. Fix it."}))
    told = run("status", "--run", made).stdout
    assert "iteration 2, train is halted: train: is ␛[31m9, above 5. Fix it.\n" in told
    assert "Next (iteration 2, train: halted; first do what its reason says):" in told and "--overwrite" not in told
    said = json.loads(run("status", "--run", made, "--json").stdout)
    assert said["iterations"][2]["stages"]["train"]["state"] == "halted"
    reported = run("report", "--config", made / "config.yaml", "--run", made, "--set", "report.trackers=[]")
    assert "iteration 2, train is halted: train: is ␛[31m9" in reported.stdout, reported.stderr

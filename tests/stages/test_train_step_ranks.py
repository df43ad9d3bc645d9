"""train-step in two processes, really launched: the same gradients and policies as in one, states that fit anywhere.

A launch takes seconds to start, so each does all it can (support/launched.py), and the tests look at what it left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.commands import ROOT
from support.families import OTHER
from support.launched import KILLED
from support.pipeline import CONFIG, Run, metrics
from support.updates import POISONED, SETTINGS, TINY, steps

from dapo_stages.handoff.manifests import Source
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.planning.stage_costs import state_traffic, traffic
from dapo_stages.training.launching.rank_workers import Worker
from dapo_stages.training.optimizers import Optimizers
from dapo_stages.training.state import load_state

ALL = ["updates", "halved", "chain", "carried", "lora"]
# Name -> configuration of accelerate, processes, and what is done inside.
PARTS = {
    "zero2": ("zero2-cpu", 2, [*ALL, "family"]),
    "zero2-overlapping": ("zero2-cpu", 2, ["updates"]),  # with the settings of a file
    "zero2-low": ("zero2-cpu", 2, ["traffic", "bfloat16"]),  # accelerate keeps to the type of the first part
    "ddp": ("ddp-cpu", 2, [*ALL, "again"]),
    "zero3": ("zero3-cpu", 2, [*ALL, "family"]),
    "zero3-of-3": ("zero3-cpu", 3, ["carried"]),  # 3 does not divide the size of most weights
    "zero3-low": ("zero3-cpu", 3, ["traffic", "bfloat16"]),
    "fsdp2": ("ddp-cpu", 2, ["sharded", *ALL, "family"]),
}
# Rows of their own; and linear layers, of which ZeRO-3 and FSDP2 split weights that no module of their own reads.
FAMILY = {"zero2": OTHER, "zero3": "qwen3_5", "fsdp2": "qwen3_5"}
ROUNDED = {"zero2": 1e-9, "zero3": 1e-8, "fsdp2": 1e-8}  # of 1.7: linear layers have two gradients that are nearly 0
SLOW = [pytest.param(launch, marks=pytest.mark.slow) for launch in ("zero3", "fsdp2")]
OVERLAPPING = pytest.param("zero2-overlapping", marks=pytest.mark.slow)
LAUNCHES = ["zero2", "ddp", *SLOW]
LOW = [pytest.param(launch, marks=pytest.mark.slow) for launch in ("zero2-low", "zero3-low")]
OF_3 = pytest.param("zero3-of-3", marks=pytest.mark.slow)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="session")
def outputs(
    small_run: Run, checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """By launch: the folder that its processes filled."""
    made: dict[str, Path] = {}

    def of(launch: str) -> Path:
        if launch not in made:
            made[launch] = tmp_path_factory.mktemp(launch)
            if launch == "ddp":
                kill_a_rank(small_run, made[launch] / "killed")
            config, processes, parts = PARTS[launch]
            parts = [f"family:{checkpoints(FAMILY[launch])}" if part == "family" else part for part in parts]
            script = [
                ROOT / "tests/support/launched.py",
                made[launch],
                checkpoints("qwen2_5_vl"),
                small_run.folder,
                *parts,
            ]
            done = subprocess.run(
                [
                    *launcher("accelerate.commands.launch", config, made[launch] if "overlapping" in launch else None),
                    f"--num_processes={processes}",
                    *(str(part) for part in script),
                ],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT},
                timeout=600,
            )
            assert done.returncode == 0, done.stderr[-4000:]
        return made[launch]

    return of


@pytest.fixture(scope="session")
def third(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third train-step of the single process, on the data of the first."""
    out = tmp_path_factory.mktemp("third") / "train"
    data = small_run.at(1)
    small_run.command(
        "train-step", "--policy", small_run.policy(2), "--rollouts", data / "rollout", "--weights", data / "weights",
        "--state", small_run.at(2) / "train/state", "--out", out,
    )  # fmt: skip
    return out


def launcher(module: str, launch: str, overlapping: Path | None = None) -> list[str]:
    """What starts several processes; in a folder, with settings of DeepSpeed as docs/parallel.md has them."""
    file = ROOT / f"pipelines/accelerate/{launch}.yaml"
    if overlapping is not None:
        page = (ROOT / "docs/parallel.md").read_text(encoding="utf-8")
        (settings,) = re.findall(r'`(\{"zero_optimization": .*\})`', page)
        (overlapping / "my.json").write_text(settings)
        named = {"deepspeed_config": {"deepspeed_config_file": str(overlapping / "my.json")}}
        own = yaml.safe_load(file.read_text(encoding="utf-8")) | named
        del own["mixed_precision"]
        file = overlapping / "launch.yaml"
        file.write_text(yaml.safe_dump(own))
    return [sys.executable, "-m", module, "--config_file", str(file)]


def train_step(launch: str, run: Run, settings: list[str], out: Path) -> list[str]:
    """The command on the data of iteration 1, as `dapo_stages.entrypoints.launch` starts it in several processes."""
    sets = [word for setting in [*run.settings, *settings] for word in ("--set", setting)]
    words = ["train-step", "--config", CONFIG, *sets, *run.train_inputs(1), "--out", out]
    return [*launcher("dapo_stages.entrypoints.launch", launch), *map(str, words)]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def tensors_of(state: Path) -> dict[str, torch.Tensor]:
    files = [load_file(path) for path in state.glob("*.safetensors")]
    return {name: value for file in files for name, value in file.items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    found: float = float(sum((one[name].double() - other[name].double()).pow(2).sum() for name in one)) ** 0.5
    return found


@pytest.mark.parametrize("launch", [*LAUNCHES, OVERLAPPING])
@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_gradients_before_clipping_are_those_of_one_process(
    outputs: Callable[[str], Path], checkpoint: Path, launch: str, number: int
) -> None:
    """With completions of unequal length, a group without image, and a masked one that one process leaves out.

    A step that is not finite is skipped by all alike, and the next one goes on from before it.
    """
    folder = outputs(launch)
    for step, (_, wanted, gradients) in enumerate(steps(checkpoint, number)):
        measured = json.loads((folder / f"metrics-{number}-{step}.json").read_text())
        assert measured["skipped"] == wanted["skipped"] == ((number, step) == POISONED)
        if wanted["skipped"]:
            assert measured["skipped_non_finite"] == wanted["skipped_non_finite"] == 1
            continue
        found = load_file(folder / f"gradients-{number}-{step}.safetensors")
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), (name, step)
        assert measured == pytest.approx(wanted, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_gradients_may_be_added_up_in_bfloat16(outputs: Callable[[str], Path], checkpoint: Path, launch: str) -> None:
    """Each addend and the sum of two are rounded to 8 bits: off by about 2^-9 of it, where float32 gives 1e-5."""
    _, _, gradients = next(steps(checkpoint, 0))
    found = load_file(outputs(launch) / "halved.safetensors")
    off = sum(float((found[name] - wanted).pow(2).sum()) for name, wanted in gradients.items())
    whole = sum(float(wanted.pow(2).sum()) for wanted in gradients.values())
    assert 2**-12 < (off / whole) ** 0.5 < 2**-7


@pytest.mark.parametrize("launch", ["zero2", *SLOW])
def test_gradients_of_other_families_are_exchanged_in_the_same_order_by_all(
    outputs: Callable[[str], Path], checkpoints: Callable[[str], Path], launch: str
) -> None:
    """ZeRO-2 adds up what is complete at the same time; a rank that begins without an image would differ."""
    folder = outputs(launch)
    for step, (_, _, gradients) in enumerate(steps(checkpoints(FAMILY[launch]), 0)):
        found = load_file(folder / f"family-{step}.safetensors")
        for name, gradient in gradients.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + ROUNDED[launch], (name, step)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_three_chained_train_steps_give_the_policy_of_one_process(
    outputs: Callable[[str], Path], small_run: Run, third: Path, launch: str
) -> None:
    folder = outputs(launch)
    start, one = weights_of(small_run.policy(0)), weights_of(third / "policy")
    ranks = weights_of(folder / "train-3/policy")
    assert distance(ranks, one) <= 1e-4 * distance(start, one)
    alone, together = metrics(third), metrics(folder / "train-3")
    assert together.grad_norm.to_numpy() == pytest.approx(alone.grad_norm.to_numpy(), rel=1e-3)
    assert together.tokens.tolist() == alone.tokens.tolist()


@pytest.mark.parametrize("launch", [*LAUNCHES, OF_3])
def test_ranks_carry_on_from_the_state_of_one(outputs: Callable[[str], Path], small_run: Run, launch: str) -> None:
    one = weights_of(small_run.policy(2))
    found = weights_of(outputs(launch) / "carried/policy")
    assert distance(found, one) <= 1e-4 * distance(weights_of(small_run.policy(1)), one)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_one_process_carries_on_from_the_state_of_two(
    outputs: Callable[[str], Path], small_run: Run, tmp_path: Path, launch: str
) -> None:
    before = outputs(launch) / "train-1"
    small_run.command(
        "train-step", "--policy", before / "policy", "--rollouts", small_run.at(2) / "rollout",
        "--weights", small_run.at(2) / "weights", "--state", before / "state", "--out", tmp_path / "t",
    )  # fmt: skip
    one = weights_of(small_run.policy(2))
    found = weights_of(tmp_path / "t/policy")
    assert distance(found, one) <= 1e-4 * distance(weights_of(small_run.policy(1)), one)
    files = {shard.name for shard in Source(before / "state", "state").manifest.shards}
    assert {"optimizer-00000-00000.safetensors", "optimizer-00001-00000.safetensors", "state.json"} == files


@pytest.mark.parametrize("launch", LOW)
def test_ranks_send_as_much_as_plan_says(outputs: Callable[[str], Path], checkpoint: Path, launch: str) -> None:
    """Gradients in float32 whatever the weights are in, under ZeRO-2 all-reduced for every micro-batch; norms, sums of
    metrics and what fills up the parts come on top."""
    found = json.loads((outputs(launch) / "traffic.json").read_text())
    parallel, ranks = launch.partition("-")[0], PARTS[launch][1]
    trained = sum(value.numel() for value in weights_of(checkpoint).values())
    assert found["micro-batches"] > 1
    planned = traffic(parallel, trained, trained, found["micro-batches"], 0, ranks, 2)
    assert found["update"] == pytest.approx(planned, rel=0.05)
    assert found["state"] == pytest.approx(state_traffic(parallel, 3 * 4 * trained, ranks), rel=0.05)


@pytest.mark.parametrize("launch", LOW)
def test_bfloat16_keeps_exact_weights_in_the_state_and_a_skipped_step_changes_nothing(
    outputs: Callable[[str], Path], launch: str
) -> None:
    """The logprobs of one rank are not numbers, or far off, which clamps keep out of its gradient; all ranks skip."""
    folder = outputs(launch)
    first, second = (tensors_of(folder / name) for name in ("low-1/state", "low-2/state"))
    for name, reason in (("low-skipped", "skipped_non_finite"), ("low-ratio", "skipped_ratio")):
        kept, found = tensors_of(folder / name), json.loads((folder / f"{name}.json").read_text())
        assert found["skipped"] == found[reason] == 1
        assert kept.keys() == second.keys()
        assert [key for key in kept if not torch.equal(kept[key], second[key])] == []
    for state, steps_done in ((first, 2), (second, 4)):
        assert {float(value) for name, value in state.items() if name.endswith("/step")} == {steps_done}

    def short(name: str) -> str:  # in memory the parts of the model have other names than in a checkpoint
        return name.removeprefix("model.").removeprefix("language_model.")

    masters = {short(name)[: -len("/master")]: value for name, value in second.items() if name.endswith("/master")}
    policy = {short(name): value for name, value in weights_of(folder / "low-2/policy").items()}
    assert policy.keys() == masters.keys() and {value.dtype for value in masters.values()} == {torch.float32}
    for name, value in policy.items():
        assert torch.equal(value, masters[name].bfloat16()), name
    assert any(not torch.equal(value.float(), masters[name]) for name, value in policy.items())


@pytest.mark.parametrize("launch", LAUNCHES)
def test_moments_gathered_from_ranks_are_those_of_one_process(
    outputs: Callable[[str], Path], checkpoint: Path, launch: str
) -> None:
    *_, (trainer, _, _) = steps(checkpoint, 0)
    policy = load_policy(checkpoint, TINY)
    settings = trainer._settings
    loaded = Worker(GroupLogprobs(policy, 1.0), Optimizers(policy.model, settings), settings)
    load_state(loaded, outputs(launch) / "state")
    for name in loaded.trained:
        found, wanted = loaded.state_of(name), trainer.worker.state_of(name)
        assert found["step"] == wanted["step"] == 3
        for key in ("exp_avg", "exp_avg_sq"):
            assert (found[key] - wanted[key]).norm() <= 1e-4 * wanted[key].norm(), (name, key)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_adapters_and_the_kl_term_in_two_processes(
    outputs: Callable[[str], Path], small_run: Run, launch: str, tmp_path: Path
) -> None:
    before, folder = small_run.policy(0), outputs(launch)
    settings = {
        "train__lora": "{rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}",
        "train__beta": 0.1,
        "train__reference_update_every": 2,
    }
    more = ["--reference", before]
    small_run.command("train-step", *small_run.train_inputs(1), *more, "--out", tmp_path / "one", **settings)
    small_run.command(
        "train-step", "--policy", tmp_path / "one/policy", "--state", tmp_path / "one/state", *more,
        "--rollouts", small_run.at(2) / "rollout", "--weights", small_run.at(2) / "weights",
        "--out", tmp_path / "two", **settings,
    )  # fmt: skip
    wanted, found = (
        load_file(where / "policy/adapter_model.safetensors") for where in (tmp_path / "two", folder / "lora-2")
    )
    assert distance(found, wanted) <= 1e-3 * distance({name: 0 * v for name, v in wanted.items()}, wanted)
    start, wanted, found = (weights_of(of) for of in (before, tmp_path / "two/reference", folder / "lora-2/reference"))
    assert 0 < distance(found, wanted) <= 1e-3 * distance(start, wanted)
    assert metrics(folder / "lora-2").kl.to_numpy() == pytest.approx(metrics(tmp_path / "two").kl.to_numpy(), rel=1e-3)


def kill_a_rank(run: Run, out: Path) -> None:
    """SIGKILL for rank 1 in the middle of a train-step, as a machine that runs out of memory does it."""
    command = train_step("ddp-cpu", run, KILLED, out)
    launched = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **ENVIRONMENT})
    said = []
    assert launched.stderr is not None
    for line in launched.stderr:
        said.append(line)
        if "old logprobs" in line:  # now it updates
            break
    (victim,) = (child for child in psutil.Process(launched.pid).children() if child.environ().get("RANK") == "1")
    victim.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    rest = launched.communicate(timeout=120)[1]
    (out.parent / "killed.json").write_text(
        json.dumps(
            {
                "code": launched.returncode,
                "seconds": time.monotonic() - killed,
                "stderr": "".join(said) + rest,
                "published": (out / "manifest.json").exists(),
            }
        )
    )


def test_a_killed_rank_ends_the_step_and_the_same_command_mends_it(outputs: Callable[[str], Path]) -> None:
    folder = outputs("ddp")
    killed = json.loads((folder / "killed.json").read_text())
    assert killed["code"] not in (0, None) and killed["seconds"] < 60 and not killed["published"]
    assert "rank 1 was killed by SIGKILL" in killed["stderr"] and "Traceback" not in killed["stderr"]
    resumed, undisturbed = (Source(folder / name, "train-step").manifest for name in ("killed", "undisturbed"))
    assert resumed.content_hash == undisturbed.content_hash


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["zero2", "zero3"])
def test_a_gradient_that_deepspeed_tells_too_late_halts_the_launch(small_run: Run, launch: str, tmp_path: Path) -> None:
    """Its engine clips and steps at once, so an update over the limit cannot be skipped; it is not published either."""
    command = train_step(f"{launch}-cpu", small_run, ["train.guard.max_grad_norm=1e-9"], tmp_path / "train")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 5, done.stderr[-4000:]
    said = [line for line in done.stderr.splitlines() if "which this launch cannot skip" in line]
    assert len(said) == 1 and ", above train.guard.max_grad_norm=1e-09. Nothing is published" in said[0]
    assert not list(tmp_path.rglob("manifest.json")) and "Traceback" not in done.stderr

"""What the tests of several ranks do inside a launch: `accelerate launch … launched.py OUT CHECKPOINT RUN`.

Starting takes most of the time, so one launch does it all. OUT gets, from rank 0, gradients and metrics of the updates
of `support.updates`, a state to carry on from elsewhere, and the outputs of train-steps on the small run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KILLED = ["train.batch_completions=1", "train.updates_per_iteration=4"]  # long enough to be interrupted
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main(out: Path, checkpoint: Path, run: Path, *parts: str) -> None:
    from dapo_stages.processes import collectives
    from support import machine

    machine.set_threads()
    list_no_files_of_others()
    if "sharded" in parts:  # accelerate knows no FSDP2 on CPUs, torch does
        from dapo_stages.training.launching import frameworks, fsdp

        vars(frameworks)["Replicated"] = fsdp.Sharded
        parts = tuple(part for part in parts if part != "sharded")
    for part in parts:
        name, _, other = part.partition(":")  # a part may have a checkpoint of its own
        PARTS[name](out, Path(other) if other else checkpoint, run)
    collectives.leave()  # as cli.py: a thread that talks while Python shuts down would end in std::terminate


def list_no_files_of_others() -> None:
    """As on a network's folder, whose listing may be old: what other ranks wrote can be opened, but is not listed."""
    mine = f"optimizer-{int(os.environ['RANK']):05d}-"
    for how in ("glob", "rglob", "iterdir"):
        everything = getattr(Path, how)

        def listed(self: Path, *args: Any, everything: Any = everything, **options: Any) -> Iterator[Path]:
            for path in everything(self, *args, **options):
                if not path.name.startswith("optimizer-") or path.name.startswith(mine):
                    yield path

        setattr(Path, how, listed)


def updates(out: Path, checkpoint: Path, run: Path) -> None:
    """Gradients of every step; the state after one of the runs."""
    from safetensors.torch import save_file

    from dapo_stages.training.state import save_state
    from support.updates import SETTINGS, steps

    for number in range(len(SETTINGS)):
        for step, (trainer, metrics, gradients) in enumerate(steps(checkpoint, number)):
            if trainer.worker.rank == 0:
                out.mkdir(parents=True, exist_ok=True)
                save_file(gradients, out / f"gradients-{number}-{step}.safetensors")
                (out / f"metrics-{number}-{step}.json").write_text(json.dumps(metrics))
        if number == 0:
            save_state(trainer.worker, out / "state")


def halved(out: Path, checkpoint: Path, run: Path) -> None:
    """Gradients that were added up in bfloat16, of one step."""
    import torch
    from safetensors.torch import save_file

    from dapo_stages.training.launching import frameworks
    from support.updates import TINY, steps

    def begin_anew() -> None:  # accelerate keeps DeepSpeed's settings
        frameworks.leave(frameworks.join(TINY, torch.device("cpu")))

    begin_anew()
    trainer, _, gradients = next(steps(checkpoint, 0, reduce_dtype="bfloat16"))
    if trainer.worker.rank == 0:
        save_file(gradients, out / "halved.safetensors")
    begin_anew()


def family(out: Path, checkpoint: Path, run: Path) -> None:
    """Gradients of a model of another family."""
    from safetensors.torch import save_file

    from support.updates import steps

    for step, (trainer, _, gradients) in enumerate(steps(checkpoint, 0)):
        if trainer.worker.rank == 0:
            save_file(gradients, out / f"family-{step}.safetensors")


def chain(out: Path, checkpoint: Path, run: Path) -> None:
    """Three train-steps, each with the state of the one before."""
    before = run / "policy"
    for number, data in enumerate((1, 2, 1), start=1):
        state = out / f"train-{number - 1}/state" if number > 1 else None
        train_step(run, data, out / f"train-{number}", policy=before, state=state)
        before = out / f"train-{number}/policy"


def carried(out: Path, checkpoint: Path, run: Path) -> None:
    """Resume from a single process's state."""
    policy = run / "iter-0001/train"
    train_step(run, 2, out / "carried", policy=policy / "policy", state=policy / "state")


def bfloat16(out: Path, checkpoint: Path, run: Path) -> None:
    """Two train-steps, and two updates that are skipped: logprobs of one rank are not numbers, or far off. The states
    after each of them."""
    import math

    import torch

    from dapo_stages.config import TrainConfig
    from dapo_stages.training.batches import mini_batch
    from dapo_stages.training.state import load_state, save_state
    from support.updates import TINY, train_groups, trainer_of

    low = ["model.dtype=bfloat16"]
    train_step(run, 1, out / "low-1", policy=run / "policy", settings=low)
    train_step(run, 2, out / "low-2", policy=out / "low-1/policy", state=out / "low-1/state", settings=low)
    model = TINY.model_copy(update={"dtype": "bfloat16"})
    trainer, policy = trainer_of(out / "low-2/policy", TrainConfig(), model)
    worker = trainer.worker
    load_state(worker, out / "low-2/state")
    share = mini_batch(train_groups(policy), 4, ranks=worker.ranks, rank=worker.rank)
    for name, value in (("low-skipped", math.nan), ("low-ratio", -200.0)):
        if worker.rank == 0:
            share.batches[0].old = torch.full((share.batches[0].rows,), value)
        metrics = trainer.update(share, 1.0)
        save_state(worker, out / name)
        if worker.rank == 0:
            (out / f"{name}.json").write_text(json.dumps(metrics))


def traffic(out: Path, checkpoint: Path, run: Path) -> None:
    """Bytes that a rank sends for an update in bfloat16, and to put a state together."""
    from dapo_stages import ranks
    from dapo_stages.config import TrainConfig
    from dapo_stages.training.batches import mini_batch
    from dapo_stages.training.launching import zero
    from support.traffic import Sent
    from support.updates import TINY, train_groups, trainer_of

    sent = Sent(ranks.count())
    configure = zero._configure

    def as_if_large(plugin: Any, settings: TrainConfig, *, low: bool) -> None:
        """ZeRO-3 keeps up to so many weights together that a small model is gathered once."""
        configure(plugin, settings, low=low)
        limits = ("max_live_parameters", "max_reuse_distance", "param_persistence_threshold", "prefetch_bucket_size")
        plugin.deepspeed_config["zero_optimization"] |= {f"stage3_{limit}": 0 for limit in limits}

    zero._configure = as_if_large
    trainer, policy = trainer_of(checkpoint, TrainConfig(), TINY.model_copy(update={"dtype": "bfloat16"}))
    worker = trainer.worker
    share = mini_batch(train_groups(policy), 2, ranks=worker.ranks, rank=worker.rank)
    trainer.update(share, 1.0)  # some weights are gathered for good in the first one
    sent.clear()
    trainer.update(share, 1.0)
    update = sent.clear()
    for name in worker.trained:
        worker.state_of(name)
    zero._configure = configure
    if worker.rank == 0:
        found = {"update": update, "state": sent.clear(), "micro-batches": len(share.batches)}
        out.mkdir(parents=True, exist_ok=True)
        (out / "traffic.json").write_text(json.dumps(found))


def lora(out: Path, checkpoint: Path, run: Path) -> None:
    """An adapter, and a second step on it."""
    settings = ["train.lora={rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}", "train.beta=0.1"]
    settings += ["train.reference_update_every=2"]
    more: dict[str, Any] = {"settings": settings, "reference": run / "policy"}
    train_step(run, 1, out / "lora-1", policy=run / "policy", **more)
    train_step(run, 2, out / "lora-2", policy=out / "lora-1/policy", state=out / "lora-1/state", **more)


def again(out: Path, checkpoint: Path, run: Path) -> None:
    """The step that was killed, and the same undisturbed."""
    for name in ("killed", "undisturbed"):
        train_step(run, 1, out / name, policy=run / "policy", settings=KILLED)


def train_step(
    run: Path,
    data: int,
    out: Path,
    *,
    policy: Path,
    state: Path | None = None,
    reference: Path | None = None,
    settings: list[str] | None = None,
) -> None:
    """The command's function: its process goes on afterwards."""
    from dapo_stages.stages import train_step
    from support.pipeline import CONFIG, SMALL

    here = run / f"iter-{data:04d}"
    train_step.main(
        config_file=CONFIG,
        policy=policy,
        rollouts=here / "rollout",
        weights=here / "weights",
        out=out,
        state=state,
        reference=reference,
        set_=[*SMALL, *(settings or [])],
    )


PARTS = {part.__name__: part for part in (updates, halved, family, chain, carried, bfloat16, traffic, lora, again)}

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])

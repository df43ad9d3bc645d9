"""When train-step halts: skipped updates are counted, and the run is halted when continuing is useless.

A halted step publishes nothing, so the policy before it stays the last one, and the same command halts again until
something is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dapo_stages.config import GuardSettings
from dapo_stages.errors import HaltedError
from dapo_stages.handoff.outputs import Output
from dapo_stages.terminal.console import say
from dapo_stages.training.blow_ups import REASONS, reason_of

if TYPE_CHECKING:
    from dapo_stages.training.launching.rank_workers import Worker

_NORMAL = 0.5  # share of well-formed (or finished) completions that a policy must have had before it can collapse
_SLOWER = "Lower train.learning_rate or train.updates_per_iteration"
_ADVICE = {  # by reason
    "non_finite": f"{_SLOWER}, or set model.dtype=float32",
    "grad_norm": f"{_SLOWER}, or raise the limit",
    "ratio": f"{_SLOWER}, or raise the limit",
    "engine_ratio": "Serve this policy with the engine and sample again (rollout --overwrite), or raise the limit",
    "no_signal": "Change weights.reward_weights or the data, or set train.guard.no_signal=skip",
}


class Guard:
    """The counts of a run that each train-step passes to the next, in the manifest of its state."""

    def __init__(self, output: Output, settings: GuardSettings) -> None:
        inputs = output.plan.inputs
        before = inputs["state"].manifest.counts.get("guard", {}) if "state" in inputs else {}
        self._output, self._settings = output, settings
        self._policy, self._rollouts = inputs["policy"].folder, inputs["rollouts"]
        self._in_a_row = int(before.get("skipped_in_a_row", 0))
        sampled = self._rollouts.manifest.counts
        self._shares = {
            "well-formed completions": sampled.get("format"),
            "completions that end by themselves": None if "truncated" not in sampled else 1 - sampled["truncated"],
        }
        self._best = {
            name: max(before.get("best", {}).get(name, 0.0), share)
            for name, share in self._shares.items()
            if share is not None
        }
        self._skipped: dict[str, int] = {}
        self._applied = 0

    def check_rollouts(self) -> None:
        """Halt if the policy that sampled has lost a format that it had. Raises HaltedError."""
        least = self._settings.collapse_below
        for name, share in self._shares.items():
            if least is not None and share is not None and share < least and self._best[name] >= _NORMAL:
                raise HaltedError(
                    self._rollouts.folder,
                    f"only {share:.1%} {name}, below train.guard.collapse_below={least:g}, while an earlier iteration "
                    f"had {self._best[name]:.1%}",
                    "The policy that sampled them is damaged. Remove the folders of the iterations after the last good "
                    "policy, lower train.learning_rate, and run the same command again; or set "
                    "train.guard.collapse_below=null.",
                )

    def check_signal(self, groups: int) -> None:
        """Halt, if configured so, when no completion is in the loss. Raises HaltedError."""
        if not groups and self._settings.no_signal == "halt":
            raise self._halted(
                "no completion is in the loss, because rewards do not differ within any group (train.guard.no_signal)",
                _ADVICE["no_signal"],
            )

    def judge(self, update: int, metrics: Mapping[str, float], worker: Worker) -> None:
        """Count a skipped update, and halt if the settings say so. All ranks call it. Raises HaltedError."""
        reason, settings = reason_of(metrics), self._settings
        if reason is None:
            self._in_a_row, self._applied = 0, self._applied + 1
            return
        symptom = _symptom(reason, metrics, settings)
        if reason == "non_finite":
            self.check_weights(worker)
        if getattr(settings, reason.removeprefix("engine_")) == "halt":
            raise self._halted(f"update {update} has {symptom}", _ADVICE[reason])
        if not metrics["skipped"]:  # DeepSpeed
            raise self._halted(f"update {update}, which this launch cannot skip, has {symptom}", _ADVICE[reason])
        say(f"train-step: skipped update {update}: {REASONS[reason]}")
        self._skipped[reason] = self._skipped.get(reason, 0) + 1
        self._in_a_row += reason != "no_signal"
        if settings.max_skipped is not None and self._in_a_row > settings.max_skipped:
            raise self._halted(
                f"skipped {self._in_a_row} updates in a row, more than train.guard.max_skipped={settings.max_skipped}, "
                f"and the last one has {symptom}",
                _ADVICE[reason],
            )

    def check_weights(self, worker: Worker) -> None:
        """Halt if a weight is not finite: no later update repairs it. All ranks call it. Raises HaltedError."""
        if worker.is_sound():
            return
        if self._applied:
            raise self._halted(f"weights are NaN or infinite after {self._applied} updates", _ADVICE["non_finite"])
        raise HaltedError(
            self._policy,
            "weights are NaN or infinite",
            "Download or make this policy again, or use an earlier one, and run the same command again.",
        )

    def counts(self) -> dict[str, Any]:
        """What the manifest records: `skipped` by reason, and under `guard` what the next train-step needs to know."""
        skipped = {"skipped": sum(self._skipped.values())} if self._skipped else {}
        return {**skipped, "guard": {"skipped_in_a_row": self._in_a_row, "best": self._best} | self._skipped}

    def _halted(self, problem: str, advice: str) -> HaltedError:
        kept = f"Nothing is published; {self._policy} stays the last policy. {advice}, and run the same command again."
        return HaltedError(self._output.plan.out, problem, kept)


def _symptom(reason: str, metrics: Mapping[str, float], settings: GuardSettings) -> str:
    """What is wrong with an update, and the limit: the end of `update 1 has …`."""
    norm = metrics["grad_norm"]
    if reason == "non_finite":
        limit = "but both must be finite (train.guard.non_finite)"
        return f"a loss of {metrics['loss']:g} and a gradient norm of {norm:g}, {limit}"
    if reason == "grad_norm":
        return f"a gradient norm of {norm:.3g}, above train.guard.max_grad_norm={settings.max_grad_norm:g}"
    if reason == "no_signal":
        return "advantages that are all 0, because rewards do not differ within any group (train.guard.no_signal)"
    name, other = {
        "ratio": ("log_ratio_mean", "the policy before this train-step"),
        "engine_ratio": ("engine_diff_mean", "what the engine recorded"),
    }[reason]
    limit = f"above train.guard.max_log_ratio={settings.max_log_ratio:g} nats per token"
    return f"a mean abs(log-ratio) of {metrics[name]:.3g} to {other}, {limit}"

"""When train-step goes no further: what was skipped is counted, and the run halted where going on is of no use.

Nothing of a halted step is published, so the policy before it stays the last one, and the same command halts again
until something is changed.
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

_NORMAL = 0.5  # share of well-formed, or finished, completions from which on losing them is a collapse
# Reason -> what is needed, and what to do about it.
_NEEDED = {
    "non_finite": "finite ones (train.guard.non_finite)",
    "grad_norm": "at most train.guard.max_grad_norm={max_grad_norm}",
    "ratio": "at most train.guard.max_log_ratio={max_log_ratio} nats per token",
    "engine_ratio": "at most train.guard.max_log_ratio={max_log_ratio} nats per token",
    "no_signal": "rewards that differ within a group (train.guard.no_signal)",
}
_SLOWER = "Lower train.learning_rate or train.updates_per_iteration"
_MEND = {
    "non_finite": f"{_SLOWER}, or set model.dtype=float32",
    "grad_norm": f"{_SLOWER}, or raise the limit",
    "ratio": f"{_SLOWER}, or raise the limit",
    "engine_ratio": "Let the engine serve this very policy and sample again (rollout --overwrite), or raise the limit",
    "no_signal": "Change weights.reward_weights or the data, or set train.guard.no_signal=skip",
}


class Guard:
    """The counts of a run that go from one train-step to the next, in the manifest of its state."""

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
        """Halt where the policy that sampled has lost a form that it had. Raises HaltedError."""
        least = self._settings.collapse_below
        for name, share in self._shares.items():
            if least is not None and share is not None and share < least and self._best[name] >= _NORMAL:
                raise HaltedError(
                    self._rollouts.folder,
                    f"{share:.1%} {name}, where an earlier iteration had {self._best[name]:.1%}",
                    f"at least train.guard.collapse_below={least:g}",
                    "The policy that sampled them is spoilt. Go back to an earlier one: lower train.learning_rate, "
                    "remove the folders of the iterations since it was sound, and run the same command again; or set "
                    "train.guard.collapse_below=null.",
                )

    def check_signal(self, groups: int) -> None:
        """Halt, if that is configured, where no completion is in the loss. Raises HaltedError."""
        if not groups and self._settings.no_signal == "halt":
            raise self._halted("no completion in the loss", _NEEDED["no_signal"], _MEND["no_signal"])

    def judge(self, update: int, metrics: Mapping[str, float], worker: Worker) -> None:
        """Count what was skipped, and halt where the policy says so. All ranks call it. Raises HaltedError."""
        reason, settings = reason_of(metrics), self._settings
        if reason is None:
            self._in_a_row, self._applied = 0, self._applied + 1
            return
        found = f"update {update} with {_figures(reason, metrics)}"
        limits = {name: f"{value:g}" for name, value in settings if isinstance(value, float)}
        needed = _NEEDED[reason].format(**limits)
        if reason == "non_finite":
            self.check_weights(worker)
        if getattr(settings, reason.removeprefix("engine_")) == "halt":
            raise self._halted(found, needed, _MEND[reason])
        if not metrics["skipped"]:  # DeepSpeed
            raise self._halted(f"{found}, which this launch cannot skip", needed, _MEND[reason])
        say(f"train-step: update {update} skipped, {REASONS[reason]}")
        self._skipped[reason] = self._skipped.get(reason, 0) + 1
        self._in_a_row += reason != "no_signal"
        if settings.max_skipped is not None and self._in_a_row > settings.max_skipped:
            found = f"{self._in_a_row} updates in a row skipped, the last one with {_figures(reason, metrics)}"
            raise self._halted(found, f"at most train.guard.max_skipped={settings.max_skipped}", _MEND[reason])

    def check_weights(self, worker: Worker) -> None:
        """Halt where a weight is not finite: no later update mends it. All ranks call it. Raises HaltedError."""
        if worker.is_sound():
            return
        if self._applied:
            raise self._halted(
                f"weights that are NaN or infinite after {self._applied} updates", "finite ones", _MEND["non_finite"]
            )
        raise HaltedError(
            self._policy,
            "weights that are NaN or infinite",
            "finite ones",
            "Fetch or make this policy again, or go on from an earlier one, and run the same command again.",
        )

    def counts(self) -> dict[str, Any]:
        """What the manifest records: `skipped` by reason, and under `guard` what the next train-step needs to know."""
        skipped = {"skipped": sum(self._skipped.values())} if self._skipped else {}
        return {**skipped, "guard": {"skipped_in_a_row": self._in_a_row, "best": self._best} | self._skipped}

    def _halted(self, found: str, needed: str, do: str) -> HaltedError:
        kept = f"Nothing is published; {self._policy} stays the last policy. {do}, and run the same command again."
        return HaltedError(self._output.plan.out, found, needed, kept)


def _figures(reason: str, metrics: Mapping[str, float]) -> str:
    return {
        "non_finite": f"a loss of {metrics['loss']:g} and a gradient of norm {metrics['grad_norm']:g}",
        "grad_norm": f"a gradient of norm {metrics['grad_norm']:.3g}",
        "ratio": f"a mean abs(log-ratio) of {metrics['log_ratio_mean']:.3g} to the policy before this train-step",
        "engine_ratio": f"a mean abs(log-ratio) of {metrics['engine_diff_mean']:.3g} to what the engine recorded",
        "no_signal": "advantages that are all 0",
    }[reason]

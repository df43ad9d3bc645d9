"""What the attention files must have been measured with, for the weights that are asked for."""

from __future__ import annotations

from json import dumps
from shlex import quote

from dapo_stages.config import Config, WeightsConfig
from dapo_stages.config.layers import token_vgr_column, vgr_column
from dapo_stages.errors import DataError
from dapo_stages.groups.token_weighting import TokenWeighting
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row

_LOGPROBS = ("--set attention.logprobs=true", "attention.logprobs: true")
_BLANK = ("--blank-image", "attention.blank_image: true")
# The columns that score-attention leaves empty by default: the option and the setting that fill them.
_SCORED_BY = {
    **dict.fromkeys(("logprobs", "entropy"), _LOGPROBS),
    **dict.fromkeys(("blank_logprobs", "visual_kl", "blank_entropy", "jsd", "k3"), _BLANK),
    **{
        name: (f"--set attention.{name}=true", f"attention.{name}: true")
        for name in ("vision_cosine", "rollout_mass", "vision_gradient")
    },
}


def check_columns(attention: Source, weighting: TokenWeighting, settings: WeightsConfig) -> None:
    """Raise DataError if attention was scored without a column that is needed; unscored tokens weigh 1."""
    required = [name for name in weighting.attention_columns if name in _SCORED_BY]
    rows = attention.rows("attention", ["status", *required]) if required else iter(())
    scored: Row = next((row for row in rows if row["status"] == "ok"), {})
    missing = [name for name in required if scored and scored[name] is None]
    if missing:
        option, key = _SCORED_BY[missing[0]]
        by_scheme = missing[0] in weighting.scheme_columns
        setting = f"scheme={settings.scheme}" if by_scheme else f"completion_factor={settings.completion_factor}"
        raise DataError(
            attention.folder,
            f"no {', '.join(missing)} per token, which weights.{setting} needs",
            f"Run {_scored_again(attention, option)} ({key} in a run's configuration), or choose another "
            f"{'scheme' if by_scheme else 'factor'}.",
        )


def _scored_again(attention: Source, option: str) -> str:
    """The command that scores attention again, with one more option."""
    made_from = {name: given.path for name, given in attention.manifest.inputs.items()}
    return (
        f"dapo-stages score-attention {option} --config FILE --policy {made_from.get('policy', 'DIR')} "
        f"--rollouts {made_from.get('rollouts', 'DIR')} --out {attention.folder} --overwrite"
    )


def check_layers(attention: Source, config: Config) -> None:
    """Raise DataError if attention was not measured over the layers of weights.layers and weights.vgr_layers."""
    weights, made = config.weights, attention.manifest.config
    columns = {"weights.layers": token_vgr_column(weights.layers), "weights.vgr_layers": vgr_column(weights.vgr_layers)}
    wanted = config.sections(*columns)  # without those that are all
    rows = attention.rows("attention", ["status", "attn_text_early", *columns.values()]) if wanted else iter(())
    scored: Row = next((row for row in rows if row["status"] == "ok"), {})
    for name, layers in wanted.items() if scored else ():
        is_third = isinstance(layers, str)
        if is_third and scored["attn_text_early"] is None:
            problem = f"{name}={layers} needs three layers or more, but the policy that was scored has fewer"
            raise DataError(attention.folder, problem, f"Set {name} to all.")
        older = name == "weights.layers" and scored[columns[name]] is None  # without the VGR of thirds per token
        if older if is_third else made.get(name) != layers:
            shown = dumps(layers)
            again = _scored_again(attention, f"--set {quote(f'{name}={shown}')}")
            raise DataError(
                attention.folder,
                f"the VGR was not measured over {name}={shown}",
                f"Run {again} ({name}: {shown} in a run's configuration), or choose other layers.",
            )

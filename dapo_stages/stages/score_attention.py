"""score-attention: rollouts of any engine in, how much each token looked at the image out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages import ranks
from dapo_stages.config import Config, load_config
from dapo_stages.data.blanks import OtherImages
from dapo_stages.errors import DataError
from dapo_stages.groups.sampled_groups import as_sampled, check_tokens, groups_of
from dapo_stages.handoff import carry_out, kept
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import LINEAR, PolicyFolder
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import progress, say
from dapo_stages.terminal.options import ConfigFile, DryRun, Json, Out, Overrides, Overwrite, PolicyPath, Rollouts

if TYPE_CHECKING:
    from torch import Tensor

    from dapo_stages.models.policy import Policy
    from dapo_stages.models.scoring_passes import ScoringPasses
    from dapo_stages.models.shared_prefix.masses import Scored
    from dapo_stages.models.shared_prefix.packing import Group
    from dapo_stages.models.token_scores import Scores

SECTIONS = ("model.dtype", "model.quantization", "attention")
TEMPERATURE = "rollout.sampler.temperature"


def main(
    config_file: ConfigFile,
    policy: PolicyPath,
    rollouts: Rollouts,
    out: Out,
    blank_image: Annotated[
        bool,
        typer.Option("--blank-image", help="Also score with the image blanked (attention.blank_image), for visual_kl."),
    ] = False,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Measure where each completion token looked: masses on image, question and the rest; VGR and AEI by layers.

    One forward pass per group, over completion rows only. Needs only token ids, so rollouts of any engine will do.
    A second pass with the image blanked measures how much each token's distribution depends on it.

    Example: dapo-stages score-attention --config run.yaml --policy policy --rollouts iter-0001/rollout
    --out iter-0001/attention
    """
    config = load_config(config_file, [*(set_ or []), "attention.blank_image=true"] if blank_image else set_)
    inputs = {"policy": PolicyFolder(policy), "rollouts": Source(rollouts, "rollout")}
    config = as_sampled(config, inputs["rollouts"])
    sampled_from = [TEMPERATURE] if _scores_tokens(config) else []
    recorded = config.sections(*SECTIONS, *sampled_from, *_own_layers(config))
    plan = Plan("score-attention", out, recorded, config.seed, inputs, verify=config.verify)
    carry_out.run(
        plan,
        lambda output: Scoring(output, config).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        needs=("dapo_stages.models.policy_loading",),
    )


class Scoring:
    """One pass over the shards of a rollout folder; each gives one shard with the same number."""

    def __init__(self, output: Output, config: Config) -> None:
        self._output, self._config, self._settings = output, config, config.attention
        self._rollouts = output.plan.inputs["rollouts"]
        self._others: OtherImages | None = None
        self._told = False  # that there are no heat maps

    def run(self) -> None:
        """Score what is not scored yet."""
        self._layers = self._numbers_of_layers()
        with self._rollouts.index("prompts") as prompts:
            if self._settings.enabled and self._settings.blank_image and self._settings.blank == "exchanged":
                self._others = OtherImages(prompts, self._rollouts.folder)
            self._score_missing()

    def _numbers_of_layers(self) -> dict[str, list[int]]:
        """Those of weights.layers and weights.vgr_layers if they are no segments, under their own names.

        Raises DataError, before the policy is loaded, if it has fewer layers.
        """
        from dapo_stages.config.layers import numbers_of

        found: dict[str, list[int]] = {}
        if names := _own_layers(self._config):
            policy = self._output.plan.policy
            layers = int(policy.decoder()["num_hidden_layers"])
            linear = [layer for layer, kind in enumerate(policy.kinds_of_layers) if kind == LINEAR]
            for name in names:
                setting = name.removeprefix("weights.")
                try:
                    found[setting] = numbers_of(getattr(self._config.weights, setting), layers, linear)
                except ValueError as error:
                    advice = f"Change {name}, or pass another policy."
                    raise DataError(policy.folder, f"{name} names {error}", advice) from None
        return found

    def _score_missing(self) -> None:
        shards = len(self._rollouts.shards("completions"))
        with_patches = self._with_patches()
        statuses: dict[str, int] = {}
        with progress("score-attention: completions", self._rollouts.manifest.counts.get("completions")) as advance:
            for number in self._output.fill("attention", range(shards), lambda n: self._rows(n, with_patches)):
                done = [row["status"] for row in self._output.reopen("attention", number, ["status"])]
                for status in done:
                    statuses[status] = statuses.get(status, 0) + 1
                advance(len(done), "")
        self._output.counts |= {"completions": sum(statuses.values()), **statuses}
        if ranks.count() > 1 and self._config.lag == 0:
            kept.drop("policy")  # it is trained next, in another launch, which needs the memory

    def _with_patches(self) -> frozenset[str]:
        """The first completions that are scored: their attention is kept per image token."""
        wanted = {row["group_id"] for row in self._rollouts.rows("prompts", ["group_id", "kept"]) if self._wants(row)}
        rows = self._rollouts.rows("completions", ["completion_id", "group_id"])
        scored = (row["completion_id"] for row in rows if row["group_id"] in wanted)
        return frozenset(islice(scored, self._settings.patch_completions))

    def _wants(self, prompt: Row) -> bool:
        return self._settings.enabled and (prompt["kept"] or self._settings.groups == "all")

    def _rows(self, number: int, with_patches: frozenset[str]) -> Iterator[Row]:
        """The attention rows of one shard, in the order of its completions."""
        prompts, members = self._shard(number)
        wanted = [prompt for prompt in prompts if self._wants(prompt)]
        batches = _batches(wanted, members, self._settings.batch_completions)
        found: dict[str, Row] = {}
        for prompt in prompts:
            keys = [completion["completion_id"] for completion in members[prompt["group_id"]]]
            if self._wants(prompt) and not found.keys() >= set(keys):
                found = self._score(next(batches), members, with_patches)
            for key in keys:
                yield found[key] if key in found else self._unscored(key)

    def _shard(self, number: int) -> tuple[list[Row], dict[str, list[Row]]]:
        """Prompts of a shard, and each one's completions."""
        prompts, members = groups_of(self._rollouts, number, None, ["completion_id", "group_id", "completion_ids"])
        for prompt in prompts if any(map(self._wants, prompts)) else ():
            self._check(prompt["group_id"], "prompt_ids", prompt["prompt_ids"])
            for row in members[prompt["group_id"]]:
                self._check(row["completion_id"], "completion_ids", row["completion_ids"])
        return prompts, members

    def _check(self, key: str, column: str, ids: list[int]) -> None:
        check_tokens(self._rollouts.folder, column, key, ids, self._policy.vocabulary)

    def _score(self, prompts: list[Row], members: dict[str, list[Row]], with_patches: frozenset[str]) -> dict[str, Row]:
        from dapo_stages.models.inputs import prompt_of
        from dapo_stages.models.shared_prefix.packing import Group

        policy = self._policy
        kinds = [policy.prompt_kinds(prompt["prompt_ids"]) for prompt in prompts]
        groups, patches = [], []
        for prompt in prompts:
            rows = members[prompt["group_id"]]
            groups.append(Group(prompt_of(prompt, policy.processor), [row["completion_ids"] for row in rows]))
            chosen = [i for i, row in enumerate(rows) if row["completion_id"] in with_patches]
            patches.append(chosen if self._is_mapped(prompt) else [])
        measure = self._measure_shared if policy.shares_prefixes else self._measure_rows
        results, scores = measure(prompts, groups, kinds, patches)
        found: dict[str, Row] = {}
        start = 0
        for prompt, kind, scored in zip(prompts, kinds, results, strict=True):
            for completion, one in zip(members[prompt["group_id"]], scored, strict=True):
                tokens = slice(start, start + len(completion["completion_ids"]))
                row = _row(completion["completion_id"], one, kind.tolist(), scores, tokens, self._layers)
                found[completion["completion_id"]] = row
                start = tokens.stop
        return found

    def _is_mapped(self, prompt: Row) -> bool:
        """Whether a heat map can be drawn over the prompt's images; says so once if not."""
        mapped = not prompt["images"] or self._policy.is_mapped(prompt)
        if not mapped and not self._told:
            self._told = True
            say("score-attention: the tokens of this model's images lie on no grid that is known; no heat maps")
        return mapped

    def _measure_shared(
        self, prompts: list[Row], groups: list[Group], kinds: list[Tensor], patches: list[list[int]]
    ) -> tuple[list[list[Scored]], Scores]:
        """Attention of each completion, and scores of all tokens, in one pass over packed groups."""
        import torch

        from dapo_stages.models.shared_prefix.masses import MassRecorder

        policy, settings = self._policy, self._settings
        packed = policy.pack(groups)
        recorder = MassRecorder(
            packed.spans,
            kinds,
            policy.scored_layers,
            settings.query,
            settings.chunk_rows,
            patches,
            rollout=settings.rollout_mass,
            units=self._units(prompts, kinds),
        )
        scores: Scores = {}
        if _scores_tokens(self._config):
            results, hidden = recorder.collect_all(policy.base.model, packed)
            scores = self._passes.scores(prompts, groups, packed, hidden)
        else:
            results = recorder.collect(policy.base.model, packed)
        if settings.rollout_mass:
            rolled = [one.rollout for group in results for one in group if one.rollout is not None]
            scores["rollout_mass"] = torch.cat(rolled)
        return results, scores

    def _measure_rows(
        self, prompts: list[Row], groups: list[Group], kinds: list[Tensor], patches: list[list[int]]
    ) -> tuple[list[list[Scored]], Scores]:
        """The same in rows of their own, group by group."""
        import torch

        from dapo_stages.models.scoring_rows import score_rows

        tokens, units = _scores_tokens(self._config), self._units(prompts, kinds)
        found = [
            score_rows(self._passes, *one, units=None if units is None else units[i], tokens=tokens)
            for i, one in enumerate(zip(prompts, groups, kinds, patches, strict=True))
        ]
        results, scores = zip(*found, strict=True)
        return list(results), {name: torch.cat([one[name] for one in scores]) for name in scores[0]}

    def _units(self, prompts: list[Row], kinds: list[Tensor]) -> list[Tensor] | None:
        """Which keys of each prompt belong to which of its images, if any prompt has several."""
        from dapo_stages.models.shared_prefix.masses import unit_keys

        if not self._by_image:
            return None
        return [unit_keys(kind, prompt["image_grid_thw"]) for prompt, kind in zip(prompts, kinds, strict=True)]

    def _unscored(self, completion_id: str) -> Row:
        status = "off" if not self._settings.enabled else "not_kept"
        from dapo_stages.handoff.schemas import BY_IMAGE, MORE_TOKEN_SCORES, OF_LAYERS, SCHEMAS

        unasked = {*OF_LAYERS, *MORE_TOKEN_SCORES, BY_IMAGE} - self._asked_for
        empty: Row = dict.fromkeys(name for name in SCHEMAS["attention"].names if name not in unasked)
        counts = {"num_text_tokens": 0, "num_vision_tokens": 0}
        return empty | counts | {"completion_id": completion_id, "status": status}

    @cached_property
    def _asked_for(self) -> set[str]:
        """The optional columns that these settings fill."""
        more = ("vision_cosine", "rollout_mass", "vision_gradient")
        found = {name for name in more if getattr(self._settings, name)}
        found |= {"blank_entropy", "jsd", "k3"} if self._settings.blank_image else set()
        found |= {"attn_vision_by_image"} if self._by_image else set()
        columns = {"layers": "token_vgr_layers", "vgr_layers": "vgr_layers"}
        return found | {columns[name] for name in self._layers}

    @cached_property
    def _by_image(self) -> bool:
        """Whether a prompt has several images with grids, or a video: each is then measured by itself, too."""
        grids = [row["image_grid_thw"] or () for row in self._rollouts.rows("prompts", ["image_grid_thw"])]
        return self._settings.enabled and any(sum(steps for steps, *_ in grid) > 1 for grid in grids)

    @cached_property
    def _passes(self) -> ScoringPasses:
        from dapo_stages.models.scoring_passes import ScoringPasses

        temperature = self._config.rollout.sampler.temperature
        return ScoringPasses(self._policy, self._settings, temperature, self._config.seed, self._others)

    @cached_property
    def _policy(self) -> Policy:
        from dapo_stages.models.policy_loading import check_family, open_policy
        from dapo_stages.models.requirements import require_scores

        folder = self._output.plan.policy
        require_scores(check_family(folder.checkpoint()), self._settings)
        policy = open_policy(folder, self._config.model, attention=True)
        if not policy.shares_prefixes:
            say("score-attention: this model cannot share a prompt among its completions; one row for each")
        policy.attend("grouped")
        return policy


def _scores_tokens(config: Config) -> bool:
    """Whether logprobs are wanted; they are of the distribution that was sampled from."""
    settings = config.attention
    asked = (settings.logprobs, settings.blank_image, settings.vision_cosine, settings.vision_gradient)
    return settings.enabled and any(asked)


def _own_layers(config: Config) -> list[str]:
    """The settings of layers that only score-attention can measure: neither all nor a third of them."""
    from dapo_stages.config.layers import is_segment

    values = {"weights.layers": config.weights.layers, "weights.vgr_layers": config.weights.vgr_layers}
    return [name for name, layers in values.items() if config.attention.enabled and not is_segment(layers)]


def _batches(prompts: list[Row], members: dict[str, list[Row]], most: int) -> Iterator[list[Row]]:
    """Groups for one forward pass: at most `most` completions, but always a whole group."""
    batch: list[Row] = []
    size = 0
    for prompt in prompts:
        count = len(members[prompt["group_id"]])
        if batch and size + count > most:
            yield batch
            batch, size = [], 0
        batch.append(prompt)
        size += count
    if batch:
        yield batch


def _row(
    completion_id: str, scored: Scored, kinds: list[int], scores: Scores, tokens: slice, layers: dict[str, list[int]]
) -> Row:
    """One attention row; `tokens` are the completion's among those of the scores."""
    from dapo_stages.handoff.schemas import BY_IMAGE, MASSES, MORE_TOKEN_SCORES, SEGMENTS, TOKEN_SCORES
    from dapo_stages.maths.grounding import segments, summarize
    from dapo_stages.models.shared_prefix.masses import TEXT, VISION

    num_text, num_vision = kinds.count(TEXT), kinds.count(VISION)
    units = None if scored.units is None else scored.units.numpy()
    summary = summarize(scored.masses.numpy(), num_text, num_vision, **layers, units_LTU=units)
    row: dict[str, Any] = {
        "completion_id": completion_id,
        "status": "ok" if num_vision else "no_image",
        **{f"mass_{kind}": summary.masses[kind].tolist() for kind in MASSES},
        "vgr": summary.vgr.tolist(),
        **{f"token_vgr_{name}": None if vgr is None else vgr.tolist() for name, vgr in summary.token_vgr.items()},
        **{name: None if value is None or math.isnan(value) else value for name, value in summary.scalars.items()},
        "num_text_tokens": num_text,
        "num_vision_tokens": num_vision,
        **{f"patch_attention_{segment}": None for segment in SEGMENTS},
        **{name: scores[name][tokens].tolist() if name in scores else None for name in TOKEN_SCORES},
        **{name: scores[name][tokens].tolist() for name in MORE_TOKEN_SCORES if name in scores},
    }
    if (by_image := summary.vision_by_image) is not None:
        row[BY_IMAGE] = by_image.tolist() if num_vision else None
    if scored.patches is not None and num_vision:
        for segment, place in segments(scored.patches.shape[0]).items():
            if place is not None:
                row[f"patch_attention_{segment}"] = list(scored.patches[place].mean(0).half().numpy())
    return row

"""Does attention tell? How well scores of a token say that it depends on the image, measured by exchanging images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dapo_stages.data.blanks import Blank, Blanks, OtherImages, blanked
from dapo_stages.errors import DataError
from dapo_stages.groups.sampled_groups import check_tokens, groups_of
from dapo_stages.groups.token_kinds import KINDS, token_kinds
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.shards import Row
from dapo_stages.terminal.console import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dapo_stages.models.heads import HeadRecorder
    from dapo_stages.models.policy import Policy
    from dapo_stages.models.scoring_passes import ScoringPasses
    from dapo_stages.models.shared_prefix.packing import Group

    FloatArray = NDArray[np.float64]

DEPENDENCE = "dependence.json"
TOKENS = 5000
DRAWS = 4  # images of other prompts that each prompt gets, one after another
THRESHOLD = 0.1  # nats: a token depends on the image if its KL is above
TOP = 0.2  # share of the tokens of which `captured` is shown
HEADS = 0.25  # share of heads that make up a subset
_CHUNK = 256  # rows of attention and of logits in memory at the same time
_CURVE = 40  # steps of the curves of what the highest scores capture
_TEXTS = 12  # texts of tokens that are shown


class Measured(NamedTuple):
    """Tokens of one group, in the order of its completions: [T] each, and the vision mass by head [L, H, T]."""

    scores: dict[str, FloatArray]
    heads: NDArray[np.float32]
    kl: FloatArray
    change: FloatArray
    kinds: list[str]
    texts: list[str]


def check_images(rollouts: Source) -> None:
    """Raise DataError unless at least two prompts have images that differ: else nothing could be exchanged."""
    prompts, first = 0, None
    for row in rollouts.rows("prompts", ["images"]):
        images = [image["bytes"] for image in row["images"] or ()]
        if not images:
            continue
        if prompts and images != first:
            return
        prompts, first = prompts + 1, images
    found = {0: "no prompt has any", 1: "only one prompt has any"}.get(prompts, "all have the same")
    problem = f"expected prompts with different images, which are exchanged to measure dependence, but {found}"
    raise DataError(rollouts.folder, problem, "Pass rollouts of more prompts with images.")


def dependence_plan(out: Path, rollouts: Path, policy: Path, tokens: int, beside: Path | None) -> Plan:
    """Measure a policy on rollouts; `beside` is an output of the same, for comparison.

    Raises DataError if no image could be exchanged, or `beside` is something else.
    """
    inputs = {"rollouts": Source(rollouts, "rollout"), "policy": PolicyFolder(policy)}
    if beside is not None:
        inputs["beside"] = Source(beside, "compare-weights")
        if not inputs["beside"].shards(DEPENDENCE):
            problem = "expected an output of compare-weights --dependence, but it compares weights"
            raise DataError(beside, problem, "Name another folder with --beside.")
    recorded = {"dependence": {"tokens": tokens, "draws": DRAWS, "threshold": THRESHOLD}}
    plan = Plan("compare-weights", out, recorded, inputs["rollouts"].manifest.seed, inputs)
    if plan.state() != "complete":
        check_images(inputs["rollouts"])
    return plan


def token_dependence(plan: Plan) -> dict[str, Any]:
    """What is found on about the planned number of tokens, in groups evenly spaced over the rollouts.

    The truth is KL(π(·|image) ‖ π(·|image of another prompt)), in nats and a mean over DRAWS of these, and the mean
    absolute change of the token's logprob. In float32 even if training is not, or quantizes the weights, so that small
    differences are real.
    """
    from dapo_stages.config import ModelConfig
    from dapo_stages.config.attention import AttentionConfig
    from dapo_stages.models.heads import HeadRecorder
    from dapo_stages.models.policy_loading import check_family, open_policy
    from dapo_stages.models.requirements import require_head_scores
    from dapo_stages.models.scoring_passes import ScoringPasses

    rollouts = plan.inputs["rollouts"]
    made = rollouts.manifest.config
    chosen = _chosen(rollouts, plan.config["dependence"]["tokens"])
    temperature = float(made["rollout"]["sampler"]["temperature"])
    measured: list[Measured] = []
    completions = 0
    with rollouts.index("prompts") as prompts, progress("compare-weights: groups", len(chosen)) as advance:
        exchanged = Blanks(Blank("exchanged"), plan.seed, None, OtherImages(prompts, rollouts.folder))
        require_head_scores("compare-weights --dependence", check_family(plan.policy.checkpoint()))
        policy = open_policy(plan.policy, ModelConfig(dtype="float32"))
        policy.attend("grouped")
        recorder = HeadRecorder(policy, _CHUNK)
        asked = AttentionConfig(vision_cosine=True, vision_gradient=True, chunk_rows=_CHUNK)
        passes = ScoringPasses(policy, asked, temperature, plan.seed)
        for prompt, members in _groups(rollouts, chosen, policy.vocabulary):
            changed = [blanked(prompt), *(exchanged(prompt, draw) for draw in range(DRAWS))]
            measured.append(_measure(passes, recorder, prompt, members, changed))
            completions += len(members)
            advance(1, "")
    return {
        "policy": str(plan.policy.folder),
        "rollouts": str(rollouts.folder),
        "groups": len(chosen),
        "completions": completions,
        **_figures(measured),
        "beside": _beside(plan.inputs.get("beside")),
    }


def _beside(other: Source | None) -> dict[str, Any] | None:
    """What another measurement found."""
    if other is None:
        return None
    found: dict[str, Any] = other.json(other.shards(DEPENDENCE)[0])
    return found | {"beside": None}


def _chosen(rollouts: Source, tokens: int) -> frozenset[str]:
    """Groups with images, evenly spaced over the rollouts, as many as should hold the tokens."""
    with_images = {row["group_id"] for row in rollouts.rows("prompts", ["group_id", "images"]) if row["images"]}
    sizes: dict[str, int] = {}
    for row in rollouts.rows("completions", ["group_id", "completion_ids"]):
        if row["group_id"] in with_images:
            sizes[row["group_id"]] = sizes.get(row["group_id"], 0) + len(row["completion_ids"])
    if not sizes:
        problem = "no completion belongs to a prompt with an image"
        raise DataError(rollouts.folder, problem, "Pass rollouts of prompts with images.")
    names = list(sizes)
    count = min(len(names), -(-tokens * len(names) // max(1, sum(sizes.values()))))
    return frozenset(names[number * len(names) // count] for number in range(count))


def _groups(rollouts: Source, chosen: frozenset[str], vocabulary: int) -> Iterator[tuple[Row, list[Row]]]:
    """Prompt and completions of each chosen group; one shard's completions in memory at a time."""
    columns = ["completion_id", "group_id", "text", "completion_ids", "token_texts"]
    for number in range(len(rollouts.shards("completions"))):
        prompts, members = groups_of(rollouts, number, None, columns)
        for prompt in prompts:
            if prompt["group_id"] in chosen:
                check_tokens(rollouts.folder, "prompt_ids", prompt["group_id"], prompt["prompt_ids"], vocabulary)
                for row in members[prompt["group_id"]]:
                    ids = row["completion_ids"]
                    check_tokens(rollouts.folder, "completion_ids", row["completion_id"], ids, vocabulary)
                yield prompt, members[prompt["group_id"]]


def _measure(
    passes: ScoringPasses, recorder: HeadRecorder, prompt: Row, members: Sequence[Row], changed: Sequence[Row]
) -> Measured:
    """`changed`: the prompt with gray images, then with each draw of others."""
    import numpy as np

    from dapo_stages.maths.looks import look_scores
    from dapo_stages.models.shared_prefix.masses import TEXT, VISION
    from dapo_stages.models.token_scores import hidden_states, token_scores

    policy = passes.policy
    kinds = policy.prompt_kinds(prompt["prompt_ids"])
    group = _group(policy, prompt, members)
    packed = policy.pack([group])
    [completions], hidden = recorder.collect(packed, [kinds])
    counts = int((kinds == TEXT).sum()), int((kinds == VISION).sum())
    parts = [look_scores(one.masses.numpy(), one.valued.numpy(), *counts) for one in completions]
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    own = passes.scores([prompt], [group], packed, hidden)
    rows = hidden.index_select(0, packed.predicting)
    blanks = (hidden_states(policy, policy.pack([_group(policy, row, members)])) for row in changed)
    under = [token_scores(policy, rows, packed.targets, passes.temperature, _CHUNK, [blank]) for blank in blanks]
    gray, *others = [{name: values.double().numpy() for name, values in one.items()} for one in under]
    scores |= {
        "attention rollout": np.concatenate([one.rollout.double().numpy() for one in completions]),
        "cosine to the image": own["vision_cosine"].double().numpy(),
        "gradient at the image": own["vision_gradient"].double().numpy(),
        "entropy": gray["entropy"],
        "entropy × 1/VGR": gray["entropy"] * scores["1/VGR, all layers"],
        "KL, gray image": gray["visual_kl"],
    }
    return Measured(
        scores,
        np.concatenate([one.masses[..., VISION].numpy() for one in completions], 2),
        np.mean([one["visual_kl"] for one in others], 0),
        np.mean([np.abs(one["logprobs"] - one["blank_logprobs"]) for one in others], 0),
        [kind for row in members for kind in token_kinds(row["text"], row["token_texts"])],
        [text for row in members for text in row["token_texts"]],
    )


def _group(policy: Policy, prompt: Row, members: Sequence[Row]) -> Group:
    from dapo_stages.models.inputs import prompt_of
    from dapo_stages.models.shared_prefix.packing import Group

    return Group(prompt_of(prompt, policy.processor), [row["completion_ids"] for row in members])


def _figures(measured: Sequence[Measured]) -> dict[str, Any]:
    """Everything that tables and plot show, from the tokens of all groups."""
    import numpy as np

    from dapo_stages.maths.detection import auc
    from dapo_stages.maths.looks import most_looking

    kl, change = (np.concatenate([getattr(one, name) for one in measured]) for name in ("kl", "change"))
    kinds = np.array([kind for one in measured for kind in one.kinds])
    masses = np.concatenate([one.heads for one in measured], 2)  # [L, H, T]
    scores = {name: np.concatenate([one.scores[name] for one in measured]) for name in measured[0].scores}
    subset = f"vision mass, {HEADS:.0%} of heads"
    scores = _after(scores, "vision mass, strongest head", {subset: most_looking(masses.reshape(-1, len(kl)), HEADS)})
    depends = kl > THRESHOLD
    return {
        "tokens": len(kl),
        "draws": DRAWS,
        "threshold": THRESHOLD,
        "top": TOP,
        "dependent": int(depends.sum()),
        "mean_kl": float(kl.mean()),
        "mean_change": float(change.mean()),
        "kinds": [
            {
                "name": kind,
                "tokens": int((kinds == kind).sum()),
                "dependent": int(depends[kinds == kind].sum()),
                "mean_kl": float(kl[kinds == kind].mean()) if (kinds == kind).any() else None,
            }
            for kind in KINDS
        ],
        "scores": [_about(name, score, kl, change, kinds) for name, score in scores.items()],
        "heads": [[auc(head, depends) for head in layer] for layer in masses],
        "texts": _texts([text for one in measured for text in one.texts], kl, scores),
    }


def _after(scores: Mapping[str, Any], name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """The same scores with further ones behind one of them."""
    return {key: value for old in scores for key, value in [(old, scores[old]), *(more.items() if old == name else ())]}


def _about(name: str, score: Any, kl: Any, change: Any, kinds: Any) -> dict[str, Any]:
    """How one score goes with the truth, over all tokens for which it is defined and by their kind."""
    import numpy as np

    from dapo_stages.maths.correlations import spearman
    from dapo_stages.maths.detection import auc, captured

    known = ~np.isnan(score)
    score, kl, change, kinds = score[known], kl[known], change[known], kinds[known]
    depends = kl > THRESHOLD
    by_kind = {}
    for kind in KINDS:
        of = kinds == kind
        by_kind[kind] = {
            "spearman": spearman(score[of], kl[of]) if of.any() else None,
            "auc": auc(score[of], depends[of]),
        }
    some = bool(len(score))
    return {
        "name": name,
        "undefined": int((~known).sum()),
        "spearman": spearman(score, kl) if some else None,
        "spearman_change": spearman(score, change) if some else None,
        "auc": auc(score, depends),
        "captured": captured(score, kl, TOP) if some else None,
        "curve": [captured(score, kl, step / _CURVE) if step and some else 0.0 for step in range(_CURVE + 1)],
        "kinds": by_kind,
    }


def _texts(texts: Sequence[str], kl: Any, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The texts that most of the dependence is on, with means over all tokens of that text."""
    import numpy as np

    names, numbers = np.unique(np.array(texts, dtype=object), return_inverse=True)
    times = np.bincount(numbers)
    mean = {name: np.bincount(numbers, np.nan_to_num(values)) / times for name, values in (("kl", kl), *scores.items())}
    order = np.argsort(-mean["kl"] * times, kind="stable")[:_TEXTS]
    vgr = np.nanmean(scores["1/VGR, all layers"])
    return [
        {
            "text": str(names[number]),
            "times": int(times[number]),
            "kl": float(mean["kl"][number]),
            "gray_kl": float(mean["KL, gray image"][number]),
            "vgr": float(mean["1/VGR, all layers"][number] / vgr) if vgr > 0 else None,
            "entropy": float(mean["entropy"][number]),
        }
        for number in order
    ]

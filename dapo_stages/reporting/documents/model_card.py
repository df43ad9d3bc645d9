"""The model card of a policy: what it is, how it was trained, how accurate it is, and its limitations.

Names and texts of users, datasets and models are data here: in the front matter YAML quotes them, below it they are
escaped as in every other document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dapo_stages.config import Config
from dapo_stages.handoff.manifests import MANIFEST, Manifest, Source, manifest_of, read_manifest
from dapo_stages.handoff.policy_folders import PROMPTING
from dapo_stages.reporting.documents.overview import without_images
from dapo_stages.reporting.iteration.figures import Figures, collect, figure
from dapo_stages.runs.run_folder import Run
from dapo_stages.terminal.safe_text import markdown_block, markdown_inline, markdown_table, number, percent

HOMEPAGE = "dapo-stages"


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    repo: str
    policy: Manifest
    is_adapter: bool
    base_model: str | None  # on the hub
    license: str | None
    config: Config | None = None  # of the run
    start: Figures = field(default_factory=dict)  # held-out figures of the starting policy
    own: Figures = field(default_factory=dict)  # held-out figures of this one


def held_out(evaluation: Source, policy: Manifest) -> Figures:
    """The figures of an evaluation; empty unless it is of this policy, or of the one adapter that was merged into it.

    Merging an adapter only rounds: tests compare its logprobs with those of the adapter. Over a quantized base it does
    more, so the adapter's figures are not those of the merged policy.
    """
    judged = {policy.content_hash}
    exact = evaluation.manifest.config.get("model.quantization") is None
    if exact and policy.stage == "merge" and policy.counts.get("policies") == 1 and "policy-1" in policy.inputs:
        judged.add(policy.inputs["policy-1"].content_hash)
    made_from = evaluation.manifest.inputs.get("policy")
    if made_from is None or made_from.content_hash not in judged:
        return {}
    return dict(collect(0, {"eval": evaluation})["eval"])


def held_out_in(run: Run, policy: Manifest) -> Figures:
    """The same, wherever in a run it was evaluated."""
    folders = (run.folder(number) / "eval" for number in run.iterations())
    found = (held_out(Source(folder, "evaluate"), policy) for folder in folders if manifest_of(folder, "evaluate"))
    return next((figures for figures in found if figures), {})


def belongs_to(run: Run, policy: Manifest) -> bool:
    """Whether a run made this policy, or one that was merged into it."""
    folders = [run.path / "policy", *(path.parent for path in run.path.glob(f"iter-[0-9]*/train/policy/{MANIFEST}"))]
    made = {read_manifest(folder).content_hash for folder in folders if (folder / MANIFEST).exists()}
    merged = {source.content_hash for source in policy.inputs.values()} if policy.stage == "merge" else set()
    return bool(made & ({policy.content_hash} | merged))


def model_card(subject: Subject) -> str:
    """The card as Markdown with its front matter."""
    parts = [
        f"---\n{_front_matter(subject)}\n---\n",
        f"# {markdown_inline(subject.repo.split('/')[-1])}\n",
        _introduction(subject),
        "## Held-out accuracy\n",
        _figures(subject),
        "## Training\n",
        _training(subject),
        "## Use\n",
        _use(subject),
        "## Limitations\n",
        _limitations(subject),
        "## License\n",
        _license(subject),
    ]
    return "\n".join(parts)


def is_hub_id(name: str | None) -> bool:
    """Whether a model or dataset is on the hub, and not a local folder."""
    return bool(name) and is_named(str(name)) and not Path(str(name)).exists()


def is_named(name: str) -> bool:
    """Whether a name is one that the hub could have: user/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _front_matter(subject: Subject) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    sources = _sources(subject)
    on_hub = [source for source in sources if is_hub_id(source)]
    results = []
    for key, name in (("greedy_accuracy", "held-out, greedy"), ("sampled_accuracy", "held-out, sampled")):
        value = figure(subject.own, key)
        if value is not None:
            results.append(
                EvalResult(
                    task_type="visual-question-answering",
                    dataset_type=on_hub[0] if len(on_hub) == len(sources) == 1 else "other",
                    dataset_name=" and ".join(dict.fromkeys(map(_dataset, sources))) or "a local dataset",
                    metric_type="accuracy",
                    metric_value=round(value, 4),
                    metric_name=name,
                )
            )
    data = ModelCardData(
        base_model=subject.base_model,
        datasets=on_hub[0] if len(on_hub) == 1 else on_hub or None,
        eval_results=results or None,
        library_name="peft" if subject.is_adapter else "transformers",
        license=subject.license,
        model_name=subject.repo.split("/")[-1] if results else None,
        pipeline_tag="image-text-to-text",
        tags=["reinforcement-learning", "dapo", "dapo-stages", *(["lora"] if subject.is_adapter else [])],
    )
    return str(data.to_yaml())


def _introduction(subject: Subject) -> str:
    kind = "A LoRA adapter for" if subject.is_adapter else "A vision-language model made from"
    from_ = _link(subject.base_model) if subject.base_model else _model_name(subject)
    how = "reinforcement learning (DAPO, [arXiv 2503.14476](https://arxiv.org/abs/2503.14476))"
    return (
        f"{kind} {from_} by {how} on {_data_text(subject)}, with {HOMEPAGE} {subject.policy.package_version}: "
        f"the policy after iteration {subject.policy.policy.get('version', 0)}.\n"
    )


def _figures(subject: Subject) -> str:
    own, start = subject.own, subject.start if subject.start != subject.own else {}
    if not own:
        return "This policy was not evaluated.\n"
    columns = {**({"start": start} if start else {}), "this policy": own}
    rows = [
        [name, *(percent(figure(figures, *path)) for figures in columns.values())]
        for name, path in _wanted(own)
        if figure(own, *path) is not None
    ]
    questions = int(figure(own, "questions") or 0)
    return markdown_table(["", *columns], rows) + f"\n{questions:,} questions held out from {_data_text(subject)}.\n"


def _wanted(own: Figures) -> list[tuple[str, tuple[str, ...]]]:
    wanted: list[tuple[str, tuple[str, ...]]] = [
        ("greedy", ("greedy_accuracy",)),
        ("sampled", ("sampled_accuracy",)),
        ("well-formed, sampled", ("sampled_format",)),
        ("greedy, image blanked", ("blank_accuracy",)),
    ]
    slices = own.get("by_slice") or {}
    return wanted + [(f"greedy, {name}", ("by_slice", name, "greedy_accuracy")) for name in slices]


def _training(subject: Subject) -> str:
    config, policy = subject.config, subject.policy
    facts: dict[str, str] = {"iterations": str(policy.policy.get("version", 0))}
    if policy.stage == "merge":
        facts["merged"] = f"{policy.config['method']}, {policy.counts.get('policies', 1)} policies"
        if "shares" in policy.config:
            facts["shares"] = ", ".join(number(share) for share in policy.config["shares"])
    if config is not None:
        train, rollout = config.train, config.rollout
        adapted = train.lora
        facts |= {
            "prompts per iteration": f"{rollout.prompts_per_iteration} × {rollout.num_generations} completions",
            "sampling temperature": number(rollout.sampler.temperature, 2),
            "updates per iteration": str(train.updates_per_iteration * train.passes),
            "loss": f"{train.loss_type}, clip {train.epsilon_low} / {train.epsilon_high}, KL weight {train.beta}",
            "optimizer": f"{train.optimizer}, learning rate {train.learning_rate:g}, {train.schedule}",
            "token weights": f"{config.weights.scheme}, between {config.weights.clip[0]} and {config.weights.clip[1]}",
            "rewards": ", ".join(f"{name} {value:g}" for name, value in _reward_weights(config).items() if value),
            "type": config.model.dtype
            + (f", base in {config.model.quantization}" if config.model.quantization else ""),
            "adapter": f"LoRA, rank {adapted.rank}, alpha {adapted.alpha:g}, {', '.join(adapted.target_modules)}"
            if adapted
            else "none, all weights trained",
            **{
                f"schedule of {name}": f"{found.start:g} to {found.end:g}, {found.shape}, over {found.over:g}"
                for name, found in config.schedules.items()
            },
            "seed": str(config.seed),
        }
    return markdown_table(["", "value"], [[name, value] for name, value in facts.items()])


def _reward_weights(config: Config) -> dict[str, float]:
    """Rewards after the early phase, by name, each with its weight."""
    return {**config.weights.reward_weights.model_dump(exclude={"plugins"}), **_further_rewards(config)}


def _further_rewards(config: Config) -> dict[str, float]:
    """Those of plug-ins and a judge, which weigh 1 where they are not named."""
    names = [*config.rewards.plugins, *(["judge"] if config.rewards.judge else [])]
    return {name: config.weights.reward_weights.plugins.get(name, 1.0) for name in names}


def _use(subject: Subject) -> str:
    load = ["from transformers import AutoModelForImageTextToText, AutoProcessor", ""]
    if subject.is_adapter:
        load = ["from peft import PeftModel", *load]
        load += [
            f"base = AutoModelForImageTextToText.from_pretrained({subject.base_model!r})",
            f"model = PeftModel.from_pretrained(base, {subject.repo!r})",
        ]
    else:
        load += [f"model = AutoModelForImageTextToText.from_pretrained({subject.repo!r})"]
    load += [f"processor = AutoProcessor.from_pretrained({subject.repo!r})"]
    block = "```python\n" + "\n".join(load) + "\n```\n"
    return "\n".join([block, *map(_prompting, subject.policy.policy.get(PROMPTING, []))])


def _prompting(one: Mapping[str, str | None]) -> str:
    """The system message and the question template of a dataset that the policy was trained on."""
    questions = f" for questions of {markdown_inline(one['dataset'])}" if one["dataset"] else ""
    texts = {"this system message": one["system_prompt"], "this template of questions": one["template"]}
    said = (f"It was trained with {what}{questions}:\n\n{markdown_block(text)}" for what, text in texts.items() if text)
    return "\n".join(said)


def _limitations(subject: Subject) -> str:
    asked = [name for name, weight in (_further_rewards(subject.config) if subject.config else {}).items() if weight]
    rewards = f", and by {', '.join(map(markdown_inline, asked))}" if asked else ""
    unchecked = "may" if asked else "was not checked and may"
    number = f"{len(_sources(subject))} datasets" if len(_sources(subject)) > 1 else "one dataset"
    lines = [
        f"Trained on {number} only ({_data_text(subject)}); accuracy on other questions is not known.",
        f"Rewards were given for a right answer and its format{rewards}. The text before the answer {unchecked} not be "
        "the reason for it.",
        "Safety was not evaluated. The limitations of the base model apply.",
    ]
    if not subject.own:
        lines.insert(0, "This policy was not evaluated.")
    else:
        lines.insert(0, "The figures are of one training run with one seed, on questions held out from its data.")
    blind = without_images(subject.own, subject.start if subject.start != subject.own else None)
    if blind is not None:
        lines.append(blind)
    if subject.config is not None and subject.config.weights.scheme in ("vgr", "aei", "vision_mass"):
        lines.append("Token weights follow attention to the image, which suggests but does not prove that it was used.")
    return "".join(f"- {line}\n" for line in lines)


def _license(subject: Subject) -> str:
    base = f" That of {_link(subject.base_model)} applies as well." if subject.base_model else ""
    return (f"{markdown_inline(subject.license)}." if subject.license else "None was specified.") + base + "\n"


def _model_name(subject: Subject) -> str:
    """The model that it was trained from, without local paths."""
    if subject.policy.policy.get("model") == "embedded":
        return f"the small embedded policy of {HOMEPAGE} (random weights after a short warm-up)"
    return "a checkpoint that is not on the hub"


def _sources(subject: Subject) -> list[str]:
    """What the run's datasets were opened by."""
    return [data.source for data in subject.config.data.of_sources().values()] if subject.config else []


def _dataset(source: str) -> str:
    """A dataset by name, without local paths."""
    return (
        "embedded synthetic questions" if source == "embedded" else source if is_hub_id(source) else "a local dataset"
    )


def _data_text(subject: Subject) -> str:
    """The datasets in words, with links to those on the hub."""
    links = [
        f"[{markdown_inline(source)}](https://huggingface.co/datasets/{source})"
        if is_hub_id(source)
        else _dataset(source)
        for source in _sources(subject)
    ]
    return " and ".join(dict.fromkeys(links)) or "a local dataset"


def _link(model: str) -> str:
    return f"[{markdown_inline(model)}](https://huggingface.co/{model})"

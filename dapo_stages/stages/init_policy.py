"""init-policy: a model's name in, the policy folder that a run starts from out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages.config import Config, load_config
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.terminal.console import progress, say
from dapo_stages.terminal.options import ConfigFile, DryRun, Json, Out, Overrides, Overwrite

if TYPE_CHECKING:
    from pathlib import Path

    from dapo_stages.models.policy import Policy

_BASE = "base"  # inside the folder of an adapter: the policy that it belongs to
# What supervised steps depend on.
_OF_SFT = (
    "sft",
    "data",
    "rollout.max_completion_length",
    *(f"train.{name}" for name in ("optimizer", "betas", "weight_decay", "max_grad_norm", "lora", "freeze_vision")),
)


def main(
    config_file: ConfigFile,
    out: Out,
    sft: Annotated[
        str | None,
        typer.Option(
            "--sft",
            help="Supervised steps on this dataset before the run; short for --set sft.source=…",
            metavar="SOURCE",
        ),
    ] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make the starting policy.

    `model.name: embedded` builds the small Qwen2.5-VL and warms it up, without any download. A hub id or a folder is
    referenced, not copied: its revision and the SHA-256 of its files are recorded, and later stages refuse others.

    With the section `sft`, supervised steps follow (docs/policies.md): from `sft.source`, or else from the training
    rows of `data.source`, never from held-out ones. The folder then holds the trained weights, or an adapter.

    Example: dapo-stages init-policy --config pipelines/embedded.yaml --out training_logs/first/policy
    """
    overrides = [*(set_ or []), *([f"sft.source={sft!r}"] if sft is not None else [])]
    config = load_config(config_file, overrides)
    embedded = config.model.name == "embedded"
    recorded = config.sections(
        "model",
        *(["warm_up", "data.system_prompt", "data.synthetic.task", "data.synthetic.shuffled"] if embedded else []),
        *(_OF_SFT if config.sft is not None else ()),
    )
    plan = Plan("init-policy", out, recorded | _files_of(config), config.seed, verify=config.verify)
    carry_out.run(
        plan,
        lambda output: _embedded(output, config) if embedded else _referred(output, config),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        alone=True,
    )


def _files_of(config: Config) -> dict[str, Any]:
    """The files of a dataset to learn from, so that a changed one counts as another input."""
    if config.sft is None:
        return {}
    from dapo_stages.data.examples import is_own, learned_from
    from dapo_stages.data.sources import source_files

    files = source_files(config.data)
    return {"data.files": files} | ({} if is_own(config) else {"sft.files": source_files(learned_from(config))})


def _embedded(output: Output, config: Config) -> None:
    import torch

    from dapo_stages.data.chat import SYSTEM_PROMPT
    from dapo_stages.data.embedded.tasks import captions, task
    from dapo_stages.models.adapters import check_targets
    from dapo_stages.models.embedded.embedded_policy import build, build_processor
    from dapo_stages.models.embedded.warm_up import WarmUp, warm_up
    from dapo_stages.models.policy import Policy
    from dapo_stages.models.policy_loading import save_policy

    synthetic = config.data.synthetic
    model, tokenizer = build(config.seed, synthetic.task)
    if config.train.lora is not None:
        check_targets(model, config.train.lora)
    processor = build_processor(tokenizer)
    prompt, settings = config.data.system_prompt, config.warm_up
    recipe = WarmUp(
        settings.steps,
        settings.batch_size,
        settings.biased,
        settings.hearsay,
        settings.careful,
        settings.captions,
        settings.learning_rate,
        synthetic.shuffled,
    )
    with progress("init-policy: warm-up steps", settings.steps) as advance:
        figures = warm_up(
            model,
            processor,
            task(synthetic.task),
            config.seed,
            recipe,
            system_prompt=SYSTEM_PROMPT if prompt is None else prompt,
            captions=captions(synthetic.task),
            progress=lambda step, steps, loss: advance(1, f"loss {loss:.3f}"),
        )
    policy = Policy(model, processor, torch.device("cpu"), torch.float32)
    output.counts |= {"parameters": sum(p.numel() for p in model.parameters()), **figures}
    output.policy = {"version": 0, "model": "embedded"}
    if config.sft is None:
        with output.files() as folder:
            save_policy(policy, folder)
        return
    if config.train.lora is not None:
        save_policy(policy, output.folder / _BASE)
        output.add_files(_BASE)
        output.publish_part(_BASE, dict(output.policy))
    _learn(output, config, policy)


def _referred(output: Output, config: Config) -> None:
    """Check that a hub model or checkpoint folder can be used, and record a reference to it as it is now."""
    from dapo_stages.data.chat import SYSTEM_PROMPT
    from dapo_stages.handoff.referred import fetched, place_of, refer_to
    from dapo_stages.models.adapters import check_targets
    from dapo_stages.models.checkpoints import Checkpoint, empty_model
    from dapo_stages.models.doubtful_tokens import doubtful_tokens, remedy
    from dapo_stages.models.families import FAMILIES
    from dapo_stages.models.own_rows import require_readable
    from dapo_stages.models.policy_loading import check_family
    from dapo_stages.models.processor import load_processor
    from dapo_stages.models.reading import reading
    from dapo_stages.models.requirements import require_scores
    from dapo_stages.models.soundness import check_checkpoint, check_numbers
    from dapo_stages.models.tokens import load_tokens
    from dapo_stages.models.trial import check_values, prompt_with_an_image

    name = config.model.name
    place = place_of(name)
    folder = fetched(place)
    check_numbers(folder)
    family = check_family(folder)
    check_checkpoint(folder)
    tokens = load_tokens(folder)
    with reading(folder):
        processor = load_processor(folder)
    prompt_with_an_image(folder, processor)
    if config.train.lora is not None:
        check_targets(empty_model(folder), config.train.lora)
    checkpoint = Checkpoint(folder)
    check_values(folder, ((tensor, checkpoint.read(tensor)) for tensor in checkpoint.shapes))
    say(f"init-policy: {place['reference']} is a {family} checkpoint")
    system_prompt = SYSTEM_PROMPT if config.data.system_prompt is None else config.data.system_prompt
    doubts = doubtful_tokens(tokens, processor, checkpoint, system_prompt, plain_tags=config.data.tags == "plain")
    for token, why in doubts.items():
        say(f"init-policy: warning: {token} {why}. {remedy(token)}")
    if doubts:
        output.counts["doubtful_tokens"] = list(doubts)
    if family not in FAMILIES:
        require_scores(family, config.attention)
        if config.attention.enabled:
            with reading(folder):
                require_readable(name, family, empty_model(folder), processor)
        say("init-policy: completions of this family do not share their prompt; one row for each (docs/models.md)")
    output.policy = {"version": 0, "model": name, **refer_to(place)}
    if config.sft is not None:
        _learn_from(output, config, folder)


def _learn_from(output: Output, config: Config, checkpoint: Path) -> None:
    """Supervised steps on a checkpoint: the output holds the trained weights, or an adapter and the reference."""
    from dapo_stages.models.policy_loading import load_policy

    policy = load_policy(checkpoint, config.model)
    if config.train.lora is not None:
        (output.folder / _BASE).mkdir(exist_ok=True)
        output.publish_part(_BASE, dict(output.policy))
    output.policy = {"version": 0, "model": config.model.name}
    _learn(output, config, policy)


def _learn(output: Output, config: Config, policy: Policy) -> None:
    """The supervised steps of the configuration, on a policy that is then saved; an adapter has its base beside it."""
    import torch

    from dapo_stages.data.examples import is_own, learned_from, training_examples
    from dapo_stages.data.image_workers import image_workers
    from dapo_stages.models.adapters import add_adapter
    from dapo_stages.models.chat_templates import chat_template
    from dapo_stages.models.policy_loading import save_policy
    from dapo_stages.rewards.format import format_reward
    from dapo_stages.rewards.tags import continued_thought
    from dapo_stages.training.supervised import learnable, supervise

    assert config.sft is not None
    sft = config.sft
    with chat_template(policy.processor) as render, image_workers() as workers:
        examples = training_examples(config, policy.processor, render, workers, sft.steps * sft.batch_size)
    plain = config.data.tags == "plain"
    groups = learnable(examples, policy, config.rollout.max_completion_length, plain_tags=plain)
    first = examples.found[0]
    named = ", ".join(one.source for one in learned_from(config).of_sources().values())
    whose = f"the training rows of {named}" if is_own(config) else named
    say(f"init-policy: {sft.steps} supervised steps on {len(groups)} examples from {whose}; the first: ")
    prompt = first.prompt["prompt_text"]
    say(f"{prompt}{first.completion}")
    if not format_reward(continued_thought(prompt, first.completion)) and config.weights.reward_weights.format:
        say("init-policy: this completion has no format reward; see sft.completion")
    torch.manual_seed(config.seed)
    if config.train.lora is not None:
        add_adapter(policy, config.train.lora)
        output.policy["base"] = _BASE
    with progress("init-policy: supervised steps", sft.steps) as advance:
        figures = supervise(policy, groups, config, advance)
    with output.files() as folder:
        save_policy(policy, folder)
    output.counts |= {"sft_examples": len(groups), **{f"sft_{key}": n for key, n in examples.counts.items()}, **figures}

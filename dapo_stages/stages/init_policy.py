"""init-policy: a model's name in, the policy folder that a run starts from out."""

from __future__ import annotations

from dapo_stages.config import Config, load_config
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.terminal.console import progress, say
from dapo_stages.terminal.options import ConfigFile, DryRun, Json, Out, Overrides, Overwrite


def main(
    config_file: ConfigFile,
    out: Out,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make the starting policy.

    `model.name: embedded` builds the small Qwen2.5-VL and warms it up, without any download. A hub id or a folder is
    referenced, not copied: its revision and the SHA-256 of its files are recorded, and later stages refuse others.

    Example: dapo-stages init-policy --config pipelines/embedded.yaml --out training_logs/first/policy
    """
    config = load_config(config_file, set_)
    embedded = config.model.name == "embedded"
    recorded = config.sections(
        "model",
        *(["warm_up", "data.system_prompt", "data.synthetic.task", "data.synthetic.shuffled"] if embedded else []),
    )
    plan = Plan("init-policy", out, recorded, config.seed, verify=config.verify)
    carry_out.run(
        plan,
        lambda output: _embedded(output, config) if embedded else _reference(output, config),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        alone=True,
    )


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
    with output.files() as folder:
        save_policy(Policy(model, processor, torch.device("cpu"), torch.float32), folder)
    output.counts |= {"parameters": sum(p.numel() for p in model.parameters()), **figures}
    output.policy = {"version": 0, "model": "embedded"}


def _reference(output: Output, config: Config) -> None:
    """Check that a hub model or checkpoint folder can be used, and record a reference to it as it is now."""
    from dapo_stages.handoff.referred import fetched, place_of, refer_to
    from dapo_stages.models.adapters import check_targets
    from dapo_stages.models.checkpoints import Checkpoint, empty_model
    from dapo_stages.models.families import FAMILIES
    from dapo_stages.models.policy_loading import check_family
    from dapo_stages.models.processor import load_processor
    from dapo_stages.models.reading import reading
    from dapo_stages.models.soundness import check_checkpoint, check_numbers
    from dapo_stages.models.tokens import load_tokens
    from dapo_stages.models.trial import check_values, prompt_with_an_image

    name = config.model.name
    place = place_of(name)
    folder = fetched(place)
    check_numbers(folder)
    family = check_family(folder)
    check_checkpoint(folder)
    load_tokens(folder)
    with reading(folder):
        processor = load_processor(folder)
    prompt_with_an_image(folder, processor)
    if config.train.lora is not None:
        check_targets(empty_model(folder), config.train.lora)
    checkpoint = Checkpoint(folder)
    check_values(folder, ((tensor, checkpoint.read(tensor)) for tensor in checkpoint.shapes))
    say(f"init-policy: {place['reference']} is a {family} checkpoint")
    if family not in FAMILIES:
        say("init-policy: cannot read its attention or share prompts among completions; set attention.enabled=false")
    output.policy = {"version": 0, "model": name, **refer_to(place)}

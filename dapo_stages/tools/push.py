"""push: a policy and its run in, a repository on the hub with weights, processor and model card out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages.config import load_config
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.handoff.manifests import MANIFEST, Source
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.runs.run_folder import Run
from dapo_stages.small_files import read_json
from dapo_stages.terminal.console import answer, say, tell
from dapo_stages.terminal.options import DryRun, Json

if TYPE_CHECKING:
    from dapo_stages.reporting.documents.model_card import Subject
    from dapo_stages.reporting.iteration.figures import Figures

CARD, ADAPTER_CONFIG = "README.md", "adapter_config.json"
# What is sent: weights as safetensors, settings, tokenizer, chat template. Nothing that runs when it is loaded.
SENT = (".safetensors", ".json", ".jinja", ".txt", ".model")


def main(
    repo: Annotated[
        str, typer.Option("--repo", help="Repository on the hub; created if it does not exist.", metavar="USER/NAME")
    ],
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Policy folder to upload.", metavar="DIR"),
    ] = None,
    rollouts: Annotated[
        Path | None,
        typer.Option(
            "--rollouts",
            help="Instead of a policy, upload completions as a dataset: a rollout folder, or a run's for all it has.",
            metavar="DIR",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--run",
            help="Run that made it, for the card; default: the one it is in.",
            metavar="DIR",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license", help="License for the card, by its name on the hub, such as apache-2.0.", metavar="ID"
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", help="The model on the hub that it was trained from.", metavar="USER/NAME"),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--evaluation", help="Folder written by evaluate for it, if the run has none.", metavar="DIR"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is created.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Upload a policy to the Hugging Face Hub, with a model card made from its run; or its completions as a dataset.

    Only safetensors, JSON, chat template and tokenizer files are sent. The token is read from HF_TOKEN only.
    --dry-run prints the card and the list of files, and needs neither token nor network. With --rollouts, Parquet files
    with images, prompts, completions and rewards are sent, which the hub's viewer shows.

    Example: dapo-stages push --policy training_logs/first/iter-0006/train/policy --repo user/name --dry-run
    """
    from dapo_stages.reporting.documents.model_card import model_card

    if (policy is None) == (rollouts is None):
        raise typer.BadParameter("pass one of the two", param_hint="--policy, --rollouts")
    if rollouts is not None:
        _push_rollouts(rollouts, repo, license_, private=private, dry_run=dry_run, as_json=json)
        return
    assert policy is not None
    source = PolicyFolder(policy)
    _check_weights(source)
    source.verify()
    run = Run(folder) if folder is not None else _run_of(policy)
    subject = _subject(source, repo, run, license_, base_model, evaluation)
    files, card = _files(source), model_card(subject)
    for name in sorted({shard.name for shard in source.manifest.shards} - set(files) - {CARD}):
        say(f"push: {name} is not sent")
    if dry_run:
        _show(repo, private, files, card, as_json=json)
        return
    where = _send(source, subject, files, card, private)
    if json:
        answer({"repo": repo, "url": where, "files": [CARD, *files]})
    else:
        say(f"push: done -> {where}")


def _check_weights(source: Source) -> None:
    if "reference" in source.manifest.policy:
        raise DataError(
            source.folder, "this policy has no weights, only a reference to a model elsewhere", "Name a trained policy."
        )


def _run_of(policy: Path) -> Run | None:
    """The run that a policy is in, if it is where make puts it."""
    folder = policy.resolve()
    run = Run(folder.parents[2] if folder.parts[-2:] == ("train", "policy") else folder.parent)
    return run if run.config_file.is_file() else None


def _subject(
    source: PolicyFolder,
    repo: str,
    run: Run | None,
    license_: str | None,
    base_model: str | None,
    evaluation: Path | None,
) -> Subject:
    """All that the card needs. Refuses invalid names, runs of other policies, and adapters without a base."""
    from dapo_stages.reporting.documents.model_card import Subject, belongs_to

    _check_names(repo, base_model, license_)
    if run is not None and not belongs_to(run, source.manifest):
        raise DataError(source.folder, f"{run.path} did not make this policy", "Name the --run that did.")
    base_model = base_model or _base_on_hub(source)
    if source.is_adapter and base_model is None:
        raise DataError(
            source.folder,
            "the base of this adapter is not on the hub, only on this machine",
            "Merge it (dapo-stages merge) and push that, or name its base on the hub: --base-model user/name.",
        )
    start, own = _figures(source, run, evaluation)
    config = load_config(run.config_file) if run is not None and run.config_file.is_file() else None
    return Subject(repo, source.manifest, source.is_adapter, base_model, license_, config, start, own)


def _check_names(repo: str, base_model: str | None, license_: str | None) -> None:
    from dapo_stages.reporting.documents.model_card import is_named

    for option, name in (("--repo", repo), ("--base-model", base_model)):
        if name is not None and not is_named(name):
            raise ConfigError(f"{option}: expected user/name, as on the hub, got {name!r}. Fix it.")
    if license_ is not None and not license_.replace("-", "").replace(".", "").isalnum():
        raise ConfigError(f"--license: expected a name such as apache-2.0, got {license_!r}. Fix it.")


def _figures(source: Source, run: Run | None, evaluation: Path | None) -> tuple[Figures, Figures]:
    """Held-out figures of the run's start and of this policy; empty if there are none."""
    from dapo_stages.reporting.documents.model_card import held_out, held_out_in

    start: Figures = {}
    own: Figures = {}
    if run is not None:
        own = held_out_in(run, source.manifest)
        if (run.path / "policy" / MANIFEST).exists():
            start = held_out_in(run, Source(run.path / "policy").manifest)
    if evaluation is not None:
        own = held_out(Source(evaluation, "evaluate"), source.manifest)
        if not own:
            raise DataError(evaluation, f"this is not an evaluation of {source.folder}", "Name the one that is.")
    return start, own


def _base_on_hub(source: PolicyFolder) -> str | None:
    """The hub model that a policy was trained from; an adapter belongs to exactly the weights it was trained on."""
    from dapo_stages.reporting.documents.model_card import is_hub_id

    about = source.full.manifest.policy
    name = about.get("reference") if source.is_adapter else about.get("model")
    return str(name) if is_hub_id(name) else None


def _files(source: Source) -> list[str]:
    return sorted(shard.name for shard in source.manifest.shards if Path(shard.name).suffix in SENT)


def _show(repo: str, private: bool, files: list[str], card: str, *, as_json: bool) -> None:
    if as_json:
        answer({"repo": repo, "private": private, "files": [CARD, *files], "card": card})
        return
    say(f"push would send to {repo}{' (private)' if private else ''}:")
    tell("\n".join([CARD, *files]))
    tell(f"\n{card.rstrip()}")


def _send(source: Source, subject: Subject, files: list[str], card: str, private: bool) -> str:
    """Upload exactly these files; returns the URL of the commit."""
    from tempfile import TemporaryDirectory

    from dapo_stages.processes.uploads import require_token, upload

    require_token()
    with TemporaryDirectory(prefix="dapo-stages-push-") as staged:
        folder = Path(staged)
        _stage(source, subject, files, card, folder)
        version = subject.policy.policy.get("version", 0)
        return upload(subject.repo, "model", folder, f"Policy of iteration {version}", private=private)


def _stage(source: Source, subject: Subject, files: list[str], card: str, folder: Path) -> None:
    """Write links to the files, the card, and an adapter's settings with the base's name, where peft looks for it."""
    import json

    for name in files:
        (folder / name).symlink_to((source.folder / name).resolve())
    (folder / CARD).write_text(card, encoding="utf-8")
    if subject.is_adapter:
        settings: dict[str, Any] = read_json(source.folder / ADAPTER_CONFIG)
        settings["base_model_name_or_path"] = subject.base_model
        (folder / ADAPTER_CONFIG).unlink()
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _push_rollouts(
    folder: Path, repo: str, license_: str | None, *, private: bool, dry_run: bool, as_json: bool
) -> None:
    """Upload the completions of a rollout folder, or of all that a run has, with a card."""
    from tempfile import TemporaryDirectory

    from dapo_stages.processes.uploads import require_token, upload
    from dapo_stages.reporting.documents.dataset_card import dataset_card
    from dapo_stages.reporting.shared_rollouts import table_name, write_tables

    _check_names(repo, None, license_)
    sources = _rollouts_in(folder)
    run = Run(folder if (folder / "config.yaml").is_file() else folder.resolve().parents[1])
    card = dataset_card(repo, sources, run.config, license_)
    if dry_run:
        _show(repo, private, [table_name(source) for source in sources], card, as_json=as_json)
        return
    require_token()
    with TemporaryDirectory(prefix="dapo-stages-push-") as staged:
        files = write_tables(sources, Path(staged))
        (Path(staged) / CARD).write_text(card, encoding="utf-8")
        where = upload(repo, "dataset", Path(staged), f"{sum(one.rows or 0 for one in files)} prompts", private=private)
    if as_json:
        answer({"repo": repo, "url": where, "files": [CARD, *(one.name for one in files)]})
    else:
        say(f"push: done -> {where}")


def _rollouts_in(folder: Path) -> list[Source]:
    """The rollouts of a run that are not pruned, or the one in this folder. Raises DataError if there is none."""
    if (folder / MANIFEST).exists():
        found = [Source(folder, "rollout")]
    else:
        run = Run(folder)
        found = [sources["rollout"] for number in run.iterations() if "rollout" in (sources := run.sources(number))]
    found = [source for source in found if not source.manifest.pruned]
    if not found:
        raise DataError(
            folder, "no rollouts (expected a rollout folder, or a run that has some)", "Name one; see keep.rollouts."
        )
    return found

"""The card of rollouts that are shared as a dataset: what is in it, how it was sampled, and what it is not."""

from __future__ import annotations

from collections.abc import Sequence

from dapo_stages.config import Config
from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.documents.model_card import HOMEPAGE, is_hub_id
from dapo_stages.reporting.shared_rollouts import rewards_of
from dapo_stages.terminal.safe_text import markdown_inline, markdown_table, number, percent

_COLUMNS = {
    "images": "the images of the question, as the policy saw them",
    "problem, solution": "the question, and the answer that counts as right",
    "completions": "what the policy wrote, several for each question",
    "finish_reasons": "stop, or length where a completion was cut off",
    "tokens": "number of tokens of each",
    "num_correct": "how many are right",
    "kept": "whether the group was trained on",
    "slice": "a label of the question, if the data has one",
    "prompt": "the question as the model read it",
    "iteration, policy_version": "when it was sampled, and by the policy after which train-step",
    "group_id": "its name in the run",
}
_REWARDS = {
    "accuracy": "1 for a right answer",
    "format": "1 for `<think>…</think><answer>…</answer>` and nothing else",
    "overlong": "below 0 for completions near the limit of length",
}


def dataset_card(repo: str, rollouts: Sequence[Source], config: Config | None, license_: str | None) -> str:
    """The card as Markdown with its front matter. Names of local files are left out."""
    names = [*_COLUMNS.items()]
    rewards = [(f"reward_{name}", _REWARDS.get(name, "another reward of the run")) for name in rewards_of(rollouts)]
    names[5:5] = rewards
    parts = [
        f"---\n{_front_matter(repo, config, license_)}\n---\n",
        f"# {markdown_inline(repo.split('/')[-1])}\n",
        f"Questions about images with the completions that a vision-language model wrote in training by reinforcement "
        f"learning (DAPO), sampled with {HOMEPAGE} {rollouts[0].manifest.package_version} on {_data_of(config)}.\n",
        markdown_table(["", "value"], [[name, value] for name, value in _facts(rollouts, config).items()]),
        "## Columns\n",
        "A row is a question; the columns with a value for each completion are lists of the same length.\n",
        markdown_table(["column", "meaning"], [[name, meaning] for name, meaning in names]),
        "```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset({repo!r}, split="train")\nrows[0]["images"][0], rows[0]["completions"]\n```\n',
        "## Limitations\n",
        "- Nobody has checked the completions: many are wrong, as those of a policy under training are, "
        "and the text before an answer need not be the reason for it.\n"
        "- Rewards are those of the run, not judgements of people.\n"
        "- Images and questions have the license of the dataset that they are from.\n",
        "## License\n",
        f"{markdown_inline(license_)}.\n" if license_ else "None was specified.\n",
    ]
    return "\n".join(parts)


def _front_matter(repo: str, config: Config | None, license_: str | None) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=license_,
        pretty_name=repo.split("/")[-1],
        source_datasets=[source for source in _sources(config) if is_hub_id(source)] or None,
        task_categories=["visual-question-answering"],
        tags=["reinforcement-learning", "rollouts", HOMEPAGE],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "iteration-*.parquet"}]}],
    )
    return str(data.to_yaml())


def _facts(rollouts: Sequence[Source], config: Config | None) -> dict[str, str]:
    counts = [one.manifest.counts for one in rollouts]
    iterations = [str(one.manifest.config["iteration"]) for one in rollouts]
    groups, completions = (sum(int(one.get(key, 0)) for one in counts) for key in ("groups", "completions"))
    facts = {"iterations": ", ".join(iterations), "questions": f"{groups:,}", "completions": f"{completions:,}"}
    if all("accuracy" in one for one in counts) and completions:
        right = sum(one["accuracy"] * one["completions"] for one in counts)
        facts["right"] = percent(right / completions)
    sampling = rollouts[-1].manifest.config.get("rollout", {}).get("sampler", {})
    if "temperature" in sampling:
        facts["sampling temperature"] = number(sampling["temperature"], 2)
    model = config.model.name if config is not None else None
    named = model is not None and (model == "embedded" or is_hub_id(model))
    facts["starting policy"] = str(model) if named else "a checkpoint that is not on the hub"
    return facts


def _sources(config: Config | None) -> list[str]:
    return [] if config is None else [one.source for one in config.data.of_sources().values()]


def _data_of(config: Config | None) -> str:
    """The datasets in words, without local paths."""
    names = {
        f"[{markdown_inline(source)}](https://huggingface.co/datasets/{source})"
        if is_hub_id(source)
        else ("embedded synthetic questions" if source == "embedded" else "a local dataset")
        for source in _sources(config)
    }
    return " and ".join(sorted(names)) or "a local dataset"

"""Supervised steps: the loss and the first update of a plain forward pass; what is learned by init-policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.commands import run
from support.prompts import groups, own_row
from support.taught import write_rows

from dapo_stages.config import Config
from dapo_stages.data.examples import Example, Examples
from dapo_stages.errors import DataError
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy, open_policy
from dapo_stages.models.shared_prefix.packing import Prompt
from dapo_stages.training.batches import Sample, TrainGroup
from dapo_stages.training.supervised import learnable, supervise

RATE = 1e-3


def _given(prompt: Prompt) -> Prompt:
    return prompt


def config(**train: object) -> Config:
    settings = {"gradient_checkpointing": False, "batch_completions": 2, "weight_decay": 0.0, **train}
    sft = {"steps": 1, "batch_size": 3, "learning_rate": RATE, "warmup_fraction": 0}
    return Config.model_validate({"train": settings, "sft": sft})


def test_a_step_is_that_of_plain_cross_entropy_on_separate_rows(policy: Policy) -> None:
    """One completion each of three prompts, in two passes: mean over all tokens, clipped, then AdamW."""
    policy.model.double()
    policy.dtype = torch.float64
    pairs = [(group.prompt, list(group.completions[0])) for group in groups(policy)]
    naive = copy.deepcopy(policy.model)
    losses = []
    for prompt, completion in pairs:
        row = own_row(policy, prompt, completion)
        row = {name: value.double() if name == "pixel_values" else value for name, value in row.items()}
        logits = naive(**row).logits[0, len(prompt.ids) - 1 : -1]
        logits = logits.masked_fill(policy.suppressed, -torch.inf)  # which are never sampled
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="none"))
    loss = torch.cat(losses).mean()
    loss.backward()
    settings = config().train
    torch.nn.utils.clip_grad_norm_(naive.parameters(), settings.max_grad_norm)
    torch.optim.AdamW(naive.parameters(), RATE, settings.betas, weight_decay=0.0).step()

    taught = [
        TrainGroup(str(number), partial(_given, prompt), [Sample(ids, [0.0] * len(ids), [1.0] * len(ids), 1.0)])
        for number, (prompt, ids) in enumerate(pairs)
    ]
    figures = supervise(policy, taught, config(), lambda steps, said: None)
    assert figures["sft_loss_first"] == pytest.approx(float(loss.detach()), rel=1e-9)
    assert figures["sft_tokens"] == sum(len(ids) for _, ids in pairs)
    expected = dict(naive.named_parameters())
    for name, value in policy.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9, msg=name)


def test_completions_that_could_not_be_sampled_are_left_out(policy: Policy) -> None:
    examples = Examples()
    row = {"prompt_id": "train-000000", "prompt_ids": [1], "images": []}
    for text in ("ab", "<|im_end|>b", "a" * 99):
        examples.found.append(Example(row, text))
    kept = learnable(examples, policy, longest=20)
    end = policy.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [group.samples[0].ids[-1] for group in kept] == [end]
    assert examples.counts == {"dropped_control": 1, "dropped_long": 1}
    with pytest.raises(DataError, match=r"sft.completion: no completion can be learned \(train-000000"):
        learnable(Examples([Example(row, "a" * 99)]), policy, longest=20)


@pytest.mark.parametrize("lora", ["null", "{rank: 2}"])
def test_init_policy_writes_a_policy_that_can_be_trained_further(
    lora: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = checkpoints("qwen2_5_vl")
    source = write_rows(tmp_path / "rows.parquet", list(range(6)))
    (tmp_path / "run.yaml").write_text(
        f"model: {{name: {checkpoint}, dtype: float32}}\n"
        f"data: {{source: {source}}}\nrollout: {{max_completion_length: 64}}\n"
        f"rewards: {{overlong_cache: 8}}\nsft: {{steps: 2, batch_size: 2, learning_rate: 0.01}}\n"
        f"train: {{lora: {lora}, gradient_checkpointing: false}}\n"
    )
    command = ["init-policy", "--config", tmp_path / "run.yaml", "--out", tmp_path / "policy"]
    done = run(*command)
    assert done.code == 0, done.stderr
    assert "2 supervised steps on 4 examples from the training rows of" in done.stderr
    assert "<answer>n" in done.stderr
    folder, settings = PolicyFolder(tmp_path / "policy"), config().model.model_copy(update={"dtype": "float32"})
    assert folder.is_adapter == (lora != "null") and folder.version == 0
    assert folder.checkpoint() == (checkpoint.resolve() if folder.is_adapter else folder.folder)
    before = dict(load_policy(checkpoint, settings).model.named_parameters())
    after = dict(open_policy(folder, settings).model.named_parameters())  # an adapter is merged
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert open_policy(folder, settings, trainable=True).is_adapter == folder.is_adapter
    assert "unchanged" in run(*command).stderr
    write_rows(source, list(range(7)))
    assert run(*command).code == 3  # made from other rows

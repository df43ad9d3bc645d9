"""Chat templates of checkpoints: rendered as transformers does it, in a process that is killed if necessary."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import run, start

from dapo_stages.data.chat import messages
from dapo_stages.data.prompts import Refused, TooLong
from dapo_stages.errors import ModelError
from dapo_stages.models import chat_templates
from dapo_stages.models.chat_templates import chat_template
from dapo_stages.models.processor import load_processor

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture()
def with_template(checkpoint: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint with something before its chat template."""

    def make(before: str) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(checkpoint, folder)
        file = folder / "chat_template.jinja"
        file.write_text(before + file.read_text())
        return folder

    return make


def test_the_text_is_that_of_transformers(with_template: Callable[[str], Path]) -> None:
    processor = load_processor(with_template("{% set x = bos_token %}{{ eos_token }}"))
    conversation = messages("Is <image> <|im_end|> é漢?", 1)
    with chat_template(processor) as render:
        assert render is not None
        expected = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert render(conversation, None) == render(conversation, len(expected)) == expected
        with pytest.raises(TooLong, match=f"{len(expected)} characters"):
            render(conversation, len(expected) - 1)


def test_our_own_template_needs_no_process(checkpoint: Path) -> None:
    with chat_template(load_processor(checkpoint)) as render:
        assert render is None


def test_what_a_template_refuses_or_runs_out_of_memory_over_costs_the_row(with_template: Callable[[str], Path]) -> None:
    trap = "{% if 'no' in messages[-1].content[0].text %}{{ raise_exception('not this') }}{% endif %}"
    trap += "{% if 'huge' in messages[-1].content[0].text %}{{ 'x' * 10 ** 11 }}{% endif %}"
    with chat_template(load_processor(with_template(trap))) as render:
        assert render is not None
        for problem, said in (("no", "TemplateError: not this"), ("huge", "MemoryError")):
            with pytest.raises(Refused, match=said):
                render(messages(problem, 0), None)
        assert render(messages("yes", 0), None).startswith("<|im_start|>system")


@pytest.mark.parametrize("template", [ENDLESS, "{{ 10 ** 10000000000 }}"])
def test_an_endless_template_is_given_up(
    template: str, with_template: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "_LIMIT", 0.3)
    with chat_template(load_processor(with_template(template))) as render:
        assert render is not None
        with pytest.raises(Refused, match=r"it took more than 0\.3 s"):
            render(messages("What?", 0), None)
        for _ in range(2):  # given up for good: rows in progress no longer wait for it
            with pytest.raises(
                ModelError, match=r"tokenizer: it took more than 0\.3 s on 2 conversations \(the limits"
            ):
                render(messages("What?", 0), None)


def prepare(folder: Path, tmp_path: Path) -> list[Any]:
    rows = [{"image": None, "problem": f"A or B, {number}?", "solution": "A"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(f"model: {{name: {folder}}}\ndata: {{source: {tmp_path}/rows.jsonl}}\n")
    return ["prepare-data", "--config", tmp_path / "run.yaml", "--out", tmp_path / "data"]


def test_a_dataset_is_not_prepared_with_it(
    with_template: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "_LIMIT", 0.3)
    result = run(*prepare(with_template(ENDLESS), tmp_path))
    assert result.code == 3
    assert "chat template of the tokenizer: it took more than 0.3 s on 2 conversations (the limits" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_signals_are_heard_while_it_runs(
    number: signal.Signals, with_template: Callable[[str], Path], tmp_path: Path
) -> None:
    """The template would run for days; the test only waits for its start."""
    code = (
        "import sys; from dapo_stages.models import chat_templates; chat_templates._LIMIT = 10_000.0\n"
        "class Said(chat_templates.Child):\n"
        "    def ask(self, *args):\n"
        "        print('asked', flush=True); return super().ask(*args)\n"
        "chat_templates.Child = Said\n"
        "from dapo_stages.entrypoints.cli import main; main()"
    )
    process = start(*prepare(with_template(ENDLESS), tmp_path), code=code)
    assert process.stdout is not None and process.stdout.readline() == "asked\n"
    time.sleep(0.2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped by" in stderr

"""A server with OpenAI's chat completions API that returns token ids: vLLM's, or SGLang.

Checked before the first prompt: that it serves this policy, and returns token ids and logprobs of the distribution
sampled from. Checked after each batch: that it still serves the same policy. The check of the logprobs cannot tell
whether they leave the temperature out, as a forced token has logprob 0 at any temperature; the mismatch that train-step
reports can, and so can the canary of a server that reloads (engines.server.reload).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from dapo_stages.config import Config, RolloutConfig
from dapo_stages.config.run import SamplingStage
from dapo_stages.data.control import MARK
from dapo_stages.engines import Completion
from dapo_stages.engines.canary import SAMPLES, Canary, few
from dapo_stages.engines.foreign import Request, by_prompt, check_prompt, completion, requests, sampling
from dapo_stages.engines.server_reload import Reload
from dapo_stages.engines.server_restart import restart
from dapo_stages.errors import EngineError
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.shards import Row
from dapo_stages.models.families import FAMILIES, Family
from dapo_stages.models.requirements import require_served
from dapo_stages.models.tokens import Tokens
from dapo_stages.processes.servers import CHAT, MODELS, Server, image_part
from dapo_stages.terminal.console import say

NAME, KEY = "server", "DAPO_STAGES_API_KEY"
# Added to the logits of tokens that are never sampled; servers take no lower bias. RolloutConfig bounds the temperature
# that divides it, so that the remaining probability is far below float32's resolution.
_NEVER = -100.0
_CERTAIN = 0.01  # a token with logit_bias 100 has logprob 0, up to this; without the bias it is far below


class _Model(BaseModel):
    id: str
    root: str | None = None  # the folder or hub model it was loaded from


class _Models(BaseModel):
    data: list[_Model]


class _Logprob(BaseModel):
    logprob: float


class _Logprobs(BaseModel):
    content: list[_Logprob] | None = None


class _Choice(BaseModel):
    index: int = 0
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None  # SGLang returns it here, vLLM once for all choices
    logprobs: _Logprobs | None = None

    @property
    def values(self) -> list[float]:
        """Logprobs of the tokens; empty if there are none."""
        return [one.logprob for one in (self.logprobs and self.logprobs.content) or ()]


class _Answer(BaseModel):
    choices: list[_Choice]
    prompt_token_ids: list[int] | None = None

    @property
    def prompt(self) -> list[int] | None:
        """The prompt's token ids as the server read them."""
        return self.prompt_token_ids or next((choice.prompt_token_ids for choice in self.choices), None)


class ServerEngine:
    """Requests completions from a server, prompt by prompt, several at a time."""

    batches_itself = True

    def __init__(self, policy: PolicyFolder, tokens: Tokens, config: Config, stage: SamplingStage) -> None:
        self._stage = stage
        self.tokens, self._settings, self._wanted = tokens, config.sampled(stage), config.engines.server
        self._server = Server(NAME, "engines.server", KEY, self._wanted)
        self._where = self._server.where
        self._check_family()
        self._reload: Reload | None = None
        self._version: str | None = None  # what a server that reloads must say of its weights
        if self._wanted.reload == "none":
            self._model = asyncio.run(self._ready(None if policy.is_adapter else policy.name))
        else:
            self._reload, self._canary = Reload(self._server, policy, config), Canary(policy, config, self._where)

    def generate(
        self, prompts: Sequence[Row], seed: int, samples: int, *, greedy: bool = False
    ) -> list[list[Completion]]:
        """Completions of each prompt; the first permanent failure cancels all requests."""
        for row in prompts:
            check_text(self._where, row)
        if self._reload is not None and self._version != self._reload.proven:
            self._bring(self._reload, few(prompts))
        found = asyncio.run(self._all(requests(prompts, seed, samples, greedy), self._settings))
        return by_prompt(found, len(prompts))

    async def _all(self, wanted: Sequence[Request], settings: RolloutConfig) -> list[list[Completion]]:
        turns = asyncio.Semaphore(self._wanted.concurrency)

        async def one(client: httpx.AsyncClient, request: Request) -> list[Completion]:
            async with turns:
                answer = await self._server.ask(client, _Answer, CHAT, self._body(request, settings))
            return self._completions(request, answer, settings)

        try:
            async with self._server.client() as client:
                async with asyncio.TaskGroup() as tasks:
                    asked = [tasks.create_task(one(client, request)) for request in wanted]
                await self._check_unchanged(client)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in asked]

    def _body(self, request: Request, settings: RolloutConfig) -> dict[str, Any]:
        return {
            "model": self._model.id,
            "messages": messages_of(request.row, FAMILIES[self.tokens.architecture]),
            **sampling(request, settings, self.tokens),
            "logit_bias": dict.fromkeys(sorted(self.tokens.suppressed_ids), _NEVER),
            "max_completion_tokens": settings.max_completion_length,
            "logprobs": True,
            "return_token_ids": True,
        }

    def _completions(self, request: Request, answer: _Answer, settings: RolloutConfig) -> list[Completion]:
        row = request.row
        if len(answer.choices) != request.count:
            raise EngineError(
                self._where,
                f"expected {request.count} completions of prompt {row['prompt_id']}, got {len(answer.choices)}",
                "Use a server that honors n.",
            )
        check_prompt(self._where, row, answer.prompt)
        return [
            completion(self._where, row, one.token_ids, one.values, one.finish_reason, settings, self.tokens)
            for one in sorted(answer.choices, key=lambda choice: choice.index)
        ]

    # ---- a server that reloads

    def _bring(self, reload: Reload, prompts: Sequence[Row]) -> None:
        """Have it serve the policy, after a restart if it must be; otherwise no prompt is sampled."""
        try:
            self._try(reload, prompts)
        except EngineError as failure:
            if self._wanted.restart is None:
                raise
            say(f"{failure.where}: {failure.problem}; restarting it")
            restart(self._where, self._wanted.restart, str(reload.policy))
            self._try(reload, prompts)

    def _try(self, reload: Reload, prompts: Sequence[Row]) -> None:
        """Unless it has been proven to serve the policy, reload that, and prove it by some of the prompts."""
        self._version = asyncio.run(self._loaded(reload))
        if self._version == reload.proven:
            return
        wanted = requests(prompts, seed=0, samples=SAMPLES, greedy=False)
        sampled = asyncio.run(self._all(wanted, self._canary.settings))
        self._canary.check(prompts, sampled, reload.command)
        asyncio.run(self._mark(reload))
        self._version = reload.proven

    async def _loaded(self, reload: Reload) -> str:
        """The version of the server, which has the policy's weights now."""
        async with self._server.client() as client:
            version = await reload.version(client)
            if version != reload.proven:
                version = await reload.load(client)
            self._model = await self._served(client)
            await self._check_logprobs(client, self._model.id)
        return version

    async def _mark(self, reload: Reload) -> None:
        async with self._server.client() as client:
            await reload.mark(client, reload.proven)

    # ---- before the first prompt

    def _check_family(self) -> None:
        require_served(self._stage, self.tokens.architecture)

    async def _ready(self, checkpoint: str | Path | None) -> _Model:
        """Check what is served and how, and return the model."""
        async with self._server.client() as client:
            found = await self._served(client)
            self._check_policy(checkpoint, found.root)
            await self._check_logprobs(client, found.id)
        return found

    async def _served(self, client: httpx.AsyncClient) -> _Model:
        served = (await self._server.ask(client, _Models, MODELS)).data
        wanted = self._wanted.model
        found = next((model for model in served if wanted in (None, model.id)), None)
        if found is None:
            names = ", ".join(model.id for model in served) or "no model"
            raise EngineError(
                self._where,
                f"expected the model {wanted or 'of this policy'}, but it serves {names}",
                "Set engines.server.url and engines.server.model.",
            )
        return found

    async def _check_unchanged(self, client: httpx.AsyncClient) -> None:
        """A server that was restarted in the meantime may have answered with another policy."""
        found = await self._served(client)
        if found != self._model:
            raise EngineError(
                self._where,
                f"it served policy {self._model.root} ({self._model.id}) before this batch, but now serves "
                f"{found.root} ({found.id})",
                "Start the server on the former and run the same command again: finished shards are kept.",
            )
        if self._reload is not None and (version := await self._reload.version(client)) != self._version:
            raise EngineError(
                self._where,
                f"its weights changed during this batch: expected version {self._version}, got {version}",
                "Let one run at a time use this server, and run the same command again: finished shards are kept.",
            )

    def _check_policy(self, checkpoint: str | Path | None, root: str | None) -> None:
        """The server says which folder or hub model it loaded; on another machine a folder has another name."""
        if checkpoint is None:
            say(f"{self._stage}: {self._where} serves {root}; make sure that it is this adapter, merged into its base")
            return
        here = Path(checkpoint).is_dir()
        if root is None or root == str(checkpoint) or (here and Path(root).resolve() == Path(checkpoint).resolve()):
            return
        exists = Path(root).exists()
        comparable = exists if here else not (exists or Path(root).is_absolute())  # folders here, or two hub ids
        if not comparable:
            said = f"{self._stage}: {self._where} serves {root}, which cannot be checked from here"
            say(f"{said}; make sure that it is {checkpoint}")
            return
        raise EngineError(
            self._where,
            f"it serves policy {root}, expected {checkpoint}",
            f"Restart it (python -m vllm.entrypoints.openai.api_server --model {checkpoint} --logprobs-mode "
            "processed_logprobs) and run the same command again.",
        )

    async def _check_logprobs(self, client: httpx.AsyncClient, model: str) -> None:
        """Force one token: its logprob is then 0, if it is of the distribution sampled from."""
        token = min(set(range(self.tokens.vocabulary)) - self.tokens.special_ids)
        request = {
            "model": model,
            "messages": [{"role": "user", "content": "."}],
            "max_completion_tokens": 1,
            "logit_bias": {token: 100.0},
            "temperature": 1.0,
            "repetition_penalty": 1.0,
            "logprobs": True,
            "return_token_ids": True,
        }
        answer = await self._server.ask(client, _Answer, CHAT, request)
        advice = "Start vLLM's server with --logprobs-mode processed_logprobs, or use another engine."
        if not answer.choices or answer.choices[0].token_ids is None or answer.prompt is None:
            raise EngineError(self._where, "its responses have no token ids (return_token_ids)", advice)
        ids, values = answer.choices[0].token_ids, answer.choices[0].values
        if not values:
            raise EngineError(self._where, "its responses have no logprobs", advice)
        if ids != [token]:
            raise EngineError(self._where, f"it ignores logit_bias: expected token {token}, got {ids}", advice)
        if not abs(values[0]) <= _CERTAIN:  # raw logits may be far above
            raise EngineError(
                self._where,
                f"its logprobs are not those of the distribution sampled from: expected 0 for a forced token, got "
                f"{values[0]:.3f}",
                advice,
            )


def check_text(where: str, row: Row) -> None:
    """Raise EngineError if a prompt quotes control tokens: a server gets text, and would parse them as such."""
    if MARK in row["prompt_text"]:
        raise EngineError(
            f"{where}: prompt {row['prompt_id']}",
            "the prompt quotes control tokens, which a server would obey",
            "Run prepare-data with data.on_control_tokens=drop and data.tags=added, or set the engine to transformers "
            "or vllm, which take token ids.",
        )


def messages_of(row: Row, family: Family) -> list[dict[str, Any]]:
    """The messages of a prompt, parsed from its text after the chat template.

    The token ids that the server makes of them are compared with the prompt's.
    """
    start, end = family.turn
    images = iter(row["images"] or ())
    messages = []
    for piece in row["prompt_text"].split(start)[1:]:
        said, finished, _ = piece.partition(end)
        if not finished:  # the turn that the model is to write
            break
        role, _, text = said.partition("\n")
        messages.append({"role": role, "content": list(_content(text, images, family.image_marker))})
    return messages


def _content(text: str, images: Iterator[Row], mark: str) -> Iterator[dict[str, Any]]:
    for number, piece in enumerate(text.split(mark)):
        if number:
            yield image_part(next(images))
        if piece:
            yield {"type": "text", "text": piece}

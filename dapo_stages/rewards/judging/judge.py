"""A language model as judge, by OpenAI's chat completions API: scores by a rubric, or comparisons within a group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, Field

from dapo_stages.config import JudgeConfig
from dapo_stages.processes.servers import CHAT, RefusedError, Server
from dapo_stages.rewards.isolated.plugins import inside
from dapo_stages.rewards.judging.judge_cache import Answer, JudgeCache, key_of
from dapo_stages.rewards.judging.judge_texts import better_of, images_of, pair_request, rubric_request, score_of
from dapo_stages.terminal.console import say

if TYPE_CHECKING:
    import httpx

    from dapo_stages.rewards.scored import Group

NAME, SECTION, KEY = "judge", "rewards.judge", "DAPO_STAGES_JUDGE_API_KEY"
_TOO_MUCH = frozenset({400, 413, 422})  # statuses for one text that is too long, or filtered


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Question(NamedTuple):
    """A request and its hash."""

    key: str
    request: dict[str, Any]


class _Pair(NamedTuple):
    """Two completions of a group, compared in both orders; equal ones need no request."""

    one: int
    other: int
    questions: tuple[_Question, ...]


class Judge:
    """Scores the groups within its budget, asking only what is not cached; without a valid answer a reward is None."""

    def __init__(self, settings: JudgeConfig, root: Path) -> None:
        self._settings = settings
        self._cache = JudgeCache(inside(f"{SECTION}.cache", settings.cache, root))
        self._server = Server(NAME, SECTION, KEY, settings)
        self._answered = False

    def score(self, groups: Sequence[Group], before: int = 0) -> list[list[float | None]]:
        """Rewards 0 … 1 of each completion of some groups; None where the judge gives none.

        `before` is how many groups of the same size precede these in the iteration. Raises EngineError if the server
        cannot be reached or refuses; answers so far stay in the cache.
        """
        reached = groups[: self._reach(groups, before)]
        rewards = self._scores(reached) if self._settings.mode == "rubric" else self._win_rates(reached)
        return rewards + [[None] * len(group.texts) for group in groups[len(reached) :]]

    def _reach(self, groups: Sequence[Group], before: int) -> int:
        """How many of these groups the budget covers: independent of the cache and of the number of processes."""
        if self._settings.max_requests is None or not groups:
            return len(groups)
        size = len(groups[0].texts)
        requests = size if self._settings.mode == "rubric" else 2 * len(list(self._neighbors(size)))
        paid = self._settings.max_requests // max(requests, 1)
        reach = min(max(paid - before, 0), len(groups))
        if reach < len(groups):
            say(
                f"judge: {SECTION}.max_requests={self._settings.max_requests} covers the first {paid} groups, with "
                f"{requests} requests each; groups without reward_judge: {len(groups) - reach}"
            )
        return reach

    def _scores(self, groups: Sequence[Group]) -> list[list[float | None]]:
        questions = []
        for group in groups:
            images = images_of(self._settings, group.row)
            questions.append(
                [_question(rubric_request(self._settings, group.row, images, text)) for text in group.texts]
            )
        verdicts = self._verdicts(chain.from_iterable(questions), partial(score_of, scale=self._settings.scale))
        return [[verdicts.get(one.key) for one in group] for group in questions]

    def _win_rates(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """Share of comparisons that each completion wins, ties counting half; a pair counts only if both orders do."""
        pairs = [list(self._pairs(group)) for group in groups]
        verdicts = self._verdicts((one for group in pairs for pair in group for one in pair.questions), better_of)
        rates: list[list[float | None]] = []
        for group, compared in zip(groups, pairs, strict=True):
            shares: list[list[float]] = [[] for _ in group.texts]
            for pair in compared:
                straight, turned = [verdicts.get(one.key) for one in pair.questions] or [0.5, 0.5]
                if straight is not None and turned is not None:
                    share = (straight + 1 - turned) / 2
                    shares[pair.one].append(share)
                    shares[pair.other].append(1 - share)
            rates.append([sum(one) / len(one) if one else None for one in shares])
        return rates

    def _pairs(self, group: Group) -> Iterator[_Pair]:
        images = images_of(self._settings, group.row)
        for one, other in self._neighbors(len(group.texts)):
            both = group.texts[one], group.texts[other]
            orders = (both, both[::-1]) if both[0] != both[1] else ()
            requests = (pair_request(self._settings, group.row, images, *order) for order in orders)
            yield _Pair(one, other, tuple(map(_question, requests)))

    def _neighbors(self, count: int) -> Iterator[tuple[int, int]]:
        """Completions form a ring; each is compared with neighbors on both sides, as far as `pairs` allows."""
        reach = count // 2 if self._settings.pairs is None else min(count // 2, (self._settings.pairs + 1) // 2)
        for distance in range(1, reach + 1):
            for one in range(count if 2 * distance < count else count // 2):
                yield one, (one + distance) % count

    def _verdicts(self, questions: Iterable[_Question], read: Callable[[str], float | None]) -> dict[str, float | None]:
        """Verdicts by hash of the request; None for an answer that is invalid or was cut off."""
        answers = self._answers({question.key: question.request for question in questions})
        verdicts = {key: read(answer.text) if answer.whole else None for key, answer in answers.items()}
        unread = sum(verdict is None for verdict in verdicts.values())
        if unread:
            say(f"judge: {unread} of {len(verdicts)} answers have no valid verdict and give no reward_judge")
        return verdicts

    def _answers(self, wanted: dict[str, dict[str, Any]]) -> dict[str, Answer]:
        """Answers by hash of the request, cached and new ones."""
        found = {key: answer for key in wanted if (answer := self._cache.get(key)) is not None}
        self._answered |= bool(found)
        missing = {key: request for key, request in wanted.items() if key not in found}
        return found | asyncio.run(self._ask(missing)) if missing else found

    async def _ask(self, requests: dict[str, dict[str, Any]]) -> dict[str, Answer]:
        turns = asyncio.Semaphore(self._settings.concurrency)
        found: dict[str, Answer] = {}
        refused: list[RefusedError] = []

        async def one(client: httpx.AsyncClient, key: str, request: dict[str, Any]) -> None:
            async with turns:
                try:
                    reply = await self._server.ask(client, _Reply, CHAT, request)
                except RefusedError as error:
                    if error.status not in _TOO_MUCH:
                        raise
                    refused.append(error)
                    return
            choice = reply.choices[0]
            answer = Answer(choice.message.content or "", choice.finish_reason != "length")
            found[key] = self._cache.put(key, answer)

        try:
            async with self._server.client() as client, asyncio.TaskGroup() as tasks:
                for key, request in requests.items():
                    tasks.create_task(one(client, key, request))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self._answered |= bool(found)
        if refused and not self._answered:  # it refuses everything: the configuration is wrong, not a completion
            raise refused[0]
        if refused:
            say(f"judge: {len(refused)} requests give no reward_judge; the first: {refused[0].problem}")
        return found


def _question(request: dict[str, Any]) -> _Question:
    return _Question(key_of(request), request)

"""The replay buffer as files: read from the previous iteration's weights folder, written to this one's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dapo_stages.config import ReplayConfig
from dapo_stages.errors import DataError
from dapo_stages.groups.group_scores import GroupScores, reward_columns, score_group
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.shards import Row

if TYPE_CHECKING:
    from dapo_stages.maths.replay import Entry

_GROUP_EXTRA = ("score", "mean_reward", "std_reward", "draws")
_COMPLETION_EXTRA = ("reward_vgr", "token_weights")
_MASK = "loss_mask"
_FRAMES = "frame_seconds"


class ReplayBuffer:
    """Complete groups of earlier iterations: images, token ids, sampling logprobs and weights.

    Scores and rewards of all stored groups are in memory; their tokens and images are streamed.
    """

    def __init__(
        self,
        source: Source | None,
        settings: ReplayConfig,
        iteration: int,
        weights: Mapping[str, float],
        *,
        lengths: bool = False,
    ) -> None:
        self._source, self._settings, self._iteration = source, settings, iteration
        self.entries = self._read_entries() if source is not None and settings.size else []
        self.groups = self._read_groups(weights, lengths) if self.entries else {}

    def exchange(self, fresh: list[GroupScores], target: int, seed: int) -> tuple[list[GroupScores], set[str]]:
        """Draw stored groups to train on, without replacement; also returns the ids of the fresh ones they replace."""
        import numpy as np

        from dapo_stages.maths.replay import RULES, draw, drawn_again, importance, rated

        def now(group: GroupScores) -> Entry:
            return rated(group.group_id, group.iteration, group.rewards)

        settings, stored = self._settings, self.entries
        if settings.rule == "better":
            stored = [now(self.groups[entry.group_id]) for entry in stored]
        rule = RULES[settings.rule]
        found = rule([now(group) for group in fresh], stored, target, settings.var_epsilon, settings.min_reward)
        rng = np.random.default_rng([seed, self._iteration])
        drawn, likelihood = draw(found.candidates, found.count, rng, settings.priority_alpha)
        groups = [self.groups[entry.group_id] for entry in drawn]
        for group, value in zip(groups, importance(likelihood, settings.priority_beta), strict=True):
            group.importance = float(value)
        self.entries = drawn_again(self.entries, {entry.group_id for entry in drawn})
        return groups, {entry.group_id for entry in found.leaving[: len(drawn)]}

    def copy_replayed(self, output: Output, replayed: list[GroupScores]) -> dict[str, list[float]]:
        """Write the data of replayed groups next to the weights; returns their stored token weights by completion."""
        weights: dict[str, list[float]] = {}
        if not replayed or self._source is None:
            return weights
        prompts, completions = [], []
        with (
            self._source.lookup("buffer", "group_id") as stored,
            self._source.lookup("buffer-completions", "group_id") as members,
        ):
            for group in replayed:
                rows = members.all(group.group_id)
                weights |= {row["completion_id"]: row["token_weights"] for row in rows}
                prompts.append(_without(stored.one(group.group_id), _GROUP_EXTRA))
                completions += [_without(row, _COMPLETION_EXTRA) for row in rows]
        if all(row[_MASK] is None for row in completions):
            completions = [_without(row, (_MASK,)) for row in completions]
        if all(row[_FRAMES] is None for row in prompts):
            prompts = [_without(row, (_FRAMES,)) for row in prompts]
        output.write("replayed-prompts", 0, prompts)
        output.write("replayed-completions", 0, completions)
        return weights

    def write_next(self, output: Output, rollouts: Source, fresh: list[GroupScores]) -> int:
        """Write the buffer as it is after this iteration; `fresh` are the groups that may enter. Returns its size."""
        from dapo_stages.maths.replay import Entry, score, update

        new = [
            Entry(group.group_id, group.iteration, score(group.advantages, group.std), group.mean, group.std)
            for group in fresh
            if group.advantages is not None
        ]
        settings = self._settings
        kept = update(self.entries, new, settings.size, settings.max_staleness, self._iteration, settings.max_replays)
        entering = {group.group_id: group for group in fresh}
        entering = {entry.group_id: entering[entry.group_id] for entry in kept if entry.group_id in entering}
        staying = {entry.group_id for entry in kept} - entering.keys()
        # `draws` is newer than the other columns: a buffer without draws is written as before it existed.
        names = _GROUP_EXTRA if any(entry.draws for entry in kept) else _GROUP_EXTRA[:-1]
        scores = {entry.group_id: {name: getattr(entry, name) for name in names} for entry in kept}
        prompts = self._prompts(rollouts, entering, staying, scores)
        if not (_has(rollouts, "prompts", _FRAMES) or _has(self._source, "buffer", _FRAMES)):
            prompts = (_without(row, (_FRAMES,)) for row in prompts)  # written as before there were any
        output.write("buffer", 0, prompts)
        completions = self._completions(output, rollouts, entering, staying)
        if not (_has(rollouts, "completions", _MASK) or _has(self._source, "buffer-completions", _MASK)):
            completions = (_without(row, (_MASK,)) for row in completions)  # written as before there were any
        output.write("buffer-completions", 0, completions)
        return len(kept)

    def _read_entries(self) -> list[Entry]:
        from dapo_stages.maths.replay import Entry, unspent

        rows = self._rows("buffer", ["group_id", "iteration", *_GROUP_EXTRA])
        # From a buffer of this or a later iteration, a group's completions would be used twice.
        oldest, newest = self._iteration - self._settings.max_staleness, self._iteration - 1
        alive = (row | {"draws": row["draws"] or 0} for row in rows if oldest <= row["iteration"] <= newest)
        entries = unspent([Entry(**row) for row in alive], self._settings.max_replays)
        for entry in entries:
            if entry.score < 0:
                raise self._unusable(
                    "buffer", f"column score of group {entry.group_id} must be 0 or more, but is {entry.score:g}"
                )
        return entries

    def _read_groups(self, weights: Mapping[str, float], lengths: bool) -> dict[str, GroupScores]:
        import numpy as np

        plugins = tuple(self._source.manifest.rewards) if self._source else ()
        members: dict[str, list[Row]] = {entry.group_id: [] for entry in self.entries}
        for row in self._rows("buffer-completions", [*reward_columns(plugins, lengths=lengths), "reward_vgr"]):
            if row["group_id"] in members:
                members[row["group_id"]].append(row)
        if missing := [group_id for group_id, rows in members.items() if not rows]:
            raise self._unusable("buffer-completions", f"group {missing[0]} has no completions")
        return {
            entry.group_id: score_group(
                entry.group_id,
                entry.iteration,
                members[entry.group_id],
                np.array([row["reward_vgr"] for row in members[entry.group_id]], dtype=float),
                weights,
            )
            for entry in self.entries
        }

    def _prompts(
        self, rollouts: Source, entering: dict[str, GroupScores], staying: set[str], scores: dict[str, Row]
    ) -> Iterator[Row]:
        for row in self._rows("buffer") if staying else ():
            if row["group_id"] in staying:
                yield _without(row, _GROUP_EXTRA) | scores[row["group_id"]]
        for row in rollouts.rows("prompts") if entering else ():
            if row["group_id"] in entering:
                yield _without(row, ("informative",)) | scores[row["group_id"]]

    def _completions(
        self, output: Output, rollouts: Source, entering: dict[str, GroupScores], staying: set[str]
    ) -> Iterator[Row]:
        from dapo_stages.handoff.schemas import READING

        for row in self._rows("buffer-completions") if staying else ():
            if row["group_id"] in staying:
                yield row
        vgr = {
            completion_id: float(value)
            for group in entering.values()
            for completion_id, value in zip(group.completion_ids, group.components["vgr"], strict=True)
        }
        for shard in sorted({group.shard for group in entering.values() if group.shard is not None}):
            written = output.reopen("weights", shard, ["completion_id", "token_weights"])
            weights = {row["completion_id"]: row["token_weights"] for row in written}
            with rollouts.reader("completions", rollouts.shards("completions")[shard]) as reader:
                for row in reader.rows():
                    key = row["completion_id"]
                    if key in vgr:
                        more = {"reward_vgr": vgr[key], "token_weights": weights[key]}
                        yield _without(row, READING) | more

    def _unusable(self, kind: str, problem: str) -> DataError:
        folder = self._source.folder if self._source is not None else Path()
        advice = "Run weight-tokens again for the previous iteration, or leave --replay out."
        return DataError(folder / f"{kind}-00000.parquet", problem, advice)

    def _rows(self, kind: str, columns: list[str] | None = None) -> Iterator[Row]:
        return self._source.rows(kind, columns) if self._source is not None else iter(())


def _has(source: Source | None, kind: str, name: str) -> bool:
    return source is not None and any(row[name] is not None for row in source.rows(kind, [name]))


def _without(row: Row, names: tuple[str, ...]) -> Row:
    return {name: value for name, value in row.items() if name not in names}

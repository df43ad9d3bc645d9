"""The settings of section weights applied to the tokens of a completion, from its attention and its text."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from dapo_stages.config import WeightsConfig
from dapo_stages.groups.scheme_file import OF_COMPLETION, SchemeFile
from dapo_stages.groups.token_words import Kinds, token_kinds
from dapo_stages.handoff.shards import Row

if TYPE_CHECKING:
    import numpy as np

    from dapo_stages.maths.schemes import Cut

Rows = Iterable[Row]


class Weighed(NamedTuple):
    """Weights of a completion's tokens, whether they have the mean that they should, and whether any had a raw one."""

    weights: np.ndarray
    reached: bool
    known: bool


class TokenWeighting:
    """Raw weights by scheme, changed by kind of token and position, selected, brought within bounds, mixed.

    `survey` comes first: it passes over the tokens in the loss for whatever depends on all of them, and holds 4 bytes
    per token and quantile. Rows are those of the attention file, with the columns of the completion.
    """

    def __init__(self, settings: WeightsConfig, scheme: SchemeFile | None = None) -> None:
        from dapo_stages.maths.completion_factors import SCORES
        from dapo_stages.maths.schemes import columns, cuts, parameters

        self._settings, self._scheme = settings, scheme
        self._languages = (settings.stop_words,) if isinstance(settings.stop_words, str) else settings.stop_words or ()
        self._cuts: dict[str, Cut] = {} if scheme else cuts(settings.scheme)
        self._cut_at: dict[str, float] = {}
        self._select_at: float | None = None
        self.scheme_columns = scheme.columns if scheme else columns(settings.scheme)
        factor = settings.completion_factor
        self.factor_columns = parameters(SCORES[factor]) if factor != "none" else ()

    @property
    def attention_columns(self) -> tuple[str, ...]:
        """Those of the attention file that are needed."""
        names = dict.fromkeys((*self.scheme_columns, *self.factor_columns))
        return tuple(name for name in names if name not in OF_COMPLETION)

    @property
    def completion_columns(self) -> tuple[str, ...]:
        """Those of the rollouts that are needed, besides the token ids."""
        words = ("text", "token_texts") if self._sees_words else ()
        return tuple(dict.fromkeys((*(name for name in self.scheme_columns if name in OF_COMPLETION), *words)))

    def survey(self, rows: Callable[[], Rows]) -> None:
        """Find the values that tokens of the whole iteration are compared with; `rows` are those in the loss.

        Raises ValueError as `weigh` does.
        """
        from dapo_stages.maths.schemes import scored
        from dapo_stages.maths.selection import cut

        if self._cuts:
            found = {name: array("f") for name in self._cuts}
            for row in rows():
                for name, values in found.items():
                    scores = scored(self._cuts[name].score, row, len(row["completion_ids"]), {})
                    values.frombytes(scores.astype("float32").tobytes())
            self._cut_at = {name: cut(values, self._cuts[name].share) for name, values in found.items()}
        select = self._settings.select
        if select is not None and select.by == "batch":
            raws = array("f")
            for row in rows():
                raws.frombytes(self._raw(row).astype("float32").tobytes())
            self._select_at = cut(raws, select.top)

    def weigh(self, row: Row) -> Weighed:
        """Weights of one completion's tokens, [T].

        Raises ValueError if a column has another length than the completion.
        """
        import numpy as np

        from dapo_stages.maths.selection import selected_weights
        from dapo_stages.maths.weight_modifiers import mixed

        settings, raw = self._settings, self._raw(row)
        known = np.isfinite(raw)
        if settings.select is None or not raw[known].any():
            weights, reached = self._bounded(raw)
        else:
            chosen = self._chosen(raw)
            among = np.ones(chosen.sum()) if settings.select.equal else raw[chosen]
            weights = np.ones(len(raw))
            weights[chosen], reached = self._bounded(among)
            whole = settings.select.by == "completion"
            share = chosen.sum() / known.sum() if whole else settings.select.top
            weights = selected_weights(weights, chosen, known, share, settings.mean_preserving)
        if settings.mixing < 1:
            weights = mixed(weights, settings.mixing)
        return Weighed(weights, reached, bool(known.any()))

    def factors(self, rows: list[Row]) -> np.ndarray:
        """The factor of each completion of a group, [N]; 1 for those without attention."""
        import numpy as np

        from dapo_stages.maths.completion_factors import SCORES, completion_factors

        name = self._settings.completion_factor
        if name == "none":
            return np.ones(len(rows))
        scores = [
            SCORES[name](*(np.asarray(row[column], dtype=float) for column in self.factor_columns))
            if row["status"] == "ok" and row["completion_ids"]
            else np.nan
            for row in rows
        ]
        return completion_factors(name, np.array(scores))

    @property
    def _sees_words(self) -> bool:
        settings = self._settings
        return bool(self._languages) or settings.answer_tokens is not None or settings.format_tokens is not None

    def _raw(self, row: Row) -> np.ndarray:
        """Raw weights before selection, scaling and bounds, [T]."""
        from dapo_stages.maths.schemes import raw_weights
        from dapo_stages.maths.token_weights import smoothed
        from dapo_stages.maths.weight_modifiers import with_factor, with_fixed, with_position_bonus

        settings, tokens = self._settings, len(row["completion_ids"])
        if self._scheme is not None:
            raw = self._scheme.raw_weights(row, tokens)
        else:
            raw = raw_weights(settings.scheme, row, tokens, self._cut_at)
        raw = smoothed(raw, settings.smooth_sigma)
        if settings.position_bonus:
            raw = with_position_bonus(raw, settings.position_bonus)
        if self._sees_words:
            kinds: Kinds = token_kinds(row["text"], row["token_texts"], self._languages)
            raw = with_factor(raw, kinds.stop_words, settings.stop_word_weight)
            fixed = dict.fromkeys(kinds.answer, settings.answer_tokens) | dict.fromkeys(
                kinds.tags, settings.format_tokens
            )
            raw = with_fixed(raw, {token: weight for token, weight in fixed.items() if weight is not None})
        return raw

    def _bounded(self, raw: np.ndarray) -> tuple[np.ndarray, bool]:
        from dapo_stages.maths.token_weights import token_weights

        settings = self._settings
        return token_weights(raw, settings.clip, mean_preserving=settings.mean_preserving)

    def _chosen(self, raw: np.ndarray) -> np.ndarray:
        import numpy as np

        from dapo_stages.maths.selection import top

        select = self._settings.select
        assert select is not None
        if self._select_at is None:
            return top(raw, select.top)
        return raw.astype("float32") >= np.float32(self._select_at)  # false for NaN

"""A weighting scheme from the user's own file, `weights.scheme: path/to/file.py:function`, in a process of its own.

    def beyond_own_words(mass_vision, mass_generated):
        return mass_vision / (mass_vision + mass_generated)

Its parameters are named like columns of the attention file, or `token_texts` and `completion_ids`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.config import Config, RewardsConfig
from dapo_stages.groups.own_function import Kind, OwnFunction

if TYPE_CHECKING:
    import numpy as np

KEY = "weights.scheme"
_KIND = Kind("schemes", "scheme", "weigh", "weighing", example="vgr")
OF_COMPLETION = ("token_texts", "completion_ids")  # columns of the rollouts that a scheme may ask for


def scheme_file(config: Config) -> SchemeFile | None:
    """The process of a scheme from the user's file; None for one of the package's. Raises as SchemeFile does."""
    from dapo_stages.handoff.schemas import SCHEMAS
    from dapo_stages.maths.schemes import SCHEMES

    if config.weights.scheme in SCHEMES:
        return None
    known = set(SCHEMAS["attention"].names) - {"completion_id", "status"}
    return SchemeFile(config.weights.scheme, config.rewards, Path.cwd(), known)


class SchemeFile:
    """The configured function."""

    def __init__(self, where: str, settings: RewardsConfig, root: Path, known: Collection[str]) -> None:
        """Find the file and run it, so that mistakes show before anything is weighed; `known` are the columns.

        Raises ConfigError if the path leaves `root`, file or function is missing, or a parameter is no column.
        """
        self._function = OwnFunction(KEY, _KIND, where, settings, root)
        columns = f"a column of the attention files ({', '.join(sorted(known))}), token_texts or completion_ids"
        self._function.require({*known, *OF_COMPLETION}, columns)
        self.content, self.columns = self._function.content, self._function.parameters

    def raw_weights(self, row: Mapping[str, Any], tokens: int) -> np.ndarray:
        """Raw weights of the completion's tokens, [tokens], from its columns; NaN for no opinion.

        Raises ValueError if a column has another length than the completion, and DataError naming function and
        completion if the function raises, takes too long, ends the process, or returns anything but one finite number,
        not negative, or None for each token. NaN counts as None where a column of the token is not finite.
        """
        import numpy as np

        columns = {name: row[name] for name in self.columns}
        for name, values in columns.items():
            if isinstance(values, list) and len(values) != tokens:
                raise ValueError(f"{len(values)} values of {name} for {tokens} tokens")
        among = f"the {tokens} tokens of completion {row['completion_id']}"
        reply = self._function.ask({"columns": columns, "tokens": tokens}, among)
        values, index = reply.get("values"), reply.get("index")
        if values is not None:
            index = next((i for i, v in enumerate(values) if v is not None and isnan(v) and _known(columns, i)), None)
            if index is None:
                return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            reply = {"found": "NaN where every column is finite"}
        place = f"token {index} of completion {row['completion_id']}" if isinstance(index, int) else among
        raise self._function.refused(
            f"the scheme must give a finite number, not negative, or None for each of {tokens} tokens, got "
            f"{reply.get('found', 'no values')} for {place}"
        )

    def close(self) -> None:
        """End the process."""
        self._function.close()


def _known(columns: Mapping[str, Any], index: int) -> bool:
    """Whether every column of a token is finite."""
    values = [value[index] if isinstance(value, list) else value for value in columns.values()]
    return all(isinstance(value, str) or (value is not None and isfinite(value)) for value in values)

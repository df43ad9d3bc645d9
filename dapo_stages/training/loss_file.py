"""A loss from the user's own file, `train.loss_type: path/to/file.py:function`, in this process: it has a gradient.

    def plain(ratio_T, advantages_T):
        return -ratio_T * advantages_T

Its parameters are named like the tensors of LossInputs, or `ratio_T`, or `settings` (LossSettings).
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapo_stages.config import Config
from dapo_stages.config.train import LOSSES
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.rewards.isolated.plugins import locate

if TYPE_CHECKING:
    from torch import Tensor

    from dapo_stages.maths.loss_inputs import LossInputs
    from dapo_stages.maths.loss_types import LossSettings

KEY = "train.loss_type"
TENSORS = (
    "new_T", "old_T", "advantages_T", "weights_T", "mask_T", "sequence_ids_T", "sampling_T", "reference_T", "entropy_T",
)  # fmt: skip
_KNOWN = ("ratio_T", *TENSORS, "settings")
_FIX = "Fix the function and run the command again, with --overwrite if the file was edited."


def loss_file(config: Config) -> LossFile | None:
    """The configured loss, if it is from the user's file; None for one of the package's. Raises as LossFile does."""
    if config.train.loss_type in LOSSES:
        return None
    return LossFile(config.train.loss_type, Path.cwd())


class LossFile:
    """The configured function, as a loss type named like it in the configuration."""

    def __init__(self, where: str, root: Path) -> None:
        """Find the file and run it. Raises ConfigError if its path leaves `root`, file or function is missing, the file
        cannot be imported, or a parameter is not known."""
        path, name = locate(KEY, where, root)
        self.where, self.content = where, path.read_bytes()
        self._path = str(path)
        try:
            function = getattr(_module(path), name, None)
        except Exception as error:
            raise ConfigError(
                f"{KEY}: {path}: cannot import the file ({self._said(error)}). Fix the file and run the command again."
            ) from None
        if not callable(function):
            raise ConfigError(
                f"{KEY}: {path}: no function {name} in this file. Write `def {name}(ratio_T, advantages_T)`, with the "
                "tensors it needs, or correct the name in the configuration."
            )
        self._function: Callable[..., Any] = function
        self._parameters = tuple(inspect.signature(function).parameters)
        for one in self._parameters:
            if one not in _KNOWN:
                raise ConfigError(
                    f"{KEY}: {where}: the parameter {one} must be one of {', '.join(_KNOWN)}. Correct its name."
                )

    def register(self, settings: LossSettings) -> None:
        """Make it a loss type of this process, after a trial on four tokens. Raises DataError as `gain` does."""
        import torch

        from dapo_stages.maths.loss_inputs import LossInputs
        from dapo_stages.maths.loss_types import LOSSES, Loss, no_clips

        old = torch.tensor([-0.5, -2.0, -1.0, -0.1])
        inputs = LossInputs(
            new_T=(old + torch.tensor([0.1, -0.2, 0.0, -0.4])).requires_grad_(),
            old_T=old,
            advantages_T=torch.tensor([1.0, 1.0, 1.0, -0.5]),
            weights_T=torch.ones(4),
            mask_T=torch.ones(4, dtype=torch.bool),
            sequence_ids_T=torch.tensor([0, 0, 0, 1]),
            sampling_T=old,
            reference_T=old if settings.beta else None,
            entropy_T=torch.ones(4),
        )
        self.gain((inputs.new_T - old).exp(), inputs, settings, torch.ones(4))
        LOSSES[self.where] = Loss(self.gain, "token_mean", clips=no_clips)

    def gain(self, ratio_T: Tensor, inputs: LossInputs, settings: LossSettings, engine_T: Tensor) -> Tensor:
        """Minus what the function returns, times the engine's weight, [T].

        Raises DataError, naming the function, if it raises, or returns anything but a tensor [T] with a gradient, or a
        value that is not finite for a token whose logprobs are.
        """
        import torch

        given: dict[str, Any] = {name: getattr(inputs, name) for name in TENSORS}
        given |= {"ratio_T": ratio_T, "settings": settings}
        size = len(ratio_T)
        try:
            loss_T = self._function(**{name: given[name] for name in self._parameters})
        except Exception as error:
            raise self._refused(size, self._said(error)) from error
        if not isinstance(loss_T, torch.Tensor):
            raise self._refused(size, f"a {type(loss_T).__name__}")
        if loss_T.shape != ratio_T.shape or not loss_T.is_floating_point():
            raise self._refused(size, f"a tensor {list(loss_T.shape)} of {loss_T.dtype}")
        if inputs.new_T.requires_grad and torch.is_grad_enabled() and not loss_T.requires_grad:
            raise self._refused(size, "a tensor without a gradient (detached, or not made of ratio_T or new_T)")
        # Where training has blown up, logprobs are not finite; train.guard is what judges that.
        bad_T = ~loss_T.isfinite() & (inputs.new_T - inputs.old_T).isfinite()
        if bad_T.any():
            place = int(bad_T.nonzero()[0])
            raise self._refused(size, f"{loss_T[place].item():g} for token {place}")
        return -engine_T * loss_T

    def _refused(self, size: int, found: str) -> DataError:
        wanted = f"a tensor [{size}] with a finite number for each token and a gradient"
        return DataError(self.where, f"the loss must give {wanted}, got {found}", _FIX)

    def _said(self, error: Exception) -> str:
        """The exception, and the last line of the file in its traceback."""
        lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == self._path]
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return f"{said} (line {lines[-1]})" if lines else said


def _module(path: Path) -> object:
    """The file as a module, run anew each time; no bytecode is written next to it."""
    name = f"dapo_stages_loss_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module

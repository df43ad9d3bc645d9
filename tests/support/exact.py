"""Computing in float64 where a model of transformers asks for float32: in norms and linear layers."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch


def keep_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of transformers narrows nothing in float64 to float32, also when gradient checkpointing computes it again.
    What the project's own code narrows stays to be seen."""
    to, single = torch.Tensor.to, torch.Tensor.float

    def asked(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        narrowed = any(one is torch.float32 for one in (*args, *kwargs.values()))
        return self if narrowed and _keeps(self) else to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", asked)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if _keeps(self) else single(self))


def _keeps(tensor: torch.Tensor) -> bool:
    """Whether a method of a float64 tensor was called by transformers."""
    caller = sys._getframe(2).f_globals["__name__"]
    return tensor.dtype == torch.float64 and caller.startswith("transformers.")

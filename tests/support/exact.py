"""Computing in float64 throughout, also where a model of transformers asks for float32: in norms and linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def keep_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in float64 is narrowed to float32, also when gradient checkpointing computes it again."""
    to, single = torch.Tensor.to, torch.Tensor.float

    def asked(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        narrowed = any(one is torch.float32 for one in (*args, *kwargs.values()))
        return self if narrowed and self.dtype == torch.float64 else to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", asked)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))

"""What all sections share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

LARGEST = 2**63 - 1  # of a whole number in Arrow and numpy
LARGEST_SEED = 2**64 - 1  # of torch's generators
LARGEST_FLOAT = 3.4028234663852886e38  # of float32, in which torch computes and rewards are stored
LONGEST = 2_000_000.0  # seconds that a socket can wait, 23 days


@dataclass(frozen=True)
class Later:
    """Marks a key that came after the first runs were recorded: `key: Annotated[int, Later(1)] = Field(1, ...)`.

    Manifests neither record nor hash it while it has `default`, the default it came with. So a run made before there
    was such a key goes on as if it had always been there. `default` stays even if the field's default changes.
    """

    default: Any


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="after")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        """Numbers end where those of what computes with them do."""
        largest = LARGEST_SEED if info.field_name == "seed" else LARGEST
        for number in _numbers(value):
            if abs(number) > (largest if isinstance(number, int) else LARGEST_FLOAT):
                raise ValueError(f"at most {largest if isinstance(number, int) else f'{LARGEST_FLOAT:.8g}'} either way")
        return value

    def recorded(self, exclude: Any = None) -> dict[str, Any]:
        """Plain values as manifests record them: without keys that came later and have the default they came with."""
        return self.model_dump(mode="json", exclude=exclude, context=_RECORDED)

    @classmethod
    def later(cls) -> dict[str, Any]:
        """The keys that came later, by name, and the default each came with; not those of sections inside."""
        marks = ((name, mark) for name, field in cls.model_fields.items() for mark in field.metadata)
        return {name: mark.default for name, mark in marks if isinstance(mark, Later)}

    @model_serializer(mode="wrap")
    def _serialized(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if info.context is not _RECORDED:
            return values
        usual = {name for name, default in self.later().items() if getattr(self, name) == default}
        return {name: value for name, value in values.items() if name not in usual}


def _numbers(value: Any) -> list[int | float]:
    """Those of a field: itself, or the values of a list or a mapping."""
    if isinstance(value, dict):
        value = list(value.values())
    return [
        found for found in (value if isinstance(value, list | tuple) else [value]) if isinstance(found, int | float)
    ]


_RECORDED = object()

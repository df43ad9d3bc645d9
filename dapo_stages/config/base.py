"""What all sections share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


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


_RECORDED = object()

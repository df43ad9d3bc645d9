"""What all sections share."""

from __future__ import annotations

import re
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
from pydantic_core import ErrorDetails, PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

LARGEST = 2**63 - 1  # integer in Arrow and numpy
LARGEST_SEED = 2**64 - 1  # seed of torch's generators
LARGEST_FLOAT = 3.4028234663852886e38  # float32, in which torch computes and rewards are stored
LONGEST = 2_000_000.0  # seconds that a socket can wait, about 23 days


@dataclass(frozen=True)
class Later:
    """Marks a setting added after runs had been recorded: `key: Annotated[int, Later(1)] = Field(1, ...)`.

    Manifests neither record nor hash it while its value is `default`, which is what runs before it did. So a run that
    is older than the setting continues as if it had always existed: its configuration, written with every setting,
    gets `default` when it is loaded. `default` stays even if the field's default is or becomes another; sections
    and tuples are given as plain values. Nor is it recorded while `only_with`, a setting of the same section without
    which it has no effect, is 0 or null.
    """

    default: Any
    only_with: str | None = None


@dataclass(frozen=True)
class RecordedAs:
    """Marks a setting some of whose values manifests record as others, because they give the same numbers: a run that
    was recorded before such a value was the default continues."""

    values: dict[str, str]


class Section(BaseModel):
    """Base of all sections: unknown settings are refused, values cannot change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="after")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse numbers that torch, numpy or Arrow cannot represent."""
        largest = LARGEST_SEED if info.field_name == "seed" else LARGEST
        for number in _numbers(value):
            if abs(number) > (largest if isinstance(number, int) else LARGEST_FLOAT):
                limit = largest if isinstance(number, int) else f"{LARGEST_FLOAT:.8g}"
                raise PydanticCustomError("out_of_range", f"Input should be between -{limit} and {limit}")
        return value

    def recorded(self, exclude: Any = None) -> dict[str, Any]:
        """Plain values as manifests record them: without later settings that still have their original default."""
        return self.model_dump(mode="json", exclude=exclude, context=_RECORDED)

    @classmethod
    def later(cls) -> dict[str, Any]:
        """The settings of this section (not of nested ones) marked `Later`, and the default of each mark."""
        return {name: mark.default for name, mark in cls.marks().items()}

    @classmethod
    def marks(cls) -> dict[str, Later]:
        """Their marks."""
        marks = ((name, mark) for name, field in cls.model_fields.items() for mark in field.metadata)
        return {name: mark for name, mark in marks if isinstance(mark, Later)}

    @model_serializer(mode="wrap")
    def _serialized(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if info.context is not _RECORDED:
            return values
        return {name: self._recorded(name, value) for name, value in values.items() if not self._is_usual(name)}

    def _recorded(self, name: str, value: Any) -> Any:
        marks = (mark for mark in type(self).model_fields[name].metadata if isinstance(mark, RecordedAs))
        return next((mark.values.get(value, value) for mark in marks), value)

    def _is_usual(self, name: str) -> bool:
        """Whether a setting came later, and is not recorded."""
        mark = self.marks().get(name)
        if mark is None:
            return False
        without_effect = mark.only_with is not None and not getattr(self, mark.only_with)
        return without_effect or _is(getattr(self, name), mark.default)


def _is(value: Any, default: Any) -> bool:
    if isinstance(value, Section) and isinstance(default, dict):
        default = type(value).model_validate(default)
    return bool((list(value) if isinstance(value, tuple) else value) == default)


def _numbers(value: Any) -> list[int | float]:
    """The numbers in a field: itself, or the values of a list or a mapping."""
    if isinstance(value, dict):
        value = list(value.values())
    values = value if isinstance(value, list | tuple) else [value]
    return [number for number in values if isinstance(number, int | float)]


def named_or_own(value: str, names: tuple[str, ...]) -> str:
    """One of `names`, or a function in a file of the user's. Raises ValueError otherwise."""
    if value not in names and not re.fullmatch(r".+\.py:\w+", value):
        raise ValueError(f"expected path/to/file.py:function or one of {', '.join(names)}, got {value!r}")
    return value


def complaint(error: ErrorDetails) -> str:
    """What follows the name of a setting that pydantic refused: ` must be less than 1`, `: clip must enclose 1`."""
    if error["type"] == "missing":
        return " is missing"
    said, changed = re.subn(r"^\w+ should ", " must ", error["msg"])
    return said if changed else f": {said.removeprefix(_OWN)}"


_OWN = "Value error, "  # how pydantic begins the text of a ValueError of ours
_RECORDED = object()

"""What a request's field is to this server: honoured, honoured in some modes, or refused; nothing is ignored."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from unmask.decoding.mode import ENGINE_MODES, Mode
from unmask.serving.errors import ServingError

REFUSED = "refused"
"""The type of the validation error for a field that no mode honours."""


@dataclass(frozen=True)
class Only:
    """Marks a field that some modes cannot honour; what asks for nothing (null, false, "") passes in every mode."""

    modes: tuple[Mode, ...]
    because: str

    def refuses(self, value: object, mode: Mode) -> bool:
        """Say whether a mode cannot honour a value."""
        return mode not in self.modes and value is not None and value is not False and value != ""


@dataclass(frozen=True)
class Refused:
    """Marks a field of OpenAI's API that no mode honours; null and `neutral` values, which ask for nothing, pass."""

    because: str
    neutral: tuple[bool | int | str | list[str], ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept the neutral values alone, compared with their types: 1 is not true."""

        def check(value: object) -> object:
            if value is None or any(type(value) is type(each) and value == each for each in self.neutral):
                return value
            raise PydanticCustomError(REFUSED, "not supported: {because}", {"because": self.because})

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [None, *self.neutral]}


def marks(info: FieldInfo) -> tuple[Only | Refused, ...]:
    """Return what a field is marked with."""
    return tuple(mark for mark in info.metadata if isinstance(mark, Only | Refused))


def honouring_modes(info: FieldInfo) -> tuple[Mode, ...]:
    """Return the modes that honour a field."""
    modes = ENGINE_MODES
    for mark in marks(info):
        allowed = mark.modes if isinstance(mark, Only) else ()
        modes = tuple(mode for mode in modes if mode in allowed)
    return modes


def refuse_by_mode(request: BaseModel, mode: Mode) -> None:
    """Raise ServingError naming the first field that is given and that the mode cannot honour."""
    for name, info in type(request).model_fields.items():
        value = getattr(request, name)
        for mark in marks(info):
            if isinstance(mark, Only) and mark.refuses(value, mode):
                raise ServingError(
                    400,
                    f"{name} is not supported in mode {mode!r}: {mark.because}; "
                    f"leave it out, or choose mode {' or '.join(map(repr, mark.modes))}",
                    param=name,
                    code="unsupported_in_mode",
                )

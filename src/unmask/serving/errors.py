"""Errors as OpenAI's clients expect them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.exceptions import HTTPException

from unmask.errors import UsageError


class ErrorDetail(BaseModel):
    """What is wrong; `param`: the field it is about. `code`: for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's envelope of an error."""

    error: ErrorDetail


class ServingError(HTTPException):
    """A request that ends without an answer, with the HTTP status and the words its client gets.

    An HTTPException, because FastAPI lets no other error of a body's reader through.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.message, self.param, self.code = _sendable(message), param and _sendable(param), code

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(
            error=ErrorDetail(message=self.message, type=self.kind, param=self.param, code=self.code)
        )

    @property
    def kind(self) -> str:
        """OpenAI's name for errors of this status."""
        match self.status_code:
            case 401:
                return "authentication_error"
            case 404:
                return "not_found_error"
            case 429:
                return "rate_limit_error"
            case status if status >= 500:
                return "server_error"
        return "invalid_request_error"

    @classmethod
    def of_usage(cls, error: UsageError, *, param: str | None = None) -> "ServingError":
        """Return what a refusal by the decoder or the engine is to a client."""
        remedy = "" if error.remedy is None else f" ({error.remedy})"
        return cls(400, error.message + remedy, param=param)

    @classmethod
    def of_validation(cls, errors: Sequence[Mapping[str, Any]]) -> "ServingError":
        """Return one of pydantic's complaints, with the field it is about: of a union's the one that came furthest."""
        first = max(errors, key=lambda error: len(error["loc"]))
        place = [str(part) for part in first["loc"] if part != "body" and not _is_type(part)]
        param = ".".join(place) or None
        match first["type"]:
            case "extra_forbidden":
                return cls(400, f"unknown field {param!r}", param=param, code="unknown_field")
            case "json_invalid":
                return cls(400, "the body is not JSON", code="invalid_json")
            case "refused":
                return cls(400, f"{param} is {first['msg']}", param=param, code="unsupported_field")
        message = str(first["msg"]).removeprefix("Value error, ")
        return cls(400, f"{param}: {message}" if param else message, param=param, code="invalid_value")


def _sendable(text: str) -> str:
    """Return text that has a UTF-8 form: a client's half of a surrogate pair has none."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_type(part: int | str) -> bool:
    """Say whether a step of pydantic's path is the name of a type in a union, not that of a field."""
    return (isinstance(part, str) and not part.isidentifier()) or part in ("str", "int", "bool", "float")


class ClientGoneError(Exception):
    """The client closed the connection before its answer was whole."""

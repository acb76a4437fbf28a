"""Forced calls of functions: how a model is told of them, held to them, and read."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.decoding.constraint import Constraint
from unmask.serving.messages import Function, ToolCall

_HEAD = re.compile(r'\{"name": "([\w-]+)", "arguments": ')


def call_constraint(functions: Sequence[Function]) -> Constraint:
    """Return what holds an answer to a call of one of some functions, spelled as `Call` reads it."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each.name}, "arguments": _parameters(each)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for each in functions
    ]
    return Constraint("json_schema", json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls}))


def instructions(functions: Sequence[Function]) -> str:
    """Return the system message that tells a model which functions there are."""
    described = [
        {"name": each.name, "description": each.description or "", "parameters": _parameters(each)}
        for each in functions
    ]
    lines = "\n".join(json.dumps(each, ensure_ascii=False) for each in described)
    return (
        "Answer with a call of one of these functions, as JSON "
        f'{{"name": "...", "arguments": {{...}}}}:\n{lines}'
    )


def spelled(call: ToolCall) -> str:
    """Return a call of an earlier answer as the model wrote it."""
    return f'{{"name": "{call.function.name}", "arguments": {call.function.arguments}}}'


def _parameters(function: Function) -> dict[str, object]:
    return function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class CallPiece:
    """What comes to a call: its function's `name`, once, and some text of its arguments."""

    name: str | None
    arguments: str


class Call:
    """A call while it is written, as text that grows."""

    def __init__(self) -> None:
        self._text = ""
        self._begin: int | None = None
        self._num_told = 0

    def push(self, text: str) -> CallPiece | None:
        """Return what some more text says of the call; the last character waits, it may be the one that closes it."""
        self._text += text
        return self._tell(max(0, len(self._text) - 1))

    def finish(self, *, is_whole: bool) -> CallPiece | None:
        """Return what is left; a call that was cut off has no end that is not its arguments'."""
        return None if is_whole else self._tell(len(self._text))

    def _tell(self, end: int) -> CallPiece | None:
        name = None
        if self._begin is None:
            if (head := _HEAD.match(self._text)) is None:
                return None
            name, self._begin = head[1], head.end()
            self._num_told = self._begin
        piece = self._text[self._num_told : end]
        self._num_told = max(self._num_told, end)
        return CallPiece(name, piece) if name or piece else None

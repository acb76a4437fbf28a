"""A file of requests, one JSON object a line, and the file of their answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from unmask.errors import FailureError, UsageError

if TYPE_CHECKING:
    from unmask.decoding.constraint import Constraint, ConstraintKind


_CONSTRAINTS = {"json_schema", "regex", "grammar"}


class Settings(BaseModel):
    """Decoding options under the names of the command line; `None` means not given.

    A constraint is given as it is, not as a file.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    mode: str | None = None
    rule: str | None = None
    block_length: int | None = None
    num_steps: int | None = None
    tree_size: int | None = None
    num_predrafts: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    logit_bias: list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_token: list[int] | None = None
    ignore_stop_tokens: bool | None = None

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults with what is given here in their place.

        A line that sets a mode of its own does not inherit what belongs to the mode: rule, block length, steps,
        tree, pre-drafts, log-probabilities. Nor does one that gives stop tokens, or a constraint, inherit others.
        """
        names = set(Settings.model_fields) - _CONSTRAINTS
        given = self.model_dump(include=names, exclude_none=True)
        if (constraint := self._constraint()) is not None:
            given["constraint"] = constraint
        dropped: set[str] = set()
        if given.get("mode", defaults["mode"]) != defaults["mode"]:
            dropped |= {"rule", "block_length", "num_steps", "tree_size", "num_predrafts", "logprobs"}
        if given.keys() & {"stop_token", "ignore_stop_tokens"}:
            dropped |= {"stop_token", "ignore_stop_tokens"}
        return {name: value for name, value in defaults.items() if name not in dropped} | given

    def _constraint(self) -> "Constraint | None":
        from unmask.decoding.constraint import Constraint

        texts: dict[ConstraintKind, str | None] = {
            "json_schema": None if self.json_schema is None else json.dumps(self.json_schema),
            "regex": self.regex,
            "grammar": self.grammar,
        }
        given = [Constraint(kind, text) for kind, text in texts.items() if text is not None]
        if len(given) > 1:
            names = " and ".join(constraint.kind for constraint in given)
            raise UsageError(f"{names} were given", "a text can have one constraint; choose")
        return given[0] if given else None


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


class Entry(Settings):
    """One line: a `prompt` or `messages`, and whatever it wants to be different from the command line."""

    id: str | int | None = None
    prompt: str | None = None
    messages: list[Message] | None = None


def read_entries(path: Path) -> list[tuple[int, Entry]]:
    """Return the file's requests with their line numbers, from 1; empty lines do not count.

    Raises FailureError when the file cannot be read, and UsageError, naming the line, for a line that is no request.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise FailureError(f"cannot read {path}: {error.strerror}", "check the file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: byte {error.start} is wrong") from error
    entries = [(number, _entry(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise UsageError(
            f"{path} has no requests", 'write one a line, like {"prompt": "Why is the sky blue?"}'
        )
    return entries


def _entry(path: Path, number: int, line: str) -> Entry:
    try:
        entry = Entry.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}, line {number}: {place + ': ' if place else ''}{first['msg']}") from error
    if (entry.prompt is None) == (entry.messages is None):
        raise UsageError(f"{path}, line {number}: give either a prompt or messages")
    return entry


@dataclass
class AnswerFile:
    """Finished requests, appended one JSON line each; what an earlier run wrote there is kept.

    `digests`: by line of the request, what was answered there before. A line cut off when a run died does not count.
    """

    path: Path
    digests: dict[int, str] = field(default_factory=dict)
    _file: TextIO | None = None

    def __enter__(self) -> "AnswerFile":
        try:
            if self.path.exists():
                self._recover()
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise FailureError(f"cannot write {self.path}: {error.strerror}", "check --out") from error
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._file is not None
        self._file.close()

    def has(self, line: int, digest: str) -> bool:
        """Say whether the request of this line is answered; raises UsageError when another one was answered there."""
        known = self.digests.get(line)
        if known is not None and known != digest:
            raise UsageError(
                f"{self.path}: line {line} was answered for another request, with other settings or other weights",
                "give another --out, or remove the file",
            )
        return known is not None

    def append(self, line: int, digest: str, record: Mapping[str, object]) -> None:
        """Write an answer, so that it is there whatever happens next."""
        assert self._file is not None
        whole = {"line": line, "digest": digest, **record}
        self._file.write(json.dumps(whole, ensure_ascii=False) + "\n")
        self._file.flush()
        self.digests[line] = digest

    def _recover(self) -> None:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:end].splitlines(), 1):
            try:
                record = json.loads(line)
                self.digests[int(record["line"])] = str(record["digest"])
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{self.path}, line {number}: no answer that this command wrote", "give another --out"
                ) from error
        if end < len(data):
            with self.path.open("r+b") as file:
                file.truncate(end)

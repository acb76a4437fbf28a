"""Chat templates, and messages that cannot break out of them."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unmask.errors import CheckpointError, UsageError

ROLES = ("system", "user", "assistant", "tool", "developer")

Message = Mapping[str, str]
"""A ``role`` and a ``content``."""

PRIVATE_USE = range(0xF0000, 0xFFFFE)
"""Characters that no text has a meaning for."""


def template_in(settings: Mapping[str, Any]) -> str | None:
    """Return the chat template in tokenizer_config.json: one text, or the one called "default" of a list."""
    stored = settings.get("chat_template")
    if isinstance(stored, list):
        stored = next((entry["template"] for entry in stored if entry.get("name") == "default"), None)
    return stored if isinstance(stored, str) else None


def check_messages(messages: Sequence[Message]) -> None:
    """Raise UsageError for what no chat template takes."""
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UsageError(f"message {index} has role {role!r}", f"choose from {', '.join(ROLES)}")
        if not all(isinstance(value, str) for value in message.values()) or content is None:
            raise UsageError(
                f"message {index} must have a 'content', and text only", "no images or tools yet"
            )


class Disguise:
    """A reversible spelling of user text in which no special token can be found, whatever a template adds to it.

    Of every special token's text in a message the first character is replaced by one that no message contains.
    So it is at the end of a message, where the beginning of one stands that what follows there could complete.
    All other text is unchanged, so that templates which look into their messages work as ever.
    """

    def __init__(self, specials: Sequence[str], messages: Sequence[Message]) -> None:
        used = {character for message in messages for text in message.values() for character in text}
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in used)
        self._masks = {first: next(free) for first in sorted({special[0] for special in specials})}
        self._faces = str.maketrans({mask: first for first, mask in self._masks.items()})
        begun = {special[:length] for special in specials for length in range(1, len(special))}
        whole, part = (
            "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
            for texts in (specials, begun)
        )
        self._pattern = re.compile(rf"{whole}|(?:{part})(?=\s*\Z)")

    def put_on(self, text: str) -> str:
        """Return `text` with the special tokens in it out of sight."""
        if not self._masks:
            return text
        before = None
        while text != before:  # tokens that overlap show one after the other
            before, text = (
                text,
                self._pattern.sub(lambda found: self._masks[found[0][0]] + found[0][1:], text),
            )
        return text

    def take_off(self, text: str) -> str:
        """Return what `put_on` was given."""
        return text.translate(self._faces)


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; what it encloses is rendered as ever."""

    tags = {"generation"}  # noqa: RUF012, jinja2's own interface

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_template(template: str, values: Mapping[str, object]) -> str:
    """Run a chat template in a sandbox, with the helpers the hub's templates use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:
        return environment.from_string(template).render(values)
    except TemplateSyntaxError as error:
        raise CheckpointError(
            f"the chat template is broken in line {error.lineno}: {error.message}"
        ) from error
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the chat template does not take this conversation: {error}") from error


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja2's own filter would escape for HTML


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)

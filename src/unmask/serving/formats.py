"""What an answer may have to be, as a whole."""

from typing import Annotated, Any, Literal

from pydantic import Field

from unmask.serving.body import Body, Name, Word
from unmask.serving.fields import Refused


class PlainText(Body):
    """Any text."""

    type: Literal["text"]


class JsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema. `strict`: the answer always keeps to it exactly, so either value holds."""

    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    description: Annotated[Any, Refused("the model does not see it; write it into the prompt")] = None


class JsonSchema(Body):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Regex(Body):
    """A match of a whole regular expression, in the syntax of Rust's crate regex."""

    type: Literal["regex"]
    pattern: Word


class Grammar(Body):
    """A text of a context-free grammar, in the syntax of Lark."""

    type: Literal["grammar"]
    grammar: Word


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema | Regex | Grammar, Field(discriminator="type")]

"""Messages of a conversation, and the functions that an answer may call."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unmask.serving.body import Body, Name, Text, Word
from unmask.serving.fields import Refused


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


class CalledFunction(Body):
    """A function and the arguments of a call, as JSON text."""

    name: Name
    arguments: Text


class ToolCall(Body):
    """A call in an earlier answer."""

    id: Word
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Body):
    """A message of a conversation; a tool's answers a call of an earlier message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = Field(None, min_length=1)
    tool_call_id: Text | None = None
    name: Annotated[Any, Refused("chat templates have no place for it")] = None
    refusal: Annotated[Any, Refused("this server's models write no refusals")] = None
    audio: Annotated[Any, Refused("this server's models know text only")] = None
    annotations: Annotated[Any, Refused("this server's models know text only", ([],))] = None
    function_call: Annotated[Any, Refused("it is the predecessor of tool_calls")] = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> "ChatMessage":
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only the assistant has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message of role 'tool' has a tool_call_id, and no other has one")
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is missing")
        return self


class Function(Body):
    """A function that an answer may call. `strict`: calls always keep to the parameters, so either value holds."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function, wrapped as OpenAI does."""

    type: Literal["function"]
    function: Function


class ChosenName(Body):
    """The name of a function."""

    name: Name


class ChosenFunction(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: ChosenName

"""Write docs/serving-fields.md from the protocol; a test fails when the page is out of date.

make docs
"""

from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unmask.decoding.mode import ENGINE_MODES
from unmask.serving.fields import Refused, honouring_modes, marks
from unmask.serving.messages import ChatMessage
from unmask.serving.protocol import ChatRequest, CompletionRequest, ScoreRequest, StreamOptions

PAGE = Path(__file__).with_name("serving-fields.md")

HEAD = """\
# Fields of the API

Written by `make docs` from the protocol. A field is honoured (●), or its request is refused with status 400 and the
field's name (○), except for values that ask for nothing: null, and those named. Unknown fields are refused too.
"""

ROUTES: dict[str, type[BaseModel]] = {
    "POST /v1/completions": CompletionRequest,
    "POST /v1/chat/completions": ChatRequest,
    "A message of a chat": ChatMessage,
    "`stream_options`": StreamOptions,
    "POST /v1/score": ScoreRequest,
}


def page() -> str:
    """Return the page as it should be."""
    return HEAD + "".join(section(name, request) for name, request in ROUTES.items())


def section(name: str, request: type[BaseModel]) -> str:
    """Return one request's part of the page."""
    lines = ["", f"## {name}", "", f"| field | {' | '.join(ENGINE_MODES)} | |"]
    lines.append("| --- |" + " :-: |" * len(ENGINE_MODES) + " --- |")
    lines += [row(field, info) for field, info in request.model_fields.items()]
    return "\n".join(lines) + "\n"


def row(name: str, info: FieldInfo) -> str:
    """Return one field's line of the table."""
    honoured = honouring_modes(info)
    signs = " | ".join("●" if mode in honoured else "○" for mode in ENGINE_MODES)
    return f"| `{name}` | {signs} | {remark(info)} |"


def remark(info: FieldInfo) -> str:
    """Return what there is to say of a field: what it does, and why some modes refuse it."""
    parts = [info.description] if info.description else []
    for mark in marks(info):
        parts.append(f"{mark.because[0].upper()}{mark.because[1:]}.")
        if isinstance(mark, Refused) and mark.neutral:
            parts.append(f"Passes: {', '.join(f'`{value}`' for value in mark.neutral)}.")
    if info.default not in (None, ...) and not info.is_required():
        parts.append(f"Default `{info.default}`.")
    return " ".join(parts).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

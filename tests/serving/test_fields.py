"""Every field is honoured or refused, and the table in the docs says which."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats
from served import Served

from unmask.decoding.mode import ENGINE_MODES
from unmask.serving.fields import Refused, honouring_modes, marks
from unmask.serving.protocol import ChatRequest, CompletionRequest

ROOT = Path(__file__).parents[2]

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False}
SAMPLES: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 2,
    "seed": 1,
    "stop": ["x"],
    "stream": True,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "logit_bias": {"5": -3},
    "response_format": {"type": "json_object"},
    "user": "me",
    "mode": "ar",
    "rule": "top-k:2",
    "block_length": 2,
    "num_steps": 2,
    "tree_size": 4,
    "num_predrafts": 1,
    "top_k": 3,
    "min_p": 0.1,
    "stop_token_ids": [3],
    "model": "tiny",
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "echo": True,
    "suffix": "xyz",
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "tool_choice": "required",
    "parallel_tool_calls": True,
    "safety_identifier": "me",
}
"""A value that asks for something, for every field that some mode honours and that stands alone."""

TOGETHER: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "tools": {"tool_choice": "required"},
    "tool_choice": {"tools": SAMPLES["tools"]},
    "parallel_tool_calls": {},
}
STREAMED = {"stream_options": {"include_usage": True}, "stream_canvas": True}

ROUTES: dict[str, tuple[type[CompletionRequest | ChatRequest], dict[str, Any]]] = {
    "/v1/completions": (CompletionRequest, {"prompt": "a", "max_tokens": 2}),
    "/v1/chat/completions": (
        ChatRequest,
        {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    ),
}


def cases() -> list[Any]:
    return [
        pytest.param(path, name, mode, id=f"{path.split('/')[-2]}-{name}-{mode}")
        for path, (request, needed) in ROUTES.items()
        for name in request.model_fields
        if name not in needed or name == "max_tokens"
        for mode in ENGINE_MODES
    ]


@pytest.mark.parametrize(("path", "name", "mode"), cases())
def test_a_field_is_honoured_in_the_modes_that_say_so(
    served: Served, path: str, name: str, mode: str
) -> None:
    request, needed = ROUTES[path]
    info = request.model_fields[name]
    refused = any(isinstance(mark, Refused) for mark in marks(info))
    if name in STREAMED:
        sample, together = STREAMED[name], {"stream": True}
    else:
        sample, together = (["anything"] if refused else SAMPLES[name]), TOGETHER.get(name, {})
    if name == "logprobs" and path == "/v1/completions":
        sample = 2
    body = needed | together | {"mode": mode, name: mode if name == "mode" else sample}
    if name == "max_completion_tokens":
        del body["max_tokens"]
    answer = served.post(path, **body)
    if mode in honouring_modes(info):
        assert answer.status_code == 200, answer.text
    else:
        assert answer.status_code == 400
        message, param = answer.json()["error"]["message"], answer.json()["error"]["param"]
        assert any(each in message for each in (name, *together))
        assert refused or f"in mode {mode!r}" in message
        assert param in (name, *together)


@pytest.mark.parametrize(
    ("request_type", "official"),
    [
        (CompletionRequest, completions.CompletionCreateParamsBase),
        (ChatRequest, chats.CompletionCreateParamsBase),
    ],
)
def test_every_field_of_the_official_client_is_known(request_type: Any, official: Any) -> None:
    assert set(official.__annotations__) | {"stream"} <= set(request_type.model_fields)


def test_marks_give_reasons() -> None:
    for request, _ in ROUTES.values():
        for info in request.model_fields.values():
            for mark in marks(info):
                assert mark.because
                assert isinstance(mark, Refused) or set(mark.modes) < set(ENGINE_MODES)


def table_maker() -> ModuleType:
    path = ROOT / "docs" / "make_serving_page.py"
    spec = importlib.util.spec_from_file_location("make_serving_page", path)
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


def test_the_table_of_fields_is_up_to_date() -> None:
    page = (ROOT / "docs" / "serving-fields.md").read_text(encoding="utf-8")
    assert page == table_maker().page(), "run `make docs`"

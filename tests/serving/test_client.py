"""The official client, unchanged: what it is answered is what the decoder writes by itself."""

import json
from typing import Any

import openai
import pytest
from served import Served

from unmask.decoding.language_model import LanguageModel
from unmask.decoding.mode import MODES, Mode
from unmask.decoding.options import Options

MESSAGES: Any = [{"role": "user", "content": "Why is the sky blue?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Łódź"]}, "is_big": {"type": "boolean"}},
    "required": ["city", "is_big"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "find", "parameters": SCHEMA}}]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}


def offline(model: LanguageModel, prompt: Any, *, raw: bool = False, **options: Any) -> Any:
    *_, generation = model.stream(prompt, Options(**options), raw=raw)
    return generation


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_completion_is_what_the_decoder_writes(
    served: Served, model: LanguageModel, mode: Mode, temperature: float
) -> None:
    shaping: dict[str, Any] = {"temperature": temperature, "top_p": 0.9, "seed": 3, "max_tokens": 12}
    answer = served.client.completions.create(
        model="tiny", prompt="abc", **shaping, extra_body={"mode": mode}
    )
    truth = offline(model, "abc", raw=True, mode=mode, **shaping)
    (choice,) = answer.choices
    assert choice.text == truth.text
    assert choice.finish_reason == truth.finish_reason
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, truth.num_tokens)
    assert choice.model_extra is not None
    assert choice.model_extra["unmask"]["num_forwards"] == truth.num_forwards


def test_drafts_are_trees_where_they_are_asked_for(served: Served, model: LanguageModel) -> None:
    drafting = {"tree_size": 6, "num_predrafts": 2}
    answer = served.client.completions.create(
        model="tiny",
        prompt="abc",
        seed=3,
        max_tokens=12,
        extra_body={"mode": "speculative", "block_length": 3, **drafting},
    )
    truth = offline(
        model,
        "abc",
        raw=True,
        mode="speculative",
        seed=3,
        max_tokens=12,
        temperature=1.0,
        block_length=3,
        **drafting,
    )
    (choice,) = answer.choices
    assert choice.text == truth.text
    assert choice.model_extra is not None
    assert choice.model_extra["unmask"]["num_forwards"] == truth.num_forwards


@pytest.mark.parametrize("mode", ["diffusion", "speculative"])
def test_a_streamed_chat_is_what_the_decoder_writes(served: Served, model: LanguageModel, mode: Mode) -> None:
    stream = served.client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        seed=5,
        max_completion_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"mode": mode, "block_length": 3},
    )
    *chunks, counts = list(stream)
    truth = offline(model, MESSAGES, mode=mode, block_length=3, temperature=1.0, seed=5, max_tokens=20)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == truth.text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [
        "length"
    ]
    assert counts.usage is not None
    assert counts.usage.completion_tokens == truth.num_tokens
    assert counts.choices == []


def test_frames_of_a_canvas_come_with_the_chunks(served: Served) -> None:
    stream = served.client.completions.create(
        model="tiny",
        prompt="abc",
        seed=1,
        max_tokens=9,
        stream=True,
        extra_body={"mode": "diffusion", "block_length": 4, "stream_canvas": True},
    )
    extras = [(chunk.choices[0].model_extra or {})["unmask"] for chunk in stream]
    frames = [extra for extra in extras if extra and "canvas" in extra]
    assert [frame["forward"] for frame in frames] == list(range(len(frames)))
    assert any(None in frame["canvas"] for frame in frames)
    assert sum(len(frame["decided"]) for frame in frames) == 9


def test_a_hole_is_filled_as_the_decoder_does(served: Served, model: LanguageModel) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "prompt": "abc", "suffix": " xyz", "max_tokens": 6, "seed": 4}
    answer = served.client.completions.create(**wanted, temperature=0, extra_body={"mode": "diffusion"})
    truth = model.fill("abc", " xyz", length=6, seed=4)
    assert answer.choices[0].text == truth.text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    extra = {"mode": "diffusion", "stream_canvas": True}
    chunks = list(served.client.completions.create(**wanted, temperature=0, stream=True, extra_body=extra))
    assert "".join(chunk.choices[0].text for chunk in chunks) == truth.text
    frames = [(chunk.choices[0].model_extra or {})["unmask"] for chunk in chunks]
    lengths = [len(frame["canvas"]) for frame in frames if frame and "canvas" in frame]
    assert lengths == [0, *[6] * 6]  # the first is the prefill
    with pytest.raises(openai.BadRequestError, match="suffix without max_tokens"):
        served.client.completions.create(**wanted | {"max_tokens": None})


def test_answers_differ_by_their_seeds(served: Served, model: LanguageModel) -> None:
    answer = served.client.completions.create(
        model="tiny", prompt=["abc", "x"], n=3, seed=7, max_tokens=8, echo=True
    )
    truth = [
        prompt + offline(model, prompt, raw=True, temperature=1.0, seed=seed, max_tokens=8).text
        for prompt in ("abc", "x")
        for seed in (7, 8, 9)
    ]
    assert [choice.text for choice in answer.choices] == truth
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4


def test_a_stop_text_ends_the_answer_and_is_never_streamed(served: Served, model: LanguageModel) -> None:
    whole = offline(model, "abc", raw=True, temperature=1.0, seed=2, max_tokens=30).text
    stop = whole[6:8]
    wanted: dict[str, Any] = {"model": "tiny", "prompt": "abc", "seed": 2, "max_tokens": 30, "stop": [stop]}
    answer = served.client.completions.create(**wanted)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == whole[: whole.index(stop)]
    chunks = list(served.client.completions.create(**wanted, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_logprobs_fit_the_text(served: Served, model: LanguageModel) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 1, "max_tokens": 8}
    wanted |= {"logprobs": True, "top_logprobs": 3}
    answer = served.client.chat.completions.create(**wanted)
    truth = offline(model, MESSAGES, temperature=1.0, seed=1, max_tokens=8, num_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [each.logprob for each in logprobs.content] == [each.logprob for each in truth.logprobs]
    assert all(len(each.top_logprobs) == 3 for each in logprobs.content)
    chunks = list(served.client.chat.completions.create(**wanted, stream=True))
    streamed = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs is not None]
    assert [each for some in streamed for each in some.content or ()] == logprobs.content
    plain = served.client.completions.create(model="tiny", prompt="a", seed=1, max_tokens=4, logprobs=2)
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.token_logprobs is not None
    assert len(plain.choices[0].logprobs.token_logprobs) == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_json_schema_is_kept_to(served: Served, mode: Mode) -> None:
    answer = served.client.chat.completions.create(
        model="tiny", messages=MESSAGES, seed=1, response_format=FORMAT, extra_body={"mode": mode}
    )
    content = json.loads(answer.choices[0].message.content or "")
    assert content["city"] in ("Paris", "Łódź")
    assert isinstance(content["is_big"], bool)


def test_a_forced_call_is_a_call(served: Served) -> None:
    wanted: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "seed": 1, "tools": TOOLS}
    wanted["tool_choice"] = {"type": "function", "function": {"name": "find"}}
    (choice,) = served.client.chat.completions.create(**wanted).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    call: Any = (choice.message.tool_calls or [None])[0]
    assert call.function.name == "find"
    assert set(json.loads(call.function.arguments)) == {"city", "is_big"}
    chunks = list(served.client.chat.completions.create(**wanted, stream=True))
    deltas = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or ()]
    functions = [delta.function for delta in deltas if delta.function is not None]
    assert "".join(function.arguments or "" for function in functions) == call.function.arguments
    assert [function.name for function in functions if function.name] == ["find"]
    answered = [
        *MESSAGES,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "found"},
    ]
    following = served.client.chat.completions.create(model="tiny", messages=answered, max_tokens=2)
    assert following.choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize(
    ("wanted", "param", "words"),
    [
        ({"best_of": 3}, "best_of", "not ranked"),
        ({"extra_body": {"beam_width": 3}}, "beam_width", "unknown field"),
        ({"extra_body": {"mode": "ar", "block_length": 4}}, "block_length", "in mode 'ar'"),
        ({"logprobs": 2, "extra_body": {"mode": "diffusion"}}, "logprobs", "in mode 'diffusion'"),
        ({"extra_body": {"mode": "diffusion", "rule": "magic"}}, "rule", "unknown rule"),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
        ({"n": 9}, "n", "at most 8"),
        ({"max_tokens": 99_999}, "max_tokens", "holds 4096"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"logit_bias": {"999": 1}}, None, "999"),
        ({"extra_body": {"response_format": {"type": "regex", "pattern": "("}}}, "response_format", "regex"),
        ({"stop": "a", "extra_body": {"response_format": {"type": "json_object"}}}, None, "stop"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    served: Served, wanted: dict[str, Any], param: str | None, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        served.client.completions.create(model="tiny", prompt="a", **wanted)
    assert refused.value.param == param


def test_other_models_and_embeddings_are_refused_by_name(served: Served) -> None:
    client = served.client
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'gpt'"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="embeddings are not supported"):
        client.embeddings.create(model="tiny", input="a")
    with pytest.raises(openai.NotFoundError, match="/v1/responses"):
        client.responses.create(model="tiny", input="a")
